"""The models that read a few tokens only go through whole runs."""

import json
import math
import os
import random
import signal
import subprocess
from collections import Counter
from itertools import product
from pathlib import Path

import pytest
import torch
import yaml
from loopback_hub import connected_hub
from running import interrupt_at, outcome, train

from smallm_hf.base.errors import Interrupted, UserError
from smallm_hf.card import Statements
from smallm_hf.config import CommandOptions, read_config
from smallm_hf.data.token_files import open_token_files
from smallm_hf.evaluation.scoring import score_documents
from smallm_hf.experiments.configuration import read_ladder
from smallm_hf.export.exporting import export_model
from smallm_hf.hub.publishing import publish
from smallm_hf.models.modeling_ngram import NgramForCausalLM
from smallm_hf.pictures.attention import read_attention
from smallm_hf.pictures.embeddings import given_words
from smallm_hf.pretrained import load_scorable
from smallm_hf.runs import train_run
from smallm_hf.training import counting
from smallm_hf.training.progress import read_records

REPOSITORY = Path(__file__).resolve().parents[2]
SCORE, RECIPES = str(REPOSITORY / "scripts" / "score.py"), REPOSITORY / "configs"


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


def test_activations_that_cannot_be_recomputed_are_refused_in_one_line(recipe, tmp_path):
    with_model(recipe, model_type="feedforward")
    with pytest.raises(
        UserError, match=r"activation_checkpointing=true: FeedForwardForCausalLM does not support .* false"
    ):
        train(recipe, tmp_path / "run", "--training.activation_checkpointing", "true")
    assert not (tmp_path / "run").exists()


def test_an_ngram_model_is_counted_in_one_pass_and_leaves_what_every_run_leaves(recipe, tmp_path, capsys):
    with_model(recipe, model_type="ngram", order=3)
    run = tmp_path / "run"
    results = train(recipe, run, figures=True)
    (record,) = read_records(run, "metrics")
    assert record["validation_loss"] == results["last"]["validation_loss"] == results["best"]["validation_loss"]
    assert record["validation_loss"] < 3
    assert (results["steps"], results["tokens"], results["parameters"]) == (1, results["data"]["train"]["tokens"], 0)
    assert record["ngrams"] == sum(results["ngrams"]) > results["ngrams"][0] == 280
    assert [sample["prompt"] for sample in read_records(run, "samples")] == ["the cat", ""]
    assert {path.name for path in run.iterdir()} >= {"config.yaml", "results.json", "figures", "best", "final"}
    assert not (run / "checkpoints").exists()
    printed = capsys.readouterr().out
    assert "of 1 to 3 tokens, counted in one pass over the training text" in printed
    assert f"n-grams           {record['ngrams']:,} (280, " in printed
    card = (run / "best" / "README.md").read_text()
    assert f"how often each of {record['ngrams']:,} n-grams of 1 to 3 tokens was seen" in card
    assert "FLOPs" not in card

    for target in ("native", "gguf", "onnx"):
        with pytest.raises(UserError, match=f"--to {target} cannot express .*: transformers has no n-gram model"):
            export_model(str(run / "best"), target, tmp_path / "export")
    model, tokenizer = load_scorable(str(run / "best"), device="cpu")
    with pytest.raises(UserError, match="NgramForCausalLM returns no attention maps .* give a transformer"):
        read_attention(model, tokenizer, "the cat")
    with pytest.raises(UserError, match="NgramForCausalLM has no table of input embeddings"):
        given_words(model, tokenizer, ["the", "cat", "sat", "on", "mat"])
    assert type(model) is NgramForCausalLM
    files = open_token_files(tmp_path / "tokens")
    stream = torch.from_numpy(files.validation.astype("int64"))
    texts = tokenizer.decode(stream[:-1]).split(tokenizer.eos_token)
    scored = score_documents(model, tokenizer, texts, protocol="packed", context_length=32)
    assert scored["loss"] == pytest.approx(record["validation_loss"], rel=1e-6)

    assert train(recipe, run, "--resume") == json.loads((run / "results.json").read_text())
    assert f"nothing left to count: {run} is finished" in capsys.readouterr().out
    with pytest.raises(
        UserError, match=r"model.init_from is for models that are trained step by step, and this one is"
    ):
        train(recipe, tmp_path / "further", "--model.init_from", run / "best")
    with pytest.raises(UserError, match=r"was counted with model\.order 3, this config says 2; resume with the config"):
        train(recipe, run, "--resume", "--model.order", 2)


def test_counting_that_was_stopped_begins_again(recipe, tmp_path, monkeypatch, capsys):
    with_model(recipe, model_type="ngram", order=2)
    count = counting.count_ngrams

    def interrupted(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        return count(*arguments)

    monkeypatch.setattr(counting, "count_ngrams", interrupted)
    with pytest.raises(Interrupted, match=r"stopped \(signal SIGTERM\) while counting; nothing is saved yet, --resume"):
        train(recipe, tmp_path / "run")
    monkeypatch.undo()
    assert not (tmp_path / "run" / "best").exists()
    assert train(recipe, tmp_path / "run", "--resume")["steps"] == 1
    assert "was not counted to the end; starting afresh" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (
            ["--model.order", 4, "--training.context_length", 2],
            "model.order=4 reads 3 tokens, .*context_length=2 hold",
        ),
        (["--model.order", 7], "order=7 is out of range; set it to a number from 1 to 5"),
        (["--batching.curriculum", "length"], "batching.curriculum is for models that are trained step by step"),
        (["--training.label_smoothing", "0.1"], "training.label_smoothing is for models that are trained step by step"),
        (["--training.scheduled_sampling", "0.1"], "training.scheduled_sampling is for models that are trained step"),
        (["--hub.push_every", 5, "--hub.repo", "a/b"], "hub.push_every is for models .* smallm publish"),
        (
            ["--data.sources", '[{"source": "a", "weight": 1}, {"source": "b", "weight": 2}]'],
            "data.sources with weights",
        ),
        (["--training.loss", "chunked"], "training.loss=chunked needs logits that are a linear map"),
        (["--dry_run", "--probe"], "--probe times updates, and this model is counted without any; leave it out"),
    ],
)
def test_what_has_no_meaning_for_a_model_that_is_counted_is_refused(recipe, tmp_path, words, line):
    with_model(recipe, model_type="ngram")
    with pytest.raises(UserError, match=line):
        train(recipe, tmp_path / "run", *words)
    assert not (tmp_path / "run").exists()


def test_a_plan_of_counting_says_what_is_not_known_yet(recipe, tmp_path, capsys):
    with_model(recipe, model_type="ngram", order=3)
    content = yaml.safe_load(recipe.read_text())
    del content["training"]["max_steps"]  # one pass has its own end
    recipe.write_text(yaml.safe_dump(content))
    train(recipe, tmp_path / "run", "--dry_run")
    printed = capsys.readouterr().out
    assert "ignored" not in printed
    assert "different ones there are is known only then" in printed
    assert "and at most\n                  220 bytes for each different n-gram of 3 tokens" in printed


def test_a_plan_of_counting_names_what_is_said_of_updates_and_means_nothing_here(recipe, tmp_path, capsys):
    with_model(recipe, model_type="ngram", order=3)
    words = ["--training.optimizer", "adamw", "--training.learning_rate", "0.5", "--training.beta1", "0.9"]
    train(recipe, tmp_path / "run", "--dry_run", *words)
    said = "ignored           training.optimizer=adamw, training.learning_rate=0.5: there are no updates\n"
    assert said in capsys.readouterr().out


def test_the_recipe_and_the_rung_that_count_say_nothing_that_is_ignored(capsys):
    _, rungs = read_ladder(RECIPES / "ladder.yaml", only=["counts"])
    for config in (rungs["counts"], read_config([RECIPES / "names_ngram.yaml"])):
        train_run(config, CommandOptions(None, dry_run=True))
        shown = capsys.readouterr().out
        assert "counted in one pass" in shown and "ignored" not in shown


@pytest.mark.slow  # two processes that cannot import this package
@pytest.mark.parametrize("model_type", ["feedforward", "ngram"])
def test_a_run_is_published_by_its_own_code_and_shown_beside_others(model_type, recipe, tmp_path, warm_bin):
    with_model(recipe, model_type=model_type)
    train(recipe, tmp_path / "run", figures=True)
    with connected_hub(tmp_path / "home") as hub:
        publish(tmp_path / "run", "user/small", Statements(license="mit", language="en"))
        published = hub.files("user/small")
    assert {f"{kind}_{model_type}.py" for kind in ("configuration", "modeling")} <= {*published}
    assert b"trust_remote_code=True" in published["README.md"]
    best, out = str(tmp_path / "run" / "best"), tmp_path / "scores.json"
    report = subprocess.run(
        [warm_bin / "python", SCORE, "--model", best, "--data", tmp_path / "run", "--speed", "--output", out],
        capture_output=True,
        text=True,
    )
    assert report.returncode == 0, report.stderr
    row = json.loads(out.read_text())
    assert (row["parameters"] == 0) == (row["ngrams"] is not None) == (model_type == "ngram")
    assert row["speed"]["decode_tokens_per_second"]["median"] > 0


@pytest.mark.parametrize("name", ["names_ngram", "names_feedforward"])
def test_the_recipe_for_names_learns_more_of_them_than_their_letters(name, tmp_path):
    names = ["".join(parts) for parts in product(["an", "be", "jo", "li", "ma", "ro", "te", "vi"], repeat=3)]
    random.Random(0).shuffle(names)
    (tmp_path / "names.txt").write_text("\n".join(names) + "\n")
    words = ["--data.source", tmp_path / "names.txt", "--data.folder", tmp_path / "tokens"]
    if name != "names_ngram":  # whose pass is its end
        words += ["--training.max_seconds", "null", "--training.max_steps", 30, "--training.precision", "fp32"]
    results = train(RECIPES / f"{name}.yaml", tmp_path / "run", *words, "--training.sample_tokens", 3)
    assert results["data"]["train"]["documents"] + results["data"]["validation"]["documents"] == 512
    letters = Counter("\n".join(names))
    entropy = -sum(count / letters.total() * math.log(count / letters.total()) for count in letters.values())
    assert results["best"]["validation_loss"] < 0.75 * entropy
