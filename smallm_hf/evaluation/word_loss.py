"""How hard each word of a text is: the nats of its tokens together, by how often the word occurs.

A *word* is a run between white space, as in word perplexity. A token belongs to the word that it begins in; white space
before a word belongs to it. What follows the last word, an eos for example, belongs to none. Occurrences are counted in
lower case and without the punctuation at a word's ends: "Dog," is "dog".
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

SPACED_WORD = re.compile(r"\S+")
PUNCTUATION = re.compile(r"^\W+|\W+$")
NO_WORD = -1
POWERS_OF_TEN = 10 ** np.arange(16)


@dataclass
class WordLoss:
    """Occurrences and nats of the words of a text; additive over windows, batches and processes.

    Attributes:
        numbers: the words, each with its index in the lists.
        occurrences: of each word.
        nats: of each word, summed over its tokens.
    """

    numbers: dict[str, int] = field(default_factory=dict)
    occurrences: list[int] = field(default_factory=list)
    nats: list[float] = field(default_factory=list)

    def number(self, text: str, starts: Sequence[int], counted: bool = True) -> np.ndarray:
        """The number of the word that each token of a text belongs to, or `NO_WORD`.

        Args:
            text: its words are added to the occurrences.
            starts: where each token begins in it, in characters.
            counted: False where another process counts the occurrences.
        """
        found = list(SPACED_WORD.finditer(text))
        numbers = [self._number_of(spell(word[0])) for word in found]
        for number in numbers if counted else ():
            self.occurrences[number] += 1
        ends = [word.end() for word in found]
        return np.array([*numbers, NO_WORD])[np.searchsorted(ends, starts, side="right")]

    def _number_of(self, word: str) -> int:
        number = self.numbers.setdefault(word, len(self.numbers))
        if number == len(self.nats):
            self.occurrences.append(0)
            self.nats.append(0.0)
        return number

    def add(self, numbers: np.ndarray, nats: np.ndarray) -> None:
        """Adds the nats of scored tokens to their words."""
        for number, of_token in zip(numbers.tolist(), nats.tolist(), strict=True):
            if number != NO_WORD:
                self.nats[number] += of_token

    def __iadd__(self, other: "WordLoss") -> "WordLoss":
        """Adds the occurrences and nats of another process."""
        for word, theirs in other.numbers.items():
            mine = self._number_of(word)
            self.occurrences[mine] += other.occurrences[theirs]
            self.nats[mine] += other.nats[theirs]
        return self

    def table(self, counts: Mapping[str, int] | None = None) -> list[dict[str, Any]]:
        """Nats per word, binned by powers of ten of how often the word occurs; empty bins are left out.

        Args:
            counts: occurrences of words, from `count_words`, in another text, such as the training text; by default in
                the scored one.
        """
        occurrences = np.array(self.occurrences)
        often = occurrences if counts is None else np.array([counts.get(word, 0) for word in self.numbers])
        bins = by_decade(often, occurrences, np.array(self.nats), occurrences > 0)
        return [
            {"from": low, "to": high, "words": int(words), "loss": nats / words, "entries": int(entries)}
            for low, high, (words, nats, entries) in bins
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
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text.split())
    spelled: Counter[str] = Counter()
    for word, occurrences in counts.items():
        spelled[spell(word)] += occurrences
    return spelled


def spell(word: str) -> str:
    """A word in lower case and without the punctuation at its ends; one of nothing but punctuation stays."""
    return PUNCTUATION.sub("", word).lower() or word
