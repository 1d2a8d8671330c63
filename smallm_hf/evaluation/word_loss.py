"""How hard each word of a text is: the nats of its tokens together, by how often the word occurs.

A *word* is a run between white space, as in word perplexity. A token belongs to the word that it begins in; white space
before a word belongs to it. What follows the last word, an eos for example, belongs to none. Occurrences are counted in
lower case and without the punctuation at a word's ends: "Dog," is "dog".
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

SPACED_WORD = re.compile(r"\S+")
PUNCTUATION = re.compile(r"^\W+|\W+$")
POWERS_OF_TEN = 10 ** np.arange(16)


@dataclass
class WordLoss:
    """Occurrences and nats of the words of a text; additive over windows, batches and processes.

    Attributes:
        occurrences: of each word.
        nats: of each word, summed over its tokens.
    """

    occurrences: Counter[str] = field(default_factory=Counter)
    nats: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))

    def find(self, text: str, starts: Sequence[int], counted: bool = True) -> np.ndarray:
        """The word that each token of a text belongs to, or None; an array of objects.

        Args:
            text: its words are added to the occurrences.
            starts: where each token begins in it, in characters.
            counted: False where another process counts the occurrences.
        """
        found = list(SPACED_WORD.finditer(text))
        words = [spell(word[0]) for word in found]
        if counted:
            self.occurrences.update(words)
        ends = [word.end() for word in found]
        return np.array([*words, None], dtype=object)[np.searchsorted(ends, starts, side="right")]

    def add(self, words: np.ndarray, nats: np.ndarray) -> None:
        """Adds the nats of scored tokens to their words."""
        for word, of_token in zip(words, nats.tolist(), strict=True):
            if word is not None:
                self.nats[word] += of_token

    def __iadd__(self, other: "WordLoss") -> "WordLoss":
        """Adds the occurrences and nats of another process."""
        self.occurrences.update(other.occurrences)
        for word, theirs in other.nats.items():
            self.nats[word] += theirs
        return self

    def table(self, counts: Mapping[str, int] | None = None) -> list[dict[str, Any]]:
        """Nats per word, binned by powers of ten of how often the word occurs; empty bins are left out.

        Args:
            counts: occurrences of words, from `count_words`, in another text, such as the training text; by default in
                the scored one.
        """
        occurrences = np.array(list(self.occurrences.values()))
        nats = np.array([self.nats[word] for word in self.occurrences])
        often = occurrences if counts is None else np.array([counts.get(word, 0) for word in self.occurrences])
        return [
            {"from": low, "to": high, "words": int(words), "loss": nats / words, "entries": int(entries)}
            for low, high, (words, nats, entries) in by_decade(often, occurrences, nats, occurrences > 0)
            if words
        ]


def by_decade(often: np.ndarray, *weights: np.ndarray) -> list[tuple[int, int, list[float]]]:
    """Sums weights by powers of ten of `often`, the occurrences of each entry; 0 has a bin of its own.

    Returns:
        For each bin the least and the most occurrences, and the sum of each of the weights.
    """
    decades = np.searchsorted(POWERS_OF_TEN, often, side="right")
    sums = np.stack([np.bincount(decades, weights=of_each) for of_each in weights], axis=1)
    return [(10 ** (bin - 1) if bin else 0, 10**bin - 1, row) for bin, row in enumerate(sums.tolist())]


def count_words(texts: Iterable[str]) -> Counter[str]:
    """How often each word occurs, in the spelling of `WordLoss`."""
    counts, spelled = Counter(), Counter()
    for text in texts:
        counts.update(text.split())
    for word, occurrences in counts.items():
        spelled[spell(word)] += occurrences
    return spelled


def spell(word: str) -> str:
    """A word in lower case and without the punctuation at its ends; one of nothing but punctuation stays."""
    return PUNCTUATION.sub("", word).lower() or word
