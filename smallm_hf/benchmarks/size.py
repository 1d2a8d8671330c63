"""Preparing a text of any size: how fast each stage is and how much memory it takes, with some numbers of processes."""

import itertools
import json
import multiprocessing
import random
import re
import tempfile
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from smallm_hf.base.environment import environment
from smallm_hf.base.errors import UserError
from smallm_hf.data.configuration import DataConfig, TokenizerConfig
from smallm_hf.data.prepare import find_or_prepare
from smallm_hf.data.reading.documents import read_texts
from smallm_hf.data.reading.formats import SEPARATOR
from smallm_hf.data.request import DataRequest
from smallm_hf.tokenizing.loading import load_tokenizer
from smallm_hf.training.devices import hardware

EXCHANGEABLE = re.compile(r"\b([a-z]{3,})\b")
EXCHANGED = 0.25  # of the words in each copy: two copies then share 5 words in a row too seldom to be related
SAMPLE_SECONDS = 0.2


def measure_size(
    source: str, *, megabytes: float, workers: Sequence[int] = (1, 2), tokenizer: str = "gpt2"
) -> dict[str, Any]:
    """Prepares a text, repeated with changes until it is large, with the defaults, once for each number of processes.

    Args:
        source: as `data.source`; has to fit into memory about ten times.
        megabytes: of text in all.
        workers: numbers of processes.
        tokenizer: as `tokenizer.source`, but for `bpe`.

    Returns:
        What can be written as JSON: `bytes` of text, and of each run `workers`, `seconds`, `stages` (bytes of text per
        second), `peak_bytes` of anonymous memory in all processes together, and the `index_bytes` for duplicates.

    Raises:
        UserError: the token files depend on the number of processes, or what preparing raises.
    """
    entries = len(load_tokenizer(tokenizer))
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder, "text")
        text.mkdir()
        size = repeat_text(source, text, megabytes)
        runs = [_measure(text, size, number, tokenizer, entries, Path(folder, f"{number}")) for number in workers]
    if len({run.pop("sha256") for run in runs}) > 1:
        raise UserError(f"the token files of {source} depend on the number of processes; this is a bug")
    return {"source": Path(source).name, "bytes": size, "runs": runs, "hardware": hardware(), **environment()}


def repeat_text(source: str, folder: Path, megabytes: float) -> int:
    """Writes copies of all documents into `folder`, each with other words exchanged; returns their bytes."""
    documents = [EXCHANGEABLE.split(text) for text in read_texts(source)]  # every second part is a word
    if not documents:
        raise UserError(f"{source} holds no text to repeat; give one that has some")
    words = sorted({word for parts in documents for word in parts[1::2]}) or ["word"]
    pick, size = random.Random(0), 0
    for copy in itertools.count():
        with (folder / f"{copy:05}.txt").open("w", encoding="utf-8", newline="\n") as file:
            for parts in documents:
                text = "".join(_exchanged(parts, words, pick)) + f"\n{SEPARATOR}\n"
                file.write(text)
                size += len(text.encode())
                if size >= megabytes * 1e6:
                    return size


def _exchanged(parts: list[str], words: list[str], pick: random.Random) -> Iterable[str]:
    parts, number = parts.copy(), len(parts) // 2
    for place in pick.sample(range(number), int(number * EXCHANGED)):
        parts[2 * place + 1] = pick.choice(words)
    return parts


def _measure(text: Path, size: int, workers: int, tokenizer: str, entries: int, folder: Path) -> dict[str, Any]:
    request = DataRequest(DataConfig(source=str(text), workers=workers), TokenizerConfig(tokenizer), entries)
    process = multiprocessing.get_context("spawn").Process(target=find_or_prepare, args=(request, folder, 1024))
    began = time.monotonic()
    process.start()
    peak = 0
    while process.is_alive():
        peak = max(peak, _anonymous_bytes(psutil.Process(process.pid)))
        process.join(SAMPLE_SECONDS)
    if process.exitcode:
        raise UserError(f"preparing with {workers} processes ended with status {process.exitcode}; its error is above")
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    duplicates = report["selection"]["duplicates"]
    return {
        "workers": workers,
        "seconds": round(time.monotonic() - began, 1),
        "stages": {stage: size / max(seconds, 0.1) for stage, seconds in report["seconds"].items()},
        "peak_bytes": peak,
        "documents": duplicates["documents"],
        "index_bytes": duplicates["documents"] * duplicates["index_bytes_per_document"],
        "sha256": (report["train"]["sha256"], report["validation"]["sha256"]),
    }


def _anonymous_bytes(process: psutil.Process) -> int:
    """Memory of a process and all it started that no file backs; what several share counts once. 0 but on Linux."""
    total = 0
    with suppress(psutil.NoSuchProcess):
        for member in [process, *process.children(recursive=True)]:
            with suppress(OSError):  # it has ended
                pages = Path(f"/proc/{member.pid}/smaps_rollup").read_text(encoding="utf-8")
                total += 1024 * int(re.search(r"^Pss_Anon:\s+(\d+)", pages, re.MULTILINE)[1])
    return total


def print_size(results: dict[str, Any], console: Console) -> None:
    """Shows what `measure_size` found."""
    runs = results["runs"]
    table = Table(title=f"{results['source']}, repeated with changes: {results['bytes'] / 1e6:,.0f} MB of text")
    table.add_column("")
    for run in runs:
        table.add_column(f"{run['workers']} process{'es' * (run['workers'] > 1)}", justify="right")
    for stage in runs[0]["stages"]:
        table.add_row(f"{stage}, MB/s", *(f"{run['stages'][stage] / 1e6:,.1f}" for run in runs))
    table.add_row("all, MB/s", *(f"{results['bytes'] / 1e6 / run['seconds']:,.2f}" for run in runs))
    table.add_row("seconds", *(f"{run['seconds']:,.0f}" for run in runs))
    table.add_row("peak anonymous memory, MB", *(f"{run['peak_bytes'] / 1e6:,.0f}" for run in runs))
    table.add_row("of it the index of duplicates, MB", *(f"{run['index_bytes'] / 1e6:,.1f}" for run in runs))
    console.print(table)
