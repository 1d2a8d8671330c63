"""What selection keeps of each document: a hash, its number of words, a signature of its runs of words."""

import hashlib
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from smallm_hf.data.reading.documents import Document
from smallm_hf.data.selection.duplicates import minhash
from smallm_hf.data.selection.ngrams import NgramReader

EMPTY = int.from_bytes(hashlib.blake2b(b"", digest_size=8).digest(), "little")  # hash of an empty document
SHINGLE_WORDS = 5
PERMUTATIONS = 128
NO_SHINGLE = np.iinfo(np.uint16).max  # in all of a signature: a document of fewer words


@dataclass(frozen=True)
class Features:
    """What selection has to know of each of N documents, in their order.

    Args:
        hashes: (N,) uint64, of the text, whatever the blanks between its words.
        signatures: (N, 128) uint16 MinHash of its 5-grams (Broder 1997), the low bits only (Li & König 2010); (N, 0)
            where near duplicates are not searched for.
        words: (N,) int64, number of words between blanks.
        sizes: (N,) int64, bytes of UTF-8.
    """

    hashes: np.ndarray
    signatures: np.ndarray
    words: np.ndarray
    sizes: np.ndarray

    def save(self, path: Path) -> None:
        """Writes all to one file."""
        permutations = self.signatures.shape[1:]
        kinds = [("hashes", "<u8"), ("words", "<i8"), ("sizes", "<i8"), ("signatures", "<u2", permutations)]
        rows = np.empty(len(self.hashes), kinds)
        for name in rows.dtype.names:
            rows[name] = getattr(self, name)
        with Path(path).open("wb") as file:
            np.save(file, rows)

    @classmethod
    def load(cls, path: Path) -> "Features":
        """Opens what `save` wrote; the arrays stay on disk until they are used."""
        rows = np.load(path, mmap_mode="r")
        return cls(rows["hashes"], rows["signatures"], rows["words"], rows["sizes"])

    @classmethod
    def joined(cls, parts: Sequence["Features"]) -> "Features":
        """Returns the features of consecutive parts as one, in memory."""
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in cls.__dataclass_fields__))

    @property
    def has_text(self) -> np.ndarray:
        """Which documents are not empty, (N,) bool."""
        return self.hashes != EMPTY


class FeatureBuilder:
    """Computes the features of documents that come in pieces; holds less than a megabyte of text at a time.

    Args:
        near_duplicates: whether they will be searched for, which needs signatures.
    """

    def __init__(self, near_duplicates: bool):
        self._near_duplicates = near_duplicates
        self._hashes, self._words, self._sizes = array("Q"), array("q"), array("q")
        self._reader = NgramReader(SHINGLE_WORDS)
        self._signatures: list[np.ndarray] = []
        self._last = np.zeros((0, PERMUTATIONS), np.uint32)  # of the last document, if any, which may go on
        self._rows = 0

    def add(self, piece: Document) -> None:
        """Adds the next piece of a document, or the first of the next one."""
        words = piece.text.split()
        if piece.piece == 0:
            self._hash = hashlib.blake2b(digest_size=8)
            self._words.append(0)
            self._sizes.append(0)
        self._words[-1] += len(words)
        self._sizes[-1] += len(piece.text.encode())
        if piece.text:
            self._hash.update(" ".join(words).encode() + b" ")
        if piece.is_last:
            self._hashes.append(int.from_bytes(self._hash.digest(), "little"))
        if self._near_duplicates and self._reader.add(piece):
            self._take()

    def features(self) -> Features:
        """Returns the features of all documents; nothing may be added after that."""
        hashes = np.array(self._hashes, np.uint64)
        words, sizes = (np.array(numbers, np.int64) for numbers in (self._words, self._sizes))
        if not self._near_duplicates:
            return Features(hashes, np.zeros((len(hashes), 0), np.uint16), words, sizes)
        self._take()
        signatures = np.concatenate([*self._signatures, self._last.astype(np.uint16)])
        short = np.flatnonzero((signatures == NO_SHINGLE).all(axis=1))  # the text as a whole is the only shingle
        signatures[short] = minhash(hashes[short], np.arange(len(short)), len(short), PERMUTATIONS)
        return Features(hashes, signatures, words, sizes)

    def _take(self) -> None:
        first, stop = self._reader.first, self._reader.documents
        shingles, documents = self._reader.take()
        if first == stop:
            return
        signatures = minhash(shingles, documents - first, stop - first, PERMUTATIONS)
        if first < self._rows:  # the last document has gone on
            signatures[0] = np.minimum(signatures[0], self._last[0])
        else:
            signatures = np.concatenate([self._last, signatures])
        self._signatures.append(signatures[:-1].astype(np.uint16))
        self._last, self._rows = signatures[-1:], stop
