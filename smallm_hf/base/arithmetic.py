"""Which dtypes a device multiplies well: asked wherever a dtype is chosen, never assumed."""

import torch


def multiplies_well(dtype: torch.dtype, device: torch.device | str) -> bool:
    """Whether matrix products of this dtype are at least about as fast on a device as those of float32.

    A CPU without instructions for a 16-bit type multiplies it hundreds of times slower than float32, and a GPU without
    them emulates it. On a CPU both the hardware and oneDNN, which multiplies for torch, must have them:
    `ONEDNN_MAX_CPU_ISA` can make a CPU compute like an older one. On devices other than CPUs and CUDA, bfloat16
    counts as slow, because nobody has measured it there.
    """
    device = torch.device(device)
    if dtype not in (torch.bfloat16, torch.float16):
        return True
    if device.type == "cpu":
        name = "bf16" if dtype == torch.bfloat16 else "fp16"
        features = torch.cpu.get_capabilities()
        has_instructions = features.get(f"avx512_{name}") or features.get(f"amx_{name}")
        return bool(
            has_instructions
            and torch.backends.mkldnn.is_available()
            and getattr(torch.ops.mkldnn, f"_is_mkldnn_{name}_supported")()
        )
    if dtype == torch.float16:
        return True
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def slow_dtype(dtype: torch.dtype, device: torch.device | str) -> str | None:
    """A warning about a dtype that the device does not multiply well; None where it does."""
    if multiplies_well(dtype, device):
        return None
    name = str(dtype).removeprefix("torch.")
    return f"this {torch.device(device).type} multiplies {name} far slower than float32"
