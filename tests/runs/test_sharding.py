"""Training split by FSDP2 is the training of one process, and each holds its share of it.

Accelerate ignores FSDP on a CPU. Told by hand that it is there, it takes its own path, over gloo.
"""

import errno
import functools
import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from accelerate.state import PartialState
from accelerate.utils import DistributedType
from forked import DROPOUT, SMALL_RATES, assert_same_course, start, statuses, stopped, trained, windows_of
from running import outcome
from safetensors.torch import load_file
from torch.distributed.checkpoint import HuggingFaceStorageWriter
from transformers import AutoModelForCausalLM

from smallm_hf import runs
from smallm_hf.training import sharding
from smallm_hf.training.checkpoints import list_checkpoints
from smallm_hf.training.launch import build_accelerator
from smallm_hf.training.loop import TrainingLoop
from smallm_hf.training.optimization import whole_tensor
from smallm_hf.training.progress import read_records


def split(rank: int, folder: Path) -> None:
    """Makes Accelerate split the model, and notes at the end what each process holds and what that is together."""

    def split_on_a_cpu(precision: str):
        os.environ["FSDP_AUTO_WRAP_POLICY"] = "TRANSFORMER_BASED_WRAP"
        accelerator = build_accelerator(precision)
        accelerator.state.fsdp_plugin = sharding.sharding_plugin()
        PartialState._shared_state["distributed_type"] = accelerator.state.distributed_type = DistributedType.FSDP
        return accelerator

    def noted(loop: TrainingLoop) -> None:
        model = loop.objective.model
        states = sharding._states(model, loop.updater.optimizer).values()
        split_tensors = [*model.parameters(), *(t for state in states for t in state.values() if t.ndim)]
        held = [sum(t.to_local().numel() for t in split_tensors), sum(t.numel() for t in split_tensors)]
        (folder / f"held-{rank}").write_text(json.dumps(held))
        torch.save(
            {name: whole_tensor(p) for name, p in model.named_parameters()},
            folder / f"gathered-{rank}.pt",
        )
        close(loop)

    close, TrainingLoop.close = TrainingLoop.close, noted
    runs.build_accelerator = split_on_a_cpu


def split_and_compiled(rank: int, folder: Path) -> None:
    split(rank, folder)
    torch.compile = functools.partial(torch.compile, backend="aot_eager")
    advance = TrainingLoop.advance

    def counted(loop: TrainingLoop, progress: float) -> None:
        advance(loop, progress)
        counters = torch._dynamo.utils.counters
        with (folder / f"graphs-{rank}").open("a") as file:
            file.write(json.dumps([counters["stats"]["unique_graphs"], len(counters["graph_break"])]) + "\n")

    TrainingLoop.advance = counted


def in_fp16(rank: int, folder: Path) -> None:
    """As on a GPU: losses and gradients are scaled, and the scale is halved where that is too much."""
    build = runs.build_accelerator

    def with_scaler(precision: str):
        accelerator = build(precision)
        accelerator.native_amp, accelerator.state._mixed_precision = True, "fp16"
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**20)  # too large at first
        return accelerator

    runs.build_accelerator = with_scaler


def split_in_fp16(rank: int, folder: Path) -> None:
    split(rank, folder)
    in_fp16(rank, folder)


def on_a_full_disk(rank: int, folder: Path) -> None:
    """Has no space for the share of the second process."""
    split(rank, folder)
    if rank == 1:

        def full(*arguments):
            raise OSError(errno.ENOSPC, "No space left on device")

        HuggingFaceStorageWriter.write_data = full


@pytest.mark.parametrize(
    ("words", "rounding"),
    [
        (["--training.optimizer", "adamw"], 1e-5),
        (["--training.optimizer", "adamw", "--training.precision", "bf16"], 1e-4),
        ([], 1e-4),  # Muon rounds to bfloat16 inside
    ],
    ids=["adamw", "adamw in bf16", "muon"],
)
def test_two_processes_that_share_the_model_make_the_updates_of_one(recipe, tmp_path, words, rounding):
    words = [*words, *SMALL_RATES]
    one = trained(tmp_path / "one", 1, recipe, *words)
    two = trained(tmp_path / "two", 2, recipe, *words, changed=split)
    assert windows_of(tmp_path / "one", 1) == windows_of(tmp_path / "two", 2)
    assert_same_course(one, two, rounding)
    for rank in (0, 1):
        held, all_of_it = json.loads((tmp_path / "two" / f"held-{rank}").read_text())
        assert 0.49 < held / all_of_it < 0.51
    gathered = torch.load(tmp_path / "two" / "gathered-1.pt")
    written = load_file(two / "final" / "model.safetensors")
    assert written.keys() == gathered.keys() == load_file(one / "final" / "model.safetensors").keys()
    assert all(torch.equal(written[name], gathered[name]) for name in gathered)
    loaded = AutoModelForCausalLM.from_pretrained(two / "final").state_dict()
    assert all(torch.equal(loaded[name], gathered[name]) for name in gathered)


def test_a_split_run_that_is_stopped_and_resumed_is_the_uninterrupted_one(recipe, tmp_path):
    whole = trained(tmp_path / "whole", 2, recipe, *DROPOUT, changed=split)
    folder = tmp_path / "stopped"
    checkpoint = stopped(folder, recipe, *DROPOUT, changed=split)
    assert len(list((checkpoint / "optimizer").glob("*.safetensors"))) == 2
    trained(folder, 2, recipe, *DROPOUT, "--resume", changed=split)
    assert outcome(folder / "run") == outcome(whole)


@pytest.mark.slow
def test_a_checkpoint_of_one_kind_is_resumed_in_the_other(recipe, tmp_path):
    words = [*SMALL_RATES, "--training.keep_checkpoints", 9]
    words += ["--training.batch_size", 2, "--training.accumulation_steps", 6]
    kinds = {1: {}, 3: {"changed": split}}  # three do not divide the rows of a matrix
    runs_of = {size: trained(tmp_path / str(size), size, recipe, *words, **kinds[size]) for size in kinds}
    for size, other in ((1, 3), (3, 1)):
        folder = tmp_path / f"from-{size}"
        shutil.copytree(runs_of[size], folder / "run")
        for checkpoint in list_checkpoints(folder / "run")[1:]:
            shutil.rmtree(checkpoint)
        trained(folder, other, recipe, *words, "--resume", **kinds[other])
        assert_same_course(runs_of[size], folder / "run", 1e-4)


@pytest.mark.slow
def test_a_split_model_is_compiled_block_by_block_without_a_break_and_never_again(recipe, tmp_path):
    words = [*SMALL_RATES, "--training.optimizer", "adamw"]
    eager = trained(tmp_path / "eager", 2, recipe, *words, changed=split)
    words = [*words, "--training.compile", "true"]
    compiled = trained(tmp_path / "compiled", 2, recipe, *words, changed=split_and_compiled)
    assert_same_course(eager, compiled, 1e-4)
    graphs = [json.loads(line) for line in (tmp_path / "compiled" / "graphs-1").read_text().splitlines()]
    assert graphs == [graphs[0]] * 12
    assert graphs[0][0] > 0 and graphs[0][1] == 0


@pytest.mark.slow  # CPUs multiply float16 at leisure
def test_gradients_that_were_scaled_too_much_are_left_out_as_where_the_model_is_whole(recipe, tmp_path):
    words = [*SMALL_RATES, "--training.max_steps", 4, "--training.accumulation_steps", 2]
    whole = trained(tmp_path / "whole", 2, recipe, *words, changed=in_fp16)
    shared = trained(tmp_path / "shared", 2, recipe, *words, changed=split_in_fp16)
    assert_same_course(whole, shared, 1e-4)
    skipped = [read_records(run, "metrics")[-2]["skipped_steps"] for run in (whole, shared)]
    scales = [torch.load(list_checkpoints(run)[-1] / "optimizer.pt")["scaler"]["scale"] for run in (whole, shared)]
    assert skipped[0] == skipped[1] > 0
    assert scales[0] == scales[1] == 2.0 ** (20 - skipped[0])


@pytest.mark.parametrize("choice", ["stop", "continue"])
def test_a_disk_that_is_full_for_one_process_is_full_for_all(recipe, tmp_path, choice):
    folder = tmp_path / choice
    words = ["--config", recipe, "--training.on_full_disk", choice, "--training.max_steps", 6]
    ended = statuses(start(folder, 2, *words, changed=on_a_full_disk), folder)
    assert ended == {"stop": [2, 2], "continue": [0, 0]}[choice]
    said = (folder / "log-0").read_text()
    assert re.search(r"no space left to write .*step-5.* \(.*No space left on device\)", said)
    assert not list_checkpoints(folder / "run")
    assert (folder / "run" / "final").exists() == (choice == "continue")
