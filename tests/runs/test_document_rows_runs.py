"""Runs on names: each by itself in training, in validation and in score.py."""

import random

import numpy as np
import pytest
from running import train, write_recipe

from smallm_hf.evaluation.scoring import score_documents
from smallm_hf.hub.checks import verify_card
from smallm_hf.pretrained import load_causal_lm
from smallm_hf.tokenizing.encoding import encode_ordinary


@pytest.fixture
def recipe(tmp_path):
    draw = random.Random(0)
    names = ["".join(draw.choices("abcdefgh", k=draw.randint(2, 20))) for _ in range(200)]
    (tmp_path / "names.txt").write_text("\n".join([*names, *names[:9]]) + "\n")
    sections = {"tokenizer": {"source": "char"}, "selection": {"duplicates": "keep"}, "cleaning": {"enabled": False}}
    sections["batching"] = {"document_rows": True}
    return write_recipe(tmp_path, tmp_path / "names.txt", **sections)


def test_a_validation_scores_each_name_by_itself_with_its_end_as_score_does(recipe, tmp_path):
    words = ["--data.documents", "line", "--training.context_length", 16, "--training.evaluate_every", "null"]
    results = train(recipe, tmp_path / "run", *words)
    sides = [results["data"][side] for side in ("train", "validation")]
    assert sum(side["documents"] for side in sides) == 209  # none is lost
    model, tokenizer = load_causal_lm(str(tmp_path / "run" / "best"), device="cpu")
    tokens = np.fromfile(tmp_path / "tokens" / "validation.bin", "<u2")
    names = tokenizer.decode(tokens).split("<|endoftext|>")[:-1]
    scores = score_documents(model, tokenizer, names, ends=True)
    assert max(len(ids) for ids in encode_ordinary(tokenizer, names)) > scores["context_length"] == 16
    for name in ("loss", "bits_per_byte", "top1_accuracy", "tokens", "bytes"):
        assert results["last"][f"validation_{name}"] == pytest.approx(scores[name], rel=1e-5), name
    assert "each document by itself, its end scored, rows of 16 tokens" in results["protocol"]
    assert verify_card(tmp_path / "run")[-1].endswith("the same")
