"""Every recipe in configs/ goes through the real entry point, states what it is, and is what it should be."""

import dataclasses
import json
import math
import random
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer, GPT2Config, GPT2Tokenizer

from smallm_hf.config import RunConfig, model_config, parse_command_line
from smallm_hf.pretrained import fresh_model
from smallm_hf.training.plan import embedding_parameters
from smallm_hf.training.progress import read_records

REPOSITORY = Path(__file__).resolve().parent.parent
TRAIN = str(REPOSITORY / "scripts" / "train.py")
CONTENTS = {path: yaml.safe_load(path.read_text()) for path in sorted((REPOSITORY / "configs").glob("*.yaml"))}
FILES = {path.stem: path for path, content in CONTENTS.items() if "rungs" not in content}
COUNTED = ["names_ngram"]  # without parameters and updates
FROM_SCRATCH = [name for name in FILES if name not in COUNTED and "init_from" not in CONTENTS[FILES[name]]["model"]]
STEPS = 2

# What the classic recipes were asked to be: a value, or the ends of a range.
EVERY = {
    **{"preset": "classic", "vocab_size": 50_257, "tie_word_embeddings": True, "dropout": 0.1, "optimizer": "adamw"},
    **{"attention_bias": True, "mlp_bias": True, "hidden_act": "gelu_new", "schedule": "cosine", "weight_decay": 0.1},
    **{"beta2": 0.95, "precision": "auto"},
}
BOOKS = EVERY | {
    **{"learning_rate": 6e-4, "warmup_steps": 2000, "max_gradient_norm": 1.0, "validation_ratio": (0.05, 0.1)},
    **{"batch_size": (8, 32), "windows_per_step": (8, 32), "epochs": (10, 50), "patience": (1, 100)},
    **{"checkpoint_every": (1000, 5000), "sample_every": (1, 5000)},
}
CLASSIC = {
    "tinystories_30m": EVERY
    | {
        **{"num_hidden_layers": 6, "num_attention_heads": 6, "hidden_size": 384, "parameters": 29_995_392},
        **{"max_position_embeddings": 128, "context_length": 128, "source": "roneneldan/TinyStories"},
        **{"learning_rate": 1e-4, "warmup_steps": 1000, "max_gradient_norm": 0.5, "max_steps": 20_000},
        **{"batch_size": 32, "accumulation_steps": 32, "sample_tokens": 200},
    },
    "books_45m": BOOKS
    | {
        **{"num_hidden_layers": 6, "num_attention_heads": 8, "hidden_size": 512, "parameters": 44_909_056},
        **{"max_position_embeddings": 512, "context_length": 512},
    },
    "books_124m": BOOKS
    | {
        **{"num_hidden_layers": 12, "num_attention_heads": 12, "hidden_size": 768, "parameters": 124_439_808},
        **{"max_position_embeddings": 1024, "context_length": 1024},
    },
}
SHAPE = ("num_hidden_layers", "hidden_size", "num_attention_heads", "max_position_embeddings", "vocab_size")


def line(name: str) -> list[str]:
    """A recipe as words; of characters, whose text tells how many entries there are, with those its header states."""
    stated = re.search(r"[Ww]ith (?:the )?(\d+) entries", header(name))
    sections = ("tokenizer", "model") if stated else ()
    return ["--config", str(FILES[name]), *(f"--{section}.vocab_size={stated[1]}" for section in sections)]


def recipe(name: str) -> RunConfig:
    return parse_command_line("test", line(name), training=True)[0]


def facts(name: str, **model: int) -> dict:
    """Everything a recipe decides, by the name of its key; where its text has to tell something of a model, with that.

    A vocabulary that the text decides is the largest that it may be.
    """
    config = recipe(name)
    architecture = model_config({"vocab_size": config.vocab_size, **config.model, **model})
    parameters = sum(parameter.numel() for parameter in fresh_model(architecture, "meta").parameters())
    sections = dataclasses.asdict(config.data) | dataclasses.asdict(config.training)
    counted = {"parameters": parameters, "windows_per_step": config.training.windows_per_step}
    return {**architecture.to_dict(), **sections, **counted}


def header(name: str) -> str:
    comments = [line.removeprefix("# ") for line in FILES[name].read_text().splitlines() if line.startswith("#")]
    return " ".join(comments)


def dry_run(monkeypatch, capsys, *words: object) -> str:
    """What the script prints, run in this process: imports take longer than counting."""
    monkeypatch.setattr(sys, "argv", [TRAIN, *map(str, words), "--dry_run"])
    runpy.run_path(TRAIN, run_name="__main__")
    return capsys.readouterr().out


# --- what they state and are -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CLASSIC)
def test_a_classic_recipe_is_what_was_asked_for(name):
    found = facts(name)
    for key, wanted in CLASSIC[name].items():
        low, high = wanted if isinstance(wanted, tuple) else (wanted, wanted)
        assert low <= found[key] <= high, f"{key}={found[key]}"


def test_the_classic_story_continues_the_pumpkin():
    assert "Once upon a time there was a pumpkin." in recipe("tinystories_30m").training.sample_prompts


def test_every_classic_recipe_has_a_modern_counterpart_and_no_other_has_one():
    classic = {name for name in FROM_SCRATCH if facts(name).get("preset") == "classic"}
    counterparts = {name.removesuffix("_modern") for name in FROM_SCRATCH if name.endswith("_modern")}
    assert classic == counterparts == set(CLASSIC)


@pytest.mark.parametrize("name", CLASSIC)
def test_counterparts_differ_in_architecture_and_training_alone(name):
    classic, modern = recipe(name), recipe(f"{name}_modern")
    shapes = [[getattr(model_config(config.model), key) for key in SHAPE] for config in (classic, modern)]
    assert shapes[0] == shapes[1]
    for section in ("data", "cleaning", "tokenizer"):
        assert getattr(classic, section) == getattr(modern, section), section
    for key in ("context_length", "sample_prompts", "sample_tokens", "evaluate_every", "validation_tokens"):
        assert getattr(classic.training, key) == getattr(modern.training, key), key
    assert modern.training.tokens_per_step <= classic.training.tokens_per_step
    assert model_config(modern.model).preset == "modern"
    assert (modern.training.optimizer, modern.training.schedule) == ("muon", "wsd")


@pytest.mark.parametrize("name", FROM_SCRATCH)
def test_the_dry_run_prints_the_parameters_that_the_header_states(name, monkeypatch, capsys):
    printed = dry_run(monkeypatch, capsys, *line(name))
    config = recipe(name)
    model = fresh_model(model_config({"vocab_size": config.vocab_size, **config.model}), "meta")
    parameters, tables = sum(p.numel() for p in model.parameters()), embedding_parameters(model)
    assert f"parameters        {parameters:,} ({tables:,} embedding, " in printed
    assert f" {parameters:,} parameters ({tables:,} " in f" {header(name)}"


def test_fine_tuning_names_the_model_it_starts_from_and_counts_the_one_given(place, monkeypatch, capsys):
    named = yaml.safe_load(FILES["finetune"].read_text())["model"]["init_from"]
    distilled = fresh_model(GPT2Config(n_layer=6), "meta")
    assert f"{named} has {sum(p.numel() for p in distilled.parameters()):,} parameters" in header("finetune")
    printed = dry_run(monkeypatch, capsys, "--config", FILES["finetune"], "--model.init_from", place / "pretrained")
    counted = sum(p.numel() for p in fresh_model(GPT2Config.from_pretrained(place / "pretrained"), "meta").parameters())
    assert f"parameters        {counted:,} (" in printed


# --- what they do ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(tmp_path_factory, gpt2_folder) -> Path:
    """A folder with a text rich enough for the largest own vocabulary, and a model to go on training."""
    folder = tmp_path_factory.mktemp("recipes")
    draw = random.Random(0)
    words = ["".join(draw.choice("bdfgklmnprst") + draw.choice("aeiou") for _ in range(3)) for _ in range(6000)]
    texts = [" ".join(draw.choices(words, k=40)) for _ in range(300)]
    (folder / "text.txt").write_text("\n<|endoftext|>\n".join(texts))
    for column in ("de", "en"):
        (folder / f"pairs.{column}").write_text("".join(f"{' '.join(draw.choices(words, k=3))}\n" for _ in range(3000)))
    asked = [{"question": draw.choice(words), "answers": [{"text": draw.choice(words)}]} for _ in range(3000)]
    paragraphs = [{"context": " ".join(draw.choices(words, k=2)), "qas": [question]} for question in asked]
    (folder / "squad.json").write_text(json.dumps({"data": [{"paragraphs": paragraphs}]}))
    tokenizer = GPT2Tokenizer.from_pretrained(gpt2_folder)
    tokenizer.save_pretrained(folder / "pretrained")
    fresh_model(GPT2Config(n_layer=1, n_embd=16, n_head=2)).save_pretrained(folder / "pretrained")
    return folder


@pytest.fixture
def run(place, warm_bin):
    """Runs `scripts/train.py` for a few tiny updates; gives the run folder, gone again after the test."""
    folder = place / "run"

    def start(name: str, *words: object) -> Path:
        short = {"max_steps": STEPS, "context_length": 16, "batch_size": 1, "accumulation_steps": 1, "log_every": 1}
        short |= {"validation_tokens": 100, "sample_tokens": 1, "precision": "fp32", "compile": "false"}
        flags = [word for key, value in short.items() for word in (f"--training.{key}", value)]
        command = [warm_bin / "python", TRAIN, "--config", FILES[name], "--output_dir", folder, *flags, *words]
        result = subprocess.run([str(word) for word in command], cwd=place, capture_output=True, text=True, timeout=300)
        assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
        return folder

    yield start
    shutil.rmtree(folder, ignore_errors=True)  # a large one leaves gigabytes


# Two gigabytes written and hashed make the largest ones slow, and of the others the smaller ones are enough:
# the rest run with the slow tests, their dry run always.
SLOW = {name for name in FILES if "124m" in name}
SLOW |= {"books_45m", "books_45m_modern", "tinystories_30m", "tinystories_30m_minutes", "tinystories_30m_modern"}
SLOW |= {"names_transformer", "names_lstm", "names_rnn", "names_feedforward", "answer_questions"}
SLOW |= {"word_lstm", "translate_de_en"}
ALL = [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in FILES]


@pytest.mark.parametrize("name", ALL)
def test_it_trains_and_leaves_a_model_that_loads(name, run, gpt2_folder):
    words, auto_class = ["--data.source", "text.txt"], AutoModelForCausalLM
    if "target_column" in CONTENTS[FILES[name]].get("data", {}):
        source = "squad.json" if name == "answer_questions" else "pairs"
        words, auto_class = ["--data.source", source, "--data.validation_source", "null"], AutoModelForSeq2SeqLM
    if name == "finetune":
        words += ["--model.init_from", "pretrained"]
    elif recipe(name).tokenizer.source == "gpt2":
        words += ["--tokenizer.source", gpt2_folder]
    folder = run(name, *words)
    model = auto_class.from_pretrained(folder / "best")
    tokenizer = AutoTokenizer.from_pretrained(folder / "best")
    assert json.loads((folder / "results.json").read_text())["steps"] == (1 if name in COUNTED else STEPS)
    assert len(tokenizer) == model.config.vocab_size
    if name in COUNTED:
        return
    assert abs(read_records(folder, "metrics")[0]["loss"] - math.log(len(tokenizer))) < 1
    if name != "finetune":
        expected = facts(name, vocab_size=len(tokenizer))
        assert model.num_parameters() == expected["parameters"]
        native = {"classic": "gpt2", "modern": "qwen3"}
        assert model.config.model_type == native.get(expected.get("preset"), expected["model_type"])


def test_fine_tuning_goes_on_from_a_real_pretrained_model(shared_data, run, place):
    stories = (shared_data / "tinystories" / "tinystories_valid.txt").read_text(encoding="utf-8")
    (place / "stories.txt").write_text(stories[:100_000], encoding="utf-8")
    source = shared_data / "pretrained" / "stories260K-hf"
    words = ["--model.init_from", source, "--data.source", "stories.txt", "--training.context_length", 256]
    folder = run("finetune", *words)
    assert AutoModelForCausalLM.from_pretrained(folder / "best").config.model_type == "llama"
    losses = [record["loss"] for record in read_records(folder, "metrics") if "loss" in record]
    assert len(losses) == STEPS and max(losses) < 2  # one of chance is ln 512, which is 6.2
