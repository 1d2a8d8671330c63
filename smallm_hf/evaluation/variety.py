"""How varied a model writes: distinct words and pairs, and what it says again."""

import re
from collections.abc import Sequence

# A word is a run of letters, digits and apostrophes, or one other sign; white space before it belongs to it.
WORD_OR_MARK = re.compile(r"\s*(?:(?P<word>\w[\w'’]*)|(?P<mark>[^\w\s]))")
REPEATED = 4  # words in a row that count as said again


def variety(texts: Sequence[str]) -> dict[str, float | int | None]:
    """The variety of what was written; None where the texts are too short to say.

    Returns:
        `words`: their number, without which the others cannot be compared: a longer text repeats more. `distinct_1` and
        `distinct_2`: the share of different ones among all words and among all pairs (Li et al. 2016, 5).
        `repetition`: the share of runs of 4 words that stood earlier in the same text (Welleck et al. 2020, 6.1).
    """
    spoken = [[found["word"] or found["mark"] for found in re.finditer(WORD_OR_MARK, text)] for text in texts]
    singles, pairs, runs = ([_runs(words, length) for words in spoken] for length in (1, 2, REPEATED))
    return {
        "words": sum(map(len, spoken)),
        "distinct_1": _share(len(set().union(*singles)), sum(map(len, singles))),
        "distinct_2": _share(len(set().union(*pairs)), sum(map(len, pairs))),
        "repetition": _share(sum(len(run) - len(set(run)) for run in runs), sum(map(len, runs))),
    }


def _runs(words: list[str], length: int) -> list[tuple[str, ...]]:
    return list(zip(*(words[first:] for first in range(length)), strict=False))


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
