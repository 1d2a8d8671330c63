"""How difficult a window of the training text is, for a curriculum."""

from collections.abc import Callable

import numpy as np

# Maps the first tokens of windows, ascending, to how difficult each is.
Difficulty = Callable[[np.ndarray], np.ndarray]
# Tokens, or windows, looked at in one go where a whole text is read.
BLOCK = 1 << 20


def in_blocks(size: int, length: int) -> list[slice]:
    """Cuts a range from 0 into stretches of at most `length`."""
    return [slice(begin, min(begin + length, size)) for begin in range(0, size, length)]


def document_lengths(tokens: np.ndarray, context_length: int, eos_token_id: int) -> Difficulty:
    """The length of the document that a token stands in, in tokens, averaged over the window; 40 bytes per document."""
    ends = [chosen.start + np.flatnonzero(tokens[chosen] == eos_token_id) for chosen in in_blocks(len(tokens), BLOCK)]
    bounds = np.unique(np.concatenate(([0], *(end + 1 for end in ends), [len(tokens)])))
    sums = np.concatenate(([0.0], np.cumsum(np.diff(bounds).astype(np.float64) ** 2)))  # over the tokens before each

    def difficulty(starts: np.ndarray) -> np.ndarray:
        return (np.interp(starts + context_length, bounds, sums) - np.interp(starts, bounds, sums)) / context_length

    return difficulty


def unigram_losses(tokens: np.ndarray, context_length: int) -> Difficulty:
    """Nats per target of the window under the frequencies of all tokens, which know no context."""
    counts = np.zeros(0, dtype=np.int64)
    for chosen in in_blocks(len(tokens), BLOCK):
        found = np.bincount(tokens[chosen], minlength=len(counts))
        found[: len(counts)] += counts
        counts = found
    nats = np.log(len(tokens)) - np.log(np.maximum(counts, 1))

    def difficulty(starts: np.ndarray) -> np.ndarray:
        targets = tokens[starts[0] + 1 : starts[-1] + 1 + context_length]
        sums = np.concatenate(([0.0], np.cumsum(nats[targets])))
        begins = starts - starts[0]
        return (sums[begins + context_length] - sums[begins]) / context_length

    return difficulty
