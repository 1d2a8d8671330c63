"""Which text trains and which validates: by a hash of each document, by its rare words, or inside of few documents."""

import hashlib
import io
import itertools
import math
import re
from bisect import bisect
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from smallm_hf.base.errors import UserError
from smallm_hf.data.reading.documents import Document, cut_pieces
from smallm_hf.data.selection.ngrams import read_vocabularies

TRAIN, VALIDATION = SIDES = ("train", "validation")
FEWEST_DOCUMENTS = 20  # a source of fewer is split inside them
BLOCKS = 10  # places of the text that validation is taken from then
KINDS = PARAGRAPHS, LINES, WORDS = ("paragraphs", "lines", "words")  # what it may be cut into, best first
VOCABULARY_BITS = 22  # of the number of a word; words that share them count as one
RARE = 10  # times the least number of documents that can be split at the ratio: words of more are not rare
WORD = re.compile(r"\S+\s*|\s+")

Read = Callable[[], Iterable[Document]]
Sided = Iterator[tuple[str, Document]]


def hash_fraction(text: str) -> float:
    """Returns a number in [0, 1) that depends on the text alone."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6]) / 2**48


def split_by_hash(hashes: np.ndarray, ratio: float) -> np.ndarray:
    """Chooses which documents validate by their hashes alone: (N,) bool.

    Args:
        hashes: (N,) uint64, of each document or of the one that it goes with.
        ratio: share of the documents that validates, about.

    Raises:
        UserError: one side is empty.
    """
    fractions = hashes / 2**64
    validates = fractions < ratio
    lowest, highest = fractions.min(), fractions.max()
    if lowest == highest:
        fix = "all are equal, so give data.validation_source"
    elif lowest >= ratio:
        fix = f"raise it to {math.floor(lowest * 1e4 + 1) / 1e4}"
    else:
        fix = f"lower it to {math.floor(highest * 1e4) / 1e4}"
    if validates.all() or not validates.any():
        side = TRAIN if validates.all() else VALIDATION
        raise UserError(f"data.validation_ratio={ratio} leaves the {side} side of {len(hashes)} documents empty; {fix}")
    return validates


def split_by_rare_words(read: Read, followed: np.ndarray, ratio: float) -> np.ndarray:
    """Chooses which documents validate so that rare words are spread evenly over both sides: (N,) bool.

    The rare words are those that stand in 1/`ratio` to 10/`ratio` documents. Each document goes to the side that leaves
    the smaller sum, over its rare words, of squared deviations from the ratio, each divided by the word's number of
    documents; the numbers of documents, of words, and of words still rarer, are kept to the ratio in the same way. This
    is one greedy pass in reading order with the aim of iterative stratification (Sechidis et al. 2011), which would
    have to hold all documents; memory is about 100 MB for any number of them.

    Args:
        read: starts reading the documents; called twice.
        followed: (N,) int64, for each document itself, or the one before it that it has to go with.
        ratio: share of the documents that validates.

    Raises:
        UserError: there are too few documents.
    """
    least = math.ceil(1 / min(ratio, 1 - ratio))
    documents = np.zeros(1 << VOCABULARY_BITS, np.int32)
    number = sizes = 0
    for vocabulary in read_vocabularies(read(), VOCABULARY_BITS):
        documents[vocabulary] += 1
        number, sizes = number + 1, sizes + len(vocabulary)
    is_rare = (documents >= least) & (documents <= RARE * least)
    if number < max(FEWEST_DOCUMENTS, 2 * least) or not is_rare.any():
        raise UserError(
            f"selection.split=stratified has {number} documents with {is_rare.sum()} words that stand in {least} to "
            f"{RARE * least} of them, too few for data.validation_ratio={ratio}; set selection.split to random, give "
            f"{max(FEWEST_DOCUMENTS, 2 * least)} documents or more, or a ratio nearer 0.5"
        )
    weights = np.where(is_rare, 1 / np.maximum(documents, 1), 0).astype(np.float32)
    is_rarer = (documents > 0) & (documents < least)
    all_weight = is_rare.sum() / number  # what the rare words of a document weigh together, on average
    means = np.array([1, sizes / number, documents[is_rarer].sum() / number or 1])
    excess = np.zeros(len(documents), np.float32)  # documents on validation beyond the ratio that hold a word
    excess_sizes = np.zeros(3)  # documents, their words and rarer words there beyond the ratio, in shares of the mean
    validates = np.zeros(number, bool)
    for ordinal, vocabulary in enumerate(read_vocabularies(read(), VOCABULARY_BITS)):
        rare = vocabulary[is_rare[vocabulary]]
        size = np.array([1, len(vocabulary), is_rarer[vocabulary].sum()]) / means
        growth = weights[rare] @ (2 * excess[rare] + 1 - 2 * ratio)
        growth += all_weight * (size @ (2 * excess_sizes + size * (1 - 2 * ratio)))
        validates[ordinal] = growth < 0 if followed[ordinal] == ordinal else validates[followed[ordinal]]
        excess[rare] += validates[ordinal] - ratio
        excess_sizes += size * (validates[ordinal] - ratio)
    return validates


# --- few documents ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class InsidePlan:
    """How few documents are cut into both sides: which of their consecutive units, of one kind, validate."""

    blocks: list[range]
    kind: str

    def __call__(self, documents: Iterable[Document]) -> Sided:
        """Yields the same documents as (side, document) pairs, each run of units a document of its own."""
        return _inside(documents, self.blocks, self.kind)


def plan_inside(read: Read, ratio: float) -> InsidePlan:
    """Decides how to cut few documents into both sides.

    They are cut into contiguous runs of paragraphs (of lines if there are no blank ones, of words if there are no
    lines); validation gets up to 10 of them, spread evenly.

    Raises:
        UserError: not even two words.
    """
    for kind in KINDS:
        number = _count(_units(read(), kind))
        if number > 1:
            return InsidePlan(validation_blocks(number, ratio), kind)
    raise UserError(
        "the data source has fewer than two words, nothing to split into train and validation; "
        "give more text or data.validation_source"
    )


def validation_blocks(units: int, ratio: float) -> list[range]:
    """Chooses which of `units` (at least 2) consecutive units validate: up to `BLOCKS` ranges, each amid an equal part.

    Between one unit and all but one are chosen, otherwise `ratio` of them.
    """
    chosen = min(max(round(units * ratio), 1), units - 1)
    number = min(BLOCKS, chosen)
    blocks = []
    for block in range(number):
        start, stop = units * block // number, units * (block + 1) // number
        length = chosen * (block + 1) // number - chosen * block // number
        first = start + (stop - start - length) // 2
        blocks.append(range(first, first + length))
    return blocks


def _inside(documents: Iterable[Document], blocks: list[range], kind: str) -> Sided:
    edges = [edge for block in blocks for edge in (block.start, block.stop)]

    def document_and_side(item: tuple[Document, int, str]) -> tuple[str, str]:
        document, unit, _ = item
        return document.id, VALIDATION if bisect(edges, unit) % 2 else TRAIN  # past a start and not its stop

    runs = itertools.groupby(_units(documents, kind), document_and_side)
    for number, ((id, side), run) in enumerate(runs, start=1):
        for piece in cut_pieces(f"{id}:{number}", {"part_of": id}, (part for _, _, part in run)):
            yield side, piece


def _units(documents: Iterable[Document], kind: str) -> Iterator[tuple[Document, int, str]]:
    """Yields the text in small parts, each with its document and the number in the source of the unit it belongs to.

    Blank lines belong to the unit before them. Pieces may end anywhere, so the state goes on from one to the next.
    """
    unit = -1
    after_blank = has_text = False
    for document in documents:
        if document.piece == 0:
            after_blank, has_text = True, False
        for part in WORD.findall(document.text) if kind == WORDS else io.StringIO(document.text):
            if not has_text and not part.isspace():
                has_text = True
                unit += kind != PARAGRAPHS or after_blank
            yield document, unit, part
            if kind == WORDS or part.endswith("\n"):
                after_blank, has_text = not has_text, False


def _count(units: Iterator[tuple[Document, int, str]]) -> int:
    unit = -1
    for _, unit, _ in units:  # noqa: B007  the last one counts
        pass
    return unit + 1
