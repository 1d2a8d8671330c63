"""Texts against references, and what they share with the training text, by hand and by brute force."""

import math
from itertools import starmap

import numpy as np
import pytest
from small_models import bart, bert, gpt2, letter_tokenizer, mask_tokenizer, t5

from smallm_hf.base.errors import UserError
from smallm_hf.evaluation import generated
from smallm_hf.evaluation.generated import COPIED, Continuation, continue_documents, copy_rate, judge, likeness
from smallm_hf.evaluation.texts import Example
from smallm_hf.evaluation.variety import variety
from smallm_hf.generation.engine import Engine
from smallm_hf.generation.request import Request, seed_of

SETTINGS = {"max_new_tokens": 6, "temperature": 0.8, "seed": 3}


def test_a_document_is_continued_from_the_first_half_of_its_words():
    model, tokenizer = gpt2(), letter_tokenizer()
    documents = [(" ab cd, e\nf ", ""), ("abc", ""), ("a b c", "")]  # the second has no second half
    (first, second), left_out = continue_documents(model, tokenizer, starmap(Example, documents), **SETTINGS)
    assert left_out == ["not continued: 1 of 3 documents, which lack two words, one for each half"]
    assert (first.prompt, first.reference) == ("ab cd,", " e\nf")
    assert (second.prompt, second.reference) == ("a", " b c")
    (written,) = Engine(model, tokenizer).write([Request("ab cd,", **SETTINGS | {"seed": seed_of(3, "ab cd,")})])
    assert first.text == written.text


def test_a_seq2seq_model_answers_its_source_and_the_text_is_the_reference():
    tokenizer = letter_tokenizer("$A </s>", eos_token="</s>", pad_token="</s>")
    documents = [("cab", "abc"), ("ab cd", "")]
    (answered, continued), _ = continue_documents(t5(), tokenizer, starmap(Example, documents), **SETTINGS)
    assert (answered.prompt, answered.reference) == ("abc", "cab")
    assert (continued.prompt, continued.reference) == ("ab", " cd")
    assert 0 <= len(answered.text) <= SETTINGS["max_new_tokens"]
    again, _ = continue_documents(t5(), tokenizer, starmap(Example, documents), **SETTINGS)
    assert [part.text for part in again] == [answered.text, continued.text]


def test_equal_texts_are_as_like_as_can_be_and_other_ones_are_not():
    same = likeness(["the cat sat on the mat"] * 2, ["the cat sat  on\nthe mat"] * 2)
    assert (same["bleu"], same["chrf"], same["rouge1"], same["rougeL"]) == (pytest.approx(100), 100, 1, 1)
    other = likeness(["the cat sat on the mat"], ["dogs bark"])
    assert other["bleu"] == pytest.approx(0, abs=1e-9)
    assert other["rouge2"] == 0


def test_bleu_and_rouge_by_hand():
    # 5 of 6 words, 3 of 5 pairs, 1 of 4 triples match and no run of four, which is smoothed to half of one in 3.
    found = likeness(["the cat sat on a mat"], ["the cat sat in a mat"])
    assert found["bleu"] == pytest.approx(100 * (5 / 6 * 3 / 5 * 1 / 4 * 0.5 / 3) ** 0.25)
    assert found["rouge1"] == pytest.approx(5 / 6)
    assert found["rouge2"] == pytest.approx(3 / 5)
    assert found["signatures"][0].startswith("BLEU nrefs:1")


@pytest.mark.parametrize(("texts", "references"), [(["a"], ["a", "b"]), (["a", "b"], ["a"]), ([], [])])
def test_references_that_do_not_match_in_number_are_told(texts, references):
    with pytest.raises(UserError, match=f"{len(texts)} texts cannot be compared with {len(references)} references"):
        likeness(texts, references)


def runs(ids: list[int]) -> list[tuple[int, ...]]:
    return [tuple(ids[place : place + COPIED]) for place in range(len(ids) - COPIED + 1)]


@pytest.mark.parametrize("at_a_time", [1, 7, 64, 2**20])
def test_the_copy_rate_is_the_share_of_runs_of_8_tokens_that_stand_in_the_training_text(at_a_time, monkeypatch):
    monkeypatch.setattr(generated, "TOKENS_AT_A_TIME", at_a_time)
    draw = np.random.default_rng(0)
    training = draw.integers(2, size=300).astype("<u2")  # of two tokens, so that runs meet by chance
    written = [draw.integers(2, size=size).tolist() for size in (40, 3, 0, 60)]
    known, said = set(runs(training.tolist())), [run for ids in written for run in runs(ids)]
    expected = sum(run in known for run in said) / len(said)
    assert 0.1 < expected < 0.9
    assert copy_rate(written, training) == pytest.approx(expected)


def test_what_was_copied_is_seen_and_what_was_not_is_not(tmp_path):
    training = np.arange(1000, dtype="<u2")
    training.tofile(tmp_path / "train.bin")
    stream = np.memmap(tmp_path / "train.bin", dtype="<u2", mode="r")
    assert copy_rate([list(range(985, 1000))], stream) == 1
    assert copy_rate([list(range(20))[::-1]], stream) == 0
    assert copy_rate([list(range(10, 17))], stream) is None  # a run of 7


def test_a_judgement_holds_all_measures_of_texts_and_references():
    tokenizer = letter_tokenizer()
    parts = [Continuation("ab", " abcdefabcdef", " abcdefabcdef"), Continuation("a", " cab cab", " bad")]
    training = np.array(tokenizer.convert_tokens_to_ids(list(" abcdefabcdef")))
    found = judge(parts, tokenizer, training)
    assert (found["copy_rate"], found["reference_copy_rate"]) == (1, 6 / 7)  # all 6 runs, but the 1 of " cab cab"
    assert (found["words_per_text"], found["words_per_reference"]) == (1, 1.5)
    assert found["variety"] == variety([" abcdefabcdef", " bad"])
    assert found["reference_variety"] == variety([" abcdefabcdef", " cab cab"])
    assert not math.isnan(found["bleu"])
    assert "copy_rate" not in judge(parts, tokenizer)


def test_a_model_that_cannot_continue_is_told():
    with pytest.raises(UserError, match="BertForMaskedLM fills in masks and writes no text"):
        continue_documents(bert(), mask_tokenizer(), starmap(Example, [("ab cd", "")]), **SETTINGS)


def test_documents_that_the_context_does_not_hold_are_left_out_and_counted():
    long, said = "a" * 40 + " b", "not continued: {}, the first of them number {}: the prompt takes 41 tokens and"
    documents = [(text, "") for text in ("a b", long, "abc", long)]
    (first,), (short, too_long) = continue_documents(
        gpt2(), letter_tokenizer(), starmap(Example, documents), **SETTINGS
    )
    assert first.prompt == "a"
    assert short.startswith("not continued: 1 of 4 documents, which lack two words")
    assert too_long.startswith(said.format("2 of 4 documents", 2)) and "holds 32" in too_long
    continued, (too_long,) = continue_documents(gpt2(), letter_tokenizer(), starmap(Example, [(long, "")]), **SETTINGS)
    assert continued == [] and too_long.startswith(said.format("1 of 1 documents", 1))
    bounded = bart()
    tokenizer = letter_tokenizer("$A </s>", eos_token="</s>", pad_token="</s>")
    (answered,), (too_long,) = continue_documents(
        bounded, tokenizer, starmap(Example, [("b", "a" * 40), ("b", "a")]), **SETTINGS
    )
    assert answered.prompt == "a" and "1 of 2 documents, the first of them number 1: a source text takes" in too_long


def test_continuations_of_different_documents_are_different_draws():
    table = gpt2()
    table.transformer.wte.weight.zero_()  # every token as likely, whatever stands before it
    documents = [(f"{letter} b", "") for letter in "abcdef"]
    continued, _ = continue_documents(table, letter_tokenizer(), starmap(Example, documents), **SETTINGS)
    assert len({part.text for part in continued}) == 6


def test_beams_are_for_encoder_decoders():
    model, tokenizer = gpt2(), letter_tokenizer()
    settings = {"max_new_tokens": 3, "temperature": 0, "seed": 1, "beams": 2}
    with pytest.raises(UserError, match="GPT2LMHeadModel is causal, and --beams is for encoder-decoders"):
        continue_documents(model, tokenizer, [Example("ab cd")], **settings)
