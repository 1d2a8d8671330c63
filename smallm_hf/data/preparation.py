"""Each stage over all parts of all sources; what is done already is not done again.

What a stage does with one part, and where, is in `stages`; the last stage, which puts the parts together, in `joining`.
"""

import heapq
import itertools
import json
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerFast

from smallm_hf.base.errors import UserError
from smallm_hf.base.folders import replacing
from smallm_hf.data.cleaning.general_rules import find_repeated_lines
from smallm_hf.data.reading.documents import Document
from smallm_hf.data.reading.files import ReadingReport
from smallm_hf.data.report import merged
from smallm_hf.data.request import Input, Request
from smallm_hf.data.selection.features import Features
from smallm_hf.data.selection.select import Selection, select
from smallm_hf.data.selection.splitting import TRAIN, InsidePlan, hash_fraction
from smallm_hf.data.stages import (
    FEATURES,
    REPORT,
    TEXT,
    Workers,
    clean_part,
    cut_parts,
    encode_part,
    read_part,
    write_documents,
)
from smallm_hf.tokenizing.loading import load_tokenizer, save_tokenizer
from smallm_hf.tokenizing.schemes import SCHEMES

REPORT_SECONDS = 10


class _Progress:
    """Says from time to time how much is done, and how fast."""

    def __init__(self, verb: str, report: Callable[[str], None]):
        self.verb, self.report, self.bytes = verb, report, 0
        self.began = self.reported = time.monotonic()

    def add(self, size: int) -> None:
        self.bytes += size
        now = time.monotonic()
        if now - self.reported > REPORT_SECONDS:
            self.reported, megabytes = now, self.bytes / 1e6
            self.report(f"{self.verb} {megabytes:.0f} MB of text ({megabytes / (now - self.began):.1f} MB/s)")


def _sample(texts: Iterable[str], characters: int) -> Iterator[str]:
    """Yields the texts of smallest hash that fit: a sample from everywhere, equal on every run, in bounded memory."""
    kept, size = [], 0
    for text in texts:
        heapq.heappush(kept, (-hash_fraction(text), text))
        size += len(text)
        while size > characters and len(kept) > 1:
            size -= len(heapq.heappop(kept)[1])
    while kept:
        yield heapq.heappop(kept)[1]


def _write_selection(selection: Selection, folder: Path) -> None:
    for source, sides in enumerate(selection.sides):
        np.save(folder / f"{source}.npy", sides)
    plans = {
        source: {"kind": plan.kind, "blocks": [(block.start, block.stop) for block in plan.blocks]}
        for source, plan in selection.plans.items()
    }
    written = json.dumps({"report": selection.report, "plans": plans}, ensure_ascii=False)
    (folder / REPORT).write_text(written, encoding="utf-8")


def _read_selection(folder: Path, sources: int) -> Selection:
    written = json.loads((folder / REPORT).read_text(encoding="utf-8"))
    plans = {
        int(source): InsidePlan([range(*block) for block in plan["blocks"]], plan["kind"])
        for source, plan in written["plans"].items()
    }
    sides = [np.load(folder / f"{source}.npy") for source in range(sources)]
    return Selection(sides, written["report"], plans)


@dataclass
class Cleaned:
    """A source after cleaning: its parts on disk, and what happened to it."""

    input: Input
    parts: list[Path] = field(default_factory=list)
    reading: ReadingReport = field(default_factory=ReadingReport)

    @cached_property
    def reports(self) -> list[dict[str, Any]]:
        """What each part reports."""
        return [json.loads((part / REPORT).read_text(encoding="utf-8")) for part in self.parts]

    def read(self, is_wanted: np.ndarray | None = None) -> Iterator[Document]:
        """Yields the cleaned documents of all parts, or those of the N that are wanted, (N,) bool."""
        if is_wanted is None:
            yield from itertools.chain.from_iterable(read_part(part / TEXT) for part in self.parts)
            return
        edges = np.cumsum([report["documents"] for report in self.reports])[:-1]
        for part, wanted_here in zip(self.parts, np.split(is_wanted, edges), strict=True):
            if wanted_here.any():
                yield from read_part(part / TEXT, wanted_here)


@dataclass
class Preparation:
    """The stages, each of which leaves finished parts on disk and does nothing that is done already.

    Args:
        request: the settings.
        parts: the folder of finished parts.
        model_max_length: tokens, written into the saved tokenizer.
        workers: who does the work.
        report: called with lines of progress.
    """

    request: Request
    parts: Path
    model_max_length: int
    workers: Workers
    report: Callable[[str], None]

    def clean(self, rank: int = 0, world_size: int = 1) -> list[Cleaned]:
        """Reads every source here, and cleans it part by part wherever there is a worker.

        Args:
            rank: of this task among `world_size` that share the work; each does every `world_size`-th part.
            world_size: number of tasks.

        Raises:
            UserError: a source with no text in it, or none left; only the one task that does all can know.
        """
        cleaned = [self._clean(number, one, rank, world_size) for number, one in enumerate(self.request.inputs)]
        for one in cleaned if world_size == 1 else ():
            self._require_text(one)
        return cleaned

    def cleaned(self) -> list[Cleaned]:
        """The sources as `clean` left them."""
        names = (f"{number:02}-{'[0-9]' * 5}" for number in range(len(self.request.inputs)))
        return [
            Cleaned(one, sorted(self.parts.glob(name))) for one, name in zip(self.request.inputs, names, strict=True)
        ]

    def choose(self, cleaned: list[Cleaned]) -> Selection:
        """Decides which documents train and which validate, and keeps it."""
        folder = self.parts / "selection"
        if not folder.exists():
            selection = select(
                lambda number, is_wanted: cleaned[number].read(is_wanted),
                [[Features.load(part / FEATURES) for part in one.parts] for one in cleaned],
                [one.side for one in self.request.inputs],
                self.request.selection,
                self.request.data.validation_ratio,
                self.parts,
            )
            with replacing(folder) as partial:
                _write_selection(selection, partial)
        return _read_selection(folder, len(cleaned))

    def tokenizer(self, cleaned: list[Cleaned], selection: Selection) -> PreTrainedTokenizerFast:
        """The tokenizer as it lies among the finished parts, put there if it is not yet."""
        request, folder = self.request, self.parts / "tokenizer"
        if not folder.exists():
            if scheme := SCHEMES.get(request.tokenizer.source):
                self.report(
                    f"training {scheme.title} of {'at most ' if scheme.units else ''}{request.vocab_size:,} entries"
                )
                sided = (selection.sided(number, one.read()) for number, one in enumerate(cleaned))
                texts = (document.text for side, document in itertools.chain.from_iterable(sided) if side == TRAIN)
                if scheme.sample_characters:
                    texts = _sample(texts, scheme.sample_characters)
                tokenizer = scheme.train(texts, request.vocab_size)
                if len(tokenizer) < request.vocab_size:
                    self.report(
                        f"{len(tokenizer):,} entries of at most {request.vocab_size:,}: all {scheme.units} of the text"
                    )
            else:
                tokenizer = request.given_tokenizer
            with replacing(folder) as partial:
                save_tokenizer(tokenizer, partial, self.model_max_length)
        return load_tokenizer(str(folder))

    def encode(
        self,
        cleaned: list[Cleaned],
        selection: Selection,
        tokenizer_sha256: str,
        rank: int = 0,
        world_size: int = 1,
    ) -> list[list[Path]]:
        """Tokenises every part; returns the folders of each source in their order."""
        encoded, numbers = [[] for _ in cleaned], itertools.count()

        def tasks() -> Iterator[tuple]:
            for number, one in enumerate(cleaned):
                first = 0
                whole = [(one.parts, sum(report["documents"] for report in one.reports))]
                each = [([part], report["documents"]) for part, report in zip(one.parts, one.reports, strict=True)]
                for texts, documents in whole if selection.is_inside(number) else each:
                    part = texts[0].with_name(f"{texts[0].name}.tokens")
                    encoded[number].append(part)
                    if next(numbers) % world_size == rank and not part.exists():
                        sides = [
                            codes[first : first + documents] if other == number else codes[:0]
                            for other, codes in enumerate(selection.sides)
                        ]
                        mine = replace(selection, sides=sides, report={})
                        yield part, texts, mine, number, self.parts / "tokenizer", tokenizer_sha256
                    first += documents

        progress = _Progress("tokenised", self.report)
        for size in self.workers.map(encode_part, tasks()):
            progress.add(size)
        return encoded

    def _clean(self, number: int, one: Input, rank: int, world_size: int) -> Cleaned:
        request, cleaned = self.request, Cleaned(one)
        config, name = request.cleaning, one.source.source
        repeated = frozenset()
        if config.enabled and config.repeated_lines:
            documents = request.read(one.source, ReadingReport())  # what is met is told below
            repeated = find_repeated_lines(documents, config.repeated_lines)
            shown = f", such as {min(repeated)!r}" if repeated else ""
            self.report(
                f"{name}: cleaning.repeated_lines removes {len(repeated)} lines that many documents have{shown}; rows, "
                "conversations and source code keep theirs"
            )

        def tasks() -> Iterator[tuple]:
            for place, documents in enumerate(cut_parts(request.read(one.source, cleaned.reading))):
                part = self.parts / f"{number:02}-{place:05}"
                cleaned.parts.append(part)
                if part.exists() or place % world_size != rank:
                    deque(documents, maxlen=0)  # read past: it is done, or for another task
                else:
                    raw = part.with_suffix(".raw")
                    write_documents(raw, documents)
                    yield part, raw, config, repeated, request.selection

        progress = _Progress("cleaned", self.report)
        for size in self.workers.map(clean_part, tasks()):
            progress.add(size)
        for line in cleaned.reading.lines:
            self.report(f"{name}: {line}")
        return cleaned

    def _require_text(self, one: Cleaned) -> None:
        if any(part["bytes"] for part in one.reports):
            return
        name = one.input.source.source
        cleaning = merged(one.reports).get("cleaning") or {}
        if dropped := cleaning.get("dropped"):
            reasons = ", ".join(f"{reason}: {drop['documents']}" for reason, drop in dropped.items())
            fix = "change these cleaning limits"
            if set(dropped) == {"nothing left"} and cleaning["repeated_lines"]:
                fix = "they are made of the same lines; give others, or set cleaning.repeated_lines to 0 to keep these"
            raise UserError(f"data source {name}: cleaning left no document ({reasons}); {fix}")
        raise UserError(f"data source {name} is empty: there is no text in it; give one that has some")
