"""How well answers fit those that people gave, as SQuAD counts it."""

import re
import statistics
import string
from collections import Counter
from collections.abc import Sequence

ARTICLES = re.compile(r"\b(a|an|the)\b")
WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)


def words_of(answer: str) -> list[str]:
    """The words that count: lower case, without ASCII punctuation and English articles."""
    return ARTICLES.sub(" ", answer.lower().translate(WITHOUT_PUNCTUATION)).split()


def exact_match(answer: str, references: Sequence[str]) -> bool:
    """Whether an answer has the words of one of the references."""
    return words_of(answer) in map(words_of, references)


def f1(answer: str, references: Sequence[str]) -> float:
    """Harmonic mean of the shares of common words in an answer and in the reference that it fits best, 0 to 1."""
    return max(_f1(words_of(answer), words_of(reference)) for reference in references)


def _f1(words: list[str], wanted: list[str]) -> float:
    if not words or not wanted:
        return float(words == wanted)
    return 2 * (Counter(words) & Counter(wanted)).total() / (len(words) + len(wanted))


def agreement(answers: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """`exact_match` and `f1` of a set of answers, from 0 to 100 (Rajpurkar et al. 2016, section 6.1)."""
    both = list(zip(answers, references, strict=True))
    return {
        "exact_match": 100 * statistics.fmean(exact_match(*one) for one in both),
        "f1": 100 * statistics.fmean(f1(*one) for one in both),
    }
