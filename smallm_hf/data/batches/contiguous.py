"""Windows of which each goes on where another one ended, for a model that carries its state along."""

from typing import Any

import numpy as np
import torch

from smallm_hf.base.errors import UserError
from smallm_hf.data.batches.base import Batch, drawn_of_one
from smallm_hf.data.batches.order import keys_of_epoch
from smallm_hf.data.batches.packed import cut_windows


class ContiguousRows:
    """The text in stretches of equal length, one for each row of an update, each read from front to back.

    Window k + 1 of a row follows window k of it in the text (Mikolov et al. 2010; Zaremba et al. 2014). What does not
    fill a window of every row is left over, at both ends of the text, where each epoch cuts it anew.

    Args:
        tokens: (N,) token ids, memory-mapped.
        rows: R, the windows of one update.
        context_length: T, tokens per window.
        seed: any integer; other seeds cut elsewhere.
        pin_memory: whether a GPU is to fetch batches while the host goes on.

    Raises:
        UserError: fewer tokens than one window of every row.
    """

    def __init__(self, tokens: np.ndarray, rows: int, context_length: int, seed: int, pin_memory: bool = False):
        self.tokens, self.rows, self.context_length, self.seed = tokens, rows, context_length, seed
        self.pin_memory = pin_memory
        num_inputs = len(tokens) - 1  # the last one is a target only
        self.windows_per_row = num_inputs // (rows * context_length)
        if not self.windows_per_row:
            raise UserError(
                f"the training text has {len(tokens)} tokens, fewer than one window of training.context_length="
                f"{context_length} and the token after it for each of the {rows} rows of an update "
                "(training.batch_size x training.accumulation_steps); bring more text or lower one of them"
            )
        self.examples_per_epoch = self.windows_per_row * rows
        self.left_over = num_inputs - self.examples_per_epoch * context_length

    def at(self, first: int, count: int, row_length: int | None = None) -> Batch:
        """The windows `first ... first + count - 1`; beside them, for the objective, which row each belongs to.

        `begins` tells the rows that stand at the beginning of an epoch, with nothing before them.
        """
        updates, rows = np.divmod(np.arange(first, first + count), self.rows)
        epochs, windows = np.divmod(updates, self.windows_per_row)
        offsets = np.array([self.offset(epoch) for epoch in epochs.tolist()], dtype=np.int64)
        starts = offsets + (rows * self.windows_per_row + windows) * self.context_length
        cut = cut_windows(self.tokens, starts, self.context_length + 1)
        ids = torch.empty((2, count, self.context_length), dtype=torch.int64, pin_memory=self.pin_memory)
        ids[0], ids[1] = cut[:, :-1], cut[:, 1:]
        inputs = {"input_ids": ids[0], "rows": torch.from_numpy(rows), "begins": torch.from_numpy(windows == 0)}
        return Batch(inputs, ids[1], self.counted(first, count))

    def offset(self, epoch: int) -> int:
        """Where the stretch of the first row starts."""
        return int(keys_of_epoch(self.seed, 0, epoch)[0]) % (self.left_over + 1)

    def counted(self, first: int, count: int) -> int:
        """All of their targets."""
        return count * self.context_length

    def drawn(self, count: int) -> list[dict[str, Any]]:
        """One source, the text."""
        return drawn_of_one("the training text", count, self.examples_per_epoch)
