"""A family that is one entry goes through a whole run: trained, sampled, resumed, scored."""

import yaml
from running import train
from tiny_gru import TinyGRUForCausalLM, registered

from smallm_hf.evaluation.scoring import score_documents
from smallm_hf.pretrained import load_scorable
from smallm_hf.training.progress import read_records


def test_a_new_family_is_trained_sampled_resumed_and_scored(recipe, tmp_path):
    content = yaml.safe_load(recipe.read_text())
    content["model"] = {"model_type": "tiny_gru", "vocab_size": content["model"]["vocab_size"]}
    recipe.write_text(yaml.safe_dump(content))
    with registered():
        first = train(recipe, tmp_path / "run")
        again = train(recipe, tmp_path / "run", "--resume", "--training.max_steps", first["steps"] + 2)
        assert again["steps"] == first["steps"] + 2
        assert again["last"]["validation_loss"] < first["last"]["validation_loss"]
        assert read_records(tmp_path / "run", "samples")
        model, tokenizer = load_scorable(str(tmp_path / "run" / "best"), device="cpu")
        assert type(model) is TinyGRUForCausalLM
        assert score_documents(model, tokenizer, ["the cat"])["kind"] == "causal"
