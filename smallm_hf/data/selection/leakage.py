"""How much of the validation text the training text gives away, in 13-grams as GPT-3's authors measured it.

Brown et al. 2020 (appendix C) call 13 words in a row an overlap, in lower case and without punctuation, except those
that many training documents have. Words are those of `ngrams`. The n-grams of validation are kept on disk, 24 bytes
each, and a table of at most 128 MiB in memory. The training text is read once.
"""

import itertools
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from smallm_hf.data.reading.documents import Document
from smallm_hf.data.selection.ngrams import Read, hash_words, join_words, read_ngrams

NGRAM_WORDS = 13
MOST_NGRAMS = 1 << 26  # of validation; where it has more, one in two is looked up, or in four, ...
TABLE_BITS = 30
ROWS = 1 << 18  # of the arrays on disk that are in memory at a time
EDGES = (0.0, 0.01, 0.05, 0.1, 0.2, 0.3, 0.5, 0.8, 1.0)  # of the distribution of shares
QUANTILES = (0.5, 0.9, 0.99, 1.0)
MOST_FORMULAS = 20  # in the report
COMMONEST_NGRAMS = 200  # of the formulas, whose texts are looked up
SHOWN_CHARACTERS = 200


def measure_leakage(
    validation: Read, training: Read, formula_documents: int, folder: str | Path | None = None
) -> tuple[np.ndarray, dict[str, Any]]:
    """Measures which share of the 13-grams of each validation document is in the training text.

    Args:
        validation: starts reading the validation documents; called twice.
        training: starts reading the training documents; called once.
        formula_documents: an n-gram in more training documents is a formula, such as the beginning of a tale, and gives
            nothing away.
        folder: for temporary files; None takes the system's.

    Returns:
        The share of each document in reading order, (N,) float64, 0 where it has no 13-grams; and for JSON the
        distribution of the shares and the formulas.
    """
    with tempfile.TemporaryDirectory(dir=folder, ignore_cleanup_errors=True) as place:
        return _measure(validation, training, formula_documents, Path(place))


def _measure(
    validation: Read, training: Read, formula_documents: int, folder: Path
) -> tuple[np.ndarray, dict[str, Any]]:
    ngrams, owners, number, bits = _collect(validation(), folder)
    known = _distinct(ngrams, folder)
    counts = _count(known, bits, training(), folder)
    total, leaked, formula = np.zeros((3, number))
    for some in _stretches(ngrams):
        count, documents = counts[np.searchsorted(known, ngrams[some])], owners[some]
        is_formula = count > formula_documents
        for sums, weights in ((total, None), (leaked, (count > 0) & ~is_formula), (formula, is_formula)):
            first, stop = documents[0], documents[-1] + 1  # in reading order
            sums[first:stop] += np.bincount(documents - first, weights)
    shares = leaked / np.maximum(total, 1)
    distribution = {f"{low:g}-{high:g}": (shares > low) & (shares <= high) for low, high in itertools.pairwise(EDGES)}
    report = {
        "ngram_words": NGRAM_WORDS,
        "looked_at": f"1 of {1 << bits} n-grams",
        "validation_documents": number,
        "validation_documents_without_ngrams": int((total == 0).sum()),
        "validation_ngrams": len(known),
        "ngrams_in_training": int((counts > 0).sum()),
        "share_of_ngrams_leaked": round(float(leaked.sum() / max(total.sum(), 1)), 6),
        "distribution": {edges: int(has.sum()) for edges, has in {"0": shares == 0, **distribution}.items()},
        "quantiles": {f"{q:g}": round(float(np.quantile(shares, q)), 4) for q in QUANTILES} if number else {},
        "formula_documents": formula_documents,
        "formula_ngrams": int((counts > formula_documents).sum()),
        "share_of_ngrams_formula": round(float(formula.sum() / max(total.sum(), 1)), 6),
        "documents_mostly_formula": int((2 * formula > total).sum()),
        "formulas": _formulas(validation, ngrams, owners, known, counts, formula_documents),
    }
    return shares, report


# --- the n-grams of validation ---------------------------------------------------------------------------------------


def _collect(pieces: Iterable[Document], folder: Path) -> tuple[np.ndarray, np.ndarray, int, int]:
    """Returns the n-grams in reading order, their documents, the number of these, and which n-grams are kept.

    Those are kept whose last `bits` bits are 0, so that the same ones can be looked up in training.
    """
    number = bits = 0
    sizes = Counter()  # n-grams so far whose last so many bits are 0

    def counted() -> Iterator[Document]:
        nonlocal number
        for piece in pieces:
            number += piece.piece == 0
            yield piece

    with (folder / "ngrams").open("wb") as ngrams_file, (folder / "owners").open("wb") as owners_file:
        for ngrams, documents in read_ngrams(counted(), NGRAM_WORDS):
            is_kept = _is_kept(ngrams, bits)
            ngrams_file.write(ngrams[is_kept].tobytes())
            owners_file.write(documents[is_kept].astype(np.int32).tobytes())
            for more in itertools.count(bits):
                if not (size := np.count_nonzero(_is_kept(ngrams, more))):
                    break
                sizes[more] += size
            while sizes[bits] > MOST_NGRAMS:
                bits += 1
    ngrams, owners = _mapped(folder / "ngrams", np.uint64), _mapped(folder / "owners", np.int32)
    if bits:  # more were written before
        size = _keep((ngrams, owners), lambda some: _is_kept(ngrams[some], bits))
        ngrams, owners = ngrams[:size], owners[:size]
    return ngrams, owners, number, bits


def _is_kept(ngrams: np.ndarray, bits: int) -> np.ndarray:
    return ngrams & np.uint64((1 << bits) - 1) == 0


def _distinct(ngrams: np.ndarray, folder: Path) -> np.ndarray:
    """Returns the n-grams, each once, ascending."""
    if not len(ngrams):
        return ngrams
    known = np.asarray(np.memmap(folder / "known", np.uint64, "w+", shape=ngrams.shape))
    known[:] = ngrams
    known.sort()

    def is_first(some: slice) -> np.ndarray:
        before = known[some.start - 1] if some.start else ~known[0]  # anything else
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
    """A file as an array whose pages the system writes back: they count as no memory of ours."""
    return np.asarray(np.memmap(path, item, "r+")) if path.stat().st_size else np.zeros(0, item)


# --- training --------------------------------------------------------------------------------------------------------


def _count(known: np.ndarray, bits: int, pieces: Iterable[Document], folder: Path) -> np.ndarray:
    """Returns in how many of the documents each of the known n-grams is; (len(known),) int32."""
    if not len(known):
        return np.zeros(0, np.int32)
    counts = np.asarray(np.memmap(folder / "counts", np.int32, "w+", shape=known.shape))
    shift = np.uint64(64 - min((32 * len(known)).bit_length(), TABLE_BITS))
    table = np.zeros(1 << max(61 - int(shift), 0), np.uint8)  # one bit for the first bits of an n-gram
    for some in _stretches(known):
        np.bitwise_or.at(table, *_byte_and_bit(known[some] >> shift))
    last, last_places = -1, np.zeros(0, np.int64)  # the document that may go on in the next batch, and what it had
    for ngrams, documents in read_ngrams(pieces, NGRAM_WORDS):
        near = np.flatnonzero(_is_kept(ngrams, bits))
        byte, bit = _byte_and_bit(ngrams[near] >> shift)
        near = near[table[byte] & bit != 0]  # few of the unknown ones
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


# --- formulas --------------------------------------------------------------------------------------------------------


def _formulas(
    validation: Read, ngrams: np.ndarray, owners: np.ndarray, known: np.ndarray, counts: np.ndarray, most: int
) -> list[dict[str, Any]]:
    """Finds the texts of the commonest formulas; n-grams that follow one another are shown as one text."""
    places = np.flatnonzero(counts > most)
    commonest = known[places[np.argsort(-counts[places], kind="stable")[:COMMONEST_NGRAMS]]]
    found = np.concatenate(
        [some.start + np.flatnonzero(np.isin(ngrams[some], commonest)) for some in _stretches(ngrams)] or [places]
    )
    _, firsts = np.unique(ngrams[found], return_index=True)
    runs = []
    for text in _texts(validation, set(owners[found[firsts]].tolist())):
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
    return formulas[:MOST_FORMULAS]


def _texts(read: Read, wanted: set[int]) -> Iterator[str]:
    """Yields some documents of a stream whole, in lower case, and stops after the last of them."""
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
