"""A model of the Hub whose tokenizer is not in the cache yet."""

from huggingface_hub import HfApi, hf_hub_download

from smallm_hf.pretrained import load_causal_lm


def test_a_tokenizer_that_the_cache_lacks_is_fetched_not_made_up(hub, run):
    api = HfApi()
    api.create_repo("user/half")
    api.upload_folder(repo_id="user/half", folder_path=run / "best")
    for name in ("config.json", "model.safetensors"):
        hf_hub_download("user/half", name)
    _, tokenizer = load_causal_lm("user/half", device="cpu")
    assert len(tokenizer) == 280
