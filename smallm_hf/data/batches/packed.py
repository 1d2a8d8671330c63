"""Packed windows of the token files as batches: every position has a target, unless a mask leaves it out."""

from inspect import signature
from typing import Any

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from transformers import PreTrainedModel

from smallm_hf.base.errors import UserError
from smallm_hf.data.batches.base import IGNORED, Batch
from smallm_hf.data.batches.windows import WindowOrder


class PackedWindows:
    """The windows of a text in their order.

    The targets reach one token beyond a window. Shifted labels within it would leave its last position without one, so
    that a table of learned positions kept its last row as it was initialised.

    Args:
        tokens: (N,) token ids, memory-mapped.
        order: of the windows.
        separator: the eos, where attention stays within documents (`positions_in_documents`); None where it does not.
        mask: (N,) whether each token counts as a target; None counts all.
        pin_memory: whether a GPU is to fetch batches while the host goes on.
    """

    def __init__(
        self,
        tokens: np.ndarray,
        order: WindowOrder,
        separator: int | None = None,
        mask: np.ndarray | None = None,
        pin_memory: bool = False,
    ):
        self.tokens, self.order, self.separator, self.mask, self.pin_memory = tokens, order, separator, mask, pin_memory
        self.examples_per_epoch = order.windows_per_epoch

    def at(self, first: int, count: int, row_length: int | None = None) -> Batch:
        """The windows `first ... first + count - 1`, each cut into rows of `row_length` tokens."""
        length = self.order.context_length
        windows = self._windows(self.tokens, first, count)
        ids = torch.empty((2, count, length), dtype=torch.int64, pin_memory=self.pin_memory)
        ids[0], ids[1] = windows[:, :-1], windows[:, 1:]
        counted = count * length
        if self.mask is not None:
            wanted = self._wanted(first, count)
            ids[1].masked_fill_(~wanted, IGNORED)
            counted = int(wanted.sum())
        input_ids, targets = ids.view(2, -1, row_length or length)
        inputs = {"input_ids": input_ids}
        if self.separator is not None:
            inputs["position_ids"] = positions_in_documents(input_ids, self.separator)
        return Batch(inputs, targets, counted)

    def counted(self, first: int, count: int) -> int:
        """All of their targets, or those of the mask."""
        if self.mask is None:
            return count * self.order.context_length
        return int(self._wanted(first, count).sum())

    def _wanted(self, first: int, count: int) -> torch.Tensor:
        """Which targets of these windows the mask counts, (count, T) bool."""
        return self._windows(self.mask, first, count)[:, 1:].bool()

    def _windows(self, stream: np.ndarray, first: int, count: int) -> torch.Tensor:
        """Windows of something that runs along the tokens, and one beyond."""
        return cut_windows(stream, self.order.starts(first, count), self.order.context_length + 1)

    def drawn(self, count: int) -> list[dict[str, Any]]:
        """What the first so many windows hold of each source, see `WindowOrder.drawn`."""
        return self.order.drawn(count)


def cut_windows(stream: np.ndarray, starts: np.ndarray, length: int) -> torch.Tensor:
    """The stretches of a stream (N,) that begin at these places, (count, length), from one read in its own dtype."""
    return torch.from_numpy(sliding_window_view(np.asarray(stream), length)[starts])


def positions_in_documents(input_ids: torch.Tensor, eos_token_id: int) -> torch.Tensor:
    """Place of each token in its document, (B, T): 0 at the first of a row and at each eos, which opens the next.

    Given as `position_ids`, without an attention mask, it makes the models of `transformers` attend within documents:
    they take every restart for a new text. Under sdpa that is a dense mask, (B, 1, T, T), in place of the causal
    kernel: a step of four layers of width 256 took 1.03 times as long with windows of 256 tokens, 1.4 times with 1,024
    (one CPU core). Flash attention sees restarts in batches of one row only (`refuse_mixing` tells); flex attention
    skips what the mask hides, and has no backward pass on a CPU.
    """
    columns = torch.arange(input_ids.shape[-1], device=input_ids.device).expand_as(input_ids)
    begins = torch.where(input_ids == eos_token_id, columns, 0).cummax(dim=-1).values
    return columns - begins


@torch.inference_mode()
def refuse_mixing(model: PreTrainedModel, eos_token_id: int) -> None:
    """Makes sure that `positions_in_documents` keeps documents apart in this model, by one small forward pass.

    Raises:
        UserError: a token changes predictions in the document after its own.
    """
    one, other = [token for token in range(3) if token != eos_token_id][:2]
    input_ids = torch.tensor([[one, one, eos_token_id, one], [other, other, eos_token_id, one]], device=model.device)
    mixes = "position_ids" not in signature(model.forward).parameters
    if not mixes:
        position_ids = positions_in_documents(input_ids, eos_token_id)
        logits = model(input_ids=input_ids, position_ids=position_ids, use_cache=False).logits[:, 2:]
        tolerance = 16 * torch.finfo(logits.dtype).eps * logits.abs().max()
        mixes = (logits[0] - logits[1]).abs().max() > tolerance
    if mixes:
        raise UserError(
            f"batching.within_documents=true does not keep documents apart in {type(model).__name__} under attention "
            f"{model.config._attn_implementation}; set it to false"
        )
