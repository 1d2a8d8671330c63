"""Exact match and F1 of answers, by hand."""

import pytest

from smallm_hf.evaluation.answers import agreement, exact_match, f1


def test_articles_case_and_punctuation_do_not_count():
    assert exact_match("The  Cat!", ["dog", "cat"])
    assert not exact_match("a cat sat", ["cat"])


@pytest.mark.parametrize(
    ("answer", "references", "expected"),
    [
        ("the red cat", ["a red bird"], 1 / 2),  # one of two words on both sides
        ("red red cat", ["red cat"], 4 / 5),  # the second red is one too many
        ("cat", ["dog", "the big cat"], 2 / 3),  # of the reference that fits better
        ("", ["cat"], 0.0),
        ("the", ["a"], 1.0),  # nothing that counts on either side
    ],
)
def test_f1_is_that_of_the_words_in_common(answer, references, expected):
    assert f1(answer, references) == pytest.approx(expected)


def test_agreement_is_the_mean_in_percent():
    assert agreement(["cat", "red cat"], [["the cat"], ["cat", "dog"]]) == pytest.approx(
        {"exact_match": 50.0, "f1": (100 + 200 / 3) / 2}
    )
