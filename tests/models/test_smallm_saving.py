import json

import pytest
import safetensors.torch
import tokenizers
import torch
import transformers
from outsider import asked_outside
from smallm_kinds import KINDS, make_model
from transformers import AutoModel, AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, GPT2Model

from smallm_hf import SmaLLMConfig, SmaLLMForCausalLM, SmaLLMModel
from smallm_hf.models import modeling_smallm

ROADS = {
    "flagless": lambda folder: AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True),
    "remote": lambda folder: AutoModelForCausalLM.from_pretrained(
        folder, trust_remote_code=True, output_loading_info=True
    ),
    "ours": lambda folder: SmaLLMForCausalLM.from_pretrained(folder, output_loading_info=True),
}
EXPRESSIBLE = [kind for kind, (_, native) in KINDS.items() if native is not None]


def load(folder, road: str):
    """The model as loaded by one of the three roads; every weight was found, and no other."""
    model, info = ROADS[road](folder)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model.eval()


def class_of(model) -> str:
    return f"{type(model).__module__.split('.')[0]}.{type(model).__name__}"


def expected_class(kind: str, road: str) -> str:
    native = KINDS[kind][1]
    if road == "ours" or native is None:  # of model type `smallm` the installed class wins, also over the folder's copy
        return "smallm_hf.SmaLLMForCausalLM"
    return "transformers_modules.SmaLLMForCausalLM" if road == "remote" else f"transformers.{native}"


@pytest.mark.parametrize("road", ROADS)
def test_a_saved_folder_loads_by_each_road_with_equal_logits(kind, model, road, tokens, tmp_path):
    model.save_pretrained(tmp_path)
    loaded = load(tmp_path, road)
    assert class_of(loaded) == expected_class(kind, road)
    assert (loaded(tokens).logits - model(tokens).logits).abs().max() < 1e-5


@pytest.mark.parametrize("resaved_by", ROADS)
def test_a_folder_saved_again_by_each_class_still_loads(kind, model, resaved_by, tokens, tmp_path):
    model.save_pretrained(tmp_path / "first")
    load(tmp_path / "first", resaved_by).save_pretrained(tmp_path / "second")
    # A native class keeps `auto_map` and leaves our files behind, so that the flag finds nothing there ...
    resaved_by_native = resaved_by == "flagless" and KINDS[kind][1] is not None
    for road in ["flagless", "ours"] if resaved_by_native else ROADS:
        loaded = load(tmp_path / "second", road)
        assert class_of(loaded) == expected_class(kind, road)
        assert (loaded(tokens).logits - model(tokens).logits).abs().max() < 1e-5
    # ... until our class saves it once more.
    load(tmp_path / "second", "ours").save_pretrained(tmp_path / "third")
    loaded = load(tmp_path / "third", "remote")
    assert class_of(loaded) == expected_class(kind, "remote")
    assert (loaded(tokens).logits - model(tokens).logits).abs().max() < 1e-5


QUESTION = """
tokens = torch.tensor([[5, 9, 33, 12]])
remote = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
report[kind] = {"remote": [type(remote).__name__, remote(tokens).logits.flatten().tolist()]}
length = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}
report[kind]["written"] = [remote.generate(tokens, **length, use_cache=use).tolist() for use in (True, False)]
if kind != "classic-rms":
    generator = pipeline("text-generation", model=folder)
    native = generator.model
    text = generator("w5 w9", max_new_tokens=4, do_sample=False)[0]["generated_text"]
    report[kind]["native"] = [type(native).__name__, native(tokens).logits.flatten().tolist(), text]
"""


def test_where_our_package_is_not_installed_pipeline_and_remote_code_work(tmp_path):
    vocabulary = {f"w{index}": index for index in range(64)}
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="w1"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    models = {kind: make_model(kind) for kind in ("modern", "llama", "classic", "classic-rms")}
    for kind, model in models.items():
        model.save_pretrained(tmp_path / kind)
        transformers.PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(tmp_path / kind)
    report = asked_outside(QUESTION, tmp_path, models)
    for kind, model in models.items():
        logits = model(torch.tensor([[5, 9, 33, 12]])).logits.flatten()
        cached, uncached = report[kind].pop("written")
        assert cached == uncached
        for road, (name, found, *_) in report[kind].items():
            assert name == (KINDS[kind][1] if road == "native" else "SmaLLMForCausalLM")
            assert (torch.tensor(found) - logits).abs().max() < 1e-5
    assert report["modern"]["native"][2].startswith("w5 w9")


@pytest.mark.parametrize("base", [False, True])
def test_the_weights_of_a_folder_are_copied_into_a_model_that_is_there_already(kind, base, tmp_path):
    model, other = make_model(kind), make_model(kind, initializer_range=0.5)
    (model.model if base else model).save_pretrained(tmp_path)
    weights = safetensors.torch.load_file(tmp_path / "model.safetensors")
    found = (other.model if base else other).load_state_dict(weights, strict=False)
    tied = [] if base or not model.config.tie_word_embeddings else ["lm_head.weight"]
    assert (found.unexpected_keys, found.missing_keys) in (([], []), ([], tied))
    for (name, copied), weight in zip(other.model.named_parameters(), model.model.parameters(), strict=True):
        assert torch.equal(copied, weight), name


def test_weights_in_gpt2s_layout_that_are_missing_or_foreign_are_named(tmp_path):
    model = make_model("classic-untied-relu")
    model.save_pretrained(tmp_path)
    weights = safetensors.torch.load_file(tmp_path / "model.safetensors")
    weights["foreign.weight"] = weights.pop("transformer.h.1.mlp.c_fc.weight")
    found = model.load_state_dict(weights, strict=False)
    assert found.missing_keys == ["model.layers.1.mlp.up_proj.weight"]
    assert found.unexpected_keys == ["foreign.weight"]
    with pytest.raises(RuntimeError, match=r"model\.layers\.1\.mlp\.up_proj\.weight"):
        model.load_state_dict(weights)


# What lies in the folder


def test_a_folder_holds_the_native_config_our_code_and_nothing_else(tmp_path):
    make_model("modern").save_pretrained(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {
        "config.json",
        "configuration_smallm.py",
        "generation_config.json",
        "model.safetensors",
        "modeling_smallm.py",
    }
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["model_type"], config["architectures"], config["dtype"]) == (
        "qwen3",
        ["Qwen3ForCausalLM"],
        "float32",
    )
    assert config["auto_map"] == modeling_smallm.AUTO_MAP
    generation = json.loads((tmp_path / "generation_config.json").read_text())
    assert (generation["bos_token_id"], generation["eos_token_id"], generation["pad_token_id"]) == (1, 2, 0)


@pytest.mark.parametrize("kind", ["classic", "classic-untied-relu"])
def test_a_classic_folder_has_gpt2s_own_names_and_shapes(kind, tmp_path):
    model = make_model(kind)
    model.save_pretrained(tmp_path / "ours")
    config = GPT2Config.from_pretrained(tmp_path / "ours")
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "theirs")
    shapes = {}
    for folder in ("ours", "theirs"):
        weights = safetensors.torch.load_file(tmp_path / folder / "model.safetensors")
        shapes[folder] = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    assert shapes["ours"] == shapes["theirs"]
    assert json.loads((tmp_path / "ours" / "config.json").read_text())["n_ctx"] == 32


def test_classic_weights_that_came_in_our_own_layout_are_saved_in_gpt2s(tokens, tmp_path):
    model = make_model("classic")
    same = SmaLLMForCausalLM.from_pretrained(None, config=model.config, state_dict=model.state_dict())
    same.save_pretrained(tmp_path)
    assert (load(tmp_path, "flagless")(tokens).logits - model(tokens).logits).abs().max() < 1e-5


@pytest.mark.parametrize("base", [False, True])
def test_a_gpt2_that_we_did_not_write_loads_as_our_class(base, tokens, tmp_path):
    torch.manual_seed(0)
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=32)).eval()
    (gpt2.transformer if base else gpt2).save_pretrained(tmp_path)  # the base model's file has no "transformer."
    assert (load(tmp_path, "ours")(tokens).logits - gpt2(tokens).logits).abs().max() < 1e-5


@pytest.mark.parametrize("kind", ["modern", "classic", "classic-rms"])
def test_the_model_without_a_head_is_saved_and_loaded_alike(kind, tokens, tmp_path):
    model = make_model(kind).model
    model.save_pretrained(tmp_path)
    expected = model(tokens).last_hidden_state
    for loaded in (AutoModel.from_pretrained(tmp_path), SmaLLMModel.from_pretrained(tmp_path)):
        assert (loaded.eval()(tokens).last_hidden_state - expected).abs().max() < 1e-5
    if kind == "classic":
        assert isinstance(AutoModel.from_pretrained(tmp_path), GPT2Model)


@pytest.mark.parametrize("kind", ["classic-rms", "modern-learned"])
def test_what_no_native_class_expresses_is_saved_as_ours_and_says_why(kind, tmp_path, monkeypatch):
    lines = []
    monkeypatch.setattr(modeling_smallm.logger, "warning", lines.append)
    make_model(kind).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["model_type"], config["architectures"]) == ("smallm", ["SmaLLMForCausalLM"])
    assert len(lines) == 1
    assert "model type 'smallm'" in lines[0] and "norm_type='rms' (it needs 'layer')" in lines[0]


def test_weights_keep_our_names_where_the_librarys_layout_is_not_wanted(tokens, tmp_path, monkeypatch):
    lines = []
    monkeypatch.setattr(modeling_smallm.logger, "warning", lines.append)
    for kind, model_type in (("modern", "qwen3"), ("classic", "smallm")):
        model = make_model(kind)
        model.save_pretrained(tmp_path / kind, save_original_format=False)
        assert json.loads((tmp_path / kind / "config.json").read_text())["model_type"] == model_type
        names = safetensors.torch.load_file(tmp_path / kind / "model.safetensors").keys()
        assert names <= model.state_dict().keys()
        assert (load(tmp_path / kind, "ours")(tokens).logits - model(tokens).logits).abs().max() < 1e-5
    assert len(lines) == 1 and "save_original_format=False" in lines[0]


# What survives


@pytest.mark.parametrize("road", ["ours", "remote"])
def test_every_field_of_the_config_survives_also_those_that_only_training_sees(kind, road, tmp_path):
    model = make_model(
        kind, dropout=0.25, attention_dropout=0.125, initializer_range=0.03, embedding_initializer_range=0.004
    )
    model.save_pretrained(tmp_path)
    loaded = load(tmp_path, road).config
    for name in SmaLLMConfig.__annotations__:
        assert getattr(loaded, name) == getattr(model.config, name), name


def test_every_field_survives_a_save_by_the_native_class(kind, tmp_path):
    model = make_model(kind, attention_dropout=0.125, initializer_range=0.03, embedding_initializer_range=0.004)
    model.save_pretrained(tmp_path / "first")
    load(tmp_path / "first", "flagless").save_pretrained(tmp_path / "second")
    loaded = SmaLLMConfig.from_pretrained(tmp_path / "second")
    for name in SmaLLMConfig.__annotations__:
        assert getattr(loaded, name) == getattr(model.config, name), name


def test_tied_weights_are_saved_once_and_are_one_tensor_after_loading(kind, model, tmp_path):
    model.save_pretrained(tmp_path)
    weights = safetensors.torch.load_file(tmp_path / "model.safetensors")
    assert ("lm_head.weight" in weights) != model.config.tie_word_embeddings
    assert sum(tensor.numel() for tensor in weights.values()) == model.num_parameters()
    for road in ROADS:
        loaded = load(tmp_path, road)
        shared = loaded.lm_head.weight.data_ptr() == loaded.get_input_embeddings().weight.data_ptr()
        assert shared == model.config.tie_word_embeddings


@pytest.mark.parametrize("kind", ["modern", "classic"])
def test_bfloat16_weights_stay_bfloat16(kind, tmp_path):
    make_model(kind).to(torch.bfloat16).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"
    assert {load(tmp_path, road).dtype for road in ROADS} == {torch.bfloat16}


@pytest.mark.parametrize("kind", ["modern", "classic", "classic-rms"])
def test_resized_embeddings_are_saved_and_loaded(kind, tokens, tmp_path):
    model = make_model(kind)
    model.resize_token_embeddings(70)
    assert model.config.vocab_size == model.lm_head.out_features == 70
    model.save_pretrained(tmp_path)
    for road in ROADS:
        assert (load(tmp_path, road)(tokens).logits - model(tokens).logits).abs().max() < 1e-5


# How saving is called


@pytest.mark.parametrize("kind", ["modern", "classic", "classic-rms"])
def test_saving_twice_writes_the_same_bytes(kind, tmp_path):
    model = make_model(kind)
    model.save_pretrained(tmp_path / "first")
    SmaLLMForCausalLM.from_pretrained(tmp_path / "first").save_pretrained(tmp_path / "second")
    model.save_pretrained(tmp_path / "third")
    for file in (tmp_path / "first").iterdir():
        for folder in ("second", "third"):
            assert (tmp_path / folder / file.name).read_bytes() == file.read_bytes(), (folder, file.name)


@pytest.mark.parametrize("kind", ["modern", "classic"])
def test_weights_given_as_accelerate_gives_them_are_saved_without_the_names_of_compile(kind, tmp_path):
    model = make_model(kind)
    weights = {f"_orig_mod.{name}": tensor.clone() for name, tensor in model.state_dict().items()}
    make_model(kind, initializer_range=0.5).save_pretrained(tmp_path, is_main_process=True, state_dict=weights)
    model.save_pretrained(tmp_path / "plain")
    saved, plain = (
        safetensors.torch.load_file(folder / "model.safetensors") for folder in (tmp_path, tmp_path / "plain")
    )
    assert saved.keys() == plain.keys()
    assert all(torch.equal(saved[name], plain[name]) for name in plain)


def test_a_compiled_model_saves_like_a_plain_one(tmp_path):
    model = make_model("modern")
    torch.compile(model).save_pretrained(tmp_path)
    model.model.layers[0] = torch.compile(model.model.layers[0])
    model.save_pretrained(tmp_path / "in_part")
    for folder in (tmp_path, tmp_path / "in_part"):
        assert not [name for name in safetensors.torch.load_file(folder / "model.safetensors") if "_orig_mod" in name]
        load(folder, "ours")


def test_a_process_that_is_not_the_main_one_writes_nothing(tmp_path):
    make_model("modern").save_pretrained(tmp_path, is_main_process=False)
    assert not list(tmp_path.iterdir())


def test_push_to_hub_uploads_the_finished_folder(tmp_path, monkeypatch):
    calls = []

    class Created:
        repo_id = "someone/tale"

    monkeypatch.setattr(
        modeling_smallm, "create_repo", lambda name, **options: calls.append((name, options)) or Created
    )
    monkeypatch.setattr(
        modeling_smallm,
        "upload_folder",
        lambda repo_id, folder_path, **options: calls.append(
            (repo_id, options, json.loads((folder_path / "config.json").read_text())["model_type"])
        ),
    )
    make_model("classic").save_pretrained(
        tmp_path, push_to_hub=True, repo_id="tale", private=True, token="secret", commit_message="best"
    )
    assert calls == [
        ("tale", {"private": True, "token": "secret", "exist_ok": True}),
        ("someone/tale", {"token": "secret", "commit_message": "best"}, "gpt2"),
    ]
