"""What the hardware decides: the accelerator, the precision, whether compiling pays. Never from timing."""

import dataclasses
import os
import platform
import shutil
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import psutil
import torch
from accelerate.utils import parse_flag_from_env
from torch.utils._triton import has_triton

from smallm_hf.base.arithmetic import multiplies_well
from smallm_hf.base.errors import UserError
from smallm_hf.training.configuration import TrainingConfig

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


def accelerator_type() -> str:
    """`cuda`, `mps`, `xpu` ... where torch has such a device and the launcher lets us use it, else `cpu`."""
    if parse_flag_from_env("ACCELERATE_USE_CPU"):
        return "cpu"
    device = torch.accelerator.current_accelerator(check_available=True)
    return device.type if device else "cpu"


def resolve_precision(requested: str) -> str:
    """The precision of the run: `bf16`, `fp16` or `fp32`.

    `auto` is bf16 where the hardware multiplies it (CUDA from Ampere, CPUs with AVX512-BF16 or AMX), fp16 on older
    CUDA devices, fp32 elsewhere; or what the launcher was given (`accelerate launch --mixed_precision`).

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
    compilable: float = 1.0,
    say: Callable[[str], None] = lambda line: None,
) -> bool:
    """Whether the training step is compiled.

    `auto` compiles where a toolchain is present and the plan is long enough to pay for it: `planned_flops` for a run
    limited by steps or epochs, `planned_seconds` for one limited by time, of both the share that is `compilable`. `say`
    prints a line where only the toolchain is missing.

    Raises:
        UserError: compiling was asked for, and what it needs is not here.
    """
    if requested != "auto":
        return _compiled_as_asked(requested, "training.compile=true", "--training.compile false")
    device = accelerator_type()
    enough_flops = COMPILE_PAYS_PER_CPU_CORE * (os.cpu_count() or 1) if device == "cpu" else COMPILE_PAYS_ON_GPU
    long_enough = (planned_seconds is None or planned_seconds * compilable >= COMPILE_PAYS_SECONDS) and (
        planned_flops is None or planned_flops * compilable >= enough_flops
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

    `accelerate launch` gives every process OMP_NUM_THREADS=1 unless it is set otherwise (torchrun does where there are
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
