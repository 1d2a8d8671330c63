"""Which documents train, which validate, and which do neither: duplicates, the split, leakage.

`FeatureBuilder` looks at each document once, while it is cleaned; `select` decides from what it kept, and reads the
text again only for leakage, for the stratified split and for examples.
"""

import functools
import hashlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from smallm_hf.data.documents import Document
from smallm_hf.data.duplicates import equal_to, estimated_similarity, join_similar, minhash
from smallm_hf.data.leakage import measure_leakage
from smallm_hf.data.ngrams import NgramJoiner, WordReader
from smallm_hf.data.splitting import (
    FEWEST_DOCUMENTS,
    SIDES,
    InsidePlan,
    plan_inside,
    split_by_hash,
    split_by_rare_words,
)
from smallm_hf.errors import UserError

TRAIN, VALIDATION, DUPLICATE, LEAKED = 0, 1, 2, 3  # codes of `Selection.sides`
CODES = (*SIDES, "duplicate", "leaked")
EMPTY = int.from_bytes(hashlib.blake2b(b"", digest_size=8).digest(), "little")  # hash of a document without text
SHINGLE_WORDS = 5
PERMUTATIONS = 128
NO_SHINGLE = np.iinfo(np.uint16).max  # in all of a signature: a document of fewer words
NOT_GIVEN = -1  # the side of a source that is to be split
RELATED = 0.4  # similarity above which documents, such as two editions of a book, go to the same side
EXAMPLES = 5
EXAMPLE_CHARACTERS = 160

Read = Callable[[int, np.ndarray | None], Iterable[Document]]  # of a source the documents wanted, (N,) bool, or all


@dataclass(frozen=True)
class SelectionConfig:
    """Which documents are left out as duplicates, and how the others are split.

    Args:
        duplicates: whether of documents that are equal but for blanks (`exact`), or nearly equal too (`near`), only the
            first is kept.
        similarity: share of the different runs of 5 words in two documents that have to stand in both (Jaccard) for
            them to be near duplicates; estimated with a standard error of at most 0.045.
        split: whether documents are split by a hash of their text, or so that rare words are spread evenly.
        max_leakage: share of the runs of 13 words of a validation document that may stand in training too; a document
            of more leaves validation. 1 keeps all.
        formula_documents: runs of 13 words in more training documents than this are formulas, and give nothing away.
    """

    duplicates: Literal["keep", "exact", "near"] = "near"
    similarity: float = 0.8
    split: Literal["random", "stratified"] = "random"
    max_leakage: float = 0.2
    formula_documents: int = 5


# --- what is kept of each document -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Features:
    """What selection has to know of each of N documents, in their order.

    Args:
        hashes: (N,) uint64, of the words of the text as they are written, whatever blanks stand between them.
        signatures: (N, 128) uint16 MinHash of its 5-grams (Broder 1997), the low bits only (Li & König 2010); (N, 0)
            where near duplicates are not looked for.
        words: (N,) int64, with blanks between them.
    """

    hashes: np.ndarray
    signatures: np.ndarray
    words: np.ndarray

    def save(self, path: Path) -> None:
        """Writes them to one file."""
        permutations = self.signatures.shape[1:]
        rows = np.empty(len(self.hashes), [("hashes", "<u8"), ("words", "<i8"), ("signatures", "<u2", permutations)])
        for name in rows.dtype.names:
            rows[name] = getattr(self, name)
        with Path(path).open("wb") as file:
            np.save(file, rows)

    @classmethod
    def load(cls, path: Path) -> "Features":
        """Opens what `save` wrote; the arrays stay on disk until they are looked at."""
        rows = np.load(path, mmap_mode="r")
        return cls(rows["hashes"], rows["signatures"], rows["words"])

    @classmethod
    def joined(cls, parts: Sequence["Features"]) -> "Features":
        """Returns those of consecutive parts as one, in memory."""
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in cls.__dataclass_fields__))

    @property
    def bytes_per_document(self) -> int:
        """Memory that these arrays take for each document."""
        return sum(np.prod(array.shape[1:], dtype=int).item() * array.itemsize for array in vars(self).values())


class FeatureBuilder:
    """Computes the features of documents that come in pieces; holds less than a megabyte of text at a time.

    Args:
        config: whether near duplicates will be looked for.
    """

    def __init__(self, config: SelectionConfig):
        self._permutations = PERMUTATIONS if config.duplicates == "near" else 0
        self._hashes, self._words = array("Q"), array("q")
        self._reader, self._shingles = WordReader(), NgramJoiner(SHINGLE_WORDS)
        self._signatures: list[np.ndarray] = []
        self._last = np.zeros((0, self._permutations), np.uint32)  # of the last document, which may go on; or of none
        self._rows = 0

    def add(self, piece: Document) -> None:
        """Takes the next piece of a document, or the first of the next one."""
        words = piece.text.split()
        if piece.piece == 0:
            self._hash = hashlib.blake2b(digest_size=8)
            self._words.append(0)
        self._words[-1] += len(words)
        if piece.text:
            self._hash.update(" ".join(words).encode() + b" ")
        if piece.is_last:
            self._hashes.append(int.from_bytes(self._hash.digest(), "little"))
        if self._permutations and self._reader.add(piece):
            self._take()

    def features(self) -> Features:
        """Returns those of all documents; nothing may be added after that."""
        hashes, words = np.array(self._hashes, np.uint64), np.array(self._words, np.int64)
        if not self._permutations:
            return Features(hashes, np.zeros((len(hashes), 0), np.uint16), words)
        self._take()
        signatures = np.concatenate([*self._signatures, self._last.astype(np.uint16)])
        short = np.flatnonzero((signatures == NO_SHINGLE).all(axis=1))  # the text as a whole is the only shingle
        signatures[short] = minhash(hashes[short], np.arange(len(short)), len(short), self._permutations)
        return Features(hashes, signatures, words)

    def _take(self) -> None:
        first, stop = self._reader.first, self._reader.documents
        words, documents = self._reader.take()
        if first == stop:
            return
        shingles, documents = self._shingles(words, documents)
        signatures = minhash(shingles, documents - first, stop - first, self._permutations)
        if first < self._rows:  # the last document has gone on
            signatures[0] = np.minimum(signatures[0], self._last[0])
        else:
            signatures = np.concatenate([self._last, signatures])
        self._signatures.append(signatures[:-1].astype(np.uint16))
        self._last, self._rows = signatures[-1:], stop


# --- the whole -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Selection:
    """Where each document goes.

    Args:
        sides: for each source (N,) int8 over its documents: TRAIN, VALIDATION, DUPLICATE or LEAKED. Where a source is
            cut inside its documents, TRAIN stands for those that are.
        report: duplicates, split and leakage, for JSON.
        plans: of the sources of few documents, how these are cut.
    """

    sides: list[np.ndarray]
    report: dict[str, Any] = field(default_factory=dict)
    plans: dict[int, InsidePlan] = field(default_factory=dict)

    def is_inside(self, source: int) -> bool:
        """Whether a source is cut inside its documents, and so has to be read from its beginning to its end."""
        return source in self.plans

    def sided(self, source: int, documents: Iterable[Document]) -> Iterator[tuple[str, Document]]:
        """Yields the pieces of the documents that are kept, each with its side.

        Args:
            source: its number.
            documents: of the source, all of them, as they were looked at.
        """
        codes = self.sides[source]
        kept = ((SIDES[codes[place]], piece) for place, piece in _numbered(documents) if codes[place] <= VALIDATION)
        plan = self.plans.get(source)
        return plan(piece for _, piece in kept) if plan else kept


def _numbered(documents: Iterable[Document]) -> Iterator[tuple[int, Document]]:
    ordinal = -1
    for piece in documents:
        ordinal += piece.piece == 0
        yield ordinal, piece


def select(
    read: Read,
    features: Sequence[Sequence[Features]],
    sides: Sequence[int | None],
    config: SelectionConfig,
    ratio: float,
    folder: Path | None = None,
) -> Selection:
    """Decides for all documents of all sources.

    Of duplicates the first in reading order stays; a source given for validation is read last, so that it is never the
    reason to leave out what trains. Documents of a similarity above `RELATED` go to one side: to that of a source with
    a given side, otherwise to where the first of the cluster belongs. A hash of its text decides that, so it stays
    there when documents are appended (unless one of them is related to two clusters: then the later one goes to the
    side of the earlier). Documents without text train, or stay on the side that is given.

    A source of fewer than 20 documents without a given side is cut inside them; leakage is measured there too, but
    nothing leaves.

    Args:
        read: starts reading a source, by its number, from the beginning: the documents that are wanted, or all.
        features: of each source those of its parts.
        sides: TRAIN or VALIDATION for each source, or None if it is to be split.
        config: how.
        ratio: share of the documents of a source to be split that validates.
        folder: for what is kept on disk meanwhile, see `measure_leakage`.

    Raises:
        UserError: a setting out of range, or one side that has no document left.
    """
    check_split(config, ratio if None in sides else None)
    order = sorted(range(len(sides)), key=lambda source: sides[source] == VALIDATION)
    counts = [sum(len(part.hashes) for part in features[source]) for source in order]
    corpus = Features.joined([part for source in order for part in features[source]])  # the only copy in memory
    sources = np.repeat(np.array(order, np.int32), counts)
    given = np.array([NOT_GIVEN if side is None else side for side in sides], np.int8)[sources]
    has_text = corpus.hashes != EMPTY
    equal, near, clusters = _clusters(corpus, has_text, config)
    kept_for = {"keep": np.arange(len(sources)), "exact": equal, "near": near}[config.duplicates]
    is_kept = has_text & (kept_for == np.arange(len(sources)))

    codes = np.where(given == NOT_GIVEN, TRAIN, given).astype(np.int8)
    codes[has_text & ~is_kept] = DUPLICATE
    views = dict(zip(order, np.split(codes, np.cumsum(counts)[:-1]), strict=True))
    selection = Selection([views[source] for source in range(len(sides))])  # what is done to `codes` shows there

    is_free = is_kept & (given == NOT_GIVEN)
    for source in order:
        number = int(is_free[sources == source].sum())
        if sides[source] is None and number < FEWEST_DOCUMENTS:
            is_free[sources == source] = False
            with_text = int(has_text[sources == source].sum())
            if number <= 1 and with_text >= FEWEST_DOCUMENTS:  # the one that is left trains
                if VALIDATION not in sides and sides.count(None) == 1:
                    _refuse_duplicates(with_text, config, ratio)
            elif number:
                _refuse_stratified(number, config)
                selection.plans[source] = plan_inside(functools.partial(_read_kept, read, selection, source), ratio)
    for side in (TRAIN, VALIDATION):  # what is related to both trains; what that gives away, leakage shows
        is_drawn = is_free & np.isin(clusters, clusters[is_kept & (given == side)])
        codes[is_drawn] = side
        is_free &= ~is_drawn
    if is_free.any():
        _, leaders, members = np.unique(clusters[is_free], return_index=True, return_inverse=True)
        if len(leaders) == 1 and config.duplicates == "near":
            raise UserError(
                f"data.validation_ratio={ratio} leaves the validation side of {is_free.sum()} documents empty; all are "
                f"related (similarity above {RELATED}), so give data.validation_source or set selection.duplicates to "
                "exact"
            )
        if config.split == "stratified":
            free = {source: is_free[sources == source] for source in order}
            validates = split_by_rare_words(functools.partial(_read_some, read, free), leaders[members], ratio)
        else:
            validates = split_by_hash(corpus.hashes[is_free][leaders[members]], ratio)
        codes[is_free] = np.where(validates, VALIDATION, TRAIN)
    _require_both_sides(codes[has_text], selection.plans, config)

    streamed = [source for source in order if source not in selection.plans] + list(selection.plans)

    def texts(side: int) -> Iterator[Document]:
        for source in streamed:
            if source in selection.plans:
                yield from (piece for name, piece in selection.sided(source, read(source, None)) if name == SIDES[side])
            else:
                yield from read(source, views[source] == side)

    leakage = measure_leakage(lambda: texts(VALIDATION), lambda: texts(TRAIN), config.formula_documents, folder)
    validating = np.flatnonzero(codes == VALIDATION)  # the first of those streamed; behind them come parts of documents
    shares = leakage.shares[: len(validating)]
    codes[validating[shares > config.max_leakage]] = LEAKED
    _require_both_sides(codes[has_text], selection.plans, config)

    worst = [place for place in np.argsort(-shares, kind="stable")[:EXAMPLES] if shares[place]]
    firsts = np.cumsum([0, *counts])[np.argsort(order)]  # position of the first document of each source
    show = functools.partial(_show, read, sources, firsts)
    selection.report.update(
        duplicates=_duplicates_report(corpus, sources, given, equal, kept_for, clusters, config, show),
        split=_split_report(codes, corpus.words, selection.plans, config, ratio),
        leakage={
            **leakage.report,
            "max_leakage": config.max_leakage,
            "documents_left_validation": int((codes == LEAKED).sum()),
            "examples": [
                {"share": round(float(shares[place]), 4), **document}
                for place, (document,) in zip(worst, show(validating[worst, np.newaxis]), strict=True)
            ],
        },
    )
    return selection


def check_split(config: SelectionConfig, ratio: float | None) -> None:
    """Refuses settings out of range, before any work; `ratio` is None where every side is given.

    Raises:
        UserError: naming the value and the fix.
    """
    if ratio is not None and not 0 < ratio < 1:
        raise UserError(
            f"data.validation_ratio={ratio} leaves one side of the split empty; set it between 0 and 1, such as 0.05, "
            "or give data.validation_source"
        )
    if not RELATED < config.similarity <= 1:
        raise UserError(
            f"selection.similarity={config.similarity} is no share above {RELATED} and up to 1; set it to 0.8, or "
            "selection.duplicates to exact"
        )
    if not 0 <= config.max_leakage <= 1:
        raise UserError(f"selection.max_leakage={config.max_leakage} is a share; set it between 0 and 1")
    if config.formula_documents < 0:
        raise UserError(f"selection.formula_documents={config.formula_documents} is negative; set it to 0 or more")


def _refuse_duplicates(number: int, config: SelectionConfig, ratio: float) -> None:
    kind = "near duplicates" if config.duplicates == "near" else "equal"
    raise UserError(
        f"data.validation_ratio={ratio} leaves the validation side of {number} documents empty; all are {kind}, so "
        "give data.validation_source"
    )


def _refuse_stratified(number: int, config: SelectionConfig) -> None:
    if config.split == "stratified":
        raise UserError(
            f"selection.split=stratified needs {FEWEST_DOCUMENTS} documents that are no duplicates, the source has "
            f"{number}; set selection.split to random, or give more"
        )


def _require_both_sides(codes: np.ndarray, plans: dict[int, InsidePlan], config: SelectionConfig) -> None:
    for name, code in zip(SIDES, (TRAIN, VALIDATION), strict=True):
        if not plans and not (codes == code).any():
            raise UserError(
                f"no document of {len(codes)} is left for the {name} side: {(codes == DUPLICATE).sum()} are duplicates "
                f"(selection.duplicates={config.duplicates}), {(codes == LEAKED).sum()} share more than "
                f"selection.max_leakage={config.max_leakage} with training; give another data.validation_source, or "
                "change these settings"
            )


def _read_kept(read: Read, selection: Selection, source: int) -> Iterator[Document]:
    return read(source, selection.sides[source] <= VALIDATION)


def _read_some(read: Read, wanted: dict[int, np.ndarray]) -> Iterator[Document]:
    """Reads the documents that are wanted of each source, (N,) bool."""
    for source, is_wanted in wanted.items():
        yield from read(source, is_wanted)


def _clusters(
    corpus: Features, has_text: np.ndarray, config: SelectionConfig
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns for each document the first that is equal to it, nearly equal, and related; (N,) int64 each."""
    equal = np.where(has_text, equal_to(corpus.hashes), np.arange(len(corpus.hashes)))
    if config.duplicates != "near":
        return equal, equal, equal
    distinct = np.flatnonzero(has_text & (equal == np.arange(len(equal))))
    near, related = join_similar(corpus.signatures, distinct, (config.similarity, RELATED))
    return equal, near[equal], related[equal]


# --- the report ------------------------------------------------------------------------------------------------------


def _show(read: Read, sources: np.ndarray, firsts: np.ndarray, groups: Sequence[Sequence[int]]) -> list[list[dict]]:
    """Reads how the documents of each group begin."""
    found = {}
    places = np.unique(np.array([place for group in groups for place in group], np.int64))
    for source in np.unique(sources[places]):
        here = places[sources[places] == source]
        is_wanted = np.zeros(int((sources == source).sum()), bool)
        is_wanted[here - firsts[source]] = True
        firsts_of = (piece for piece in read(source, is_wanted) if piece.piece == 0)
        for place, piece in zip(here.tolist(), firsts_of, strict=True):
            begins = piece.text[:EXAMPLE_CHARACTERS]
            found[place] = {"source": int(source), "id": piece.id, "begins": begins}
    return [[found[place] for place in group] for group in groups]


def _duplicates_report(
    corpus: Features,
    sources: np.ndarray,
    given: np.ndarray,
    equal: np.ndarray,
    kept_for: np.ndarray,
    clusters: np.ndarray,
    config: SelectionConfig,
    show: Callable[[Sequence[Sequence[int]]], list[list[dict]]],
) -> dict[str, Any]:
    everyone = np.arange(len(equal))
    is_exact, is_dropped = equal != everyone, kept_for != everyone
    pairs = [
        (kind, int(first[place]), int(place))
        for kind, first, found in (
            ("exact", equal, is_exact),
            ("near", kept_for, is_dropped & ~is_exact),
            ("related, kept on one side", clusters, ~is_dropped & (clusters != everyone)),
        )
        for place in np.flatnonzero(found)[:EXAMPLES]
    ]
    left, right = np.array([pair[1:] for pair in pairs], np.int64).reshape(-1, 2).T
    estimates = estimated_similarity(corpus.signatures, left, right) if corpus.signatures.size else np.ones(len(left))
    sizes = np.unique(clusters, return_counts=True)[1]
    return {
        "duplicates": config.duplicates,
        "similarity": config.similarity,
        "documents": len(equal),
        "exact": int(is_exact.sum()),
        "near": int((is_dropped & ~is_exact).sum()),
        "dropped": int(is_dropped.sum()),
        "dropped_words": int(corpus.words[is_dropped].sum()),
        "across_sources": int((sources[kept_for] != sources).sum()),
        "of_validation_source_in_training": int(
            (is_dropped & (given == VALIDATION) & (given[kept_for] != VALIDATION)).sum()
        ),
        "related_above": RELATED,
        "clusters": int((sizes > 1).sum()),
        "largest_cluster": int(sizes.max(initial=0)),
        "index_bytes_per_document": corpus.bytes_per_document,
        "examples": [
            {"kind": kind, "similarity": round(float(estimate), 3), "first": first, "other": other}
            for (kind, *_), estimate, (first, other) in zip(
                pairs, estimates, show([pair[1:] for pair in pairs]), strict=True
            )
        ],
    }


def _split_report(
    codes: np.ndarray, words: np.ndarray, plans: dict[int, InsidePlan], config: SelectionConfig, ratio: float
) -> dict[str, Any]:
    counts = {name: int((codes == code).sum()) for code, name in enumerate(CODES)}
    number = {name: int(words[codes == code].sum()) for code, name in enumerate(CODES)}
    return {
        "split": config.split,
        "ratio": ratio,
        "documents": counts,
        "words": number,
        "sources_cut_inside": {source: {"unit": plan.kind, "runs": len(plan.blocks)} for source, plan in plans.items()},
    }
