"""Cleaning and tokenising in parts, spread over processes, each part whole on disk or not there.

A part is a run of consecutive documents of one source. Where parts are cut depends on the text alone, so that any
number of processes leaves the same files, and a run after a kill goes on from the parts that were finished.

    00-00003/          a cleaned part: text.arrow, features of its documents, report.json
    00-00003.tokens/   the same tokenised: of each side its .bin and .npy (see `packing`), entries.npy, report.json
"""

import functools
import itertools
import json
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow

from smallm_hf.base.errors import UserError
from smallm_hf.base.folders import replacing
from smallm_hf.data.cleaning.cleaning import Cleaner
from smallm_hf.data.configuration import CleaningConfig, SelectionConfig
from smallm_hf.data.reading.documents import Document
from smallm_hf.data.selection.features import FeatureBuilder
from smallm_hf.data.selection.select import Selection
from smallm_hf.data.selection.splitting import SIDES
from smallm_hf.data.token_files import id_type
from smallm_hf.tokenizing.encoding import Encoder, make_encoder
from smallm_hf.tokenizing.loading import load_tokenizer

PART_CHARACTERS = 1 << 24  # seconds of cleaning: what a kill costs
BATCH_CHARACTERS = 1 << 21
ROWS_CHARACTERS = 1 << 19  # of the documents that are written and read at once
WORKER_BYTES = 1 << 30  # of memory, of which a process takes most only for books of many megabytes
EXAMPLES = 3  # documents of each side and part that are kept for the report
PARTS_FORMAT = 3  # of the files below; parts of another are made again
TEXT, FEATURES, REPORT, ENTRIES = "text.arrow", "features.npy", "report.json", "entries.npy"
KEPT = pyarrow.schema(  # of a document; nothing asks for its metadata any more
    {
        "text": pyarrow.large_string(),
        "id": pyarrow.string(),
        "piece": pyarrow.int64(),
        "is_last": pyarrow.bool_(),
        "kind": pyarrow.string(),
    }
)


class WorkerKilled(UserError):
    """A process that had a part to do is gone; the finished parts are not."""


class Workers:
    """Calls functions on many tasks; from the second task on in several processes, which start when they are needed.

    Args:
        number: of processes; None takes one for each core this process may use, and for each GiB of free memory.
    """

    def __init__(self, number: int | None):
        self.number = number or _affordable()
        self.pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *exception) -> None:
        if self.pool:
            self.pool.shutdown(cancel_futures=True)  # what is being written is finished: it need not be done again

    def map(self, function: Callable, tasks: Iterable[tuple]) -> Iterator[Any]:
        """Yields `function(*task)` in the order of the tasks, of which only a few are taken ahead.

        Raises:
            WorkerKilled: a process is gone; otherwise what the function raises.
        """
        tasks = iter(tasks)
        first = list(itertools.islice(tasks, 2))
        tasks = itertools.chain(first, tasks)
        if self.number == 1 or len(first) < 2:
            yield from itertools.starmap(function, tasks)
            return
        if self.pool is None:
            # Not forked from here: the libraries' threads and locks would be copied in whatever state they are.
            has_server = "forkserver" in multiprocessing.get_all_start_methods()
            context = multiprocessing.get_context("forkserver" if has_server else "spawn")
            context.set_forkserver_preload([__name__])  # imported once, and shared
            self.pool = ProcessPoolExecutor(self.number, context, initializer=_begin)
        waiting = deque()
        try:
            for task in tasks:
                waiting.append(self.pool.submit(function, *task))
                if len(waiting) > 2 * self.number:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool as error:
            raise WorkerKilled(
                f"one of the {self.number} processes that prepare the text was killed, as they are when memory runs "
                "out, or could not start, as from a script without `if __name__ == '__main__':`; run again with fewer "
                "data.workers, and it goes on from what is done"
            ) from error


def _affordable() -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, psutil.virtual_memory().available // WORKER_BYTES))


def _begin() -> None:
    """Leaves Ctrl-C to the process that started this one, ends when that does, and has one thread for tokens."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.environ["RAYON_NUM_THREADS"] = "1"  # of rensa
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    multiprocessing.connection.wait([multiprocessing.parent_process().sentinel])
    os._exit(1)


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


# --- documents on disk -----------------------------------------------------------------------------------------------


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
            for row in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                yield Document(**dict(zip(KEPT.names, row, strict=True)))


# --- the stages, each of one part ------------------------------------------------------------------------------------


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
                builder.add(document)
                size += len(document.text.encode())
                yield document

        write_documents(folder / TEXT, counted(cleaner(documents) if cleaner else documents))
        features = builder.features()
        features.save(folder / FEATURES)
        report = {"documents": len(features.words), "bytes": size, "cleaning": cleaner and asdict(cleaner.report)}
        _write_json(folder / REPORT, report)
    raw.unlink()
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
    encode, eos_token_id, entries = _encoder(tokenizer, sha256)
    documents = itertools.chain.from_iterable(read_part(text / TEXT) for text in texts)
    with replacing(part) as folder:
        writers = {side: SideWriter(folder / side, entries, eos_token_id) for side in SIDES}
        for batch in _batches(selection.sided(source, documents), BATCH_CHARACTERS, lambda sided: sided[1].text):
            ids = encode([document.text for _, document in batch])
            for side, writer in writers.items():
                writer.add([(d, found) for (on, d), found in zip(batch, ids, strict=True) if on == side])
        _write_json(folder / REPORT, {side: writer.close() for side, writer in writers.items()})
        np.save(folder / ENTRIES, [writer.entries for writer in writers.values()])
    return sum(writer.counts["bytes"] for writer in writers.values())


@functools.lru_cache(1)
def _encoder(tokenizer: Path, sha256: str) -> tuple[Encoder, int, int]:
    loaded = load_tokenizer(str(tokenizer))
    return make_encoder(loaded), loaded.eos_token_id, len(loaded)


class SideWriter:
    """Appends documents to one file of ids, counting what goes in.

    Args:
        path: of the file, without `.bin`; beside it, in `.npy`, come the tokens and bytes of each document.
        entries: of the tokenizer.
        eos_token_id: closes each document.
    """

    def __init__(self, path: Path, entries: int, eos_token_id: int):
        self.path, self.file = path, path.with_suffix(".bin").open("wb")
        self.dtype = id_type(entries)
        self.eos = np.array([eos_token_id], self.dtype)
        self.entries = np.zeros(entries, np.int64)  # how often each was written
        self.counts = {"tokens": 0, "bytes": 0, "documents": 0, "empty_documents": 0}
        self.examples = []
        self.sizes = [[0, 0]]  # tokens and bytes of each document, the last of which is not through yet

    def add(self, batch: list[tuple[Document, Iterable[int]]]) -> None:
        """Writes documents, or pieces of them, and their ids."""
        ids = []
        for document, found in batch:
            if not document.text:
                self.counts["empty_documents"] += 1
                continue
            ids.append(np.asarray(found, self.dtype))
            size = len(document.text.encode())
            self.sizes[-1][0] += len(ids[-1]) + document.is_last
            self.sizes[-1][1] += size
            if document.is_last:
                ids.append(self.eos)
                self.sizes.append([0, 0])
            self.counts["bytes"] += size
            self.counts["documents"] += document.is_last
            if len(self.examples) < EXAMPLES and document.piece == 0:
                self.examples.append({"id": document.id, "begins": document.text[:200]})
        if ids:
            joined = np.concatenate(ids)
            self.file.write(joined.tobytes())
            self.entries += np.bincount(joined, minlength=len(self.entries))
            self.counts["tokens"] += len(joined)

    def close(self) -> dict[str, Any]:
        """Ends the file and returns the counts."""
        self.file.close()
        np.save(self.path.with_suffix(".npy"), np.array(self.sizes[:-1], np.int64).reshape(-1, 2))
        return {**self.counts, "examples": self.examples}


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
