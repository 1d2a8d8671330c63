"""Runs many trainings, each in a process of its own: one that fails is reported, and does not end the others."""

import dataclasses
import json
import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from types import FrameType
from typing import Any

from filelock import Timeout

from smallm_hf.base.errors import Interrupted, UserError, one_line
from smallm_hf.base.folders import lock, require_writable, write_whole
from smallm_hf.base.plain_json import json_text
from smallm_hf.config import CommandOptions, RunConfig
from smallm_hf.evaluation.speed import in_own_process, peak_memory
from smallm_hf.runs import train_run

RUNS_FILE, MEMORY_FILE = "runs.json", "memory.json"
# From the name of a run, its config and its folder to the line that says why it failed, or None.
Train = Callable[[str, RunConfig, Path], str | None]


def train_here(name: str, config: RunConfig, folder: Path) -> str | None:
    """Trains a run, or goes on with it, in this process; what it prints goes to `NAME.log` beside its folder.

    Returns:
        The line that says why it failed; None after success.
    """
    log = folder.with_name(f"{folder.name}.log")
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as file, redirect_stdout(file), redirect_stderr(file):
        try:
            with peak_memory() as taken:
                train_run(config, CommandOptions(folder, resume=True))
                _note_memory(folder, taken())
        except (UserError, Interrupted) as error:
            return one_line(error)
        except Exception as error:
            traceback.print_exc()
            return f"{type(error).__name__}: {one_line(error)} (see {log})"


def _note_memory(folder: Path, taken: int) -> None:
    """Writes down the most memory that a run has taken beyond the libraries, in any process that trained a part of it.

    What the system knows of the peak of a process may be that of the process which started it.
    """
    written = folder / MEMORY_FILE
    before = json.loads(written.read_text(encoding="utf-8")) if written.is_file() else 0
    write_whole(written, json_text(max(before, taken)))


def memory_of(run: Path) -> int | None:
    """The most bytes that a run has taken beyond the libraries; None where nobody looked."""
    written = run / MEMORY_FILE
    return json.loads(written.read_text(encoding="utf-8")) if written.is_file() else None


def train_apart(name: str, config: RunConfig, folder: Path) -> str | None:
    """Does the same in a fresh process, which leaves no memory or state behind."""
    try:
        return in_own_process(train_here, name, config, folder)
    except UserError as error:  # it was killed
        return one_line(error)


@contextmanager
def having(folder: Path) -> Iterator[None]:
    """Has the folder of an experiment to itself.

    Raises:
        UserError: it cannot be written, or another process works there.
    """
    require_writable(folder, "--output_dir", folder=True)
    try:
        held = lock(folder).acquire(timeout=0)
    except Timeout:
        raise UserError(f"another process is working in {folder}; stop it, or give another --output_dir") from None
    with held:
        yield


def claim(folder: Path, kind: str, configs: Mapping[str, RunConfig], resume: bool) -> None:
    """Writes down which runs belong to the folder of an experiment, beside those that do already.

    Args:
        folder: made if it is not there.
        kind: what the experiment is.
        configs: by the names of its runs.
        resume: whether it goes on with what is there.

    Raises:
        UserError: the folder holds something else, or a run of the same name and another config.
    """
    written, known = folder / RUNS_FILE, {}
    if written.is_file():
        before = json.loads(written.read_text(encoding="utf-8"))
        if before["kind"] != kind:
            raise UserError(f"{folder} holds a {before['kind']} and this is a {kind}; give another --output_dir")
        if not resume:
            raise UserError(f"{folder} holds a {kind}; add --resume to continue it, or give another --output_dir")
        known = before["runs"]
    elif folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} holds other files; give another --output_dir")
    asked = {name: json.loads(json_text(dataclasses.asdict(config))) for name, config in configs.items()}
    for name in filter(known.get, asked):
        for section, key in ((section, key) for section, keys in asked[name].items() for key in keys):
            if (was := known[name].get(section, {}).get(key)) != (now := asked[name][section][key]):
                raise UserError(
                    f"{folder} holds {name} with {section}.{key}={was}, and now it has {now}; give another --output_dir"
                )
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(written, json_text({"kind": kind, "runs": known | asked}) + "\n")


def run_all(
    configs: Mapping[str, RunConfig], folder: Path, jobs: int, train: Train, say: Callable[[str], None]
) -> dict[str, str]:
    """Trains runs that have not ended yet, several at a time.

    Args:
        configs: by the name of each run, which is also that of its folder.
        folder: of their folders.
        jobs: runs at a time, which share the cores unless their config names its threads.
        train: trains one.
        say: hears of every end.

    Returns:
        By the names of the runs that failed, why.

    Raises:
        Interrupted: the experiment was asked to stop, and its runs have saved their state.
    """
    failed: dict[str, str] = {}
    waiting = {name: config for name, config in configs.items() if results_of(folder / name) is None}
    if kept := len(configs) - len(waiting):
        say(f"{kept} of {len(configs)} runs have ended before and are kept")
    with ThreadPoolExecutor(jobs) as pool, _stopping_children():
        ends = {
            pool.submit(train, name, _with_threads(config, jobs), folder / name): name
            for name, config in waiting.items()
        }
        try:
            for number, end in enumerate(as_completed(ends), start=1):
                name, reason = ends[end], end.result()
                say(f"{number}/{len(ends)} {name}: {reason or 'done'}")
                failed |= {name: reason} if reason else {}
        except KeyboardInterrupt as error:
            pool.shutdown(cancel_futures=True)
            raise Interrupted(f"interrupted; what was trained is in {folder}, add --resume to go on") from error
    return failed


def results_of(run: Path) -> dict[str, Any] | None:
    """What `results.json` of a run holds; None if the run has not ended."""
    path = run / "results.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _with_threads(config: RunConfig, jobs: int) -> RunConfig:
    """The config with its share of the cores, where several runs work at a time and it names no number of threads."""
    if jobs == 1 or config.training.cpu_threads is not None:
        return config
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return dataclasses.replace(config, training=dataclasses.replace(config.training, cpu_threads=max(1, cores // jobs)))


@contextmanager
def _stopping_children() -> Iterator[None]:
    """Inside the block, a request to stop reaches the runs too, which save their state; Ctrl-C does so by itself."""

    def stop(number: int, frame: FrameType | None) -> None:
        for child in multiprocessing.active_children():
            child.terminate()
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not the main thread, which alone may listen
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
