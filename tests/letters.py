"""Tiny encoder-decoders that learn to write letters as capitals."""

import itertools
import random
from pathlib import Path

import yaml

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


def write_letters(folder: Path) -> Path:
    """Words of three letters, and the same in capitals."""
    words = ["".join(word) for word in itertools.product(LETTERS, repeat=3)]
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
            "batch_size": 32,
            "learning_rate": 1e-2,
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
