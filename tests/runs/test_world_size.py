"""One config means one update, however many processes share it; and several are as hard to kill as one."""

import gc
import json
import multiprocessing
import os
import re
import runpy
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from running import outcome
from test_kill import processes
from test_launch import TRAIN
from torch.nn.parallel import DistributedDataParallel

from smallm_hf import plots
from smallm_hf.command_line import EXIT_INTERRUPTED
from smallm_hf.training.loop import TrainingLoop
from smallm_hf.training.progress import read_records

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks its processes, and this system cannot")

# Two epochs of 9 updates, the last of an epoch and the first of the next in one of them.
WORDS = [
    *("--training.max_steps", 12, "--training.batch_size", 3, "--training.accumulation_steps", 4),
    *("--training.evaluate_every", 4, "--training.checkpoint_every", 5, "--training.log_every", 1),
    *("--training.cpu_threads", 1),
]
HELD_TOO_LONG = 9
DROPOUT = ["--model.preset", "classic", "--model.dropout", 0.2]


def run_rank(
    rank: int, size: int, port: int, folder: Path, slow_step: int | None, changed: Callable[..., None], words: list[str]
) -> None:
    """What one process of several does: `scripts/train.py`, `changed` maybe, with a note of the windows it reads."""
    for descriptor in (1, 2):
        os.dup2(os.open(folder / f"log-{rank}", os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
    world = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in world.items()} | {"MASTER_ADDR": "127.0.0.1"})
    plots.draw_runs = lambda folders: []
    batch, update = TrainingLoop.batch, TrainingLoop.update

    def noted(loop: TrainingLoop, starts, row_length):
        with (folder / f"windows-{rank}").open("a") as file:
            file.write(json.dumps([loop.state.step, starts.tolist()]) + "\n")
        return batch(loop, starts, row_length)

    def slow(loop: TrainingLoop):
        if loop.state.step == slow_step:
            (folder / "there").touch()
            time.sleep(1)
        update(loop)

    destroy = torch.distributed.destroy_process_group

    def destroy_last(*group):
        if any(isinstance(thing, DistributedDataParallel) for thing in gc.get_objects()):
            os._exit(HELD_TOO_LONG)  # it would free the group itself, which now and then never ends
        destroy(*group)

    torch.distributed.destroy_process_group = destroy_last
    TrainingLoop.batch, TrainingLoop.update = noted, slow
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


def windows_of(folder: Path, size: int) -> dict[int, list[int]]:
    """The windows of each update, in the order of its micro-steps."""
    found: dict[int, list[int]] = {}
    ranks = [map(json.loads, (folder / f"windows-{rank}").read_text().splitlines()) for rank in range(size)]
    for micro_step in zip(*ranks, strict=True):
        for step, starts in micro_step:
            found.setdefault(step, []).extend(starts)
    return found


@pytest.mark.parametrize(
    ("words", "norm_rounding"),
    [
        (["--training.optimizer", "adamw"], 1e-5),
        (["--training.muon_learning_rate", 1e-3], 1e-4),  # Muon rounds to bfloat16 inside
    ],
    ids=["adamw", "muon"],
)
def test_one_two_and_four_processes_make_the_same_updates_of_the_same_windows(recipe, tmp_path, words, norm_rounding):
    words = [*words, "--training.learning_rate", 3e-4]  # small: each update makes a little more of the rounding before
    folders = {size: tmp_path / str(size) for size in (1, 2, 4)}
    for size, folder in folders.items():
        started = start(folder, size, "--config", recipe, *words)
        assert statuses(started, folder) == [0] * size
    alone = windows_of(folders[1], 1)
    assert sorted(alone) == list(range(12)) and all(len(starts) == 12 for starts in alone.values())
    records = {size: read_records(folder / "run", "metrics") for size, folder in folders.items()}
    for size in (2, 4):
        assert windows_of(folders[size], size) == alone
        for mine, theirs in zip(records[1], records[size], strict=True):
            assert (mine["step"], mine["tokens"]) == (theirs["step"], theirs["tokens"])
            for name, rounding in {"loss": 1e-5, "validation_loss": 1e-5, "gradient_norm": norm_rounding}.items():
                if name in mine:
                    assert theirs[name] == pytest.approx(mine[name], rel=rounding), (size, mine["step"], name)


@pytest.fixture(scope="module")
def remembered() -> dict:
    return {}


@pytest.fixture
def whole(remembered, recipe, tmp_path) -> dict:
    """The outcome of an uninterrupted run of two processes; token files are made."""
    if not remembered:
        folder = tmp_path / "whole"
        assert statuses(start(folder, 2, "--config", recipe, *DROPOUT), folder) == [0, 0]
        remembered |= {"recipe": recipe, "outcome": outcome(folder / "run")}
    return remembered


def in_its_seventh_update(folder: Path, recipe: Path) -> list[multiprocessing.Process]:
    started = start(folder, 2, "--config", recipe, *DROPOUT, slow_step=6)
    while not (folder / "there").exists():
        assert started[0].is_alive()
        time.sleep(0.02)
    return started


def test_a_signal_to_one_of_two_processes_stops_both_and_the_resumed_run_is_the_uninterrupted_one(whole, tmp_path):
    folder = tmp_path / "stopped"
    started = in_its_seventh_update(folder, whole["recipe"])
    os.kill(started[1].pid, signal.SIGTERM)
    assert statuses(started, folder, seconds=25) == [EXIT_INTERRUPTED, EXIT_INTERRUPTED]
    said = "".join((folder / f"log-{rank}").read_text() for rank in (0, 1))
    assert re.findall(r"stopped \((.*)\) at step 7; saved", said) == ["another process was asked to"]
    assert statuses(start(folder, 2, "--config", whole["recipe"], *DROPOUT, "--resume"), folder) == [0, 0]
    assert outcome(folder / "run") == whole["outcome"]


@pytest.mark.parametrize("victim", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_where_one_of_two_processes_is_killed_the_other_ends_and_the_resumed_run_is_whole(whole, tmp_path, victim):
    folder = tmp_path / "killed"
    started = in_its_seventh_update(folder, whole["recipe"])
    started[victim].kill()
    assert statuses(started, folder, seconds=25)[1 - victim] not in (None, 0)
    assert statuses(start(folder, 2, "--config", whole["recipe"], *DROPOUT, "--resume"), folder) == [0, 0]
    assert outcome(folder / "run") == whole["outcome"]
