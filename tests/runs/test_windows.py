"""Runs with overlapping windows, attention within documents, a curriculum or a mixture: what they leave, and resume."""

import itertools
import json
import re

import numpy as np
import pytest
import torch
import yaml
from running import HARD, interrupt_at, outcome, train
from torch.nn import functional as F

from smallm_hf import SmaLLMConfig, SmaLLMForCausalLM
from smallm_hf.base.errors import Interrupted, UserError
from smallm_hf.data.batches.packed import positions_in_documents
from smallm_hf.data.batches.windows import WindowOrder
from smallm_hf.data.configuration import BatchingConfig
from smallm_hf.data.token_files import open_token_files
from smallm_hf.describing import describe_results
from smallm_hf.hub.checks import verify_card
from smallm_hf.training import objectives
from smallm_hf.training.objectives import LanguageModelling


@pytest.fixture
def mixture(recipe, tmp_path, stories):
    """The recipe over two sources: the stories, and other words with nine times their weight."""
    texts = stories.read_text().split("<|endoftext|>")
    paths = {"stories": tmp_path / "stories.txt", "sayings": tmp_path / "sayings.txt"}
    paths["stories"].write_text("<|endoftext|>".join(texts))
    paths["sayings"].write_text("<|endoftext|>".join(text.replace("cat", "proverb").upper() for text in texts[:15]))
    content = yaml.safe_load(recipe.read_text())
    del content["data"]["source"]
    content["data"]["workers"] = 1
    content["data"]["sources"] = [
        {"source": str(paths["stories"]), "weight": 1.0},
        {"source": str(paths["sayings"]), "weight": 9.0},
    ]
    recipe.write_text(yaml.safe_dump(content))
    return recipe


WAYS = {
    "overlapping": ["--batching.stride", 20],
    "within documents": ["--batching.within_documents", "true", "--training.length_warmup", "[16]"],
    "by length": ["--batching.curriculum", "length"],
    "by loss, the first windows, overlapping": [
        *("--batching.curriculum", "loss", "--batching.curriculum_tokens", 1000, "--batching.stride", 12),
    ],
}


def check_resume(recipe, tmp_path, monkeypatch, words) -> None:
    """A run that is interrupted twice ends where the uninterrupted one does."""
    train(recipe, tmp_path / "whole", *words)
    for step in (3, 11):
        interrupt_at(monkeypatch, step)
        with pytest.raises(Interrupted):
            train(recipe, tmp_path / "run", *words, *(["--resume"] if step > 3 else []))
    train(recipe, tmp_path / "run", *words, "--resume")
    found, expected = outcome(tmp_path / "run"), outcome(tmp_path / "whole")
    for name, value in expected.items():
        assert found[name] == value, name


@pytest.mark.parametrize("way", WAYS)
def test_a_resumed_run_is_the_uninterrupted_one(recipe, tmp_path, monkeypatch, way):
    check_resume(recipe, tmp_path, monkeypatch, [*HARD, *WAYS[way]])


def test_so_is_one_over_a_mixture_that_begins_a_source_again(mixture, tmp_path, monkeypatch):
    check_resume(mixture, tmp_path, monkeypatch, [*HARD, "--batching.curriculum", "loss"])
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    stories, sayings = results["sources"]
    assert (stories["windows"], sayings["windows"]) == (8, 72)
    assert (stories["share"], sayings["share"]) == (pytest.approx(0.1), pytest.approx(0.9))
    assert sayings["epochs"] > 1 > stories["epochs"]
    assert sayings["source"].endswith("sayings.txt")
    assert re.search(r"mixture +\S+stories\.\w+ 10\.0%, \S+sayings\.txt 90\.0%\n", describe_results(results, tmp_path))


@pytest.mark.parametrize("way", WAYS)
def test_a_run_trains_on_the_windows_of_its_order(recipe, tmp_path, monkeypatch, way):
    seen = []
    forward = objectives.LanguageModelling.forward

    def watched(self, input_ids, **batch):
        seen.append({"input_ids": input_ids, **batch})
        return forward(self, input_ids, **batch)

    monkeypatch.setattr(objectives.LanguageModelling, "forward", watched)
    results = train(recipe, tmp_path / "run", *WAYS[way])
    files = open_token_files(tmp_path / "tokens")
    batching = BatchingConfig(**results["config"]["batching"])
    order = WindowOrder(len(files.train), 32, 42, batching)
    order.read_difficulty(files.train, files.meta.eos_token_id)
    for update, batch in enumerate(seen):
        windows = np.stack([files.train[start : start + 33] for start in order.starts(4 * update, 4)]).astype(int)
        rows = torch.from_numpy(windows[:, :-1]).reshape(batch["input_ids"].shape)
        assert torch.equal(batch["input_ids"], rows)
        assert torch.equal(batch["targets"], torch.from_numpy(windows[:, 1:]).reshape(rows.shape))
        if batching.within_documents:
            assert torch.equal(batch["position_ids"], positions_in_documents(rows, files.meta.eos_token_id))
    lengths = {batch["input_ids"].shape[1] for batch in seen}
    assert lengths == ({16, 32} if way == "within documents" else {32})
    assert len(seen) == 6


@pytest.mark.parametrize(
    ("chunked", "compiled"),
    [(False, False), (True, False), pytest.param(False, True, marks=pytest.mark.slow)],
    ids=["logits", "chunked", "compiled"],
)
def test_the_loss_is_that_of_each_document_alone(chunked, compiled):
    torch.manual_seed(0)
    shape = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = SmaLLMForCausalLM(SmaLLMConfig(**shape, max_position_embeddings=16))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    tokens = torch.tensor([[5, 6, 0, 7, 8, 9, 3, 0, 4], [0, 8, 8, 3, 4, 0, 7, 7, 7]])
    input_ids, targets = tokens[:, :-1], tokens[:, 1:]
    loss = LanguageModelling(model, compile=compiled, chunked=chunked)
    positions = positions_in_documents(input_ids, eos_token_id=0)
    packed = loss(input_ids=input_ids, targets=targets, position_ids=positions)
    packed.backward()
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    alone = sum(
        F.cross_entropy(model(input_ids=input_ids[row : row + 1, span]).logits[0], targets[row, span], reduction="sum")
        for row, span in [(0, slice(2)), (0, slice(2, 7)), (0, slice(7, 8)), (1, slice(5)), (1, slice(5, 8))]
    )
    alone.backward()
    torch.testing.assert_close(packed, alone)
    for gradient, parameter in zip(gradients, model.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--batching.stride", 33], "stride=33 would leave tokens out between windows of training.context_length=32"),
        (["--batching.curriculum", "rare"], "batching.curriculum=rare is not of type"),
        (["--batching.stride", 0], "batching.stride=0 is out of range; set it to a number above 0, or null"),
        (["--batching.strides", 4], "unknown option --batching.strides; did you mean --batching.stride?"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_written(recipe, tmp_path, words, message):
    with pytest.raises(UserError, match=message):
        train(recipe, tmp_path / "run", *words)
    assert not (tmp_path / "run").exists() and not (tmp_path / "tokens").exists()


def test_a_model_that_cannot_keep_documents_apart_is_refused(recipe, tmp_path):
    words = ["--model", '{"model_type": "bloom", "vocab_size": 280, "hidden_size": 16, "n_layer": 1, "n_head": 2}']
    with pytest.raises(UserError, match="within_documents=true does not keep documents apart in BloomForCausalLM"):
        train(recipe, tmp_path / "run", *words, "--batching.within_documents", "true")
    assert not (tmp_path / "run").exists()


def test_a_resume_with_other_windows_is_refused(recipe, tmp_path):
    train(recipe, tmp_path / "run", "--training.max_steps", 3)
    with pytest.raises(UserError, match="was trained with batching.stride=None, this config says 8"):
        train(recipe, tmp_path / "run", "--resume", "--batching.stride", 8)


def test_a_resume_with_other_weights_is_refused(mixture, tmp_path):
    train(mixture, tmp_path / "run", "--training.max_steps", 3)
    mixture.write_text(mixture.read_text().replace("9.0", "8.0"))
    with pytest.raises(UserError, match=r"was trained with .*9\.0.*, this config says .*8\.0"):
        train(mixture, tmp_path / "run", "--resume")


def test_validation_keeps_documents_apart_where_training_does(recipe, tmp_path):
    results = train(recipe, tmp_path / "run", "--batching.within_documents", "true", "--training.learning_rate", 0.03)
    model = SmaLLMForCausalLM.from_pretrained(tmp_path / "run" / "final")
    files = open_token_files(tmp_path / "tokens")
    documents = np.split(files.validation, np.flatnonzero(files.validation == files.meta.eos_token_id) + 1)[:-1]
    nats, place = 0.0, 0
    for document in documents:  # each from its eos, cut where a window of 32 ends
        cuts = [0, *range(-place % 32 or 32, len(document), 32), len(document)]
        for begin, end in itertools.pairwise(cuts):
            before = document[begin - 1] if begin else files.meta.eos_token_id
            tokens = torch.from_numpy(np.concatenate([[before], document[begin:end]]).astype(int))
            with torch.no_grad():
                logits = model(input_ids=tokens[None, :-1]).logits[0]
            nats += F.cross_entropy(logits, tokens[1:], reduction="sum").item()
        place += len(document)
    assert results["last"]["validation_loss"] == pytest.approx(nats / len(files.validation), rel=1e-5)
    assert results["protocol"].startswith("packed, attention within documents, windows of 32 tokens")
    assert any("scored again" in line for line in verify_card(tmp_path / "run"))
