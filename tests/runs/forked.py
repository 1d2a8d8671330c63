"""The processes of a run, forked: several that share one, and what became of them."""

import gc
import json
import multiprocessing
import os
import runpy
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from running import TRAIN
from torch.nn.parallel import DistributedDataParallel

from smallm_hf import plots
from smallm_hf.base.command_line import EXIT_INTERRUPTED
from smallm_hf.data.batches.packed import PackedWindows
from smallm_hf.training.checkpoints import damage, list_checkpoints
from smallm_hf.training.loop import TrainingLoop
from smallm_hf.training.progress import read_records

if not hasattr(os, "fork"):
    pytest.skip("forks its processes, and this system cannot", allow_module_level=True)

# Two epochs of 9 updates, the last of an epoch and the first of the next in one of them.
WORDS = [
    *("--training.max_steps", 12, "--training.batch_size", 3, "--training.accumulation_steps", 4),
    *("--training.evaluate_every", 4, "--training.checkpoint_every", 5, "--training.log_every", 1),
    *("--training.cpu_threads", 1),
]
WINDOWS = 12  # of an update
HELD_TOO_LONG = 9
DROPOUT = ["--model.preset", "classic", "--model.dropout", 0.2]
SMALL_RATES = ["--training.learning_rate", 3e-4, "--training.muon_learning_rate", 1e-3]

# Importing torch takes longer than these runs: a server does it once, and each run is a fork of it.
processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["pytest", "smallm_hf.runs"])


def run_rank(
    rank: int, size: int, port: int, folder: Path, slow_step: int | None, changed: Callable[..., None], words: list[str]
) -> None:
    """What one process of several does: `scripts/train.py`, `changed` maybe, with a note of the windows it reads."""
    for descriptor in (1, 2):
        os.dup2(os.open(folder / f"log-{rank}", os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
    world = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in world.items()} | {"MASTER_ADDR": "127.0.0.1"})
    plots.draw_runs = lambda folders: []
    at, advance = PackedWindows.at, TrainingLoop.advance

    def noted(batches: PackedWindows, first: int, count: int, row_length: int):
        with (folder / f"windows-{rank}").open("a") as file:
            file.write(json.dumps([first, batches.order.starts(first, count).tolist()]) + "\n")
        return at(batches, first, count, row_length)

    def slow(loop: TrainingLoop, progress: float):
        if loop.state.step == slow_step:
            (folder / "there").touch()
            time.sleep(1)
        advance(loop, progress)

    destroy = torch.distributed.destroy_process_group

    def destroy_last(*group):
        if any(isinstance(thing, DistributedDataParallel) for thing in gc.get_objects()):
            os._exit(HELD_TOO_LONG)  # it would free the group itself, which now and then never ends
        destroy(*group)

    torch.distributed.destroy_process_group = destroy_last
    PackedWindows.at, TrainingLoop.advance = noted, slow
    changed(rank, folder)
    sys.argv = [TRAIN, *words]
    runpy.run_path(TRAIN, run_name="__main__")


def unchanged(rank: int, folder: Path) -> None:
    """Trains as the scripts do."""


def start(
    folder: Path, size: int, *words: object, slow_step: int | None = None, changed: Callable[..., None] = unchanged
) -> list[multiprocessing.Process]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder.mkdir(exist_ok=True)
    words = [str(word) for word in ("--output_dir", folder / "run", *WORDS, *words)]
    started = [
        processes.Process(target=run_rank, args=(rank, size, port, folder, slow_step, changed, words))
        for rank in range(size)
    ]
    for process in started:
        process.start()
    return started


def statuses(started: list[multiprocessing.Process], folder: Path, seconds: float = 120) -> list[int | None]:
    """How the processes ended; the ones that did not are None, and stopped."""
    deadline = time.monotonic() + seconds
    for process in started:
        process.join(max(0.0, deadline - time.monotonic()))
    found = [process.exitcode for process in started]
    for process in started:
        process.kill()
    print(*((folder / f"log-{rank}").read_text()[-3000:] for rank in range(len(started))), sep="\n")
    return found


def trained(folder: Path, size: int, recipe: Path, *words: object, **options) -> Path:
    """The run folder of some processes that have ended well."""
    assert statuses(start(folder, size, "--config", recipe, *words, **options), folder) == [0] * size
    return folder / "run"


def in_its_seventh_update(folder: Path, recipe: Path, *words: object, **options) -> list[multiprocessing.Process]:
    """Two processes that are there."""
    started = start(folder, 2, "--config", recipe, *words, slow_step=6, **options)
    while not (folder / "there").exists():
        assert started[0].is_alive()
        time.sleep(0.02)
    return started


def stopped(folder: Path, recipe: Path, *words: object, **options) -> Path:
    """The checkpoint that two processes leave of which one is asked to stop in the middle."""
    started = in_its_seventh_update(folder, recipe, *words, **options)
    os.kill(started[1].pid, signal.SIGTERM)
    assert statuses(started, folder) == [EXIT_INTERRUPTED, EXIT_INTERRUPTED]
    checkpoint = list_checkpoints(folder / "run")[-1]
    assert damage(checkpoint) is None
    return checkpoint


def windows_of(folder: Path, size: int) -> dict[int, list[int]]:
    """The windows of each update, in the order of its micro-steps."""
    found: dict[int, list[int]] = {}
    ranks = [map(json.loads, (folder / f"windows-{rank}").read_text().splitlines()) for rank in range(size)]
    for micro_step in zip(*ranks, strict=True):
        for first, starts in micro_step:
            found.setdefault(first // WINDOWS, []).extend(starts)
    return found


def assert_same_course(run: Path, other: Path, rounding: float) -> None:
    one, two = read_records(run, "metrics"), read_records(other, "metrics")
    for mine, theirs in zip(one, two, strict=True):
        assert (mine["step"], mine["tokens"]) == (theirs["step"], theirs["tokens"])
        for name in {"loss", "validation_loss", "gradient_norm"} & mine.keys():
            expected = mine[name] if mine[name] is None else pytest.approx(mine[name], rel=rounding)
            assert theirs[name] == expected, (mine["step"], name)
