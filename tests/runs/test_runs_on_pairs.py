"""Encoder-decoders train on pairs by the same loop: tiny tasks are learned, and a run goes on bit for bit."""

import json
import runpy
import sys
from pathlib import Path

import pytest
import yaml
from letters import write_letters, write_recipe
from running import interrupt_at, outcome, train
from sacrebleu.metrics import BLEU
from transformers import GPT2Config

from smallm_hf.base.errors import Interrupted, UserError
from smallm_hf.comparison import comparing, report
from smallm_hf.comparison.configuration import SideBySide
from smallm_hf.comparison.measuring import measure_model
from smallm_hf.evaluation.configuration import ScoringQuestions
from smallm_hf.evaluation.model_scores import evaluate_models
from smallm_hf.export.exporting import export_model
from smallm_hf.generation.engine import Engine
from smallm_hf.generation.request import Request
from smallm_hf.generation.search import beam_search
from smallm_hf.pretrained import load_causal_lm, load_scorable
from smallm_hf.training.progress import read_records


@pytest.fixture
def letters(tmp_path_factory) -> Path:
    return write_letters(tmp_path_factory.mktemp("letters"))


def capitals(run: Path, data: Path) -> tuple[list[str], list[str]]:
    """What a trained model makes of the first validation words by the engine, and by a search of two beams."""
    loaded, tokenizer = load_scorable(str(run / "best"))
    words = (data / "validation.low").read_text().split()[:5]
    written = Engine(loaded, tokenizer).write([Request(source=word, temperature=0, max_new_tokens=6) for word in words])
    return [text.text for text in written], beam_search(loaded, tokenizer, words, beams=2, max_new_tokens=6)


@pytest.mark.parametrize("model", ["bart", *(pytest.param(name, marks=pytest.mark.slow) for name in ("marian", "t5"))])
def test_a_tiny_encoder_decoder_learns_to_write_capitals(model, letters, tmp_path):
    steps = {"max_steps": 200 if model == "t5" else 100, "evaluate_every": None, "checkpoint_every": None}
    results = train(write_recipe(tmp_path, letters, model, **steps), tmp_path / "run")
    assert results["best"]["validation_loss"] < 0.1
    assert results["best"]["validation_bytes"] == 40 * 4  # three letters and the end of each
    expected = [word.upper() for word in (letters / "validation.low").read_text().split()[:5]]
    assert capitals(tmp_path / "run", letters) == (expected, expected)
    first = read_records(tmp_path / "run", "samples")[0]
    assert first["prompt"] == expected[0].lower() and first["text"] == expected[0]


@pytest.mark.parametrize(
    "model", ["t5", pytest.param("marian", marks=pytest.mark.slow)]
)  # whose sines stay as they are
def test_a_run_on_pairs_that_is_stopped_and_resumed_ends_with_the_same_bits(model, letters, tmp_path, monkeypatch):
    recipe = write_recipe(tmp_path, letters, model, accumulation_steps=2, batch_size=4, scheduled_sampling=0.5)
    train(recipe, tmp_path / "whole")
    interrupt_at(monkeypatch, 4)
    with pytest.raises(Interrupted, match="at step 4"):
        train(recipe, tmp_path / "stopped")
    train(recipe, tmp_path / "stopped", "--resume")
    assert outcome(tmp_path / "stopped") == outcome(tmp_path / "whole")


def test_training_goes_on_from_a_trained_encoder_decoder(letters, tmp_path):
    train(write_recipe(tmp_path, letters, "marian"), tmp_path / "first")
    content = yaml.safe_load((tmp_path / "letters.yaml").read_text())
    del content["tokenizer"]
    content |= {"model": {"init_from": str(tmp_path / "first" / "final")}}
    content["data"]["folder"] = str(tmp_path / "again")
    content["training"] |= {"learning_rate": 1e-9, "muon_learning_rate": 1e-9, "max_steps": 1}
    (tmp_path / "again.yaml").write_text(yaml.safe_dump(content))
    before = json.loads((tmp_path / "first" / "results.json").read_text())
    after = train(tmp_path / "again.yaml", tmp_path / "second")
    assert after["last"]["validation_loss"] == pytest.approx(before["last"]["validation_loss"], abs=1e-4)


def test_what_is_longer_than_the_context_is_left_out_and_said(letters, tmp_path, capsys):
    for side in ("train", "validation"):
        for path, word in ((letters / f"{side}.low", "abcdefgh"), (letters / f"{side}.high", "ABCDEFGH")):
            path.write_text(f"{word}{'!' * (side == 'train')}\n{path.read_text()}")
    run = tmp_path / "run"
    results = train(write_recipe(tmp_path, letters, "bart", max_steps=1), run)
    said = "left out 1 of 401 training pairs, whose source or target has more than training.context_length=8 tokens"
    assert said in capsys.readouterr().out
    (row,) = evaluate_models([str(run / "best")], str(run), ScoringQuestions(), {"device": "cpu"})["models"]
    assert (row["documents"], row["bytes"] + 40) == (40, results["best"]["validation_bytes"])
    said = f"left out 1 of 41 pairs, whose source or target has more than 8 tokens, as {run} has done"
    assert said in capsys.readouterr().err


def test_after_sources_with_columns_of_their_own_it_is_pairs_that_are_to_be_scored(letters, tmp_path, capsys):
    source = {"source": str(letters / "train"), "source_column": "low", "target_column": "high"}
    words = ["--data.sources", json.dumps([source]), "--data.source_column", "null", "--data.target_column", "null"]
    words += ["--data.validation_source", "null", "--training.max_steps", "1"]
    train(write_recipe(tmp_path, letters, "bart"), tmp_path / "run", *words)
    (command,) = capsys.readouterr().out.partition("next:\n")[2].splitlines()
    assert "--data YOUR_PAIRS --source_column low --text_column high" in command


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (
            ["--data.source_column", "null", "--data.target_column", "null"],
            "bart is an encoder-decoder and trains on pairs",
        ),
        (
            ["--model", "{model_type: gpt2}"],
            "model_type=gpt2 trains on texts, and data.target_column=high asks for pairs",
        ),
        (
            ["--batching.stride", "4"],
            "batching.stride=4 is for windows of one length, and pairs have many; leave it out",
        ),
        (["--training.compile", "true"], "training.compile=True is for windows of one length"),
        (["--training.length_warmup", "[4]"], r"training.length_warmup=\[4\] is for windows of one length"),
        (
            ["--model", "{model_type: bert}"],
            "model_type=bert is masked, and only causal and seq2seq models can be trained",
        ),
        (["--training.context_length", "2"], "none of the 400 training pairs has at most training.context_length=2"),
        (["--dry_run", "--probe"], "--probe times updates on windows of made-up tokens, and pairs are none"),
        (["--training.context_length", "32"], "training.context_length=32 exceeds model.max_position_embeddings=16"),
    ],
)
def test_what_cannot_be_trained_on_pairs_is_refused(words, reason, letters, tmp_path):
    with pytest.raises(UserError, match=reason):
        train(write_recipe(tmp_path, letters, "bart"), tmp_path / "run", *words)


def test_a_plan_of_an_encoder_decoder_counts_both_its_sides(letters, tmp_path, capsys):
    train(write_recipe(tmp_path, letters, "marian"), tmp_path / "run", "--dry_run")
    shown = capsys.readouterr().out
    assert "1 x 32 pairs of at most 8" in shown
    attention, mlp, head = 4 * 32 * 32, 2 * 32 * 64, 256 * 32
    flops = 6 * (3 * attention + 2 * mlp + head) + 12 * 3 * 32 * 8
    assert f"FLOPs per token   {flops:.3e}" in shown


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Path, Path]:
    """A run on pairs of three steps and its data."""
    folder = tmp_path_factory.mktemp("trained")
    data = write_letters(folder)
    train(write_recipe(folder, data, "bart", max_steps=3), folder / "run")
    return folder / "run", data


def test_a_model_of_a_run_on_pairs_is_scored_on_what_validated_it(trained):
    run, data = trained
    stated = json.loads((run / "results.json").read_text())["best"]
    questions = ScoringQuestions(source_column="low", text_column="high", generate=5, beams=2, max_new_tokens=6)
    results = evaluate_models([str(run / "best")], str(data / "validation"), questions, {"device": "cpu"})
    of_run = evaluate_models([str(run / "best")], str(run), ScoringQuestions(), {"device": "cpu"})
    (row,), (other,) = results["models"], of_run["models"]
    assert row["loss"] == pytest.approx(other["loss"])
    # The run also scored the end of each target.
    assert (row["tokens"], row["documents"]) == (40 * 3, 40) and stated["validation_tokens"] == 40 * 4
    parts = row["generated"]["continuations"]
    texts, references = ([part[name] for part in parts] for name in ("text", "reference"))
    assert references == [word.upper() for word in (data / "validation.low").read_text().split()[:5]]
    bleu = BLEU()
    assert row["generated"]["bleu"] == bleu.corpus_score(texts, [references]).score
    assert row["generated"]["signatures"][0] == f"BLEU {bleu.get_signature()}"
    assert 0 <= row["generated"]["exact_match"] <= row["generated"]["f1"] <= 100


def test_the_card_of_a_run_on_pairs_shows_how_to_ask_it(trained):
    card = (trained[0] / "best" / "README.md").read_text()
    assert "AutoModelForSeq2SeqLM.from_pretrained" in card and "pipeline(" not in card
    assert "pipeline_tag" not in card and "- text2text-generation\n" in card and "800 sources and targets" in card


def test_an_encoder_decoder_answers_on_the_terminal(trained, monkeypatch, capsys):
    script = Path(__file__).resolve().parents[2] / "scripts" / "generate.py"
    words = ["--model", trained[0] / "best", "--prompt", "abc", "--max_new_tokens", 3, "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", [str(script), *map(str, words)])
    runpy.run_path(str(script), run_name="__main__")
    assert "abc" not in capsys.readouterr().out


def test_encoder_decoders_are_compared_by_their_answers_to_the_same_sources(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(comparing, "in_own_process", lambda measure, *asked: measure(*asked))
    run, data = trained
    models, pairs, on_cpu = [str(run / name) for name in ("best", "final")], str(data / "validation"), {"device": "cpu"}
    columns = {"source_column": "low", "text_column": "high"}
    asked = SideBySide(max_new_tokens=6, num_samples=1, speed_tokens=3, repetitions=1, **columns)
    results = comparing.compare_models(models, ["abc", "<had>"], pairs, asked, on_cpu)
    scores = evaluate_models(models, pairs, ScoringQuestions(**columns), on_cpu)["models"]
    for model, row, scored in zip(models, results["models"], scores, strict=True):
        request = Request(source="abc", temperature=0, max_new_tokens=6)
        (answer,) = Engine(*load_scorable(model, device="cpu")).write([request])
        assert row["prompts"][0]["greedy"] == answer.text
        assert row["scores"]["loss"] == pytest.approx(scored["loss"], rel=1e-6)
    assert report.tabulate(results["models"], report.FIGURES).keys() >= {"bits per byte ↓", "text bytes/s ↑"}
    report.print_report(results)
    _, *pages = report.write_report(results, tmp_path)
    for page in pages:
        shown = page.read_text(encoding="utf-8")
        assert shown.count("greedy") >= 4 and "next word" not in shown and "what the decoder answers" in shown
    assert "“&lt;had&gt;”" in shown and "<b>abc" not in shown


def test_answers_are_compared_neither_with_continuations_nor_scored_without_their_sources(trained, tmp_path):
    best, data = str(trained[0] / "best"), str(trained[1] / "validation.low")
    GPT2Config().save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match=r"best is an encoder-decoder and answers prompts, .* goes on with them; comp"):
        comparing.compare_models([best, str(tmp_path)], ["abc"])
    quick = SideBySide(max_new_tokens=1, num_samples=1, speed_tokens=1, repetitions=1)
    with pytest.raises(UserError, match=r"it reads a source for each text, and --data .*low has none; name --source_c"):
        measure_model(best, ["abc"], data, quick, {"device": "cpu"})


@pytest.mark.parametrize(
    ("refuse", "reason"),
    [
        (lambda model: load_causal_lm(model), "is an encoder-decoder and goes on with no text; give a causal model"),
        (lambda model: export_model(model, "native", Path("export")), "is an encoder-decoder and goes on with no text"),
    ],
)
def test_what_is_for_causal_models_refuses_an_encoder_decoder(refuse, reason, trained):
    with pytest.raises(UserError, match=reason):
        refuse(str(trained[0] / "best"))
