import json
from types import SimpleNamespace

import numpy as np
import pytest

from smallm_hf.data.reading.documents import Document
from smallm_hf.data.selection import leakage, ngrams
from smallm_hf.data.selection.leakage import measure_leakage


def words(first, stop):
    return " ".join(f"w{number}" for number in range(first, stop))


def measure(validation, training, formula_documents=5, size=None):
    def read(texts):
        for number, text in enumerate(texts):
            parts = [text[start : start + size] for start in range(0, len(text), size)] if size else [text]
            for place, part in enumerate(parts):
                yield Document(part, str(number), piece=place, is_last=place == len(parts) - 1)

    shares, report = measure_leakage(lambda: read(validation), lambda: read(training), formula_documents)
    json.dumps(report)
    return SimpleNamespace(shares=shares, report=report)


def test_the_share_counts_the_13_grams_that_training_has_too():
    validation = [words(0, 26), words(100, 113), words(200, 212), ""]  # 14 n-grams, one, none, none
    assert measure(validation, [words(0, 13)]).shares.tolist() == [1 / 14, 0, 0, 0]
    assert measure(validation, [words(5, 40), words(100, 113)]).shares.tolist() == [9 / 14, 1, 0, 0]
    assert measure(validation, [words(200, 212)]).shares.tolist() == [0, 0, 0, 0]


def test_case_and_punctuation_do_not_hide_a_leak():
    text = "The quick brown fox jumps over the lazy dog and then it sleeps a while."
    shouted = text.upper().replace(" ", ",\n") + "!"
    assert measure([text], [f"Before it {shouted} after"]).shares.tolist() == [1]


def test_an_ngram_over_the_end_of_a_training_document_is_none():
    assert measure([words(0, 13)], [words(0, 7), words(7, 13)]).shares.tolist() == [0]


@pytest.mark.parametrize("characters", [1, 40, 1 << 16])
def test_what_stands_in_many_documents_is_a_formula_and_is_listed(monkeypatch, characters):
    monkeypatch.setattr(ngrams, "BATCH_CHARACTERS", characters)
    beginning = "Once upon a time, there lived a King; and he had a daughter fair"
    training = [f"{beginning} {words(100 * n, 100 * n + 20)}" for n in range(6)]
    validation = [f"{beginning} {words(1000, 1020)}", words(100, 120)]
    found = measure(validation, training)
    assert found.shares.tolist() == [0, 1]
    assert found.report["formulas"] == [{"text": beginning.lower(), "training_documents": 6}]
    assert found.report["formula_ngrams"] == 2
    assert found.report["documents_mostly_formula"] == 0
    assert measure([beginning], training).report["documents_mostly_formula"] == 1
    assert measure(validation, training[:5]).shares.tolist() == [2 / 22, 1]
    assert measure(validation, training[:5]).report["formulas"] == []


@pytest.mark.parametrize("characters", [1, 100, 1 << 16])
def test_a_document_that_says_it_often_counts_once(monkeypatch, characters):
    monkeypatch.setattr(ngrams, "BATCH_CHARACTERS", characters)
    refrain = words(0, 13)
    often = f"{refrain} and {words(50, 70)} " * 10
    for size in (None, len(refrain) + 1):
        assert measure([refrain], [often, "other"], formula_documents=1, size=size).shares.tolist() == [1]
        found = measure([refrain], [often, often], formula_documents=1, size=size)
        assert found.shares.tolist() == [0]
        assert found.report["formulas"][0]["training_documents"] == 2


def test_the_report_has_the_distribution():
    validation = [words(100 * n, 100 * n + 22) for n in range(10)]  # 10 n-grams each
    training = [words(100 * n, 100 * n + 12 + n) for n in range(1, 10)]  # n of which leak
    report = measure(validation, training).report
    assert report["distribution"] == {
        "0": 1,
        "0-0.01": 0,
        "0.01-0.05": 0,
        "0.05-0.1": 1,
        "0.1-0.2": 1,
        "0.2-0.3": 1,
        "0.3-0.5": 2,
        "0.5-0.8": 3,
        "0.8-1": 1,
    }
    assert report["quantiles"]["0.5"] == pytest.approx(0.45)
    assert (report["validation_ngrams"], report["ngrams_in_training"]) == (100, 45)
    assert report["share_of_ngrams_leaked"] == pytest.approx(0.45)


def test_of_too_many_ngrams_a_sample_is_looked_at_on_both_sides(monkeypatch):
    monkeypatch.setattr(leakage, "MOST_NGRAMS", 1000)
    validation = [words(1000 * n, 1000 * n + 612) for n in range(10)]
    found = measure(validation, [words(1000 * n, 1000 * n + 312) for n in range(5)])
    assert found.report["looked_at"] == "1 of 8 n-grams"
    assert found.report["validation_ngrams"] <= 1000
    assert found.shares[:5] == pytest.approx(np.full(5, 0.5), abs=0.17)  # of about 75 n-grams: three standard errors
    assert found.shares[5:].tolist() == [0] * 5


def test_nothing_to_validate_on_gives_an_empty_report():
    assert measure([], ["a b c"]).shares.tolist() == []
