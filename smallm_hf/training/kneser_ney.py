"""Interpolated modified Kneser-Ney estimates from one pass over a stream of tokens.

Chen and Goodman 1999, "An Empirical Study of Smoothing Techniques for Language Modeling", section 3, with the estimates
and the treatment of the beginning of a text of Heafield et al. 2013, "Scalable Modified Kneser-Ney Language Model
Estimation", section 3.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view

from smallm_hf.models.modeling_ngram import NgramForCausalLM, NgramTable

BLOCK = 1 << 20  # tokens counted in one go
NOTHING = 0  # in a column before the beginning of a text; tokens are stored plus one
# For each different n-gram of the longest kind, at the peak (measured where those of all lengths differ, n = 5).
COUNTING_BYTES = 220
# Where the counts are too few, or too regular, to estimate discounts of n-grams seen once, twice and more often.
FALLBACK = (0.5, 1.0, 1.5)


class Counts(NamedTuple):
    """Different n-grams and how often each was seen.

    Attributes:
        ngrams: (N, n), ascending by the last token, then by the one before it, and so on; `NOTHING`, or a token plus
            one.
        counts: (N,) int64.
    """

    ngrams: np.ndarray
    counts: np.ndarray


def count_ngrams(
    tokens: np.ndarray,
    order: int,
    vocab_size: int,
    eos_token_id: int | None,
    advance: Callable[[int], None] = lambda tokens: None,
) -> Counts:
    """Counts the n-grams that end at each token of a stream, from front to back.

    Where a text begins, after an eos and at the front of the stream, which counts as one, the n-gram is shorter:
    nothing is counted across it. Memory: about 90 bytes for each different n-gram, whatever the length of the stream.

    Args:
        tokens: (N,), such as a memory-mapped file.
        order: tokens of an n-gram.
        vocab_size: above every token.
        eos_token_id: ends each text; None where the stream is one text.
        advance: called with the number of tokens read so far.
    """
    dtype = np.uint16 if vocab_size < 1 << 16 else np.uint32
    eos = NOTHING if eos_token_id is None else eos_token_id + 1
    before = np.full(order - 1, NOTHING, dtype)
    before[-1:] = eos
    parts: list[Counts] = []
    for begin in range(0, len(tokens), BLOCK):
        stream = np.concatenate([before, tokens[begin : begin + BLOCK].astype(dtype) + dtype(1)])
        before = stream[len(stream) - order + 1 :]
        ngrams = sliding_window_view(stream, order).copy()
        for column in reversed(range(order - 2)):
            cut = (ngrams[:, column + 1] == eos) | (ngrams[:, column + 1] == NOTHING)
            ngrams[cut, column] = NOTHING
        parts.append(_distinct(ngrams, np.ones(len(ngrams), np.int64)))
        while len(parts) > 1 and 2 * len(parts[-1].counts) > len(parts[-2].counts):  # each is sorted again a few times
            parts.append(_joined(parts.pop(), parts.pop()))
        advance(min(begin + BLOCK, len(tokens)))
    while len(parts) > 1:
        parts.append(_joined(parts.pop(), parts.pop()))
    return parts[0]


def _joined(one: Counts, other: Counts) -> Counts:
    return _distinct(*map(np.concatenate, zip(one, other, strict=True)))


def _distinct(ngrams: np.ndarray, counts: np.ndarray) -> Counts:
    order = np.lexsort(ngrams.T)
    return _summed(ngrams[order], counts[order])


def _summed(ngrams: np.ndarray, counts: np.ndarray) -> Counts:
    """Adds up the counts of sorted n-grams that are equal."""
    begins = np.flatnonzero(np.r_[True, (ngrams[1:] != ngrams[:-1]).any(axis=1)])
    return Counts(ngrams[begins], np.add.reduceat(counts, begins))


def adjusted_counts(counted: Counts) -> list[Counts]:
    """What n-grams of 1, 2 ... n tokens count for: the longest how often they were seen, others after how many tokens.

    Those that begin a text have no token before them, and count as often as they were seen.
    """
    levels = []
    for size in range(counted.ngrams.shape[1], 0, -1):
        whole = counted.ngrams[:, 0] != NOTHING
        levels.append(Counts(counted.ngrams[whole] - 1, counted.counts[whole]))
        if size > 1:
            counted = _summed(counted.ngrams[:, 1:], np.where(whole, 1, counted.counts))
    return levels[::-1]


def estimate_discounts(counts: np.ndarray) -> tuple[float, float, float] | None:
    """What is taken from n-grams that count 1, 2 and 3 or more; None where the counts give no valid answer.

    Chen and Goodman 1999, equation 26.
    """
    once, twice, thrice, four = (int((counts == times).sum()) for times in (1, 2, 3, 4))
    if 0 in (once, twice, thrice):
        return None
    share = once / (once + 2 * twice)
    discounts = 1 - 2 * share * twice / once, 2 - 3 * share * thrice / twice, 3 - 4 * share * four / thrice
    return discounts if min(discounts) >= 0 else None


def fill_model(model: NgramForCausalLM, counted: Counts, say: Callable[[str], None] = lambda line: None) -> None:
    """Gives a model the tables that follow from counts; `say` is told where discounts could not be estimated."""
    vocab_size, numbers, contexts = model.config.vocab_size, [], 1
    tables: list[NgramTable] = []
    for size, (ngrams, counts) in enumerate(adjusted_counts(counted), start=1):
        discounts = estimate_discounts(counts)
        if discounts is None:
            say(f"n-grams of {size}: too few counts of 1, 2 and 3 to estimate discounts; takes {FALLBACK}")
        keys, probabilities, backoffs = _estimate(ngrams, counts, numbers, vocab_size, contexts, discounts or FALLBACK)
        numbers, contexts = [*numbers, keys], len(keys)
        if size == 1:
            unigrams = np.full(vocab_size, backoffs[0] / vocab_size)
            unigrams[keys] += probabilities
            numbers, contexts = [], vocab_size
            continue
        floats = (torch.from_numpy(values.astype(np.float32)) for values in (probabilities, backoffs))
        tables.append(NgramTable(torch.from_numpy(keys), *floats))
    model.fill(torch.from_numpy(unigrams.astype(np.float32)), tables)


def _estimate(
    ngrams: np.ndarray,
    counts: np.ndarray,
    numbers: list[np.ndarray],
    vocab_size: int,
    contexts: int,
    discounts: tuple[float, float, float],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Keys, probabilities and backoffs of the n-grams of one length, see `NgramTable`.

    Args:
        ngrams: (N, n) token ids.
        counts: (N,) what they count for.
        numbers: the keys of n-grams of 2, 3 ... n - 1 tokens, ascending.
        vocab_size: V.
        contexts: how many contexts of n - 1 tokens have a number.
        discounts: of n-grams that count 1, 2 and 3 or more.
    """
    *context, words = ngrams.T
    number = context[0].astype(np.int64) if context else np.zeros(len(ngrams), np.int64)
    for keys, token in zip(numbers, context[1:], strict=True):
        number = np.searchsorted(keys, number * vocab_size + token)
    keys = number * vocab_size + words
    order = np.argsort(keys)
    keys, number, counts = keys[order], number[order], counts[order]
    taken = np.array([0, *discounts])[np.minimum(counts, 3)]
    total = np.bincount(number, counts, minlength=contexts)
    left_over = np.bincount(number, taken, minlength=contexts)
    backoffs = np.divide(left_over, total, out=np.ones(contexts), where=total > 0)
    return keys, (counts - taken) / total[number], backoffs
