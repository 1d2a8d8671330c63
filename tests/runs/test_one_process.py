"""Several runs in one process, as a notebook, a sweep or a server has them: each as if it were the first."""

import signal

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from running import interrupt_at, outcome, train
from transformers.utils.logging import is_progress_bar_enabled

from smallm_hf.base.errors import Interrupted, UserError
from smallm_hf.training.loop import TrainingLoop
from smallm_hf.training.stopping import SIGNALS
from smallm_hf.training.watch import UpdateWatch


def settings_of_the_process() -> dict:
    return {
        "threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "progress bars": is_progress_bar_enabled(),
        "signals": [signal.getsignal(number) for number in SIGNALS],
        "accelerate": [dict(state._shared_state) for state in (AcceleratorState, PartialState, GradientState)],
        "process group": torch.distributed.is_initialized(),
    }


def fail(*arguments):
    raise OSError("the disk is gone")


def test_a_run_leaves_the_process_as_it_found_it_however_it_ends(recipe, tmp_path, monkeypatch):
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        before, closed = settings_of_the_process(), []
        close = TrainingLoop.close
        monkeypatch.setattr(TrainingLoop, "close", lambda loop: (closed.append(loop), close(loop)))
        words = ["--training.cpu_threads", 1, "--training.deterministic", "true"]
        train(recipe, tmp_path / "ended", *words)
        assert settings_of_the_process() == before
        interrupt_at(monkeypatch, 2)
        with pytest.raises(Interrupted):
            train(recipe, tmp_path / "stopped", *words, "--training.precision", "bf16")
        assert settings_of_the_process() == before
        with monkeypatch.context() as patch:
            patch.setattr(TrainingLoop, "evaluate", fail)
            with pytest.raises(OSError, match="the disk is gone"):
                train(recipe, tmp_path / "failed", *words)
            patch.setattr(UpdateWatch, "__init__", fail)  # before there is a loop
            with pytest.raises(OSError, match="the disk is gone"):
                train(recipe, tmp_path / "never began", *words, "--training.precision", "bf16")
        assert settings_of_the_process() == before
        with pytest.raises(UserError):
            train(recipe, tmp_path / "stopped", *words)  # of another run
        assert settings_of_the_process() == before
        train(recipe, tmp_path / "stopped", "--resume", *words, "--training.precision", "bf16")
        assert [hasattr(loop.updater, "objective") for loop in closed] == [False] * 4
        train(recipe, tmp_path / "again", *words)
        assert outcome(tmp_path / "again") == outcome(tmp_path / "ended")
    finally:
        torch.set_num_threads(threads)


def test_a_trial_run_leaves_no_precision_behind(recipe, tmp_path):
    train(recipe, tmp_path / "run", "--dry_run", "--probe", "--training.precision", "bf16")
    train(recipe, tmp_path / "run", "--training.max_steps", 1)


def test_an_accelerator_of_the_callers_own_is_neither_used_nor_spoilt(recipe, tmp_path, fresh_accelerator):
    own = Accelerator(cpu=True, mixed_precision="no")
    train(recipe, tmp_path / "run", "--training.precision", "bf16", "--training.max_steps", 1)
    assert own.mixed_precision == "no" and own.num_processes == 1
    layer = own.prepare(torch.nn.Linear(2, 2))
    assert layer(torch.ones(1, 2)).dtype == torch.float32
