"""What of the validation text stands in the training text too, in 13-grams, as GPT-3's authors looked for it.

Brown et al. 2020 (appendix C) call 13 words in a row an overlap, in lower case and without punctuation, and let those
be that stand in many training documents. Words are those of `ngrams`. The n-grams of validation lie on disk, 24 bytes
each; held in memory is a table of at most 128 MiB. The training text is read once.
"""

import itertools
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from smallm_hf.data.reading.documents import Document
from smallm_hf.data.selection.ngrams import hash_words, join_words, read_ngrams

NGRAM_WORDS = 13
MOST_NGRAMS = 1 << 26  # kept; where validation has more, only one in two is looked at, or in four, ...
TABLE_BITS = 30
ROWS = 1 << 18  # of what lies on disk that are looked at at once
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


def measure_leakage(
    validation: Read, training: Read, formula_documents: int, folder: str | Path | None = None
) -> Leakage:
    """Measures which share of the 13-grams of each validation document stands in the training text.

    Args:
        validation: starts reading the validation documents; called twice.
        training: starts reading the training documents; called once.
        formula_documents: an n-gram of more training documents is a formula, such as the beginning of a tale, and gives
            nothing away.
        folder: on the disk for what is kept meanwhile; left out, where the system keeps such files.
    """
    with tempfile.TemporaryDirectory(dir=folder, ignore_cleanup_errors=True) as place:
        return _measure(validation, training, formula_documents, Path(place))


def _measure(validation: Read, training: Read, formula_documents: int, folder: Path) -> Leakage:
    ngrams, owners, number, rate = _collect(validation(), folder)
    known = _distinct(folder)
    counts = _count(known, rate, training(), folder)
    total, leaked, formula = np.zeros((3, number))
    for some in _stretches(ngrams):
        count = counts[np.searchsorted(known, ngrams[some])]
        documents = owners[some]
        first, stop = documents[0], documents[-1] + 1  # in reading order
        for sums, weights in (
            (total, None),
            (leaked, (count > 0) & (count <= formula_documents)),
            (formula, count > formula_documents),
        ):
            sums[first:stop] += np.bincount(documents - first, weights)
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
        "formula_ngrams": int((counts > formula_documents).sum()),
        "share_of_ngrams_formula": round(float(formula.sum() / max(total.sum(), 1)), 6),
        "documents_mostly_formula": int((2 * formula > total).sum()),
        "formulas": _formulas(validation, ngrams, owners, known, counts, formula_documents),
    }
    return Leakage(shares, report)


def _collect(pieces: Iterable[Document], folder: Path) -> tuple[np.ndarray, np.ndarray, int, int]:
    """Returns all n-grams in reading order, their documents, the number of these, and of how many n-grams one is kept.

    Which are kept is decided by the n-gram, so that training is asked for the same.
    """
    rate, size, number = 1, 0, 0

    def counted() -> Iterator[Document]:
        nonlocal number
        for piece in pieces:
            number += piece.piece == 0
            yield piece

    with (folder / "ngrams").open("wb") as kept, (folder / "owners").open("wb") as owners:
        for ngrams, documents in read_ngrams(counted(), NGRAM_WORDS):
            is_kept = _is_sampled(ngrams, rate)
            kept.write(ngrams[is_kept].tobytes())
            owners.write(documents[is_kept].astype(np.int32).tobytes())
            size += int(is_kept.sum())
            while size > MOST_NGRAMS:
                rate *= 2
                size = _thin(kept, owners, rate)
    return _mapped(folder / "ngrams", np.uint64), _mapped(folder / "owners", np.int32), number, rate


def _thin(kept: BinaryIO, owners: BinaryIO, rate: int) -> int:
    """Leaves only the n-grams that are looked at, and their documents, in both files; returns their number."""
    kept.flush()
    owners.flush()
    number = _sample(Path(kept.name), Path(owners.name), rate)  # then no file is mapped: some systems truncate none
    for file, item in ((kept, np.uint64), (owners, np.int32)):
        file.seek(number * np.dtype(item).itemsize)
        file.truncate()
    return number


def _sample(kept: Path, owners: Path, rate: int) -> int:
    ngrams = _mapped(kept, np.uint64)
    return _keep((ngrams, _mapped(owners, np.int32)), lambda some: _is_sampled(ngrams[some], rate))


def _distinct(folder: Path) -> np.ndarray:
    """Returns all n-grams that were collected, each once, ascending."""
    shutil.copyfile(folder / "ngrams", folder / "known")
    known = _mapped(folder / "known", np.uint64)
    known.sort()

    def is_first(some: slice) -> np.ndarray:
        before = known[some.start - 1] if some.start else ~known[0]
        return known[some] != np.append(before, known[some][:-1])

    return known[: _keep((known,), is_first)]


def _keep(columns: tuple[np.ndarray, ...], is_kept: Callable[[slice], np.ndarray]) -> int:
    """Moves the rows that are kept to the beginning of all columns, in place; returns their number."""
    number = 0
    for some in _stretches(columns[0]):
        chosen = is_kept(some)
        stop = number + int(chosen.sum())
        for column in columns:
            column[number:stop] = column[some][chosen]
        number = stop
    return number


def _stretches(rows: np.ndarray) -> Iterator[slice]:
    return (slice(start, min(start + ROWS, len(rows))) for start in range(0, len(rows), ROWS))


def _mapped(path: Path, item: type) -> np.ndarray:
    """A file as an array; its pages are the system's to write back, and no memory of ours."""
    return np.asarray(np.memmap(path, item, "r+")) if path.stat().st_size else np.zeros(0, item)


def _is_sampled(ngrams: np.ndarray, rate: int) -> np.ndarray:
    return ngrams & np.uint64(rate - 1) == 0


def _count(known: np.ndarray, rate: int, pieces: Iterable[Document], folder: Path) -> np.ndarray:
    """Returns in how many of the documents each of the known n-grams stands; (len(known),) int32."""
    if not len(known):
        return np.zeros(0, np.int32)
    counts = np.asarray(np.memmap(folder / "counts", np.int32, "w+", shape=known.shape))
    shift = np.uint64(64 - min((32 * len(known)).bit_length(), TABLE_BITS))
    table = np.zeros(1 << max(61 - int(shift), 0), np.uint8)  # one bit for the first bits of an n-gram
    for some in _stretches(known):
        np.bitwise_or.at(table, *_byte_and_bit(known[some] >> shift))
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
    found = np.concatenate(
        [some.start + np.flatnonzero(np.isin(ngrams[some], commonest)) for some in _stretches(ngrams)] or [places]
    )
    _, firsts = np.unique(ngrams[found], return_index=True)
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
