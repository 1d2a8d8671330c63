"""A run that is killed, at any moment, and resumed ends bit for bit where the uninterrupted one does."""

import itertools
import multiprocessing
import os
import random
import runpy
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import transformers
from forked import processes
from letters import write_letters
from letters import write_recipe as write_pairs_recipe
from running import TRAIN, carrying_a_state, outcome
from transformers import AutoModelForCausalLM

from smallm_hf import plots
from smallm_hf.base.folders import restored
from smallm_hf.training.progress import RunLog, read_records

# Checkpoints, validations and samples at steps of their own, and never a second checkpoint to fall back on.
WORDS = [
    *("--model.preset", "classic", "--model.dropout", 0.2, "--training.max_steps", 7),
    *("--training.batch_size", 2, "--training.accumulation_steps", 2, "--training.log_every", 1),
    *("--training.checkpoint_every", 2, "--training.keep_checkpoints", 1),
    *("--training.evaluate_every", 3, "--training.sample_every", 4),
]


def run_script(words: list[str], log: Path, fatal: int, trace: Path | None) -> None:
    """What a forked process does: `scripts/train.py`, killed in the middle of its write number `fatal`."""
    for descriptor in (1, 2):
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
    plots.draw_runs = lambda folders: []
    if fatal or trace:
        die_in_write(fatal, trace)
    sys.argv = [TRAIN, *words]
    runpy.run_path(TRAIN, run_name="__main__")


def die_in_write(fatal: int, trace: Path | None) -> None:
    """Counts what changes the disk, and kills this process half-way through one of these calls."""
    numbers = itertools.count(1)

    def cut_off(path: Path) -> None:
        os.truncate(path, path.stat().st_size // 2)

    def unfinished(path: Path) -> None:
        os.truncate(path, path.stat().st_size - 9)

    def half_removed(path: Path) -> None:
        min(file for file in Path(path).rglob("*") if file.is_file()).unlink()

    def patch(owner: object, name: str, place: Callable[..., Path], half: Callable[[Path], None] | None) -> None:
        function = getattr(owner, name)

        def counted(*arguments, **options):
            path = place(*arguments)
            if name == "rmtree" and not Path(path).exists():
                return None
            number = next(numbers)
            if trace:
                with trace.open("a") as file:
                    file.write(f"{name} {path}\n")
            if number == fatal:
                if half and half is not half_removed:
                    function(*arguments, **options)
                if half:
                    half(path)
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **options)

        setattr(owner, name, counted)

    patch(os, "fsync", lambda descriptor: descriptor, None)
    patch(Path, "mkdir", lambda path, *_: path, None)
    patch(Path, "rename", lambda path, target: f"{path.name} {target}", None)
    patch(Path, "replace", lambda path, target: f"{path.name} {target}", None)
    patch(shutil, "rmtree", lambda path, *_: path, half_removed)
    patch(Path, "write_text", lambda path, text: path, cut_off)
    patch(torch, "save", lambda content, path: path, cut_off)
    patch(transformers.modeling_utils, "safe_save_file", lambda tensors, path, **_: Path(path), cut_off)
    patch(RunLog, "write", lambda log, name, record: log.run / f"{name}.jsonl", unfinished)


def start(run: Path, *words: object, fatal: int = 0, trace: Path | None = None) -> multiprocessing.Process:
    words = [str(word) for word in ("--output_dir", run, *words)]
    process = processes.Process(target=run_script, args=(words, run.with_suffix(".log"), fatal, trace))
    process.start()
    return process


def status(process: multiprocessing.Process) -> int | None:
    process.join(120)
    return process.exitcode


def resume_to_the_end(run: Path, recipe: Path) -> dict:
    """The outcome of a run that was killed: by what its folder says, and by the recipe where it says nothing yet."""
    words = [] if (run / "config.yaml").exists() else ["--config", recipe, *WORDS]
    process = start(run, "--resume", *words)
    assert status(process) == 0, run.with_suffix(".log").read_text()[-3000:]
    litter = [path for path in run.rglob("*") if path.suffix in (".partial", ".replaced", ".tmp")]
    assert not litter
    return outcome(run)


class Whole(NamedTuple):
    """The uninterrupted run: its recipe, with token files made, all that it changed on the disk in order, its end."""

    recipe: Path
    writes: list[str]
    outcome: dict

    def number_of(self, kind: str, name: str) -> int:
        """Where a write of this kind comes, counted from 1: the last that changes something of this name."""
        return max(n for n, line in enumerate(self.writes, start=1) if line.startswith(kind) and line.endswith(name))


@pytest.fixture(scope="module")
def remembered() -> list[Whole]:
    return []


@pytest.fixture
def whole(remembered, recipe, tmp_path) -> Whole:
    if not remembered:
        run, trace = tmp_path / "whole", tmp_path / "trace"
        assert status(start(tmp_path / "first", "--config", recipe, "--training.max_steps", 1)) == 0
        assert status(start(run, "--config", recipe, *WORDS, trace=trace)) == 0, run.with_suffix(".log").read_text()
        remembered.append(Whole(recipe, trace.read_text().splitlines(), outcome(run)))
    return remembered[0]


def kill_in_write(number: int, whole: Whole, run: Path) -> None:
    """Kills a run in one of its writes: best/ is whole if there was one, and the resumed run ends as it should."""
    assert status(start(run, "--config", whole.recipe, *WORDS, fatal=number)) == -signal.SIGKILL
    first_best = next(n for n, line in enumerate(whole.writes, start=1) if line.startswith("rename .best.partial"))
    if number > first_best:
        AutoModelForCausalLM.from_pretrained(restored(run / "best"))
    found = resume_to_the_end(run, whole.recipe)
    for name, value in whole.outcome.items():
        assert found[name] == value, (whole.writes[number - 1], name)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("rename .best.partial", "/best"),  # the old one moved away, the new one not yet there
        ("write_text", ".step-4.partial/manifest.json"),
        ("rmtree", "/.step-6.partial"),  # the old checkpoint half removed, and final/ not written
    ],
)
def test_a_run_killed_in_the_worst_moment_and_resumed_is_the_uninterrupted_one(whole, tmp_path, kind, name):
    kill_in_write(whole.number_of(kind, name), whole, tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("part", range(8))
def test_so_is_one_killed_in_any_of_its_writes(whole, tmp_path, part):
    for number in range(1 + part, len(whole.writes) + 1, 8):
        kill_in_write(number, whole, tmp_path / f"run-{number}")


@pytest.mark.slow
def test_so_is_one_killed_again_and_again_at_random_moments(whole, tmp_path):
    draw, kills = random.Random(0), 0
    began = time.monotonic()
    assert status(start(tmp_path / "timed", "--config", whole.recipe, *WORDS)) == 0
    seconds = time.monotonic() - began
    for number in itertools.count(1):
        run = tmp_path / f"run-{number}"
        for resume in itertools.chain([()], itertools.repeat(["--resume"])):
            process = start(run, "--config", whole.recipe, *WORDS, *resume)
            process.join(draw.uniform(0.2, 1) * seconds)
            if process.exitcode is not None:
                break
            process.kill()
            process.join()
            kills += 1
        assert process.exitcode == 0, run.with_suffix(".log").read_text()[-3000:]
        assert outcome(run) == whole.outcome
        if kills >= 20:
            return


def on_pairs(recipe: Path) -> Path:
    """A recipe of an encoder-decoder that reads some of its own tokens, in place of this one."""
    return write_pairs_recipe(recipe.parent, write_letters(recipe.parent), "t5", scheduled_sampling=0.5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [carrying_a_state, on_pairs])
def test_so_is_one_of_another_kind(kind, recipe, tmp_path):
    words = ["--config", kind(recipe), *("--training.checkpoint_every", 2, "--training.log_every", 1)]
    words += ["--training.evaluate_every", 3, "--training.accumulation_steps", 2, "--training.batch_size", 4]
    assert status(start(tmp_path / "first", *words, "--training.max_steps", 1)) == 0  # which makes the token files
    whole, trace = tmp_path / "whole", tmp_path / "trace"
    assert status(start(whole, *words, trace=trace)) == 0, whole.with_suffix(".log").read_text()[-3000:]
    writes = enumerate(trace.read_text().splitlines(), start=1)
    records = [number for number, line in writes if line.startswith("write ") and line.endswith("metrics.jsonl")]
    assert len(records) == 6 + 2
    for number in records[1::2]:
        run = tmp_path / f"run-{number}"
        assert status(start(run, *words, fatal=number)) == -signal.SIGKILL
        assert status(start(run, *words, "--resume")) == 0, run.with_suffix(".log").read_text()[-3000:]
        assert outcome(run) == outcome(whole), number


def test_a_half_written_record_is_taken_again(whole, tmp_path):
    run, words = tmp_path / "run", ["--config", whole.recipe, *WORDS]
    assert status(start(run, *words, "--training.max_steps", 4)) == 0
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "tokens": 6')
    assert status(start(run, *words, "--resume", "--training.max_steps", 5)) == 0
    assert [record["step"] for record in read_records(run, "metrics")] == [1, 2, 3, 3, 4, 4, 5, 5]


@pytest.mark.parametrize("step", [4, 6])
def test_a_checkpoint_moved_aside_to_be_replaced_is_found(whole, tmp_path, step):
    """The same step is saved again where a run is resumed that had ended, or was stopped, at it."""
    run, words = tmp_path / "run", ["--config", whole.recipe, *WORDS]
    assert status(start(run, *words, "--training.max_steps", step)) == 0
    checkpoints = run / "checkpoints"
    shutil.copytree(checkpoints / f"step-{step}", checkpoints / f".step-{step}.partial")
    (checkpoints / f"step-{step}").rename(checkpoints / f".step-{step}.replaced")
    (checkpoints / ".step-1.partial").mkdir()  # of a run that was stopped, and killed while it saved that step
    assert status(start(run, *words, "--resume")) == 0
    assert f"resuming from {checkpoints}/step-{step}" in run.with_suffix(".log").read_text()
    assert [path.name for path in checkpoints.iterdir()] == ["step-7"]
