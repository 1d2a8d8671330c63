"""What of the validation text stands in the training text too, in 13-grams, as GPT-3's authors looked for it.

Brown et al. 2020 (appendix C) call 13 words in a row an overlap, in lower case and without punctuation, and let those
be that stand in many training documents. Words are those of `ngrams`. Held in memory are the n-grams of validation, 24
bytes each and twice that for a moment, and a table of at most 256 MiB; the training text is read once.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from smallm_hf.data.documents import Document
from smallm_hf.data.ngrams import hash_words, join_words, read_ngrams

NGRAM_WORDS = 13
MOST_NGRAMS = 1 << 26  # held; where validation has more, only one in two is looked at, or in four, ...
TABLE_BITS = 31
EDGES = (0.0, 0.01, 0.05, 0.1, 0.2, 0.3, 0.5, 0.8, 1.0)  # of the distribution of shares
QUANTILES = (0.5, 0.9, 0.99, 1.0)
FORMULAS = 20  # shown
LOOKED_AT = 200  # formulas of the highest counts, of which the texts are looked for
SHOWN_CHARACTERS = 200

Read = Callable[[], Iterable[Document]]


@dataclass(frozen=True)
class Leakage:
    """How much of each validation document the training text gives away.

    Args:
        shares: (N,) float64, of the 13-grams of each document, in reading order; 0 where there are none.
        report: the distribution and the formulas, for JSON.
    """

    shares: np.ndarray
    report: dict[str, Any]


def measure_leakage(validation: Read, training: Read, formula_documents: int) -> Leakage:
    """Measures which share of the 13-grams of each validation document stands in the training text.

    Args:
        validation: starts reading the validation documents; called twice.
        training: starts reading the training documents; called once.
        formula_documents: an n-gram of more training documents is a formula, such as the beginning of a tale, and gives
            nothing away.
    """
    ngrams, owners, number, rate = _collect(validation())
    known = np.unique(ngrams)
    counts = _count(known, rate, training())
    is_formula = counts > formula_documents
    is_leaked = (counts > 0) & ~is_formula
    total, leaked, formula = np.zeros((3, number))
    for some in range(0, len(ngrams), 1 << 22):
        places = np.searchsorted(known, ngrams[some : some + (1 << 22)])
        documents = owners[some : some + (1 << 22)]
        total += np.bincount(documents, minlength=number)
        leaked += np.bincount(documents, is_leaked[places], number)
        formula += np.bincount(documents, is_formula[places], number)
    shares = leaked / np.maximum(total, 1)
    report = {
        "ngram_words": NGRAM_WORDS,
        "looked_at": f"1 of {rate} n-grams",
        "validation_documents": number,
        "validation_documents_without_ngrams": int((total == 0).sum()),
        "validation_ngrams": len(known),
        "ngrams_in_training": int((counts > 0).sum()),
        "share_of_ngrams_leaked": round(float(leaked.sum() / max(total.sum(), 1)), 6),
        "distribution": _distribution(shares),
        "quantiles": {f"{q:g}": round(float(np.quantile(shares, q)), 4) for q in QUANTILES} if number else {},
        "formula_documents": formula_documents,
        "formula_ngrams": int(is_formula.sum()),
        "share_of_ngrams_formula": round(float(formula.sum() / max(total.sum(), 1)), 6),
        "documents_mostly_formula": int((2 * formula > total).sum()),
        "formulas": _formulas(validation, ngrams, owners, known, counts, formula_documents),
    }
    return Leakage(shares, report)


def _collect(pieces: Iterable[Document]) -> tuple[np.ndarray, np.ndarray, int, int]:
    """Returns all n-grams in reading order, their documents, the number of these, and of how many n-grams one is held.

    Which are held is decided by the n-gram, so that training is asked for the same.
    """
    held, owners, rate, size, number = [], [], 1, 0, 0

    def counted() -> Iterator[Document]:
        nonlocal number
        for piece in pieces:
            number += piece.piece == 0
            yield piece

    for ngrams, documents in read_ngrams(counted(), NGRAM_WORDS):
        is_held = _is_sampled(ngrams, rate)
        held.append(ngrams[is_held])
        owners.append(documents[is_held].astype(np.int32))
        size += len(held[-1])
        while size > MOST_NGRAMS:
            rate *= 2
            is_held = [_is_sampled(ngrams, rate) for ngrams in held]
            held = [ngrams[kept] for ngrams, kept in zip(held, is_held, strict=True)]
            owners = [documents[kept] for documents, kept in zip(owners, is_held, strict=True)]
            size = sum(map(len, held))
    return np.concatenate(held), np.concatenate(owners), number, rate


def _is_sampled(ngrams: np.ndarray, rate: int) -> np.ndarray:
    return ngrams & np.uint64(rate - 1) == 0


def _count(known: np.ndarray, rate: int, pieces: Iterable[Document]) -> np.ndarray:
    """Returns in how many of the documents each of the known n-grams stands; (len(known),) int32."""
    counts = np.zeros(len(known), np.int32)
    if not len(known):
        return counts
    shift = np.uint64(64 - min((64 * len(known)).bit_length(), TABLE_BITS))
    table = np.zeros(1 << max(61 - int(shift), 0), np.uint8)  # one bit for the first bits of an n-gram
    np.bitwise_or.at(table, *_byte_and_bit(known >> shift))
    last, last_places = -1, np.zeros(0, np.int64)  # the document that may go on in the next batch, and what it had
    for ngrams, documents in read_ngrams(pieces, NGRAM_WORDS):
        near = np.flatnonzero(_is_sampled(ngrams, rate))
        byte, bit = _byte_and_bit(ngrams[near] >> shift)
        near = near[table[byte] & bit != 0]  # few of those that are not known
        places = np.minimum(np.searchsorted(known, ngrams[near]), len(known) - 1)
        found = known[places] == ngrams[near]
        pairs = np.unique(documents[near][found] * len(known) + places[found])
        documents_found, places = np.divmod(pairs, len(known))
        is_new = ~((documents_found == last) & np.isin(places, last_places))
        np.add.at(counts, places[is_new], 1)
        if len(documents):
            had = last_places if documents[-1] == last else last_places[:0]
            last = documents[-1]
            last_places = np.concatenate([had, places[is_new & (documents_found == last)]])
    return counts


def _byte_and_bit(numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return numbers >> np.uint64(3), np.uint8(1) << (numbers & np.uint64(7)).astype(np.uint8)


def _distribution(shares: np.ndarray) -> dict[str, int]:
    """How many documents have a share of nothing, and of more than one edge up to the next."""
    counts = {"0": int((shares == 0).sum())}
    for low, high in itertools.pairwise(EDGES):
        counts[f"{low:g}-{high:g}"] = int(((shares > low) & (shares <= high)).sum())
    return counts


def _formulas(
    validation: Read, ngrams: np.ndarray, owners: np.ndarray, known: np.ndarray, counts: np.ndarray, most: int
) -> list[dict[str, Any]]:
    """Finds the texts of the commonest formulas: n-grams that follow on one another are shown as one text."""
    places = np.flatnonzero(counts > most)
    commonest = known[places[np.argsort(-counts[places], kind="stable")[:LOOKED_AT]]]
    _, firsts = np.unique(ngrams[found := np.flatnonzero(np.isin(ngrams, commonest))], return_index=True)
    wanted = set(owners[found[firsts]].tolist())
    runs = []
    for text in _texts(validation, wanted):
        words, starts = hash_words(text)
        numbers = join_words(words, NGRAM_WORDS)
        place = np.minimum(np.searchsorted(known, numbers), len(known) - 1)
        count = np.where(known[place] == numbers, counts[place], 0)
        ends = np.append(starts, len(text))[NGRAM_WORDS:]
        edges = np.flatnonzero(np.diff(count > most, prepend=False, append=False))
        for start, stop in edges.reshape(-1, 2):
            shown = " ".join(text[starts[start] : ends[stop - 1]].split())[:SHOWN_CHARACTERS]
            commonest = numbers[start + count[start:stop].argmax()]
            runs.append((int(count[start:stop].max()), shown, commonest, numbers[start:stop]))
    formulas, known_ones = [], set()
    for number, text, commonest, parts in sorted(runs, key=lambda run: (-run[0], run[1])):
        if commonest not in known_ones:
            formulas.append({"text": text, "training_documents": number})
            known_ones.update(parts.tolist())
    return formulas[:FORMULAS]


def _texts(read: Read, wanted: set[int]) -> Iterator[str]:
    """Yields some documents of a stream whole, in lower case, and stops behind the last of them."""
    ordinal, held = -1, []
    for piece in read() if wanted else ():
        ordinal += piece.piece == 0
        if ordinal in wanted:
            held.append(piece.text.lower())
            if piece.is_last:
                yield "".join(held)
                held = []
        if ordinal == max(wanted) and piece.is_last:
            return
