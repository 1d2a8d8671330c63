"""What the hardware decides: the accelerator, the precision, whether compiling pays. Never from timing."""

import dataclasses
import gc
import os
import platform
import shutil
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

import psutil
import torch
import yaml
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.utils import parse_flag_from_env
from huggingface_hub.utils import are_progress_bars_disabled
from torch.utils._triton import has_triton
from transformers.utils.logging import enable_progress_bar, is_progress_bar_enabled

from smallm_hf.base.arithmetic import multiplies_well
from smallm_hf.base.errors import UserError
from smallm_hf.training.configuration import TrainingConfig
from smallm_hf.training.sharding import sharding_plugin

# The work after which compiling has paid for itself, in floating-point operations of the whole plan. On a CPU it costs
# 30 to 60 seconds and about doubles 5e10 operations per second and core; on a GPU it costs as long at about 1e14.
COMPILE_PAYS_PER_CPU_CORE = 5e12
COMPILE_PAYS_ON_GPU = 5e15
COMPILE_PAYS_SECONDS = 45.0
# The tokens after which compiling the step that writes them has: about 15 seconds of a core for 1.7 ms a token.
COMPILE_PAYS_TOKENS = 10_000
# Dense 16-bit TFLOP/s with float32 sums, from the makers' data sheets; the first name that is in the device's wins.
PEAK_TFLOPS = {
    **{"B200": 2250.0, "H200": 989.0, "H100 PCIe": 756.0, "H100": 989.0, "A100": 312.0, "L40S": 362.0, "L4": 121.0},
    **{"A10G": 70.0, "A10": 125.0, "T4": 65.0, "V100": 125.0, "RTX 4090": 165.0, "RTX 3090": 71.0},
}
# Of the memory that is free, what a batch of size `auto` may take: estimates err, and other things need some too.
USABLE_MEMORY = 0.8
# On a CPU larger micro-steps hold more memory and, eagerly, take longer for it; they are not looked for beyond this.
CPU_TOKENS_PER_MICRO_STEP = 4096
# On a GPU the loss is computed in parts where float32 logits and their gradient would fill this share of its memory.
LOGITS_SHARE_OF_MEMORY = 0.25
# Engines that `accelerate launch` can be told to use, and that split a model in ways which our loop knows nothing of.
ENGINES = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism_config",
}
# What FSDP, which may split it, can be told; what it may be told, and otherwise the reason and what to do.
SETTINGS = {
    "FSDP_VERSION": ("2", "the loop knows version 2 alone; set fsdp_version: 2"),
    "FSDP_OFFLOAD_PARAMS": ("false", "updates are judged on the device; leave it out"),
    "FSDP_ACTIVATION_CHECKPOINTING": ("false", "the recipe says so; set training.activation_checkpointing"),
}
# Where MPI says how many processes it has started.
MPI_SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")


def accelerator_type() -> str:
    """`cuda`, `mps`, `xpu` ... where torch has such a device and the launcher lets us use it, else `cpu`."""
    if parse_flag_from_env("ACCELERATE_USE_CPU"):
        return "cpu"
    device = torch.accelerator.current_accelerator(check_available=True)
    return device.type if device else "cpu"


def resolve_precision(requested: str) -> str:
    """The precision of the run: `bf16`, `fp16` or `fp32`.

    `auto` is bf16 where the hardware multiplies it (CUDA from Ampere, CPUs with AVX512-BF16 or AMX), fp16 on older
    CUDA devices, fp32 elsewhere; or what the launcher was told (`accelerate launch --mixed_precision`).

    Raises:
        UserError: fp16 on a CPU, or a launcher that contradicts us.
    """
    launcher = os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    if launcher not in ("no", requested):
        if requested != "auto":
            raise UserError(
                f"training.precision={requested} contradicts the launcher's mixed precision {launcher}; "
                "drop --mixed_precision from accelerate launch or set training.precision to auto"
            )
        if launcher not in ("bf16", "fp16"):
            raise UserError(
                f"the launcher's mixed precision {launcher} is neither bf16 nor fp16; drop --mixed_precision"
            )
        requested = launcher
    device = accelerator_type()
    if requested == "auto":
        # float16 needs its gradients scaled, which was written for CUDA.
        requested = "bf16" if multiplies_well(torch.bfloat16, device) else "fp16" if device == "cuda" else "fp32"
    if requested == "fp16" and device == "cpu":
        raise UserError("training.precision=fp16 needs a GPU, this machine has a CPU only; use bf16, fp32 or auto")
    return requested


def resolve_compile(
    requested: bool | str,
    *,
    planned_flops: float | None,
    planned_seconds: float | None,
    say: Callable[[str], None] = lambda line: None,
) -> bool:
    """Whether the training step is compiled.

    `auto` compiles where a toolchain is present and the plan is long enough to pay for it: `planned_flops` for a run
    limited by steps or epochs, `planned_seconds` for one limited by time. `say` is told where only the former lacks.

    Raises:
        UserError: compiling was asked for, and what it needs is not here.
    """
    if requested != "auto":
        return _compiled_as_asked(requested, "training.compile=true", "--training.compile false")
    device = accelerator_type()
    enough_flops = COMPILE_PAYS_PER_CPU_CORE * (os.cpu_count() or 1) if device == "cpu" else COMPILE_PAYS_ON_GPU
    long_enough = (planned_seconds is None or planned_seconds >= COMPILE_PAYS_SECONDS) and (
        planned_flops is None or planned_flops >= enough_flops
    )
    return long_enough and _can_compile(device, say)


def resolve_decoding_compile(
    requested: bool | str, planned_tokens: int, say: Callable[[str], None] = lambda line: None
) -> bool:
    """Whether the step that writes is compiled; `auto` does where a toolchain is present and so many tokens pay.

    Raises:
        UserError: compiling was asked for, and what it needs is not here.
    """
    if requested != "auto":
        return _compiled_as_asked(requested, "--compile true", "--compile false")
    return planned_tokens >= COMPILE_PAYS_TOKENS and _can_compile(accelerator_type(), say)


def _compiled_as_asked(requested: bool, asked: str, instead: str) -> bool:
    missing = missing_for_compiling(accelerator_type()) if requested else None
    if missing:
        raise UserError(f"{asked} needs {missing}, not found here; install it, or give {instead}")
    return requested


def _can_compile(device: str, say: Callable[[str], None]) -> bool:
    """Whether `auto` may compile; elsewhere than on Linux only a user who asks for it does."""
    if sys.platform != "linux" or device not in ("cpu", "cuda"):
        return False
    missing = missing_for_compiling(device)
    if missing:
        say(f"not compiling, though it would pay: that needs {missing}, not found here")
    return not missing


def missing_for_compiling(device: str) -> str | None:
    """What Inductor builds kernels with and, looking as it does itself, would not find; None where all is here.

    Elsewhere than on Linux that is not known, and None.
    """
    if sys.platform != "linux":
        return None
    compiler = os.environ.get("CXX", "g++")
    if not shutil.which(compiler):
        return f"the C++ compiler {compiler}"
    if not Path(sysconfig.get_path("include"), "Python.h").is_file():
        return "Python.h, the headers of Python (often in a package python3-dev)"
    return "Triton" if device == "cuda" and not has_triton() else None


def resolve_loss(requested: str, *, logits_bytes: int) -> str:
    """Whether the loss of a micro-step is made from `logits` or `chunked`.

    `auto` is chunked on a GPU whose memory `logits_bytes`, all logits in float32 and their gradient, would fill. On a
    CPU it is never: there, chunks take about as long eagerly and twice as long compiled.
    """
    if requested != "auto":
        return requested
    crowded = accelerator_type() == "cuda" and logits_bytes > LOGITS_SHARE_OF_MEMORY * _total_gpu_bytes()
    return "chunked" if crowded else "logits"


def resolve_batch_size(
    training: TrainingConfig, memory_bytes: Callable[[TrainingConfig], int], processes: int
) -> TrainingConfig:
    """The config with `batch_size: auto` decided: the largest divisor of the update that fits beside all else.

    Args:
        training: the section of the run config.
        memory_bytes: estimates what one process holds with a given `batch_size`.
        processes: share the update, and on one machine its memory.

    Raises:
        UserError: not even one window fits, or the processes do not divide the update.
    """
    if training.batch_size != "auto":
        return training
    windows = training.global_batch_size
    if windows % processes:
        raise UserError(
            f"training.global_batch_size={windows} is shared by {processes} processes and does not divide; "
            f"set it to a multiple of {processes}"
        )
    limit = USABLE_MEMORY * _free_memory_bytes()
    most = windows // processes
    if accelerator_type() == "cpu":
        most = min(most, max(1, CPU_TOKENS_PER_MICRO_STEP // training.context_length))
    for size in range(most, 0, -1):
        if (windows // processes) % size == 0:
            chosen = dataclasses.replace(training, batch_size=size, accumulation_steps=windows // size)
            if memory_bytes(chosen) <= limit:
                return chosen
    raise UserError(
        f"one window of training.context_length={training.context_length} takes about "
        f"{memory_bytes(chosen) / 2**30:.1f} GiB, and {limit / 2**30:.1f} GiB can be used here; take a smaller model, "
        "a shorter context or training.activation_checkpointing"
    )


def _total_gpu_bytes() -> int:
    return torch.cuda.get_device_properties(0).total_memory


def _free_memory_bytes() -> int:
    """What one process may take: of its GPU, or its share of the machine's."""
    if accelerator_type() == "cuda":
        return torch.cuda.mem_get_info()[0]
    return psutil.virtual_memory().available // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def model_shares() -> int:
    """How many processes share one model: weights, gradients, optimizer state. Readable before they find each other."""
    return int(os.environ.get("WORLD_SIZE", "1")) if parse_flag_from_env("ACCELERATE_USE_FSDP") else 1


def peak_flops(stated_tflops: float | None, precision: str) -> float | None:
    """Operations per second that one device can do at best in this precision; None where nobody has said."""
    if stated_tflops is not None:
        return stated_tflops * 1e12
    if accelerator_type() != "cuda" or precision == "fp32":
        return None
    name = torch.cuda.get_device_name()
    return next((tflops * 1e12 for known, tflops in PEAK_TFLOPS.items() if known in name), None)


def set_cpu_threads(requested: int | None) -> None:
    """Sets how many threads this process computes with; None takes its share of the machine's cores.

    `accelerate launch` gives every process OMP_NUM_THREADS=1 unless it is told otherwise (torchrun does where there are
    several), which would leave all but one core idle. Without a launcher, or with any other value in the environment,
    None leaves torch as it is.
    """
    launched = "ACCELERATE_MIXED_PRECISION" in os.environ or "LOCAL_WORLD_SIZE" in os.environ
    if requested is None and launched and os.environ.get("OMP_NUM_THREADS", "1") == "1" and accelerator_type() == "cpu":
        usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        cores = min(usable, psutil.cpu_count(logical=False) or usable)
        requested = max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    if requested is not None:
        torch.set_num_threads(requested)


def set_determinism() -> None:
    """Lets torch use only algorithms that give the same bits each time, before a GPU is touched.

    A CPU's are so already, at a fixed number of threads.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)


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

    One of them may hold DistributedDataParallel, which must not outlive the group, see `TrainingLoop.close`.
    """
    if torch.distributed.is_initialized():
        cause = error
        while cause is not None:
            traceback.clear_frames(cause.__traceback__)
            cause = cause.__cause__ or cause.__context__
        gc.collect()


def check_launch() -> None:
    """Refuses what a launcher was told and would silently not do, or do beside what the config says.

    What a script calls does so first, before any data is prepared.

    Raises:
        UserError: a GPU that is not here, another engine, one that does not go together with the loop as it was told,
            a second compiler or accumulation, processes that do not know of each other, or more of them than GPUs.
    """
    for variable, engine in ENGINES.items():
        if parse_flag_from_env(variable):
            raise UserError(
                f"accelerate was told to use {engine}, which this training was not written for; launch with "
                "--config_file configs/accelerate/fsdp2.yaml to split the model, or ddp.yaml to split the batch alone"
            )
    if parse_flag_from_env("ACCELERATE_USE_FSDP") and accelerator_type() == "cpu":
        raise UserError(
            "accelerate was told to use FSDP, which it does not on a CPU and says nothing; launch with "
            "--config_file configs/accelerate/cpu_2_processes.yaml"
        )
    if accelerator_type() == "cpu" and (asked := _gpu_asked_for()):
        built = f"torch {torch.__version__} finds none here"
        raise UserError(
            f"accelerate was told {asked}, which is for GPUs, and {built}; launch with --config_file "
            "configs/accelerate/cpu.yaml, or install a torch and a driver for the GPU"
        )
    for variable, (wanted, reason) in SETTINGS.items():
        told = os.environ.get(variable, wanted).lower()
        if told != wanted:
            raise UserError(f"accelerate was told {variable.lower()}={told}, and {reason}")
    backend = os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no").lower()
    if backend != "no":
        raise UserError(
            f"accelerate was told dynamo_backend={backend} and would compile the step a second time; leave that out "
            "and set training.compile"
        )
    steps = os.environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")
    if steps != "1":
        raise UserError(
            f"accelerate was told gradient_accumulation_steps={steps} and would divide the loss a second time; leave "
            "that out and set training.accumulation_steps"
        )
    if "WORLD_SIZE" not in os.environ:
        several = "take --config_file configs/accelerate/cpu_2_processes.yaml, or torchrun --nproc_per_node 2"
        for variable in MPI_SIZES:
            if int(os.environ.get(variable, "1")) > 1:
                raise UserError(
                    f"MPI has started {os.environ[variable]} processes ({variable}), each of which would train alone; "
                    f"{several}"
                )
        # This is all that `accelerate launch` leaves of the number it was told when it starts one process for it.
        if "ACCELERATE_MIXED_PRECISION" in os.environ and "MASTER_ADDR" in os.environ:
            raise UserError(
                "accelerate was told several processes and has started one (--cpu and MULTI_CPU do that); "
                f"{several}; if one is meant, unset MASTER_ADDR"
            )
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if accelerator_type() == "cuda" and processes > torch.cuda.device_count():
        raise UserError(
            f"{processes} processes were started here for {torch.cuda.device_count()} GPUs; set --num_processes to the "
            "number of GPUs, or ACCELERATE_USE_CPU=true to leave them alone"
        )


def _gpu_asked_for() -> str | None:
    """The words by which `accelerate launch` was told to use GPUs; None where it was not, or was not what started us.

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

    Accumulation is ours (its own divides the loss a second time), so it is told 1. On a machine without a GPU
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
            f"accelerate was told to use FSDP and does not (processes: {expected}); raise --num_processes, or launch "
            "with --config_file configs/accelerate/one_gpu.yaml"
        )
    return accelerator


def hardware() -> dict[str, str | int]:
    """What this machine is, for the record of a run."""
    device = accelerator_type()
    record: dict[str, str | int] = {
        "device": device,
        "cpu": torch.cpu.get_capabilities().get("cpu_name") or platform.processor() or platform.machine(),
        "cpu_threads": torch.get_num_threads(),
        "platform": platform.platform(),
    }
    if device == "cuda":
        record["gpu"] = torch.cuda.get_device_name()
        record["gpu_count"] = torch.cuda.device_count()
        record["gpu_memory_bytes"] = torch.cuda.get_device_properties(0).total_memory
    return record


def held_bytes() -> int:
    """What this process holds before a model is made: libraries, on a CPU; nothing of a GPU."""
    return psutil.Process().memory_info().rss if accelerator_type() == "cpu" else 0


def peak_memory_bytes() -> int:
    """The most memory this process has held: of the GPU where there is one, else resident in RAM."""
    if accelerator_type() == "cuda":
        return torch.cuda.max_memory_allocated()
    usage = psutil.Process().memory_info()
    if hasattr(usage, "peak_wset"):  # Windows
        return usage.peak_wset
    import resource  # absent on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if platform.system() == "Darwin" else peak * 1024  # bytes on macOS, KiB on Linux


def forked_random(device: torch.device) -> AbstractContextManager:
    """Leaves the random states of the CPU and of this one device as they were before the block."""
    return torch.random.fork_rng([] if device.type == "cpu" else [device], device_type=device.type)
