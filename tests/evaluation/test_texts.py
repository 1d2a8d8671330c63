"""The texts that are scored: files, token files, and what a run was validated on."""

import json
import os
import random

import numpy as np
import pytest
import yaml
from running import WORDS, train
from small_models import gpt2, letter_tokenizer
from transformers import PreTrainedTokenizerFast

from smallm_hf.base.errors import UserError
from smallm_hf.data.token_files import open_token_files
from smallm_hf.evaluation import texts
from smallm_hf.evaluation.configuration import ScoringQuestions
from smallm_hf.evaluation.model_scores import evaluate_models
from smallm_hf.evaluation.scoring import score_documents
from smallm_hf.evaluation.texts import decode_documents, read_scored_texts, require_texts, source_name, warn_once


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of a few steps that attends within documents and validates on a part of them."""
    root = tmp_path_factory.mktemp("within")
    draw = random.Random(0)
    stories = [" ".join(draw.choices(WORDS, k=draw.randint(5, 60))) + "." for _ in range(60)]
    (root / "stories.txt").write_text("\n<|endoftext|>\n".join(stories))
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 32}
    recipe = {
        "data": {"source": str(root / "stories.txt"), "validation_ratio": 0.3, "folder": str(root / "tokens")},
        "model": {"vocab_size": 280, **sizes},
        "batching": {"within_documents": True},
        "training": {"max_steps": 3, "context_length": 32, "batch_size": 2, "compile": False, "sample_tokens": 2}
        | {"validation_tokens": 500, "sample_prompts": ["the"], "precision": "fp32"},
    }
    (root / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    train(root / "recipe.yaml", root / "run")
    return root / "run"


def test_the_number_of_a_runs_own_validation_comes_out_of_its_folder(run):
    stated = json.loads((run / "results.json").read_text())["best"]
    rules = {"protocol": "packed", "context_length": 32}
    scored = {}
    for within in (True, False):
        questions = ScoringQuestions(**rules, within_documents=within)
        (scored[within],) = evaluate_models([str(run / "best")], str(run), questions, {"device": "cpu"})["models"]
    assert scored[True]["tokens"] == stated["validation_tokens"] <= 500
    assert scored[True]["bytes"] == stated["validation_bytes"]
    for name in ("loss", "perplexity", "bits_per_byte", "top1_accuracy", "top3_accuracy"):
        assert scored[True][name] == pytest.approx(stated[f"validation_{name}"], rel=1e-6)
    assert scored[False]["loss"] != pytest.approx(scored[True]["loss"], rel=1e-6)


def test_a_folder_of_token_files_gives_all_of_its_validation_documents(run):
    folder = str(run.parent / "tokens")
    found = list(read_scored_texts(folder))
    assert len(found) == open_token_files(folder).meta.validation.documents
    assert set(" ".join(found).replace(".", "").split()) <= set(WORDS)
    assert found[: len(list(read_scored_texts(str(run))))] == list(read_scored_texts(str(run)))


def test_a_page_calls_a_source_by_its_name_and_not_by_where_it_lies(run, tmp_path):
    assert source_name(str(run)) == "the validation text of run"
    assert source_name(str(run.parent / "tokens")) == "the validation text of tokens"
    assert source_name(str(tmp_path / "stories.txt")) == "stories.txt"
    assert source_name("user/stories") == "user/stories"


def test_documents_are_read_back_whole_wherever_the_file_is_cut(monkeypatch):
    tokenizer = letter_tokenizer()
    written = ["abc", "", "fed a bed", "b"]
    ids = [id for text in written for id in [*tokenizer.convert_tokens_to_ids(list(text)), tokenizer.eos_token_id]]
    for held in (1, 3, 100):
        monkeypatch.setattr(texts, "TOKENS_AT_A_TIME", held)
        assert list(decode_documents(np.array([*ids, 4, 4], "<u2"), tokenizer)) == written


def test_files_are_read_as_ever(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"story": "abc"}\n{"story": "fed"}\n')
    assert list(read_scored_texts(str(tmp_path / "rows.jsonl"), text_column="story")) == ["abc", "fed"]


def test_token_files_that_are_gone_or_others_are_an_error_before_a_model_is_loaded(run, tmp_path):
    results = json.loads((run / "results.json").read_text())
    copy = tmp_path / "run"
    copy.mkdir()
    for name in ("metrics.jsonl", "config.yaml"):
        (copy / name).write_text("")
    results["data"]["validation"]["sha256"] = "0"
    (copy / "results.json").write_text(json.dumps(results))
    with pytest.raises(UserError, match=r"tokens no longer holds the text that .*run was validated on; give a text"):
        require_texts(str(copy))
    results["data"]["folder"] = str(tmp_path / "nowhere")
    (copy / "results.json").write_text(json.dumps(results))
    with pytest.raises(UserError, match=r"nowhere holds no token files"):
        require_texts(str(copy))
    (copy / "results.json").unlink()
    with pytest.raises(UserError, match=r"run is a run that has not ended \(it has no results.json\); give the folder"):
        require_texts(str(copy))
    with pytest.raises(UserError, match=r"no such file"):
        require_texts(os.path.join(tmp_path, "text.txt"))


def test_a_tokenizer_that_does_not_give_the_text_back_is_an_error(run, monkeypatch):
    monkeypatch.setattr(texts, "decode_documents", lambda *_: iter(["shorter"]))
    with pytest.raises(UserError, match=r"gives back 7 of \d+ bytes of validation document 1; give the text itself"):
        list(read_scored_texts(str(run.parent / "tokens")))


def test_what_a_slow_tokenizer_has_no_entry_for_is_said_once(capsys, monkeypatch):
    monkeypatch.setattr(PreTrainedTokenizerFast, "is_fast", False)
    warn_once.cache_clear()  # another test may have met it
    tokenizer = letter_tokenizer()
    model = gpt2()
    for _ in range(2):
        list(score_documents(model, tokenizer, ["abc", "a?c?"]))
    assert capsys.readouterr().err.count("the tokenizer has no entry for some of the text") == 1
