"""The stages that text goes through, from documents to token files, each in parts that are spread over processes.

`Stages` lists them in their order: `clean`, `choose`, `tokenizer`, `encode`, `join`. A part is a run of consecutive
documents of one source, whole on disk or not there. Where parts are cut depends on the text alone, so that any number
of processes leaves the same files, and a run after a kill goes on from the parts that were finished.

    00-00003/          a cleaned part: text.arrow, features of its documents, report.json
    00-00003-00001/    the same of a source of many files: the second part of its fourth run of files
    00-00003.json      of such a run, when it is done: its parts, and what reading it came across
    00-00003.tokens/   the same tokenised: of each side its .bin and .npy (see `token_files`), entries.npy, report.json
    selection/         which documents train, and which validate
    tokenizer/
"""

import heapq
import itertools
import json
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, lru_cache, reduce
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
from transformers import PreTrainedTokenizerFast

from smallm_hf.base.errors import UserError
from smallm_hf.base.folders import file_sha256, replacing, write_whole
from smallm_hf.data.cleaning.cleaning import MUCH, Cleaner, largest_losses
from smallm_hf.data.cleaning.general_rules import find_repeated_lines
from smallm_hf.data.configuration import CleaningConfig, SelectionConfig, Source
from smallm_hf.data.reading.documents import Document
from smallm_hf.data.reading.files import ReadingReport, file_runs
from smallm_hf.data.request import DataRequest, Input
from smallm_hf.data.selection.features import FeatureBuilder, Features
from smallm_hf.data.selection.select import Selection, select
from smallm_hf.data.selection.splitting import FEWEST_DOCUMENTS, SIDES, TRAIN, VALIDATION, InsidePlan, hash_fraction
from smallm_hf.data.token_files import EXAMPLES, Side, SideWriter, SourceShare
from smallm_hf.data.workers import Workers
from smallm_hf.tokenizing.encoding import Encoder, make_encoder
from smallm_hf.tokenizing.loading import close_texts, load_tokenizer, save_tokenizer
from smallm_hf.tokenizing.schemes import SCHEMES
from smallm_hf.tokenizing.spelling import Speller

PART_CHARACTERS = 1 << 24  # seconds of cleaning: what a kill costs
BATCH_CHARACTERS = 1 << 21
ROWS_CHARACTERS = 1 << 19  # of the documents that are written and read at once
REPORT_SECONDS = 10
PARTS_FORMAT = 5  # of the files above; parts of another are made again
TEXT, FEATURES, REPORT, ENTRIES = "text.arrow", "features.npy", "report.json", "entries.npy"
KEPT = pyarrow.schema(  # of a document; its metadata is not needed any more
    {
        "text": pyarrow.large_string(),
        "id": pyarrow.string(),
        "piece": pyarrow.int64(),
        "is_last": pyarrow.bool_(),
        "kind": pyarrow.string(),
        "target": pyarrow.large_string(),
    }
)


# --- documents on disk -----------------------------------------------------------------------------------------------


def _batches(things: Iterable, characters: int, text: Callable = attrgetter("text")) -> Iterator[list]:
    """Cuts a stream behind the thing with which its texts have so many characters."""
    batch, held = [], 0
    for thing in things:
        batch.append(thing)
        held += len(text(thing))
        if held >= characters:
            yield batch
            batch, held = [], 0
    if batch:
        yield batch


def cut_parts(documents: Iterable[Document]) -> Iterator[Iterator[Document]]:
    """Cuts a stream behind the document with which `PART_CHARACTERS` are reached; each part is read before the next."""
    part = characters = 0

    def number(document: Document) -> int:
        nonlocal part, characters
        now = part
        characters += len(document.text)
        if document.is_last and characters >= PART_CHARACTERS:
            part, characters = part + 1, 0
        return now

    for _, run in itertools.groupby(documents, key=number):
        yield run


def write_documents(path: Path, documents: Iterable[Document]) -> None:
    """Keeps documents, but for their metadata, as an Arrow stream."""
    with pyarrow.OSFile(str(path), "wb") as file, pyarrow.ipc.new_stream(file, KEPT) as rows:
        for batch in _batches(documents, ROWS_CHARACTERS):
            columns = {name: [getattr(document, name) for document in batch] for name in KEPT.names}
            rows.write_batch(pyarrow.RecordBatch.from_pydict(columns, KEPT))


def read_part(path: Path, is_wanted: np.ndarray | None = None) -> Iterator[Document]:
    """Yields what `write_documents` kept, or those of the N documents that are wanted, (N,) bool."""
    before = 0
    with pyarrow.memory_map(str(path)) as file:
        for batch in pyarrow.ipc.open_stream(file):
            if is_wanted is not None:
                ordinals = before - 1 + np.cumsum(batch["piece"].to_numpy() == 0)
                before = ordinals[-1] + 1
                batch = batch.filter(pyarrow.array(is_wanted[ordinals]))
            for row in batch.to_pylist():
                yield Document(**row)


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def merged(reports: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Joins the reports of parts: numbers are added, of lists the first few are kept."""
    return reduce(_merge, reports, {})


def _merge(one: Any, other: Any) -> Any:
    if isinstance(one, dict):
        both = one | other
        joined = {key: _merge(one[key], other[key]) if key in one and key in other else both[key] for key in both}
        if "largest_losses" in one and "largest_losses" in other:
            joined["largest_losses"] = largest_losses(one["largest_losses"] + other["largest_losses"])
        return joined
    if isinstance(one, list):
        return (one + [item for item in other if item not in one])[: max(EXAMPLES, len(one))]
    return one if one is None else one + other


# --- what a stage does with one part ---------------------------------------------------------------------------------


def clean_part(
    part: Path, raw: Path, cleaning: CleaningConfig, repeated: frozenset[str], selection: SelectionConfig
) -> int:
    """Cleans the documents of `raw`, which is removed, into the folder `part`, with what selecting them needs.

    Returns:
        The bytes of text in it.
    """
    with replacing(part) as folder:
        cleaner = Cleaner(cleaning, repeated) if cleaning.enabled else None
        documents = read_part(raw)
        builder = FeatureBuilder(near_duplicates=selection.duplicates == "near")
        size = 0

        def counted(documents: Iterable[Document]) -> Iterator[Document]:
            nonlocal size
            for document in documents:
                document_as_one = document.joined
                builder.add(document_as_one)
                size += len(document_as_one.text.encode())
                yield document

        write_documents(folder / TEXT, counted(cleaner(documents) if cleaner else documents))
        features = builder.features()
        features.save(folder / FEATURES)
        report = {"documents": len(features.words), "bytes": size, "cleaning": cleaner and asdict(cleaner.report)}
        _write_json(folder / REPORT, report)
    raw.unlink()
    return size


def clean_run(done: Path, run: tuple[int, int], request: DataRequest, source: Source, repeated: frozenset[str]) -> int:
    """Reads a run of the files of a source (see `file_runs`), and cleans it part by part.

    Args:
        done: the file that says so in the end; the parts lie beside it.
        run: the numbers of the first file and the one behind the last.
        request: how.
        source: which.
        repeated: the lines to be removed.

    Returns:
        The bytes of text in it.
    """
    reading, parts, size = ReadingReport(), [], 0
    for place, documents in enumerate(cut_parts(request.read(source, reading, run))):
        part = done.with_name(f"{done.stem}-{place:05}")
        parts.append(part.name)
        if part.exists():
            deque(documents, maxlen=0)
            continue
        raw = part.with_suffix(".raw")
        write_documents(raw, documents)
        size += clean_part(part, raw, request.cleaning, repeated, request.selection)
    write_whole(done, json.dumps({"parts": parts, "reading": asdict(reading)}))
    return size


def encode_part(part: Path, texts: list[Path], selection: Selection, source: int, tokenizer: Path, sha256: str) -> int:
    """Tokenises cleaned parts of one source into the folder `part`, each side into a file of its own.

    Args:
        part: to be made.
        texts: cleaned parts that follow one another.
        selection: of these documents alone.
        source: its number in the selection.
        tokenizer: its folder.
        sha256: its fingerprint.

    Returns:
        The bytes of text in it.
    """
    encode, *facts = _encoder(tokenizer, sha256)
    documents = itertools.chain.from_iterable(read_part(text / TEXT) for text in texts)
    with replacing(part) as folder:
        writers = {side: SideWriter(folder / side, *facts) for side in SIDES}
        sided = ((side, half) for side, document in selection.sided(source, documents) for half in document.halves)
        for batch in _batches(sided, BATCH_CHARACTERS, lambda sided: sided[1].text):
            ids = encode([document.text for _, document in batch])
            for side, writer in writers.items():
                writer.add([(d, found) for (on, d), found in zip(batch, ids, strict=True) if on == side])
        _write_json(folder / REPORT, {side: writer.close() for side, writer in writers.items()})
        np.save(folder / ENTRIES, [writer.entries for writer in writers.values()])
    return sum(writer.counts["bytes"] for writer in writers.values())


@lru_cache(1)
def _encoder(tokenizer: Path, sha256: str) -> tuple[Encoder, int, int, Speller | None]:
    """An encoder, and what a `SideWriter` has to know of the tokenizer."""
    loaded = load_tokenizer(str(tokenizer))
    return make_encoder(loaded), len(loaded), loaded.eos_token_id, Speller.of(loaded)


# --- all parts of all sources ----------------------------------------------------------------------------------------


@dataclass
class CleanedSource:
    """A source after cleaning: its parts on disk, and what was met while it was read."""

    input: Input
    parts: list[Path] = field(default_factory=list)
    reading: ReadingReport = field(default_factory=ReadingReport)

    @cached_property
    def reports(self) -> list[dict[str, Any]]:
        """What each part reports."""
        return [_read_json(part / REPORT) for part in self.parts]

    @property
    def features(self) -> list[Features]:
        """Those of the documents of each part."""
        return [Features.load(part / FEATURES) for part in self.parts]

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
class Stages:
    """The stages over all parts of all sources; what is done already is not done again.

    Args:
        request: the settings.
        parts: the folder of finished parts.
        model_max_length: tokens, written into the saved tokenizer.
        workers: who does the work.
        report: called with lines of progress.
    """

    request: DataRequest
    parts: Path
    model_max_length: int
    workers: Workers
    report: Callable[[str], None]

    def clean(self, rank: int = 0, world_size: int = 1) -> list[CleanedSource]:
        """Reads and cleans every source wherever there is a worker: many files by runs of files, one file part by part.

        Args:
            rank: of this task among `world_size` that share the work; each does every `world_size`-th part.
            world_size: number of tasks.

        Raises:
            UserError: a source with no text in it, or none left; only the one task that does all can know.
        """
        cleaned = [self._clean(number, one, rank, world_size) for number, one in enumerate(self.request.inputs)]
        for one in cleaned if world_size == 1 else ():
            _require_text(one)
            cleaning = merged(one.reports).get("cleaning") or {}
            if cleaning.get("lost_much"):
                self.report(f"{one.input.source.source}: {_loss_line(cleaning)}")
        return cleaned

    def _clean(self, number: int, one: Input, rank: int, world_size: int) -> CleanedSource:
        request, name, repeated = self.request, one.source.source, frozenset()
        config = request.cleaning
        if config.enabled and config.repeated_lines:
            documents = request.read(one.source, ReadingReport())  # what is met is reported below
            repeated = find_repeated_lines(documents, config.repeated_lines)
            shown = f", such as {min(repeated)!r}" if repeated else ""
            self.report(
                f"{name}: cleaning.repeated_lines removes {len(repeated)} lines that many documents have{shown}; rows, "
                "conversations and source code keep theirs"
            )

        runs = file_runs(one.source.source, one.source.columns, PART_CHARACTERS)
        if len(runs) > 1:
            dones = [self.parts / f"{number:02}-{place:05}.json" for place in range(len(runs))]
            tasks = (
                (done, run, request, one.source, repeated)
                for place, (done, run) in enumerate(zip(dones, runs, strict=True))
                if place % world_size == rank and not done.exists()
            )
            self._follow("read and cleaned", self.workers.map(clean_run, tasks))
            cleaned = self._cleaned(number, one)
        else:
            cleaned = CleanedSource(one)

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

            self._follow("cleaned", self.workers.map(clean_part, tasks()))
        for line in cleaned.reading.lines:
            self.report(f"{name}: {line}")
        return cleaned

    def cleaned(self) -> list[CleanedSource]:
        """The sources as `clean` left them."""
        return [self._cleaned(number, one) for number, one in enumerate(self.request.inputs)]

    def _cleaned(self, number: int, one: Input) -> CleanedSource:
        name = f"{number:02}-{'[0-9]' * 5}"
        cleaned = CleanedSource(one, sorted(self.parts.glob(name)))
        for done in map(_read_json, sorted(self.parts.glob(f"{name}.json"))):
            cleaned.parts += [self.parts / part for part in done["parts"]]
            cleaned.reading.add(ReadingReport(**done["reading"]))
        return cleaned

    def choose(self, cleaned: list[CleanedSource]) -> Selection:
        """Decides which documents train and which validate, and keeps it."""
        folder = self.parts / "selection"
        if not folder.exists():
            selection = select(
                lambda number, is_wanted: (document.joined for document in cleaned[number].read(is_wanted)),
                [one.features for one in cleaned],
                [one.side for one in self.request.inputs],
                self.request.selection,
                self.request.data.validation_ratio,
                self.parts,
            )
            if selection.plans and self.request.data.is_pairs:
                name = self.request.inputs[min(selection.plans)].source.source
                raise UserError(
                    f"{name} has fewer than {FEWEST_DOCUMENTS} pairs, too few to keep some for validation; give more, "
                    "or data.validation_source"
                )
            plans = {
                source: {"kind": plan.kind, "blocks": [(block.start, block.stop) for block in plan.blocks]}
                for source, plan in selection.plans.items()
            }
            with replacing(folder) as partial:
                for source, sides in enumerate(selection.sides):
                    np.save(partial / f"{source}.npy", sides)
                _write_json(partial / REPORT, {"report": selection.report, "plans": plans})
        written = _read_json(folder / REPORT)
        plans = {
            int(source): InsidePlan([range(*block) for block in plan["blocks"]], plan["kind"])
            for source, plan in written["plans"].items()
        }
        return Selection(
            [np.load(folder / f"{source}.npy") for source in range(len(cleaned))], written["report"], plans
        )

    def tokenizer(self, cleaned: list[CleanedSource], selection: Selection) -> PreTrainedTokenizerFast:
        """The tokenizer as it lies among the finished parts, put there if it is not yet."""
        folder = self.parts / "tokenizer"
        if not folder.exists():
            is_trained = self.request.tokenizer.source in SCHEMES
            tokenizer = self._train_tokenizer(cleaned, selection) if is_trained else self.request.given_tokenizer
            if self.request.data.is_pairs:
                close_texts(tokenizer)
            with replacing(folder) as partial:
                save_tokenizer(tokenizer, partial, self.model_max_length)
        return load_tokenizer(str(folder))

    def _train_tokenizer(self, cleaned: list[CleanedSource], selection: Selection) -> PreTrainedTokenizerFast:
        scheme, limit = SCHEMES[self.request.tokenizer.source], self.request.vocab_size
        self.report(f"training {scheme.title} of {'at most ' if scheme.units else ''}{limit:,} entries")
        sided = (selection.sided(number, one.read()) for number, one in enumerate(cleaned))
        texts = (
            half.text
            for side, document in itertools.chain.from_iterable(sided)
            if side == TRAIN
            for half in document.halves
        )
        if scheme.sample_characters:
            texts = sample_texts(texts, scheme.sample_characters)
        options = self.request.tokenizer_options
        tokenizer = scheme.train(texts, limit, **options)
        if len(tokenizer) < limit:
            often = f" that occur {options['min_count']} times or more" if options.get("min_count", 1) > 1 else ""
            self.report(f"{len(tokenizer):,} entries of at most {limit:,}: all {scheme.units} of the text{often}")
        return tokenizer

    def encode(
        self,
        cleaned: list[CleanedSource],
        selection: Selection,
        tokenizer_sha256: str,
        rank: int = 0,
        world_size: int = 1,
    ) -> list[list[Path]]:
        """Tokenises every part; returns the folders of each source in their order."""
        encoded, numbers = [[] for _ in cleaned], itertools.count()

        def tasks() -> Iterator[tuple]:
            for number, one in enumerate(cleaned):
                documents = {part: report["documents"] for part, report in zip(one.parts, one.reports, strict=True)}
                last = 0
                for texts in [one.parts] if selection.is_inside(number) else [[part] for part in one.parts]:
                    first, last = last, last + sum(documents[text] for text in texts)
                    part = texts[0].with_name(f"{texts[0].name}.tokens")
                    encoded[number].append(part)
                    if next(numbers) % world_size == rank and not part.exists():
                        none_but_mine = [codes[:0] for codes in selection.sides]
                        none_but_mine[number] = selection.sides[number][first:last]
                        mine = replace(selection, sides=none_but_mine, report={})
                        yield part, texts, mine, number, self.parts / "tokenizer", tokenizer_sha256

        self._follow("tokenised", self.workers.map(encode_part, tasks()))
        return encoded

    def join(
        self, encoded: list[list[Path]], folder: Path
    ) -> tuple[list[dict[str, Any]], dict[str, Side], list[SourceShare]]:
        """Joins the tokenised parts of each source to the token file of each side in `folder`.

        Returns:
            The counts of each source, each side, and each share.

        Raises:
            UserError: a side is empty, or a source with a weight has nothing to train on.
        """
        shutil.copytree(self.parts / "tokenizer", folder / "tokenizer")
        counts, sides = [], {}
        for parts in encoded:
            entries = sum(np.load(part / ENTRIES) for part in parts)
            reports = [_read_json(part / REPORT) for part in parts]
            counts.append({**merged(reports), "entries": dict(zip(SIDES, entries, strict=True))})
        for side in SIDES:
            parts = list(itertools.chain.from_iterable(encoded))
            for name in (f"{side}.bin", f"{side}.hidden.jsonl"):
                if all((part / name).exists() for part in parts):
                    with (folder / name).open("wb") as file:
                        for part in parts:
                            with (part / name).open("rb") as own:
                                shutil.copyfileobj(own, file)
            for name in (f"{side}.npy", f"{side}.hidden.npy"):
                if (parts[0] / name).exists():
                    np.save(folder / name, np.concatenate([np.load(part / name) for part in parts]))
            total = {
                name: sum(one[side][name] for one in counts)
                for name in ("tokens", "bytes", "documents", "empty_documents")
            }
            sides[side] = Side(**total, sha256=file_sha256(folder / f"{side}.bin"))
        for side, total in sides.items():
            if total.documents == 0:
                raise UserError(
                    f"the {side} side of the split is empty, the other has {max(s.documents for s in sides.values())} "
                    f"documents; give a {'data.source' if side == TRAIN else 'data.validation_source'} that holds text"
                )
        return counts, sides, _shares(self.request, counts)

    def _follow(self, verb: str, sizes: Iterable[int]) -> None:
        """Waits for parts of so many bytes, and says from time to time how much is done, and how fast."""
        done, began = 0, time.monotonic()
        reported = began
        for size in sizes:
            done += size
            now = time.monotonic()
            if now - reported > REPORT_SECONDS:
                reported = now
                self.report(f"{verb} {done / 1e6:.0f} MB of text ({done / 1e6 / (now - began):.1f} MB/s)")


def _loss_line(cleaning: dict[str, Any]) -> str:
    """How many texts lost much to the rules, and which lost most to which rule."""
    shown = "; ".join(
        f"{loss['id']} lost {loss['share']:.0%} ({loss['lost']} of {loss['words']} words), most to {loss['rule']}"
        for loss in cleaning["largest_losses"]
    )
    return (
        f"{cleaning['lost_much']} of {cleaning['documents_in']} documents lost more than {MUCH:.0%} of their words to "
        f"cleaning, {cleaning['lost_much_no_book']} of them no recognised book: {shown}; see report.md"
    )


def _require_text(cleaned: CleanedSource) -> None:
    if any(part["bytes"] for part in cleaned.reports):
        return
    name = cleaned.input.source.source
    cleaning = merged(cleaned.reports).get("cleaning") or {}
    if dropped := cleaning.get("dropped"):
        reasons = ", ".join(f"{reason}: {drop['documents']}" for reason, drop in dropped.items())
        fix = "change these cleaning limits"
        if set(dropped) == {"nothing left"} and cleaning["repeated_lines"]:
            fix = "they are made of the same lines; give others, or set cleaning.repeated_lines to 0 to keep these"
        raise UserError(f"data source {name}: cleaning left no document ({reasons}); {fix}")
    raise UserError(f"data source {name} is empty: there is no text in it; give one that has some")


def sample_texts(texts: Iterable[str], characters: int) -> Iterator[str]:
    """Yields the texts of smallest hash that fit: a sample from everywhere, equal on every run, in bounded memory."""
    kept, size = [], 0
    for text in texts:
        heapq.heappush(kept, (-hash_fraction(text), text))
        size += len(text)
        while size > characters and len(kept) > 1:
            size -= len(heapq.heappop(kept)[1])
    while kept:
        yield heapq.heappop(kept)[1]


def _shares(request: DataRequest, counts: list[dict[str, Any]]) -> list[SourceShare]:
    shares, first_token, names = [], 0, ("tokens", "documents", "bytes")
    for place, (source, weight) in enumerate(zip(request.data.mixture, request.weights, strict=True)):
        mine = [(one, found) for one, found in zip(request.inputs, counts, strict=True) if one.place == place]
        one, train = mine[0][0], mine[0][1][TRAIN]
        if weight is not None and not train["documents"]:
            raise UserError(
                f"of data.sources, {source.source} has weight {source.weight} and no document left to train on (they "
                "may all stand in another source); leave it out"
            )
        shares.append(
            SourceShare(
                source=source.source,
                split=one.source.split,
                weight=weight,
                first_token=first_token,
                **{name: train[name] for name in names},
                **{f"validation_{name}": sum(found[VALIDATION][name] for _, found in mine) for name in names},
            )
        )
        first_token += train["tokens"]
    return shares
