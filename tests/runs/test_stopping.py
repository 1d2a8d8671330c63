"""Signals to real launchers: the run saves its state, ends soon, leaves no process, and goes on from there."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from running import BIN, TRAIN, outcome, train

from smallm_hf.base.command_line import EXIT_INTERRUPTED
from smallm_hf.training.checkpoints import damage
from smallm_hf.training.stopping import StopRequest

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows has other signals")

LAUNCHERS = {
    "python": [sys.executable],
    "accelerate": [BIN / "accelerate", "launch", "--quiet"],
    "accelerate 2": [
        *(BIN / "accelerate", "launch", "--quiet", "--multi_gpu", "--num_processes", 2, "--main_process_port", 0),
    ],
    "torchrun": [BIN / "torchrun", "--standalone", "--nproc_per_node", 1],
    "torchrun 2": [BIN / "torchrun", "--standalone", "--nproc_per_node", 2],
}
WORDS = [
    *("--training.max_steps", 8, "--training.batch_size", 2, "--training.accumulation_steps", 2),
    *("--model.preset", "classic", "--model.dropout", 0.2, "--training.cpu_threads", 1),
]
# Enough for a busy machine to start two processes; what is promised is the time from the signal to the end.
START_SECONDS, PROMISED_SECONDS = 240, 25
# Runs scripts/train.py with one method slow at times, and says when it first is.
SLOW = """
import runpy, time
from pathlib import Path

{slow}

def slow(self, *arguments, **options):
    if when(self):
        Path({mark!r}).touch()
        time.sleep({seconds})
    return function(self, *arguments, **options)

function = getattr(owner, name)
setattr(owner, name, slow)
runpy.run_path({train!r}, run_name="__main__")
"""
SLOW_UPDATE = """
from smallm_hf.training.loop import TrainingLoop as owner
name, when = "advance", lambda loop: loop.state.step >= 2
"""
SLOW_READING = """
import signal
from smallm_hf import SmaLLMForCausalLM as owner
name, when = "forward", lambda model: not model.training and callable(signal.getsignal(signal.SIGTERM))  # in the loop
"""


class Launched:
    """A run in the middle of a step, and the processes that belong to it."""

    def __init__(
        self, folder: Path, launcher: str, recipe: Path, *words: object, slow: str = SLOW_UPDATE, seconds: float = 1
    ):
        script, mark = folder / "slow.py", folder / "there"
        script.write_text(SLOW.format(slow=slow, seconds=seconds, mark=str(mark), train=TRAIN))
        self.run, self.errors = folder / "run", folder / "errors"
        command = [*LAUNCHERS[launcher], script, "--config", recipe, "--output_dir", self.run, *WORDS, *words]
        variables = {**os.environ, "ACCELERATE_USE_CPU": "true"}
        with self.errors.open("w") as errors, (folder / "output").open("w") as output:
            self.process = subprocess.Popen(
                list(map(str, command)),
                stdout=output,
                stderr=errors,
                env=variables,
                start_new_session=True,
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # the suite may run in the background
            )
        deadline = time.monotonic() + START_SECONDS
        while not mark.exists():
            assert self.process.poll() is None and time.monotonic() < deadline, self.errors.read_text()[-5000:]
            time.sleep(0.02)
        self.children = psutil.Process(self.process.pid).children(recursive=True)
        self.signalled = time.monotonic()

    def ends(self, within_seconds: float = PROMISED_SECONDS) -> str:
        """What stands on stderr once launcher and all processes below it are gone."""
        try:
            self.process.wait(within_seconds)
            left = within_seconds - (time.monotonic() - self.signalled)
            _, alive = psutil.wait_procs(self.children, timeout=max(0.0, left))
            assert not alive
        finally:
            for process in self.children:
                if process.is_running():
                    process.kill()
        return self.errors.read_text()

    def ends_saved(self) -> tuple[str, int]:
        """For what reason it says it stopped, and where, once it has ended as promised and in one line."""
        errors = self.ends()
        lines = re.findall(r"^stopped \((.+)\) at step (\d+); saved .*/step-\2, --resume goes on", errors, re.M)
        assert len(lines) == 1, errors
        reason, step = lines[0]
        assert damage(self.run / "checkpoints" / f"step-{step}") is None
        return reason, int(step)


def stopped_step(launcher: str) -> int:
    """Where a run ends that is told so in its third update: one process alone gives up what it has of it."""
    return 3 if launcher.endswith("2") else 2


@pytest.fixture(scope="module")
def remembered() -> dict:
    return {}


def resumed(remembered: dict, launcher: str, recipe: Path, tmp_path: Path) -> tuple[dict, dict]:
    """The outcomes of the resumed run and of an uninterrupted one on as many processes."""
    processes = 2 if launcher.endswith("2") else 1

    def start(folder: Path, *words: str) -> dict:
        if processes == 1:
            train(recipe, folder, *WORDS, *words)
        else:
            command = [*LAUNCHERS[launcher], TRAIN, "--config", recipe, "--output_dir", folder, *WORDS, *words]
            variables = {**os.environ, "ACCELERATE_USE_CPU": "true"}
            subprocess.run(list(map(str, command)), env=variables, check=True, timeout=2 * START_SECONDS)
        return outcome(folder)

    if processes not in remembered:
        remembered[processes] = start(tmp_path / "whole")
    return start(tmp_path / "run", "--resume"), remembered[processes]


def slow_but(*quick: tuple) -> list:
    """Every launcher with either signal; but for these, which the default suite runs too, slow."""
    cases = [(launcher, number) for launcher in LAUNCHERS for number in (signal.SIGTERM, signal.SIGINT)]
    return [pytest.param(*case, marks=[] if case in quick else [pytest.mark.slow]) for case in cases]


@pytest.mark.parametrize(
    ("launcher", "number"),
    slow_but(("python", signal.SIGTERM), ("accelerate", signal.SIGTERM), ("torchrun", signal.SIGINT)),
)
def test_a_signal_to_the_launcher_ends_the_run_which_can_be_resumed(remembered, recipe, tmp_path, launcher, number):
    launched = Launched(tmp_path, launcher, recipe)
    launched.process.send_signal(number)
    reason, step = launched.ends_saved()
    if launcher == "accelerate":  # which passes nothing on
        assert reason == "its launcher is gone"
    else:
        assert (reason, step) == (f"signal {number.name}", stopped_step(launcher))
    if launcher == "python":
        assert launched.process.returncode == EXIT_INTERRUPTED
        assert len(launched.errors.read_text().splitlines()) == 1
    ours, theirs = resumed(remembered, launcher, recipe, tmp_path)
    assert ours == theirs


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_so_does_control_c_in_a_terminal(recipe, tmp_path, launcher):
    launched = Launched(tmp_path, launcher, recipe)
    os.killpg(launched.process.pid, signal.SIGINT)
    assert launched.ends_saved() == ("signal SIGINT", stopped_step(launcher))


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [name for name in LAUNCHERS if name != "python"])
def test_a_run_whose_launcher_is_killed_saves_its_state_and_ends(recipe, tmp_path, launcher):
    launched = Launched(tmp_path, launcher, recipe)
    launched.process.kill()
    assert launched.ends_saved()[0] == "its launcher is gone"


def test_a_second_signal_ends_a_run_at_once(recipe, tmp_path):
    launched = Launched(tmp_path, "python", recipe, seconds=60)
    launched.process.terminate()
    time.sleep(1)
    launched.process.terminate()  # a launcher that passes on what the terminal has sent already
    time.sleep(2)
    assert launched.process.poll() is None
    launched.process.terminate()
    launched.ends(within_seconds=10)
    assert launched.process.returncode == -signal.SIGTERM
    assert not (launched.run / "checkpoints").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("every", "step"), [(4, 4), ("null", 8)])
def test_a_signal_is_heeded_in_the_middle_of_a_long_validation(recipe, tmp_path, every, step):
    launched = Launched(tmp_path, "python", recipe, "--training.evaluate_every", every, slow=SLOW_READING)
    launched.process.terminate()
    assert launched.ends_saved() == ("signal SIGTERM", step)
    assert time.monotonic() - launched.signalled < 10


@pytest.mark.slow
def test_a_signal_is_heeded_in_the_middle_of_sampling(recipe, tmp_path):
    words = ["--training.sample_every", 4, "--training.evaluate_every", "null", "--training.sample_tokens", 200]
    launched = Launched(tmp_path, "python", recipe, *words, slow=SLOW_READING)
    launched.process.terminate()
    assert launched.ends_saved() == ("signal SIGTERM", 4)
    assert time.monotonic() - launched.signalled < 10


def test_a_signal_that_is_ignored_stays_so():
    """A job in the background is not meant by Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with StopRequest() as request:
            os.kill(os.getpid(), signal.SIGINT)
            assert not request
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.slow
def test_a_run_in_the_background_outlives_its_shell(recipe, tmp_path):
    script = f"nohup {sys.executable} {TRAIN} --config {recipe} --output_dir {tmp_path}/run > {tmp_path}/log 2>&1 &"
    subprocess.run(["sh", "-c", script], check=True)
    deadline = time.monotonic() + START_SECONDS
    while not (tmp_path / "run" / "results.json").exists():
        assert time.monotonic() < deadline, (tmp_path / "log").read_text()
        time.sleep(0.2)
