"""Intervals over seeds and over documents, against arithmetic and against how often they are right."""

import math

import numpy as np
import pytest

from smallm_hf.base.errors import UserError
from smallm_hf.evaluation.certainty import over_models, over_seeds, paired_bootstrap, paired_seeds
from smallm_hf.evaluation.sums import Sums


def sums(bits: list[float], size: int = 10) -> list[Sums]:
    return [Sums(nats=bit * math.log(2), tokens=1, bytes=size) for bit in bits]


def test_the_interval_over_seeds_is_students():
    found = over_seeds([1.0, 2.0, 3.0])
    assert (found["runs"], found["mean"], found["std"]) == (3, 2.0, 1.0)
    # The 97.5 % point of Student's t with 2 degrees of freedom is 4.3027, as in any table.
    assert found["high"] - 2 == pytest.approx(4.3027 / math.sqrt(3), abs=1e-4)
    assert 2 - found["low"] == pytest.approx(found["high"] - 2)


def test_the_interval_over_seeds_holds_the_mean_in_95_of_100_cases():
    draw = np.random.default_rng(0)
    intervals = [over_seeds(draw.normal(5, 2, size=4).tolist()) for _ in range(1000)]
    assert sum(found["low"] <= 5 <= found["high"] for found in intervals) == pytest.approx(950, abs=20)


def test_a_model_that_knows_every_document_better_by_the_same_is_better_beyond_doubt():
    found = paired_bootstrap(sums([9, 19, 29]), sums([10, 20, 30]))
    assert found["difference"] == pytest.approx(-0.1)
    assert (found["low"], found["high"]) == (pytest.approx(-0.1), pytest.approx(-0.1))
    assert (found["probability_better"], found["documents_won"], found["documents"]) == (1.0, 1.0, 3)


def test_equal_models_are_a_tie():
    found = paired_bootstrap(sums([9, 19]), sums([9, 19]))
    assert (found["difference"], found["probability_better"], found["documents_won"]) == (0, 0.5, 0)


def test_swapping_the_models_turns_the_result_around():
    ours, others = sums([9, 22, 29, 31]), sums([10, 20, 30, 30])
    there, back = paired_bootstrap(ours, others), paired_bootstrap(others, ours)
    assert there["difference"] == pytest.approx(-back["difference"])
    assert there["probability_better"] == pytest.approx(1 - back["probability_better"])
    assert there["low"] == pytest.approx(-back["high"])


def test_the_interval_of_the_bootstrap_is_that_of_the_normal_approximation_where_documents_are_many():
    draw = np.random.default_rng(1)
    lead = draw.normal(-1, 3, size=400)
    found = paired_bootstrap(sums((20 + lead).tolist()), sums([20.0] * 400))
    half = 1.96 * lead.std() / math.sqrt(400) / 10  # bits of a document over its 10 bytes
    assert found["high"] - found["low"] == pytest.approx(2 * half, rel=0.05)
    assert found == paired_bootstrap(sums((20 + lead).tolist()), sums([20.0] * 400))


def test_long_documents_weigh_more():
    ours = [*sums([0], size=1), *sums([100], size=1000)]
    others = [*sums([10], size=1), *sums([90], size=1000)]
    assert paired_bootstrap(ours, others)["difference"] == pytest.approx(0)


@pytest.mark.parametrize(
    ("ours", "others", "message"),
    [
        ([1], [1], "1 document cannot be resampled"),
        ([], [], "0 document cannot be resampled; give two or more, by another protocol than packed"),
        ([1, 2], [1, 2, 3], "2 and 3 documents, or not the same ones, cannot be paired"),
    ],
)
def test_what_cannot_be_resampled_is_an_error(ours, others, message):
    with pytest.raises(UserError, match=message):
        paired_bootstrap(sums(ours), sums(others))


def test_other_documents_are_recognised_by_their_sizes():
    with pytest.raises(UserError, match="not the same ones"):
        paired_bootstrap(sums([1, 2], size=3), sums([1, 2], size=4))


def test_one_run_has_no_spread():
    with pytest.raises(UserError, match="1 run has no spread"):
        over_seeds([1.0])


@pytest.mark.parametrize(
    ("sizes", "alike"),
    [
        ([(7, None), (7, None)], True),
        ([(7, None), (8, None)], False),
        ([(0, 40), (0, 40)], True),
        ([(0, 40), (0, 90)], False),  # counted, of different orders
        ([(7, None)], False),
    ],
)
def test_models_are_runs_of_one_setting_where_they_are_of_one_size(sizes, alike):
    rows = [
        {"parameters": parameters, "ngrams": ngrams, "loss": float(number), "seconds": 1.0}
        for number, (parameters, ngrams) in enumerate(sizes)
    ]
    assert over_models(rows, ["loss"]) == ({"loss": over_seeds([0.0, 1.0])} if alike else None)


def test_settings_over_the_same_seeds_are_compared_in_pairs():
    found = paired_seeds([1.0, 2.0, 4.0], [1.5, 2.75, 4.25])
    # Differences of -0.5, -0.75, -0.25: mean -0.5, deviation 0.25, t = -0.5 / (0.25 / sqrt(3)) = -3.464.
    assert (found["runs"], found["won"], found["difference"]) == (3, 3, -0.5)
    assert found["high"] == pytest.approx(-0.5 + 4.3027 * 0.25 / math.sqrt(3), rel=1e-4)
    assert found["p_t"] == pytest.approx(0.0742, abs=1e-4)
    # Of the 8 ways to sign three differences only -0.5, -0.75, -0.25 and its opposite are as far from 0.
    assert found["p_exact"] == found["p_least"] == 0.25


def test_a_difference_that_is_lost_in_the_spread_of_the_seeds_is_not_significant():
    found = paired_seeds([1.0, 3.0, 2.0, 5.0], [2.0, 2.0, 3.0, 4.0])  # -1, 1, -1, 1
    assert (found["difference"], found["won"], found["p_exact"]) == (0, 2, 1)


def test_differences_that_are_all_equal_have_no_t_test():
    found = paired_seeds([1.0, 2.0], [1.5, 2.5])
    assert (found["difference"], found["p_t"], found["low"], found["p_exact"]) == (-0.5, None, None, 0.5)


@pytest.mark.parametrize(
    ("ours", "others", "message"),
    [([1.0], [2.0], "1 pair of runs has no spread"), ([1.0, 2.0], [1.0], "2 and 1 runs cannot be paired")],
)
def test_runs_that_cannot_be_paired_are_an_error(ours, others, message):
    with pytest.raises(UserError, match=message):
        paired_seeds(ours, others)
