"""The tokenizer of a run decides how many entries its model has."""

import dataclasses
import json
import math
import random
import subprocess
from pathlib import Path

import pytest
import yaml
from running import WORDS, train, write_recipe
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from smallm_hf.base.errors import UserError
from smallm_hf.config import parse_command_line
from smallm_hf.data.configuration import TokenizerConfig
from smallm_hf.data.reading.documents import read_texts
from smallm_hf.data.token_files import open_token_files
from smallm_hf.evaluation.configuration import ScoringQuestions
from smallm_hf.evaluation.model_scores import evaluate_models
from smallm_hf.evaluation.scoring import score_documents
from smallm_hf.evaluation.texts import decode_blocks, read_scored_texts
from smallm_hf.hub.text import write_text
from smallm_hf.pretrained import load_causal_lm
from smallm_hf.runs import prepare_run, train_run
from smallm_hf.tokenizing.loading import save_tokenizer
from smallm_hf.tokenizing.schemes import train_bpe, train_word
from smallm_hf.training.progress import read_records

SCORE = str(Path(__file__).resolve().parents[2] / "scripts" / "score.py")


@pytest.fixture(scope="module")
def texts(tmp_path_factory) -> Path:
    """Stories of letters of one, two and four bytes."""
    draw, path = random.Random(0), tmp_path_factory.mktemp("texts") / "stories.txt"
    path.write_text("\n<|endoftext|>\n".join(" ".join(draw.choices([*WORDS, "été", "🙂"], k=30)) for _ in range(60)))
    return path


@pytest.fixture
def recipe(tmp_path, texts) -> Path:
    return write_recipe(tmp_path, texts, tokenizer={"source": "char"})


def parse(*words: object):
    return parse_command_line("test", ["--training.max_steps", "1", *map(str, words)], training=True)[0]


def test_a_run_of_characters_trains_resumes_writes_is_scored_and_loads_plainly(
    recipe, tmp_path, texts, capsys, warm_bin
):
    run, alphabet = tmp_path / "run", set(texts.read_text().replace("\n<|endoftext|>\n", ""))
    train(recipe, run, "--training.max_steps", 3)
    entries = len(alphabet) + 3
    assert f"{entries} entries of at most 280: all characters of the text" in capsys.readouterr().out
    train(recipe, run, "--resume")

    tokenizer = AutoTokenizer.from_pretrained(run / "best")
    model = AutoModelForCausalLM.from_pretrained(run / "best")
    assert len(tokenizer) == model.config.vocab_size == entries
    assert model.config.eos_token_id == model.config.bos_token_id == tokenizer.eos_token_id
    written = model.generate(**tokenizer("the été 🙂", return_tensors="pt"), max_new_tokens=5)[0]
    assert tokenizer.decode(written).startswith("the été 🙂")
    assert set(read_records(run, "samples")[0]["text"]) <= alphabet

    command = [warm_bin / "python", SCORE, "--model", run / "best", "--data", run, "--output", tmp_path / "scores.json"]
    scored = subprocess.run(command, capture_output=True, text=True)
    assert scored.returncode == 0, scored.stderr
    assert "tokens/tokenizer is not lossless" in scored.stderr
    found = json.loads((tmp_path / "scores.json").read_text())
    sizes = open_token_files(tmp_path / "tokens").document_sizes("validation")
    assert found["bytes"] == sizes[:, 1].sum() > found["tokens"] == (sizes[:, 0] - 1).sum()
    assert found["bits_per_byte"] == pytest.approx(found["loss"] * found["tokens"] / math.log(2) / found["bytes"])


@pytest.mark.parametrize("limit", [None, 4096])
def test_the_config_that_a_run_leaves_states_limit_and_outcome_and_repeats_it(recipe, tmp_path, limit, capsys):
    content = yaml.safe_load(recipe.read_text())
    content["model"].pop("vocab_size")
    content["tokenizer"]["vocab_size"] = limit
    recipe.write_text(yaml.safe_dump(content))
    train(recipe, tmp_path / "run", "--training.max_steps", 1)
    written = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    entries = open_token_files(tmp_path / "tokens").meta.vocab_size
    assert written["tokenizer"] == dataclasses.asdict(TokenizerConfig("char", limit or 65_536))
    assert written["model"]["vocab_size"] == entries < 40
    capsys.readouterr()
    train(tmp_path / "run" / "config.yaml", tmp_path / "again")
    assert "training a tokenizer" not in capsys.readouterr().out  # its token files are found
    first, second = (load_file(tmp_path / run / "final" / "model.safetensors") for run in ("run", "again"))
    assert all((second[name] == tensor).all() for name, tensor in first.items())


def test_what_was_a_limit_in_one_run_is_refused_where_the_text_has_another_alphabet(recipe, tmp_path, texts):
    train(recipe, tmp_path / "run", "--training.max_steps", 1)
    config, entries = tmp_path / "run" / "config.yaml", open_token_files(tmp_path / "tokens").meta.vocab_size
    other = tmp_path / "other.txt"
    other.write_text(texts.read_text().replace("the", "The"))
    words = ["--data.source", other, "--data.folder", tmp_path / "others"]
    message = rf"others has {entries + 1} entries, model.vocab_size={entries}; set it to {entries + 1}, leave it out"
    with pytest.raises(UserError, match=message):
        train(config, tmp_path / "two", *words)
    assert not (tmp_path / "two").exists()


def test_a_limit_below_the_alphabet_is_reached_and_what_is_unknown_is_said_and_kept(recipe, tmp_path, texts, capsys):
    prepare_run(*parse_command_line("test", ["--config", str(recipe), "--model.vocab_size", "12"], training=False))
    assert open_token_files(tmp_path / "tokens").meta.vocab_size == 12
    said = capsys.readouterr().out
    assert "all characters of the text" not in said
    assert "% of the validation tokens are unknown ones" in said
    assert {*read_scored_texts(str(tmp_path / "tokens"))} < {*read_texts(str(texts))}
    (tmp_path / "tokens" / "validation.hidden.jsonl").unlink()  # as older versions left it
    with pytest.raises(UserError, match=r"gives back \d+ of \d+ bytes of validation document 1; give the text itself"):
        list(read_scored_texts(str(tmp_path / "tokens")))


def test_a_run_of_words_trains_on_those_that_occur_often_enough_and_its_options_decide_the_token_files(
    recipe, tmp_path, capsys
):
    words = ["--tokenizer.source", "word", "--tokenizer.min_count", 3, "--training.max_steps", 1]
    train(recipe, tmp_path / "run", *words)
    said = capsys.readouterr().out
    assert "entries of at most 280: all words of the text that occur 3 times or more" in said
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run" / "best")
    assert tokenizer.decode(tokenizer(" the cat 🙂")["input_ids"]) == " the cat 🙂"
    with pytest.raises(UserError, match="tokenizer.lowercase=False, this run wants True"):
        train(recipe, tmp_path / "lowered", *words, "--tokenizer.lowercase", "true")


def test_a_validation_counts_what_unknown_words_hide_as_score_does(recipe, tmp_path, capsys):
    texts = ["the cat sat on a zebra", "birds", "its, blue house"]
    (tmp_path / "held_out.txt").write_text("\n<|endoftext|>\n".join(texts))
    words = ["--tokenizer.source", "word", "--training.max_steps", 1, "--data.validation_source", "held_out.txt"]
    words[-1] = tmp_path / "held_out.txt"
    results = train(recipe, tmp_path / "run", *words)
    model, tokenizer = load_causal_lm(str(tmp_path / "run" / "best"), device="cpu")
    scores = score_documents(model, tokenizer, texts, protocol="packed", context_length=32)
    assert scores["unknown_rate"] > 0 < scores["spelling_bits_per_byte"]
    for name in ("loss", "bits_per_byte", "unknown_rate", "spelling_bits_per_byte", "tokens", "bytes"):
        assert results["last"][f"validation_{name}"] == pytest.approx(scores[name], rel=1e-6), name
    (read_back,) = evaluate_models(
        [str(tmp_path / "run" / "best")], str(tmp_path / "run"), ScoringQuestions("packed"), {"device": "cpu"}
    )["models"]
    assert {name: read_back[name] for name in scores if name not in ("model", "seconds")} == {
        name: value for name, value in scores.items() if name not in ("model", "seconds")
    }
    stated = f"{scores['unknown_rate']:.2%}"
    assert f"unknown tokens    {stated} of them, whose spelling counts in bits per byte" in capsys.readouterr().out
    assert f"Unknown tokens: {stated}. Bits per byte count" in (tmp_path / "run" / "best" / "README.md").read_text()
    files = open_token_files(tmp_path / "tokens")
    blocks = decode_blocks(files.validation, files.tokenizer, files.hidden_pieces("validation"))
    assert write_text(blocks, tmp_path, "validation") == (3, sum(len(text.encode()) for text in texts))
    (tmp_path / "tokens" / "validation.hidden.npy").unlink()
    with pytest.raises(UserError, match="tokens does not say what its unknown tokens stand for; remove it and prepare"):
        train(recipe, tmp_path / "again", *words)


def test_a_tokenizer_of_another_text_is_said_to_be_hardly_used(recipe, tmp_path, capsys):
    save_tokenizer(
        train_word([f" {number} cat" for number in range(200)], 500, min_count=1),
        tmp_path / "other",
        32,
    )
    content = yaml.safe_load(recipe.read_text())
    content["model"].pop("vocab_size")
    content["tokenizer"] = {"source": str(tmp_path / "other")}
    recipe.write_text(yaml.safe_dump(content))
    prepare_run(*parse_command_line("test", ["--config", str(recipe)], training=False))
    said = capsys.readouterr().out
    assert "the training text uses 3 of the tokenizer's 204 entries; is it made for this text?" in said


def test_options_that_a_tokenizer_does_not_have_are_refused():
    assert parse("--tokenizer.source", "word", "--tokenizer.lowercase", "true").tokenizer.lowercase
    with pytest.raises(UserError, match="tokenizer.lowercase=True is an option of tokenizer.source=word, not of bpe"):
        parse("--tokenizer.lowercase", "true")
    with pytest.raises(UserError, match="tokenizer.min_count=1 is an option of tokenizer.source=word, not of ./mine"):
        parse("--tokenizer.source", "./mine", "--tokenizer.min_count", 1)
    with pytest.raises(UserError, match="tokenizer.min_count=0 is out of range; set it to 1 or more"):
        parse("--tokenizer.source", "word", "--tokenizer.min_count", 0)


def test_a_plan_assumes_a_number_where_the_text_decides_it(recipe, tmp_path, capsys):
    content = yaml.safe_load(recipe.read_text())
    content["model"].pop("vocab_size")
    recipe.write_text(yaml.safe_dump(content))
    train_run(*parse_command_line("test", ["--config", str(recipe), "--dry_run"], training=True))
    said = capsys.readouterr().out
    assert "tokenizer.source=char: the text decides the vocabulary; this plan assumes 256" in said
    assert f"({256 * 32:,} embedding" in said
    assert not (tmp_path / "tokens").exists()


def test_a_given_tokenizer_decides_and_a_stated_number_that_differs_is_refused(recipe, tmp_path):
    save_tokenizer(train_bpe(["the cat sat on the mat. " * 9], 264), tmp_path / "given", 32)
    content = yaml.safe_load(recipe.read_text())
    content["tokenizer"]["source"] = str(tmp_path / "given")
    recipe.write_text(yaml.safe_dump(content))
    with pytest.raises(UserError, match=r"model.vocab_size=280, but tokenizer.source=.*given has 264 entries; set"):
        train(recipe, tmp_path / "run")
    content["model"].pop("vocab_size")
    recipe.write_text(yaml.safe_dump(content))
    train(recipe, tmp_path / "run", "--training.max_steps", 1)
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["model"]["vocab_size"] == 264


def test_what_is_known_of_the_vocabulary_before_there_is_a_text():
    assert parse("--tokenizer.source", "gpt2").vocab_size == 50257  # without its files
    assert parse().model["vocab_size"] == parse().vocab_size == 4096
    limited = parse("--tokenizer.source", "char", "--model.vocab_size", 100)
    assert (limited.vocab_size, "vocab_size" in limited.model) == (100, False)
    assert parse("--tokenizer.source", "char").vocab_size == 65_536
    both = parse("--tokenizer.source", "char", "--tokenizer.vocab_size", 100, "--model.vocab_size", 81)
    assert (both.vocab_size, both.model["vocab_size"]) == (100, 81)
    with pytest.raises(UserError, match="tokenizer.vocab_size=300 differs from model.vocab_size=400"):
        parse("--tokenizer.vocab_size", 300, "--model.vocab_size", 400)
    with pytest.raises(UserError, match="vocab_size"):
        parse("--tokenizer.source", "char", "--model.vocab_size", "many")
