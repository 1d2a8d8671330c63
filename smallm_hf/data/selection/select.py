"""Which documents train, which validate, and which do neither: duplicates, the split, leakage.

`FeatureBuilder` looks at each document once, while it is cleaned; `select` decides from what it kept, and reads text
again only for leakage, for the stratified split and for examples.
"""

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from smallm_hf.base.errors import UserError
from smallm_hf.data.configuration import SelectionConfig
from smallm_hf.data.reading.documents import Document
from smallm_hf.data.selection.duplicates import equal_to, estimated_similarity, join_similar
from smallm_hf.data.selection.features import Features
from smallm_hf.data.selection.leakage import measure_leakage
from smallm_hf.data.selection.splitting import (
    FEW_VALIDATE,
    FEWEST_DOCUMENTS,
    SIDES,
    InsidePlan,
    plan_inside,
    plan_tail,
    split_by_hash,
    split_by_place,
    split_by_rare_words,
    split_by_size,
)

TRAINS, VALIDATES, DUPLICATE, LEAKED = range(4)  # codes of `Selection.sides`
CODES = (*SIDES, "duplicate", "leaked")
NOT_GIVEN = -1  # the side of a source that is to be split
RELATED = 0.4  # documents above this similarity, such as two editions of a book, go to the same side
EXAMPLES = 5
EXAMPLE_CHARACTERS = 160

ReadSource = Callable[[int, np.ndarray], Iterable[Document]]  # of source number n the documents wanted, (N,) bool


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
            f"selection.similarity={config.similarity} is not a share above {RELATED} and up to 1; set it to 0.8, or "
            "selection.duplicates to exact"
        )
    if not 0 <= config.max_leakage <= 1:
        raise UserError(f"selection.max_leakage={config.max_leakage} is a share; set it between 0 and 1")
    if config.formula_documents < 0:
        raise UserError(f"selection.formula_documents={config.formula_documents} is negative; set it to 0 or more")


@dataclass(frozen=True)
class Selection:
    """Where each document goes.

    Args:
        sides: for each source (N,) int8 over its documents: TRAINS, VALIDATES, DUPLICATE or LEAKED. Documents that are
            cut inside are TRAINS.
        report: duplicates, split and leakage, for JSON.
        plans: how the sources of few documents are cut, by their numbers.
    """

    sides: list[np.ndarray]
    report: dict[str, Any]
    plans: dict[int, InsidePlan]

    def is_inside(self, source: int) -> bool:
        """Whether a source is cut inside its documents, and so has to be read from its beginning to its end."""
        return source in self.plans

    def sided(self, source: int, documents: Iterable[Document]) -> Iterator[tuple[str, Document]]:
        """Yields the pieces of the documents that are kept, each with its side.

        Args:
            source: its number.
            documents: all of the source, as they were selected from.
        """

        def kept() -> Iterator[tuple[str, Document]]:
            ordinal = -1
            for piece in documents:
                ordinal += piece.piece == 0
                if (code := self.sides[source][ordinal]) <= VALIDATES:
                    yield SIDES[code], piece

        plan = self.plans.get(source)
        return plan(piece for _, piece in kept()) if plan else kept()


def select(
    read: ReadSource,
    features: Sequence[Sequence[Features]],
    sides: Sequence[int | None],
    config: SelectionConfig,
    ratio: float,
    folder: Path | None = None,
) -> Selection:
    """Decides for all documents of all sources.

    Of duplicates the first in reading order stays; a source given for validation is read last, so that it is never the
    reason to leave out training text. Documents of a similarity above `RELATED` go to one side: to that of a source
    with a given side, otherwise to where the first of the cluster belongs. A hash of its text decides that, so it stays
    there when documents are appended (unless one of them is related to two clusters: then the later one goes to the
    side of the earlier). Where fewer than 1,000 documents would validate, the hash gives the order in which they fill
    the share of the bytes, and some change sides. Documents without text train, or stay on the side that is given.

    A source of fewer than 20 documents without a given side is cut inside them; leakage is measured there too, but
    nothing leaves.

    Args:
        read: starts reading the wanted documents of a source, from the beginning.
        features: of each source, those of its parts.
        sides: TRAINS or VALIDATES for each source, or None if it is to be split.
        config: how.
        ratio: share of the documents of a source to be split that validates.
        folder: for temporary files, see `measure_leakage`.

    Raises:
        UserError: a setting out of range, or one side that has no document left.
    """
    check_split(config, ratio if None in sides else None)
    corpus = _Corpus(read, features, sides, config)
    has_text = corpus.features.has_text
    plans = _plan_few(corpus, config, ratio)
    codes = _give_sides(corpus, config, ratio)
    _require_both_sides(codes[has_text], plans, config)

    shares, leakage = _leaked_shares(corpus, codes, plans, config.formula_documents, folder)
    codes[shares > config.max_leakage] = LEAKED
    _require_both_sides(codes[has_text], plans, config)

    words = corpus.features.words
    report = {
        "duplicates": _duplicates_report(corpus, config),
        "split": {
            "split": config.split,
            "ratio": ratio,
            "documents": {name: int((codes == code).sum()) for code, name in enumerate(CODES)},
            "words": {name: int(words[codes == code].sum()) for code, name in enumerate(CODES)},
            "bytes": {name: int(corpus.features.sizes[codes == code].sum()) for code, name in enumerate(CODES)},
            "sources_cut_inside": {n: {"unit": plan.kind, "runs": len(plan.blocks)} for n, plan in plans.items()},
        },
        "leakage": {
            **leakage,
            "max_leakage": config.max_leakage,
            "documents_left_validation": int((codes == LEAKED).sum()),
            "examples": _leakage_examples(corpus, shares),
        },
    }
    return Selection([codes[corpus.places[source]] for source in range(len(sides))], report, plans)


# --- all documents, and which of them are the same -------------------------------------------------------------------


class _Corpus:
    """The N documents of all sources in reading order, source after source, those given for validation last.

    Attributes:
        read: starts reading documents of a source.
        features: of the documents, the only copy in memory.
        sides: the given sides of the sources.
        places: slice of each source's documents.
        sources: (N,) int32, the source of each document.
        given: (N,) int8, the side of its source, or NOT_GIVEN.
        equal: (N,) int64, the first document with the same text, which may be itself, as in the next two.
        kept: (N,) int64, the first of those of which the settings keep only the first.
        related: (N,) int64, the first of those that go to the same side.
        is_kept: (N,) bool, all but duplicates.
    """

    def __init__(
        self,
        read: ReadSource,
        features: Sequence[Sequence[Features]],
        sides: Sequence[int | None],
        config: SelectionConfig,
    ):
        order = sorted(range(len(sides)), key=lambda source: sides[source] == VALIDATES)
        counts = [sum(len(part.hashes) for part in features[source]) for source in order]
        edges = itertools.pairwise(itertools.accumulate(counts, initial=0))
        self.read, self.sides = read, sides
        self.features = Features.joined([part for source in order for part in features[source]])
        self.places = {source: slice(*both) for source, both in zip(order, edges, strict=True)}
        self.sources = np.repeat(np.array(order, np.int32), counts)
        self.given = np.array([NOT_GIVEN if side is None else side for side in sides], np.int8)[self.sources]
        everyone = np.arange(len(self.sources))
        self.equal = self.related = np.where(self.features.has_text, equal_to(self.features.hashes), everyone)
        self.kept = everyone if config.duplicates == "keep" else self.equal
        if config.duplicates == "near":
            distinct = np.flatnonzero(self.features.has_text & (self.equal == everyone))
            joined = join_similar(self.features.signatures, distinct, (config.similarity, RELATED))
            self.kept, self.related = (first[self.equal] for first in joined)
        self.is_kept = self.kept == everyone

    def documents(self, is_wanted: np.ndarray) -> Iterator[Document]:
        """Reads the documents that are wanted, (N,) bool."""
        for source, here in self.places.items():
            yield from self.read(source, is_wanted[here])

    def beginnings(self, places: Sequence[int]) -> dict[int, dict[str, Any]]:
        """Reads how the documents at some places begin."""
        is_wanted = np.zeros(len(self.sources), bool)
        is_wanted[places] = True
        firsts = (piece for piece in self.documents(is_wanted) if piece.piece == 0)
        return {
            place: {"source": int(self.sources[place]), "id": piece.id, "begins": piece.text[:EXAMPLE_CHARACTERS]}
            for place, piece in zip(np.flatnonzero(is_wanted).tolist(), firsts, strict=True)
        }


# --- the split -------------------------------------------------------------------------------------------------------


def _plan_few(corpus: _Corpus, config: SelectionConfig, ratio: float) -> dict[int, InsidePlan]:
    """Decides how each source of few documents without a given side is cut inside them."""
    plans, has_text = {}, corpus.features.has_text
    for source, here in corpus.places.items():
        with_text = np.count_nonzero(has_text[here])
        number = np.count_nonzero(has_text[here] & corpus.is_kept[here])
        if corpus.sides[source] is not None or number >= FEWEST_DOCUMENTS:
            continue
        if number <= 1 and with_text >= FEWEST_DOCUMENTS:  # the one that is left trains
            if VALIDATES not in corpus.sides and corpus.sides.count(None) == 1:
                kind = "near duplicates" if config.duplicates == "near" else "equal"
                raise UserError(
                    f"data.validation_ratio={ratio} leaves the validation side of {with_text} documents empty; all are "
                    f"{kind}, so give data.validation_source"
                )
        elif number:
            if config.split == "stratified":
                raise UserError(
                    f"selection.split=stratified needs {FEWEST_DOCUMENTS} documents that are not duplicates, the "
                    f"source has {number}; set selection.split to random, or give more"
                )
            plan = plan_tail if config.split == "tail" else plan_inside
            plans[source] = plan(functools.partial(corpus.read, source, corpus.is_kept[here]), ratio)
    return plans


def _give_sides(corpus: _Corpus, config: SelectionConfig, ratio: float) -> np.ndarray:
    """Returns the code of each document, (N,) int8; TRAINS for those that are cut inside."""
    given, related = corpus.given, corpus.related
    codes = np.where(given == NOT_GIVEN, TRAINS, given).astype(np.int8)
    codes[~corpus.is_kept] = DUPLICATE
    is_kept = corpus.features.has_text & corpus.is_kept
    is_free = is_kept & (given == NOT_GIVEN)
    for here in corpus.places.values():
        is_free[here] &= is_free[here].sum() >= FEWEST_DOCUMENTS  # fewer are cut inside, or a single one left trains
    for side in (TRAINS, VALIDATES):  # what is related to both trains; what that gives away, leakage shows
        is_drawn = is_free & np.isin(related, related[is_kept & (given == side)])
        codes[is_drawn] = side
        is_free &= ~is_drawn
    if not is_free.any():
        return codes
    followed = equal_to(related[is_free])
    if config.duplicates == "near" and not followed.any():
        raise UserError(
            f"data.validation_ratio={ratio} leaves the validation side of {is_free.sum()} documents empty; all are "
            f"related (similarity above {RELATED}), so give data.validation_source or set selection.duplicates to exact"
        )
    if config.split == "stratified":
        validates = split_by_rare_words(lambda: corpus.documents(is_free), followed, ratio)
    elif config.split == "tail":
        validates = split_by_place(corpus.features.sizes[is_free], corpus.sources[is_free], ratio)[followed]
    elif min(ratio, 1 - ratio) * is_free.sum() < FEW_VALIDATE:
        hashes, sizes = (values[is_free] for values in (corpus.features.hashes, corpus.features.sizes))
        validates = split_by_size(hashes[followed], sizes, ratio)
    else:
        validates = split_by_hash(corpus.features.hashes[is_free][followed], ratio)
    codes[is_free] = np.where(validates, VALIDATES, TRAINS)
    return codes


def _require_both_sides(codes: np.ndarray, plans: dict[int, InsidePlan], config: SelectionConfig) -> None:
    for name, code in zip(SIDES, (TRAINS, VALIDATES), strict=True):
        if not plans and not (codes == code).any():
            raise UserError(
                f"no document of {len(codes)} is left for the {name} side: {(codes == DUPLICATE).sum()} are duplicates "
                f"(selection.duplicates={config.duplicates}), {(codes == LEAKED).sum()} share more than "
                f"selection.max_leakage={config.max_leakage} with training; give another data.validation_source, or "
                "change these settings"
            )


def _leaked_shares(
    corpus: _Corpus, codes: np.ndarray, plans: dict[int, InsidePlan], formula_documents: int, folder: Path | None
) -> tuple[np.ndarray, dict[str, Any]]:
    """Returns which share of each document is in training, 0 for all that do not validate, and a report.

    Sources that are cut inside are read last, so that the shares of whole documents come first.
    """

    def texts(code: int) -> Iterator[Document]:
        for source, here in corpus.places.items():
            if source not in plans:
                yield from corpus.read(source, codes[here] == code)
        for source, plan in plans.items():
            kept = corpus.read(source, codes[corpus.places[source]] <= VALIDATES)
            yield from (piece for side, piece in plan(kept) if side == SIDES[code])

    measured, report = measure_leakage(lambda: texts(VALIDATES), lambda: texts(TRAINS), formula_documents, folder)
    validates, shares = codes == VALIDATES, np.zeros(len(codes))
    shares[validates] = measured[: validates.sum()]
    return shares, report


# --- the report ------------------------------------------------------------------------------------------------------


def _duplicates_report(corpus: _Corpus, config: SelectionConfig) -> dict[str, Any]:
    features, everyone, is_validation = corpus.features, np.arange(len(corpus.equal)), corpus.given == VALIDATES
    is_exact, is_dropped = corpus.equal != everyone, ~corpus.is_kept
    is_near = is_dropped & ~is_exact
    sizes = np.unique(corpus.related, return_counts=True)[1]
    kinds = {
        "exact": (is_exact, corpus.equal),
        "near": (is_near, corpus.kept),
        "related, kept on one side": (corpus.is_kept & (corpus.related != everyone), corpus.related),
    }
    return {
        "duplicates": config.duplicates,
        "similarity": config.similarity,
        "documents": len(everyone),
        "exact": int(is_exact.sum()),
        "near": int(is_near.sum()),
        "dropped": int(is_dropped.sum()),
        "dropped_words": int(features.words[is_dropped].sum()),
        "across_sources": int((corpus.sources[corpus.kept] != corpus.sources).sum()),
        "of_validation_source_in_training": int((is_dropped & is_validation & ~is_validation[corpus.kept]).sum()),
        "related_above": RELATED,
        "clusters": int((sizes > 1).sum()),
        "largest_cluster": int(sizes.max(initial=0)),
        "index_bytes_per_document": sum(array[:1].nbytes for array in vars(features).values()),
        "examples": _duplicate_examples(corpus, kinds),
    }


def _duplicate_examples(corpus: _Corpus, kinds: dict[str, tuple[np.ndarray, np.ndarray]]) -> list[dict[str, Any]]:
    """Shows a few documents of each kind, (N,) bool, next to the first of those like it, (N,) int64."""
    pairs = [
        (kind, int(first[place]), int(place))
        for kind, (is_kind, first) in kinds.items()
        for place in np.flatnonzero(is_kind)[:EXAMPLES]
    ]
    left, right = np.array([pair[1:] for pair in pairs], np.int64).reshape(-1, 2).T
    signatures = corpus.features.signatures
    estimates = estimated_similarity(signatures, left, right) if signatures.size else np.ones(len(left))
    begins = corpus.beginnings([*left, *right])
    return [
        {"kind": kind, "similarity": round(float(estimate), 3), "first": begins[first], "other": begins[other]}
        for (kind, first, other), estimate in zip(pairs, estimates, strict=True)
    ]


def _leakage_examples(corpus: _Corpus, shares: np.ndarray) -> list[dict[str, Any]]:
    leaking = np.flatnonzero(shares)
    worst = leaking[np.argsort(-shares[leaking], kind="stable")[:EXAMPLES]]
    begins = corpus.beginnings(worst)
    return [{"share": round(float(shares[place]), 4), **begins[place]} for place in worst.tolist()]
