"""What trains, batch by batch: a pure function of seed and index, so that a run can go on from any place."""

from dataclasses import dataclass
from typing import Any, Protocol

import torch

IGNORED = -100  # a target that is not counted, as in torch's cross entropy


@dataclass(frozen=True)
class Batch:
    """Some examples, ready for a model.

    Attributes:
        inputs: what the model reads, by the names of its `forward`; `input_ids` is (B, T) int64.
        targets: (B, T) int64, the token that each position is to predict, or `IGNORED`.
        counted: how many targets are not `IGNORED`.
    """

    inputs: dict[str, torch.Tensor]
    targets: torch.Tensor
    counted: int

    def to(self, device: torch.device) -> dict[str, torch.Tensor]:
        """Inputs and targets on a device, by the names of an objective; pinned memory does not wait for the copy."""
        tensors = {**self.inputs, "targets": self.targets}
        return {name: tensor.to(device, non_blocking=tensor.is_pinned()) for name, tensor in tensors.items()}


def drawn_of_one(source: str, count: int, per_epoch: int) -> list[dict[str, Any]]:
    """What `Batches.drawn` says where all examples are from one source."""
    return [{"source": source, "share": 1.0, "windows": count, "epochs": count / per_epoch}]


class Batches(Protocol):
    """An endless sequence of training examples; the same for any number of processes and however it is cut."""

    examples_per_epoch: int

    def at(self, first: int, count: int, row_length: int) -> Batch:
        """The examples `first ... first + count - 1`, counted over all epochs, in O(count).

        Those that are cut from one stream come in rows of `row_length` tokens, which divides their own.
        """

    def counted(self, first: int, count: int) -> int:
        """How many of their targets are counted, without reading them where that is known."""

    def drawn(self, count: int) -> list[dict[str, Any]]:
        """What the first so many examples hold of each source: its share of the weights, examples, epochs over it."""
