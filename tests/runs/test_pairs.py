"""Encoder-decoders train on pairs by the same loop: tiny tasks are learned, and a run goes on bit for bit."""

import itertools
import random
from pathlib import Path

import pytest
import yaml
from running import train

from smallm_hf.generation.engine import Engine
from smallm_hf.generation.request import Request
from smallm_hf.pretrained import load_scorable

BART = {
    "d_model": 32,
    **{
        f"{side}_{name}": value
        for side in ("encoder", "decoder")
        for name, value in {"layers": 1, "attention_heads": 2, "ffn_dim": 64}.items()
    },
    "max_position_embeddings": 16,
    "dropout": 0.0,
}
MODELS = {
    "bart": {"model_type": "bart", **BART},
    "marian": {"model_type": "marian", **BART},
    "t5": {
        "model_type": "t5",
        "d_model": 32,
        "d_ff": 64,
        "d_kv": 16,
        "num_layers": 1,
        "num_heads": 2,
        "dropout_rate": 0.0,
    },
}
LETTERS = "abcdefgh"


@pytest.fixture(scope="module")
def letters(tmp_path_factory) -> Path:
    """Words of three letters, and the same in capitals."""
    folder, words = tmp_path_factory.mktemp("letters"), ["".join(word) for word in itertools.product(LETTERS, repeat=3)]
    random.Random(0).shuffle(words)
    for side, chosen in (("train", words[:400]), ("validation", words[400:440])):
        (folder / f"{side}.low").write_text("\n".join(chosen))
        (folder / f"{side}.high").write_text("\n".join(word.upper() for word in chosen))
    return folder


def write_recipe(folder: Path, data: Path, model: str, **training) -> Path:
    content = {
        "data": {
            "source": str(data / "train"),
            "validation_source": str(data / "validation"),
            "source_column": "low",
            "target_column": "high",
            "folder": str(folder / "tokens"),
        },
        "cleaning": {"enabled": False},
        "tokenizer": {"source": "char"},
        "model": MODELS[model],
        "training": {
            "max_steps": 6,
            "context_length": 8,
            "batch_size": 16,
            "learning_rate": 5e-3,
            "precision": "fp32",
            "checkpoint_every": 3,
            "evaluate_every": 3,
            "sample_tokens": 5,
        }
        | training,
    }
    path = folder / "letters.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.mark.parametrize("model", MODELS)
def test_a_tiny_encoder_decoder_learns_to_write_capitals(model, letters, tmp_path):
    steps = {"max_steps": 150, "evaluate_every": None, "checkpoint_every": None, "muon_learning_rate": 1e-2}
    recipe = write_recipe(tmp_path, letters, model, **steps)
    results = train(recipe, tmp_path / "run")
    assert results["best"]["validation_loss"] < 0.1
    loaded, tokenizer = load_scorable(str(tmp_path / "run" / "best"))
    engine = Engine(loaded, tokenizer)
    words = (letters / "validation.low").read_text().split()[:5]
    written = engine.write([Request(source=word, temperature=0, max_new_tokens=6) for word in words])
    assert [text.text for text in written] == [word.upper() for word in words]
    by_generate = loaded.generate(**tokenizer(words, return_tensors="pt", padding=True), max_new_tokens=6, num_beams=2)
    assert tokenizer.batch_decode(by_generate, skip_special_tokens=True) == [word.upper() for word in words]
