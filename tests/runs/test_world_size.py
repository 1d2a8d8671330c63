"""One config means one update, however many processes share it; and several are as hard to kill as one."""

import os
import re
import runpy
import signal
import sys
import time
from pathlib import Path

import pytest
from forked import DROPOUT, WORDS, in_its_seventh_update, start, statuses, stopped, windows_of
from running import TRAIN, outcome

from smallm_hf.base.command_line import EXIT_INTERRUPTED
from smallm_hf.base.folders import lock
from smallm_hf.training.progress import read_records


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


def test_a_signal_to_one_of_two_processes_stops_both_and_the_resumed_run_is_the_uninterrupted_one(whole, tmp_path):
    folder = tmp_path / "stopped"
    started = in_its_seventh_update(folder, whole["recipe"], *DROPOUT)
    os.kill(started[1].pid, signal.SIGTERM)
    assert statuses(started, folder, seconds=25) == [EXIT_INTERRUPTED, EXIT_INTERRUPTED]
    said = "".join((folder / f"log-{rank}").read_text() for rank in (0, 1))
    assert re.findall(r"stopped \((.*)\) at step 7; saved", said) == ["another process was asked to"]
    assert statuses(start(folder, 2, "--config", whole["recipe"], *DROPOUT, "--resume"), folder) == [0, 0]
    assert outcome(folder / "run") == whole["outcome"]


def test_no_process_touches_the_folder_while_an_older_run_still_saves_there(whole, tmp_path):
    """As after the launcher was killed: its run is in the middle of a checkpoint when the next one is launched."""
    folder = tmp_path / "resumed"
    stopped(folder, whole["recipe"], *DROPOUT)
    unfinished = folder / "run" / "checkpoints" / ".step-8.partial"
    with lock(folder / "run"):
        unfinished.mkdir()
        started = start(folder, 2, "--config", whole["recipe"], *DROPOUT, "--resume")
        deadline = time.monotonic() + 120
        while "waiting for its end" not in (folder / "log-0").read_text():
            assert started[0].is_alive() and time.monotonic() < deadline
            time.sleep(0.05)
        time.sleep(3)  # the other one has long been where it would look for a checkpoint
        assert unfinished.is_dir() and started[1].is_alive()
    assert statuses(started, folder) == [0, 0]
    assert not unfinished.exists()
    assert outcome(folder / "run") == whole["outcome"]


def train_before(rank: int, folder: Path) -> None:
    """Has another run in the same processes."""
    sys.argv = [TRAIN, "--config", str(folder.parent / "recipe.yaml"), "--output_dir", str(folder / "first")]
    sys.argv += list(map(str, WORDS))
    runpy.run_path(TRAIN, run_name="__main__")


def test_processes_that_share_a_run_are_told_to_train_once(recipe, tmp_path):
    folder = tmp_path / "twice"
    assert statuses(start(folder, 2, "--config", recipe, changed=train_before), folder) == [2, 2]
    assert (folder / "first" / "results.json").is_file()
    assert "error: processes that share a run train once; launch the next" in (folder / "log-0").read_text()


@pytest.mark.parametrize("victim", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_where_one_of_two_processes_is_killed_the_other_ends_and_the_resumed_run_is_whole(whole, tmp_path, victim):
    folder = tmp_path / "killed"
    started = in_its_seventh_update(folder, whole["recipe"], *DROPOUT)
    started[victim].kill()
    assert statuses(started, folder, seconds=25)[1 - victim] not in (None, 0)
    assert statuses(start(folder, 2, "--config", whole["recipe"], *DROPOUT, "--resume"), folder) == [0, 0]
    assert outcome(folder / "run") == whole["outcome"]
