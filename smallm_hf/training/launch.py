"""What a launcher was asked for and has left in the environment: refused, or made an Accelerator of."""

import gc
import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import torch
import yaml
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.utils import parse_flag_from_env
from huggingface_hub.utils import are_progress_bars_disabled
from transformers.utils.logging import enable_progress_bar, is_progress_bar_enabled

from smallm_hf.base.errors import UserError
from smallm_hf.training.devices import accelerator_type
from smallm_hf.training.sharding import sharding_plugin

# Engines that `accelerate launch` can be asked to use, and that split a model in ways which our loop knows nothing of.
ENGINES = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism_config",
}
# What FSDP, which may split it, can be configured with: the value that is right, the reason and what to do.
SETTINGS = {
    "FSDP_VERSION": ("2", "the loop knows version 2 alone; set fsdp_version: 2"),
    "FSDP_OFFLOAD_PARAMS": ("false", "updates are judged on the device; leave it out"),
    "FSDP_ACTIVATION_CHECKPOINTING": ("false", "the recipe says so; set training.activation_checkpointing"),
}
# Where MPI says how many processes it has started.
MPI_SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")


_was_in_a_group = False


@contextmanager
def process_left_as_found() -> Iterator[None]:
    """Leaves the process as it found it, so that another run in it, as in a notebook, is as if it were the first.

    That is its threads, determinism and progress bars, and what Accelerate remembers: the first Accelerator of a
    process, whose precision no later one could change. A process group that was formed meanwhile is destroyed.

    Raises:
        UserError: this process was in such a group before: the store of its launcher remembers that one's addresses.
    """
    global _was_in_a_group
    if _was_in_a_group:
        raise UserError("processes that share a run train once; launch the next run by itself")
    threads, shows_progress = torch.get_num_threads(), is_progress_bar_enabled() and not are_progress_bars_disabled()
    deterministic = torch.are_deterministic_algorithms_enabled()
    warns_only = torch.is_deterministic_algorithms_warn_only_enabled()
    memories = [state._shared_state for state in (AcceleratorState, PartialState, GradientState)]
    remembered = [dict(memory) for memory in memories]
    had_group = torch.distributed.is_initialized()
    for memory in memories:
        memory.clear()
    try:
        yield
    except BaseException as error:
        _let_go(error)
        raise
    finally:
        if torch.distributed.is_initialized() and not had_group:
            torch.distributed.destroy_process_group()
            _was_in_a_group = True
        for memory, content in zip(memories, remembered, strict=True):
            memory.clear()
            memory.update(content)
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        if torch.are_deterministic_algorithms_enabled() != deterministic:
            torch.use_deterministic_algorithms(deterministic, warn_only=warns_only)
        if shows_progress:
            enable_progress_bar()


def _let_go(error: BaseException) -> None:
    """Empties the frames of an exception where a process group is about to be destroyed.

    One of them may hold DistributedDataParallel, which must not outlive the group, see `Updater.close`.
    """
    if torch.distributed.is_initialized():
        cause = error
        while cause is not None:
            traceback.clear_frames(cause.__traceback__)
            cause = cause.__cause__ or cause.__context__
        gc.collect()


def check_launch() -> None:
    """Refuses what a launcher was asked for and would silently not do, or do in addition to what the config says.

    What a script calls does so first, before any data is prepared.

    Raises:
        UserError: a GPU that is not here, another engine, one that does not fit the loop as it is configured,
            a second compiler or accumulation, processes that do not know of each other, or more of them than GPUs.
    """
    _check_engine()
    _check_processes()


def _check_engine() -> None:
    for variable, engine in ENGINES.items():
        if parse_flag_from_env(variable):
            raise UserError(
                f"accelerate was asked to use {engine}, which this training was not written for; launch with "
                "--config_file configs/accelerate/fsdp2.yaml to split the model, or ddp.yaml to split the batch alone"
            )
    if parse_flag_from_env("ACCELERATE_USE_FSDP") and accelerator_type() == "cpu":
        raise UserError(
            "accelerate was asked to use FSDP, which it does not on a CPU and says nothing; launch with "
            "--config_file configs/accelerate/cpu_2_processes.yaml"
        )
    if accelerator_type() == "cpu" and (asked := _gpu_asked_for()):
        built = f"torch {torch.__version__} finds none here"
        raise UserError(
            f"accelerate was given {asked}, which is for GPUs, and {built}; launch with --config_file "
            "configs/accelerate/cpu.yaml, or install a torch and a driver for the GPU"
        )
    for variable, (wanted, reason) in SETTINGS.items():
        found = os.environ.get(variable, wanted).lower()
        if found != wanted:
            raise UserError(f"accelerate was given {variable.lower()}={found}, and {reason}")
    backend = os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no").lower()
    if backend != "no":
        raise UserError(
            f"accelerate was given dynamo_backend={backend} and would compile the step a second time; leave that out "
            "and set training.compile"
        )
    steps = os.environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")
    if steps != "1":
        raise UserError(
            f"accelerate was given gradient_accumulation_steps={steps} and would divide the loss a second time; leave "
            "that out and set training.accumulation_steps"
        )


def _check_processes() -> None:
    if "WORLD_SIZE" not in os.environ:
        several = "take --config_file configs/accelerate/cpu_2_processes.yaml, or torchrun --nproc_per_node 2"
        for variable in MPI_SIZES:
            if int(os.environ.get(variable, "1")) > 1:
                raise UserError(
                    f"MPI has started {os.environ[variable]} processes ({variable}), each of which would train alone; "
                    f"{several}"
                )
        # This is all that `accelerate launch` leaves of the number it was given when it starts one process for it.
        if "ACCELERATE_MIXED_PRECISION" in os.environ and "MASTER_ADDR" in os.environ:
            raise UserError(
                "accelerate was asked for several processes and has started one (--cpu and MULTI_CPU do that); "
                f"{several}; if one is meant, unset MASTER_ADDR"
            )
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if accelerator_type() == "cuda" and processes > torch.cuda.device_count():
        raise UserError(
            f"{processes} processes were started here for {torch.cuda.device_count()} GPUs; set --num_processes to the "
            "number of GPUs, or ACCELERATE_USE_CPU=true to leave them alone"
        )


def _gpu_asked_for() -> str | None:
    """The words by which `accelerate launch` was asked to use GPUs; None where it was not, or was not what started us.

    It passes on nothing of it when there is none, and each process trains on a CPU. The launcher is our parent.
    """
    if "ACCELERATE_MIXED_PRECISION" not in os.environ or parse_flag_from_env("ACCELERATE_USE_CPU"):
        return None
    try:
        words = psutil.Process(os.getppid()).cmdline()
    except psutil.Error:  # gone, or not ours to look at
        return None
    words = [part for word in words for part in word.split("=", 1)]
    if "--cpu" in words:
        return None
    for option in ("--config_file", "--config-file"):
        if option in words[:-1]:
            file = words[words.index(option) + 1]
            with suppress(OSError, ValueError, yaml.YAMLError):  # the launcher has read it: it is not this kind of file
                content = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
                return None if content.get("use_cpu") else f"{option} {file}"
    return next((word for word in words if word.replace("-", "_") in ("__multi_gpu", "__gpu_ids")), None)


def build_accelerator(precision: str) -> Accelerator:
    """The Accelerator of a run.

    Accumulation is ours (its own divides the loss a second time), so Accelerate gets 1. On a machine without a GPU
    `cpu=True` is what makes several processes find each other.

    Raises:
        UserError: processes that have not found each other, or nothing to split a model among.
    """
    fsdp = parse_flag_from_env("ACCELERATE_USE_FSDP")
    accelerator = Accelerator(
        mixed_precision="no" if precision == "fp32" else precision,
        gradient_accumulation_steps=1,
        cpu=accelerator_type() == "cpu",
        fsdp_plugin=sharding_plugin() if fsdp else None,
    )
    expected = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != expected:
        raise UserError(
            f"the launcher has started {expected} processes (WORLD_SIZE) and Accelerate finds "
            f"{accelerator.num_processes}: each would train alone; launch one, or set ACCELERATE_USE_CPU=true"
        )
    if fsdp and not accelerator.is_fsdp2:
        raise UserError(
            f"accelerate was asked to use FSDP and does not (processes: {expected}); raise --num_processes, or launch "
            "with --config_file configs/accelerate/one_gpu.yaml"
        )
    return accelerator
