"""A model remembers how many tokens at once it was trained on, and is scored so, wherever it has more positions."""

import json
import re

import pytest
from rich.console import Console
from running import train, write_recipe
from transformers import AutoModelForCausalLM

from smallm_hf import SmaLLMForCausalLM
from smallm_hf.base.errors import UserError
from smallm_hf.card import write_card
from smallm_hf.comparison.configuration import SideBySide
from smallm_hf.comparison.measuring import measure_model
from smallm_hf.comparison.report import FIGURES, tabulate
from smallm_hf.evaluation.configuration import ScoringQuestions
from smallm_hf.evaluation.model_scores import evaluate_models
from smallm_hf.evaluation.results_page import print_results, render
from smallm_hf.export.exporting import export_model
from smallm_hf.generation.engine import Engine
from smallm_hf.generation.printing import longest_text, note_on_length
from smallm_hf.generation.request import Request
from smallm_hf.pretrained import load_causal_lm
from smallm_hf.training.progress import read_records

# Half of the 32 positions, and shorter rows to begin with.
WORDS = ["--training.context_length", 16, "--training.length_warmup", "[4, 8]"]
KEY = "trained_context_length"


@pytest.fixture(scope="module")
def run(tmp_path_factory, stories):
    folder = tmp_path_factory.mktemp("trained")
    train(write_recipe(folder, stories), folder / "run", *WORDS)
    return folder / "run"


@pytest.fixture(scope="module")
def scored(run, stories):
    return evaluate_models([str(run / "best")], str(stories), ScoringQuestions(max_documents=5))


def test_its_windows_are_the_default_and_are_said(run, stories, scored):
    (row,) = scored["models"]
    assert (row["context_length"], row[KEY]) == (16, 16)
    console = Console(record=True, width=100)
    print_results(scored, console)
    assert re.search(r"window \(tokens\) +│ 16 \(trained at 16\)", console.export_text())
    assert "windows of 16 (trained at 16) tokens" in render(scored)
    (longer,) = evaluate_models([str(run / "best")], str(stories), ScoringQuestions(context_length=32))["models"]
    assert (longer["context_length"], longer[KEY]) == (32, 16)
    questions = SideBySide(max_new_tokens=2, num_samples=1, speed_tokens=2, repetitions=1, max_documents=5)
    compared = measure_model(str(run / "best"), ["the cat"], str(stories), questions, {})
    assert compared["scores"]["bits_per_byte"] == row["bits_per_byte"]
    assert tabulate([compared | {"label": "best"}], FIGURES)["scored window (tokens)"] == ["16 (trained at 16)"]


def test_a_run_scores_its_own_validation_text_as_it_did_itself(run):
    question = ScoringQuestions(protocol="packed")
    (row,) = evaluate_models([str(run / "final")], str(run), question, {"dtype": "float32"})["models"]
    validated = [record for record in read_records(run, "metrics") if "validation_loss" in record][-1]
    assert row["loss"] == pytest.approx(validated["validation_loss"], rel=1e-5)


@pytest.mark.parametrize("preset", [(), ("--model.preset", "classic"), ("--model.mlp_bias", "true")])
def test_it_survives_the_native_twin_our_class_and_saving_again(preset, run, recipe, tmp_path):
    if preset:
        run = tmp_path / "run"
        train(recipe, run, *WORDS, *preset, "--training.max_steps", 1)
    saved = [run / "best", run / "final", next((run / "checkpoints").iterdir())]
    assert [json.loads((folder / "config.json").read_text())[KEY] for folder in saved] == [16] * 3
    for number, model_class in enumerate([AutoModelForCausalLM, SmaLLMForCausalLM]):
        model = model_class.from_pretrained(saved[-1 - number])
        model.save_pretrained(tmp_path / f"again-{number}")
        again = AutoModelForCausalLM.from_pretrained(tmp_path / f"again-{number}")
        assert getattr(again.config, KEY) == 16


def test_exports_and_the_card_know_it(run, tmp_path):
    export_model(str(run / "best"), "native", tmp_path / "native")
    assert json.loads((tmp_path / "native" / "config.json").read_text())[KEY] == 16
    write_card(run / "best")
    assert "32 positions, 16 tokens at once in training" in (run / "best" / "README.md").read_text()
    pytest.importorskip("gguf", reason="writes GGUF")
    export_model(str(run / "best"), "gguf", tmp_path / "gguf")
    assert "PARAMETER num_ctx 16\n" in (tmp_path / "gguf" / "Modelfile").read_text()


def test_a_text_that_may_grow_beyond_it_is_announced(run):
    engine = Engine(*load_causal_lm(str(run / "best")))
    assert note_on_length(engine, longest_text(engine, [Request("the cat", max_new_tokens=4)])) is None
    note = note_on_length(engine, longest_text(engine, [Request("the cat", max_new_tokens=20)]))
    assert "the model was trained on 16 tokens at once, and prompt and continuation take up to 2" in note


def test_a_checkpoint_that_does_not_know_it_yet_can_be_resumed(recipe, tmp_path, monkeypatch):
    train(recipe, tmp_path / "run", *WORDS, "--training.max_steps", 3)
    path = tmp_path / "run" / "checkpoints" / "step-3" / "config.json"
    written = json.loads(path.read_text())
    del written[KEY]
    path.write_text(json.dumps(written))
    monkeypatch.setattr("smallm_hf.training.checkpoints.damage", lambda checkpoint: None)
    train(recipe, tmp_path / "run", *WORDS, "--resume")
    assert json.loads((tmp_path / "run" / "final" / "config.json").read_text())[KEY] == 16


def test_a_recipe_cannot_state_another_length_than_it_trains(recipe, tmp_path):
    with pytest.raises(
        UserError, match="model.trained_context_length=8 is not for a recipe: a run writes it from its training.con"
    ):
        train(recipe, tmp_path / "run", *WORDS, f"--model.{KEY}", 8)
