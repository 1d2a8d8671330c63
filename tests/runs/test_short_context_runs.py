"""The models that read a few tokens only go through whole runs."""

import pytest
import yaml
from running import interrupt_at, outcome, train

from smallm_hf.base.errors import Interrupted
from smallm_hf.training.progress import read_records


def with_model(recipe, **model) -> None:
    """Puts another model into a recipe, with the vocabulary of the one that was there."""
    content = yaml.safe_load(recipe.read_text())
    content["model"] = {"vocab_size": content["model"]["vocab_size"], **model}
    recipe.write_text(yaml.safe_dump(content))


def test_a_feedforward_model_that_is_stopped_and_resumed_is_the_uninterrupted_one(recipe, tmp_path, monkeypatch):
    with_model(recipe, model_type="feedforward", context_size=4, embedding_size=16, hidden_size=32, dropout=0.1)
    train(recipe, tmp_path / "whole")
    interrupt_at(monkeypatch, 4)
    with pytest.raises(Interrupted):
        train(recipe, tmp_path / "run")
    train(recipe, tmp_path / "run", "--resume")
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")
    assert read_records(tmp_path / "run", "samples")
