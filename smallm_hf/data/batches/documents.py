"""Documents as rows: each stands alone, from the eos that opens it to the one that closes it."""

from typing import Any

import numpy as np
import torch

from smallm_hf.data.batches.base import IGNORED, Batch, drawn_of_one
from smallm_hf.data.batches.order import ItemOrder


class DocumentRows:
    """The documents of a token file in a random order, each in a row that begins with the eos before it.

    No document sees another one, whatever the model. One of more than `context_length` tokens, its closing eos
    included, goes on in further rows, each of which begins with the last token of the one before. Rows are filled up
    with eos, which are not counted: this is for many short documents, such as names.

    Args:
        tokens: (N,) ids, memory-mapped, an eos behind each document.
        lengths: (D,) tokens of each document, with its eos.
        context_length: T, tokens of a row.
        seed: any integer; other seeds give other orders.
        pin_memory: whether a GPU is to fetch batches while the host goes on.
    """

    def __init__(
        self, tokens: np.ndarray, lengths: np.ndarray, context_length: int, seed: int, pin_memory: bool = False
    ):
        self.tokens, self.context_length, self.pin_memory = tokens, context_length, pin_memory
        self.starts, self.lengths = rows_of(lengths, context_length)
        self.order = ItemOrder(len(self.starts), seed)
        self.examples_per_epoch = len(self.starts)

    def at(self, first: int, count: int, row_length: int | None = None) -> Batch:
        """The rows `first ... first + count - 1`; they are never cut."""
        _, rows = self.order.at(np.arange(first, first + count))
        places = self.starts[rows, None] + np.arange(self.context_length)
        is_filling = np.arange(self.context_length) >= self.lengths[rows, None]
        read = np.where(is_filling, -1, places - 1)  # the last token, an eos, also opens the first document
        wanted = np.where(is_filling, IGNORED, self.tokens[np.minimum(places, len(self.tokens) - 1)].astype(np.int64))
        ids = torch.empty((2, count, self.context_length), dtype=torch.int64, pin_memory=self.pin_memory)
        ids[0], ids[1] = torch.from_numpy(self.tokens[read].astype(np.int64)), torch.from_numpy(wanted)
        return Batch({"input_ids": ids[0]}, ids[1], int((~is_filling).sum()))

    def counted(self, first: int, count: int) -> int:
        """The tokens of these documents, each with its closing eos."""
        return int(self.lengths[self.order.at(np.arange(first, first + count))[1]].sum())

    def drawn(self, count: int) -> list[dict[str, Any]]:
        """All of them from one text."""
        return drawn_of_one("the training documents", count, self.examples_per_epoch)


def rows_of(lengths: np.ndarray, context_length: int) -> tuple[np.ndarray, np.ndarray]:
    """Where the rows of documents begin in their token file, and how many tokens of it each has; two of (R,) int64.

    Args:
        lengths: (D,) tokens of each document.
        context_length: the most tokens of a row.
    """
    number = -(-lengths // context_length)
    place = np.arange(number.sum()) - np.repeat(number.cumsum() - number, number)  # of a row in its document
    starts = np.repeat(lengths.cumsum() - lengths, number) + place * context_length
    return starts, np.minimum(np.repeat(lengths, number) - place * context_length, context_length)
