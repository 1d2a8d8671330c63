"""Training with DeepSpeed's ZeRO is the training of one process.

Accelerate ignores DeepSpeed on a CPU. Told by hand that it is there, it takes its own path, over gloo.
"""

import functools
import sys
from pathlib import Path

import pytest
import torch
from accelerate.state import PartialState
from accelerate.utils import DistributedType
from forked import DROPOUT, SMALL_RATES, assert_same_course, start, statuses, stopped, trained
from running import tensors, without_time

from smallm_hf import runs
from smallm_hf.training.checkpoints import list_checkpoints
from smallm_hf.training.devices import build_accelerator
from smallm_hf.training.progress import read_records
from smallm_hf.training.zero import zero_plugin

pytestmark = pytest.mark.slow
ADAMW = ["--training.optimizer", "adamw"]


@pytest.fixture(autouse=True)
def needed():
    pytest.importorskip("deepspeed", reason="DeepSpeed is an extra")


def with_zero(rank: int, folder: Path) -> None:
    """Makes Accelerate train with DeepSpeed."""

    def on_a_cpu(precision: str):
        import deepspeed  # noqa: F401

        sys.modules["deepspeed.comm.torch"].build_shm_op = lambda: None  # minutes of compiling
        accelerator = build_accelerator("fp32")
        plugin = zero_plugin()
        plugin.set_mixed_precision("no")
        plugin.select(_from_accelerator_state=True)
        accelerator.state.deepspeed_plugins, accelerator.deepspeed_engine_wrapped = plugin, None
        PartialState._shared_state["distributed_type"] = accelerator.state.distributed_type = DistributedType.DEEPSPEED
        return accelerator

    runs.build_accelerator = on_a_cpu


def with_zero_compiled(rank: int, folder: Path) -> None:
    with_zero(rank, folder)
    torch.compile = functools.partial(torch.compile, backend="aot_eager")


@pytest.mark.parametrize(
    ("precision", "rounding", "compiles"), [("fp32", 1e-5, False), ("bf16", 1e-4, False), ("fp32", 1e-5, True)]
)
def test_two_processes_make_the_updates_of_one(recipe, tmp_path, precision, rounding, compiles):
    words = [*SMALL_RATES, *ADAMW, "--training.precision", precision]
    one = trained(tmp_path / "one", 1, recipe, *words)
    words, changed = ([*words, "--training.compile", "true"], with_zero_compiled) if compiles else (words, with_zero)
    two = trained(tmp_path / "two", 2, recipe, *words, changed=changed)
    assert_same_course(one, two, rounding)
    shares = [
        torch.load(path, weights_only=False)["optimizer_state_dict"]["base_optimizer_state"]
        for path in sorted(list_checkpoints(two)[-1].glob("deepspeed/state/zero_pp_rank_*"))
    ]
    whole = torch.load(list_checkpoints(one)[-1] / "optimizer.pt", weights_only=True)["optimizer"]["state"]
    held = [sum(t.numel() for t in tensors(share)) for share in shares]
    assert len(held) == 2
    assert held == pytest.approx([sum(t.numel() for t in tensors(whole)) / 2] * 2, rel=0.01)


def test_a_run_that_is_stopped_and_resumed_is_the_uninterrupted_one(recipe, tmp_path):
    words = [*DROPOUT, *ADAMW]
    whole = trained(tmp_path / "whole", 2, recipe, *words, changed=with_zero)
    folder = tmp_path / "stopped"
    stopped(folder, recipe, *words, changed=with_zero)
    assert statuses(start(folder, 1, "--config", recipe, *words, "--resume"), folder) == [2]
    assert "is of DeepSpeed; resume with" in (folder / "log-0").read_text()
    resumed = trained(folder, 2, recipe, *words, "--resume", changed=with_zero)
    assert without_time(read_records(resumed, "metrics")) == without_time(read_records(whole, "metrics"))
    weights = [(run / "final" / "model.safetensors").read_bytes() for run in (whole, resumed)]
    assert weights[0] == weights[1]
