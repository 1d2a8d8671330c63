"""What the hardware decides: the accelerator, the precision, whether compiling pays. Never from timing."""

import os
import platform
import shutil
import sys
import sysconfig
from pathlib import Path

import psutil
import torch
from accelerate import Accelerator
from torch.utils._triton import has_triton

from smallm_hf.errors import UserError

# The work after which compiling has paid for itself, in floating-point operations of the whole plan. On a CPU it costs
# 30 to 60 seconds and about doubles 5e10 operations per second and core; on a GPU it costs as long at about 1e14.
COMPILE_PAYS_PER_CPU_CORE = 5e12
COMPILE_PAYS_ON_GPU = 5e15
COMPILE_PAYS_SECONDS = 45.0


def accelerator_type() -> str:
    """`cuda`, `mps`, `xpu` ... where torch has such a device, else `cpu`."""
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
        requested = _hardware_precision(device)
    if requested == "fp16" and device == "cpu":
        raise UserError("training.precision=fp16 needs a GPU, this machine has a CPU only; use bf16, fp32 or auto")
    return requested


def _hardware_precision(device: str) -> str:
    if device == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if device == "cpu":
        features = torch.cpu.get_capabilities()
        return "bf16" if features.get("avx512_bf16") or features.get("amx_bf16") else "fp32"
    return "fp32"


def resolve_compile(requested: bool | str, *, planned_flops: float | None, planned_seconds: float | None) -> bool:
    """Whether the training step is compiled.

    `auto` compiles where a toolchain is present and the plan is long enough to pay for it: `planned_flops` for a run
    limited by steps or epochs, `planned_seconds` for one limited by time.
    """
    if requested != "auto":
        return bool(requested)
    device = accelerator_type()
    enough_flops = COMPILE_PAYS_PER_CPU_CORE * (os.cpu_count() or 1) if device == "cpu" else COMPILE_PAYS_ON_GPU
    long_enough = (planned_seconds is None or planned_seconds >= COMPILE_PAYS_SECONDS) and (
        planned_flops is None or planned_flops >= enough_flops
    )
    return long_enough and _can_compile(device)


def _can_compile(device: str) -> bool:
    """Whether Inductor finds what it builds kernels with: a compiler, Python's headers, for a GPU Triton too."""
    compiler = any(shutil.which(name) for name in (os.environ.get("CXX", "c++"), "g++", "clang++"))
    headers = Path(sysconfig.get_path("include"), "Python.h").is_file()
    if not (sys.platform == "linux" and compiler and headers):  # elsewhere only on request
        return False
    return device == "cpu" or (device == "cuda" and has_triton())


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


def build_accelerator(precision: str) -> Accelerator:
    """The Accelerator of a run.

    Accumulation is ours (its own divides the loss a second time), so it is told 1. On a machine without a GPU
    `cpu=True` is what makes several processes find each other.
    """
    return Accelerator(
        mixed_precision="no" if precision == "fp32" else precision,
        gradient_accumulation_steps=1,
        cpu=accelerator_type() == "cpu",
    )


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
