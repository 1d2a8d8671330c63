"""Scoring one text with the several processes of a launch."""

import os
from typing import TypeVar

import torch
import torch.distributed as dist

Value = TypeVar("Value")


def join_launch() -> tuple[int, int]:
    """Joins the other processes of `torchrun` or `accelerate launch`, if any; returns (rank, processes)."""
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if processes > 1 and not dist.is_initialized():
        dist.init_process_group("gloo")  # numbers of the CPU are all that is exchanged
    return int(os.environ.get("RANK", "0")), processes


def own_device() -> str | None:
    """The GPU of this process of a launch; None where there is only one process, or no GPU."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and torch.cuda.is_available():
        return f"cuda:{os.environ['LOCAL_RANK']}"
    return None


def gather(value: Value, processes: int) -> list[Value]:
    """The values of all processes, by rank, on each of them."""
    if processes == 1:
        return [value]
    gathered: list[Value] = [value] * processes
    dist.all_gather_object(gathered, value)
    return gathered
