"""How certain a result is: over several seeds, and against another model on the same documents."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from smallm_hf.base.errors import UserError
from smallm_hf.evaluation.sums import Sums

CONFIDENCE = 0.95
RESAMPLES = 10_000
RESAMPLED_AT_A_TIME = 2**20  # documents, over all resamples that are held at once


def over_seeds(values: Sequence[float]) -> dict[str, float | int]:
    """Mean, standard deviation and confidence interval of one figure over several runs that differ in their seed.

    Returns:
        `runs`, `mean`, `std` of the sample (n - 1), and `low` to `high`, which holds the mean of all such runs with
        95 % confidence if their figures are normally distributed (Student's t).

    Raises:
        UserError: fewer than two values.
    """
    from scipy.stats import t as student_t

    runs = len(values)
    if runs < 2:
        raise UserError(f"{runs} run has no spread; give two or more that differ in their seed")
    mean, std = statistics.fmean(values), statistics.stdev(values)
    half = float(student_t.ppf((1 + CONFIDENCE) / 2, runs - 1)) * std / math.sqrt(runs)
    return {"runs": runs, "mean": mean, "std": std, "low": mean - half, "high": mean + half}


def over_models(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> dict[str, dict[str, float | int]] | None:
    """`over_seeds` of figures of several models, which count as runs of one setting if they are of one size.

    Args:
        rows: of the models, with `parameters` and `ngrams`: one that is counted has no parameters and differs by these.
        names: of the figures.

    Returns:
        By its name what `over_seeds` finds of each figure; None for one model, or several of different sizes.
    """
    if len(rows) < 2 or len({(row["parameters"], row["ngrams"]) for row in rows}) > 1:
        return None
    return {name: over_seeds([row[name] for row in rows]) for name in names}


def paired_seeds(ours: Sequence[float], others: Sequence[float], seed: int = 42) -> dict[str, float | int | None]:
    """Whether one setting is better than another, from runs of both with the same seeds.

    Args:
        ours: a figure of each seed, lower is better.
        others: of the same seeds, in their order.
        seed: of the sign flips, where there are too many to try all.

    Returns:
        `difference`, the mean of ours minus theirs; `low` to `high`, its 95 % interval, and `p_t`, both by the paired
        t-test, which takes the differences as normally distributed (None where they are all equal); `p_exact`, the
        two-sided share of all sign flips of the differences whose mean is as far from 0 (Fisher 1935), which assumes
        only that without an effect both signs are equally likely; `p_least`, the smallest that it can be: 2 / 2^runs,
        0.25 with 3 seeds, so below 0.05 from 6 on; `runs`, and how many of them ours `won`.

    Raises:
        UserError: not as many values, or fewer than two.
    """
    from scipy.stats import permutation_test, ttest_rel

    runs = len(ours)
    if runs != len(others):
        raise UserError(f"{runs} and {len(others)} runs cannot be paired; give the same seeds to both")
    if runs < 2:
        raise UserError(f"{runs} pair of runs has no spread; give two seeds or more")
    differences = np.subtract(ours, others)
    flips = {"permutation_type": "samples", "n_resamples": RESAMPLES, "rng": seed, "vectorized": True}
    found = {
        "runs": runs,
        "difference": float(differences.mean()),
        "won": int((differences < 0).sum()),
        "p_exact": float(permutation_test((differences,), np.mean, **flips).pvalue),
        "p_least": max(2 / 2**runs, 2 / (RESAMPLES + 1)),
        **{"low": None, "high": None, "p_t": None},
    }
    if np.ptp(differences) > 0:
        tested = ttest_rel(ours, others)
        interval = tested.confidence_interval(CONFIDENCE)
        found |= {"low": float(interval.low), "high": float(interval.high), "p_t": float(tested.pvalue)}
    return found


def paired_bootstrap(ours: Sequence[Sums], others: Sequence[Sums], seed: int = 42) -> dict[str, float | int]:
    """Whether one model predicts the same documents better than another (Koehn 2004, on bits per byte).

    Args:
        ours: sums of each document.
        others: sums of the same documents by the other model.
        seed: of the resampling, with replacement.

    Returns:
        `difference` in bits per byte, ours minus theirs, so below 0 is better; `low` to `high`, its 95 % interval;
        `probability_better`, the share of resamples in which ours is better, ties by half; `documents`, and the share
        of them that ours predicts better, `documents_won`.

    Raises:
        UserError: not the same documents, or fewer than two.
    """
    from scipy.stats import bootstrap

    text = np.array([(sums.bytes, sums.text_nats) for sums in ours])
    other = np.array([(sums.bytes, sums.text_nats) for sums in others])
    if len(text) < 2:
        raise UserError(f"{len(text)} document cannot be resampled; give two or more, by another protocol than packed")
    if text.shape != other.shape or (text[:, 0] != other[:, 0]).any():
        raise UserError(
            f"{len(text)} and {len(other)} documents, or not the same ones, cannot be paired; score the same text"
        )
    bits, sizes = (text[:, 1] - other[:, 1]) / math.log(2), text[:, 0]
    drawn = bootstrap(
        (bits, sizes),
        lambda bits, sizes, axis: bits.sum(axis) / sizes.sum(axis),
        **{"paired": True, "method": "percentile", "confidence_level": CONFIDENCE, "rng": seed},
        **{"n_resamples": RESAMPLES, "batch": max(1, RESAMPLED_AT_A_TIME // len(bits))},
    )
    differences = drawn.bootstrap_distribution
    return {
        "difference": float(bits.sum() / sizes.sum()),
        "low": float(drawn.confidence_interval.low),
        "high": float(drawn.confidence_interval.high),
        "probability_better": float((differences < 0).mean() + (differences == 0).mean() / 2),
        "documents": len(bits),
        "documents_won": float((bits < 0).mean()),
        "resamples": RESAMPLES,
    }
