"""Words and runs of words as numbers: what duplicates and leakage are found by.

A word is a run of letters, marks and digits in lower case; all else separates words. A letter of a script that is
written without spaces is a word of its own. Equal words have equal numbers on every machine; two different ones do with
a probability of about 2^-64.
"""

import itertools
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from functools import cache

import numpy as np

from smallm_hf.data.reading.documents import Document

BETWEEN, INSIDE, ALONE = 0, 1, 2  # kinds of characters
# Thai and Lao, Burmese, Khmer, kana, Chinese characters
UNSPACED = [(0x0E00, 0x0F00), (0x1000, 0x10A0), (0x1780, 0x1800), (0x3040, 0x3100), (0x3400, 0xA000), (0xF900, 0xFB00)]
BATCH_CHARACTERS = 1 << 16  # more does not fit into the processor's caches
FACTORS = np.random.PCG64(0).random_raw(1024) | np.uint64(1)  # of the letters of a word, repeated in a longer one
MIXERS = np.array([0xBF58476D1CE4E5B9, 0x94D049BB133111EB], np.uint64)  # of splitmix64 (Steele et al. 2014)
Read = Callable[[], Iterable[Document]]  # starts reading documents from the beginning


@cache
def _kinds() -> np.ndarray:
    """The kind of each character up to U+FFFF, the last for all beyond."""
    categories = [unicodedata.category(chr(code))[0] for code in range(1 << 16)]
    kinds = np.array([INSIDE if category in "LMN" else BETWEEN for category in categories], np.uint8)
    for first, stop in UNSPACED:
        kinds[[code for code in range(first, stop) if categories[code] == "L"]] = ALONE
    kinds[-1] = ALONE
    return kinds


def _mixed(numbers: np.ndarray) -> np.ndarray:
    """Spreads each number over all bits."""
    for shift, mixer in zip((30, 27), MIXERS, strict=True):
        numbers = (numbers ^ (numbers >> np.uint64(shift))) * mixer
    return numbers ^ (numbers >> np.uint64(31))


def hash_words(text: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns the number (uint64) of each word of a text in lower case, and the character at which it begins."""
    if text.isascii():
        codes = np.frombuffer(text.encode(), np.uint8)
        kinds = _kinds()[codes]
    else:
        codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
        kinds = _kinds()[np.minimum(codes, len(_kinds()) - 1)]
    is_word = kinds != BETWEEN
    begins = is_word.copy()
    begins[1:] &= ~is_word[:-1] | (kinds[1:] == ALONE)
    starts = np.flatnonzero(begins).astype(np.int32)
    if not len(starts):
        return np.zeros(0, np.uint64), starts
    first = starts[0]
    places = np.arange(first, len(codes), dtype=np.int32) - np.repeat(starts, np.diff(starts, append=len(codes)))
    values = FACTORS[places & (len(FACTORS) - 1)] * (codes[first:].astype(np.uint64) + np.uint64(1))
    values *= is_word[first:]
    return _mixed(np.add.reduceat(values, starts - first)), starts


def join_words(words: np.ndarray, n: int) -> np.ndarray:
    """Returns one number for each run of `n` words; of a single word it is the word's own."""
    if n == 1:
        return words
    number = max(len(words) - n + 1, 0)
    joined = np.zeros(number, np.uint64)
    for place in range(n):
        joined += words[place : place + number] * FACTORS[place]
    return _mixed(joined)


class NgramReader:
    """Collects pieces of documents and gives all runs of `n` words within a document, many documents at a time.

    `first` and `documents` are the ordinals of the first document in the next `take`, and of the first still to come.
    """

    def __init__(self, n: int):
        self.n = n
        self.first = self.documents = self._characters = 0
        self._texts: list[str] = []
        self._ordinals: list[int] = []
        self._held = np.zeros(0, np.uint64), np.zeros(0, np.int64)  # the last words, which begin runs that go on

    def add(self, piece: Document) -> bool:
        """Adds the next piece of a document, or the first of the next one; True when there is enough for `take`."""
        self.documents += piece.piece == 0
        if not self._texts:
            self.first = self.documents - 1
        self._texts.append(piece.text.lower())
        self._ordinals.append(self.documents - 1)
        self._characters += len(piece.text)
        return self._characters >= BATCH_CHARACTERS

    def take(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns the numbers of all runs that ended since the last time, and the ordinals of their documents."""
        words, starts = hash_words("\n".join(self._texts))
        ends = np.cumsum([len(text) + 1 for text in self._texts])
        ordinals = np.asarray(self._ordinals, np.int64)[np.searchsorted(ends, starts, side="right")]
        self._texts, self._ordinals, self._characters, self.first = [], [], 0, self.documents
        words, ordinals = np.concatenate([self._held[0], words]), np.concatenate([self._held[1], ordinals])
        joined, last = join_words(words, self.n), max(len(words) - self.n + 1, 0)
        self._held = words[last:], ordinals[last:]
        is_within = ordinals[: len(joined)] == ordinals[len(ordinals) - len(joined) :]
        return joined[is_within], ordinals[: len(joined)][is_within]


def read_ngrams(pieces: Iterable[Document], n: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields the n-grams of documents, and the documents' ordinals in the stream (int64), a batch at a time."""
    reader = NgramReader(n)
    for piece in pieces:
        if reader.add(piece):
            yield reader.take()
    yield reader.take()


def read_vocabularies(pieces: Iterable[Document], bits: int) -> Iterator[np.ndarray]:
    """Yields the different words of each document: the first `bits` of their numbers, ascending (int64), or none."""
    reader, held, ordinal = NgramReader(1), np.zeros(0, np.int64), 0
    for piece in itertools.chain(pieces, [None]):
        if piece and not reader.add(piece):
            continue
        first, stop = reader.first, reader.documents
        words, documents = reader.take()
        numbers = (words >> np.uint64(64 - bits)).astype(np.int64)
        edges = np.searchsorted(documents, np.arange(first, stop + 1))
        for document, (start, end) in enumerate(itertools.pairwise(edges), start=first):
            if document > ordinal:
                yield held
                held, ordinal = held[:0], document
            held = np.unique(np.concatenate([held, numbers[start:end]]))
    if ordinal < reader.documents:
        yield held
