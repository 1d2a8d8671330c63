"""What is counted beside the sums, by hand."""

import math

import numpy as np
import pytest
from small_models import LETTERS, TEXTS, Table, gpt2, letter_tokenizer

from smallm_hf.evaluation.profile import Profile, TokenScores
from smallm_hf.evaluation.scoring import score_corpus, score_documents


def scores(**changes) -> TokenScores:
    facts = {
        "token_ids": [3, 3, 5, 7],
        "positions": [1, 2, 3, 4],
        "nats": [1.0, 2.0, 3.0, 4.0],
        "ranks": [0, 1, 2, 9],
        "entropies": [0.5, 1.0, 1.5, 2.0],
        "confidences": [1.0, 0.9, 0.31, 0.32],
    }
    return TokenScores(**{name: np.array(values) for name, values in {**facts, **changes}.items()})


@pytest.fixture
def profile() -> Profile:
    counted = Profile.empty([1, 2, 10], vocab_size=8)
    counted.add(scores())
    return counted


def test_top_k_counts_the_labels_among_the_first_k_choices(profile):
    figures = profile.figures()
    assert [figures[f"top{k}_accuracy"] for k in (1, 2, 10)] == [0.25, 0.5, 1.0]


def test_the_calibration_error_is_the_gap_between_confidence_and_accuracy_weighed_by_the_tokens_of_a_bin(profile):
    # Bins of a 15th: 1.0 and right alone in the last one, 0.9 and wrong, and two wrong ones of mean 0.315.
    assert profile.figures()["calibration_error"] == pytest.approx((0 + 0.9 + 2 * 0.315) / 4)
    reliability = profile.tables()["by_confidence"]
    assert [(bin["tokens"], bin["accuracy"]) for bin in reliability] == [(2, 0), (1, 0), (1, 1)]
    assert [bin["confidence"] for bin in reliability] == pytest.approx([0.315, 0.9, 1.0])
    assert all(bin["from"] <= bin["confidence"] <= bin["to"] for bin in reliability)


def test_the_mean_entropy_is_over_tokens(profile):
    assert profile.figures()["mean_entropy_nats"] == pytest.approx(1.25)


def test_positions_are_binned_by_powers_of_two(profile):
    bins = [(bin["from"], bin["to"], bin["tokens"], bin["loss"]) for bin in profile.tables()["by_position"]]
    assert bins == [(1, 1, 1, 1.0), (2, 2, 1, 2.0), (3, 4, 2, 3.5)]


def test_frequencies_are_binned_by_powers_of_ten_of_the_scored_or_of_another_text(profile):
    def bins(frequencies=None):
        table = profile.tables(frequencies)["by_frequency"]
        return [(bin["from"], bin["to"], bin["tokens"], bin["entries"], bin["loss"]) for bin in table]

    assert bins() == [(1, 9, 4, 3, 2.5)]
    other = np.array([0, 0, 0, 1000, 0, 0, 0, 9])  # the first stands there often, the second never, the third 9 times
    assert bins(other) == [(0, 0, 1, 1, 3.0), (1, 9, 1, 1, 4.0), (1000, 9999, 2, 1, 1.5)]


def test_the_parts_of_two_processes_add_up(profile):
    other = Profile.empty([1, 2, 10], vocab_size=8)
    other.add(scores(nats=[5.0, 6.0, 7.0, 8.0]))
    other += profile
    assert other.tables()["by_frequency"][0]["loss"] == pytest.approx((10 + 26) / 8)
    assert other.figures()["mean_entropy_nats"] == pytest.approx(1.25)


def test_a_table_of_probabilities_has_the_entropy_and_confidence_that_can_be_read_off():
    table = np.full((len(LETTERS), len(LETTERS)), -np.inf)
    table[:, [LETTERS.index("a"), LETTERS.index("b")]] = math.log(0.25), math.log(0.75)
    figures = score_documents(Table(table.tolist()), letter_tokenizer(), ["abbb"])
    assert figures["mean_entropy_nats"] == pytest.approx(-(0.25 * math.log(0.25) + 0.75 * math.log(0.75)))
    assert figures["calibration_error"] == pytest.approx(0, abs=1e-6)  # it says 3 in 4, and so it is
    assert figures["mean_entropy_nats"] == pytest.approx(figures["loss"])


def test_every_scored_token_is_in_one_bin_of_each_table():
    for protocol in ("documents", "sliding", "packed"):
        scored = score_corpus(gpt2(), letter_tokenizer(), TEXTS, protocol=protocol, context_length=8)
        nats = scored.figures["loss"] * scored.figures["tokens"]
        for name, table in scored.profile.tables().items():
            if name == "by_word_frequency":  # of words, see test_word_loss.py
                continue
            assert sum(bin["tokens"] for bin in table) == scored.figures["tokens"]
            if name != "by_confidence":
                assert sum(bin["tokens"] * bin["loss"] for bin in table) == pytest.approx(nats)
        assert max(bin["to"] for bin in scored.profile.tables()["by_position"]) == 8
