"""Which text trains and which validates: decided by a hash of each document, or inside them where they are few."""

import hashlib
import io
import itertools
import math
import re
from bisect import bisect
from collections.abc import Callable, Iterable, Iterator

from smallm_hf.data.documents import Document, cut_pieces
from smallm_hf.errors import UserError

TRAIN, VALIDATION = SIDES = ("train", "validation")
FEWEST_DOCUMENTS = 20  # a source of fewer is split inside them
BLOCKS = 10  # places of the text that validation is taken from then
KINDS = PARAGRAPHS, LINES, WORDS = ("paragraphs", "lines", "words")  # what it may be cut into, best first
WORD = re.compile(r"\S+\s*|\s+")

Read = Callable[[], Iterable[Document]]
Sided = Iterator[tuple[str, Document]]


def split_by_ratio(read: Read, ratio: float) -> Callable[[], Sided]:
    """Decides how to split a source and returns a function that reads it as (side, document) pairs, time and again.

    Equal documents fall on the same side. A source of fewer than 20 documents is cut into contiguous runs of paragraphs
    (of lines if there are no blank ones, of words if there are no lines), each run a document of its own; validation
    gets up to 10 of them, spread evenly.

    Args:
        read: starts reading the source from its beginning; called once here and once by each reading.
        ratio: share of the documents, or paragraphs, that validates.

    Raises:
        UserError: no text, or nothing left for one of the sides.
    """
    if not 0 < ratio < 1:
        raise UserError(
            f"data.validation_ratio={ratio} leaves one side of the split empty; set it between 0 and 1, such as 0.05, "
            "or give data.validation_source"
        )
    documents, lowest, highest = 0, 1.0, 0.0
    for document in read():
        if document.text and document.piece == 0:
            fraction = hash_fraction(document.text)
            documents, lowest, highest = documents + 1, min(lowest, fraction), max(highest, fraction)
            if documents >= FEWEST_DOCUMENTS and lowest < ratio <= highest:
                return lambda: _by_hash(read(), ratio)
    if documents >= FEWEST_DOCUMENTS:
        if lowest >= ratio:
            side, fix = VALIDATION, f"raise it to {math.floor(lowest * 1e4 + 1) / 1e4}"
        else:
            side, fix = TRAIN, f"lower it to {math.floor(highest * 1e4) / 1e4}"
        if lowest == highest:
            fix = "all are equal, so give data.validation_source"
        raise UserError(f"data.validation_ratio={ratio} leaves the {side} side of {documents} documents empty; {fix}")
    for kind in KINDS:
        number = _count(_units(read(), kind))
        if number > 1:
            blocks = validation_blocks(number, ratio)
            return lambda: _inside(read(), blocks, kind)
    raise UserError(
        "the data source has fewer than two words, nothing to split into train and validation; "
        "give more text or data.validation_source"
    )


def hash_fraction(text: str) -> float:
    """Returns a number in [0, 1) that depends on the text alone."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6]) / 2**48


def _by_hash(documents: Iterable[Document], ratio: float) -> Sided:
    side = TRAIN
    for document in documents:
        if document.piece == 0:  # a long document goes where its first piece goes
            side = VALIDATION if hash_fraction(document.text) < ratio else TRAIN
        yield side, document


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
