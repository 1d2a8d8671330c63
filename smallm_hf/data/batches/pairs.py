"""Pairs of a source and a target as padded batches, in which neighbours are of like length."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import torch

from smallm_hf.data.batches.base import IGNORED, Batch, drawn_of_one
from smallm_hf.data.batches.order import ItemOrder, keys_of_epoch, permute

POOL_GROUPS = 64  # groups of pairs that are sorted together: more of them save padding, fewer leave more to chance


@dataclass(frozen=True, eq=False)
class TokenPairs:
    """The pairs of a token file, in which source and target stand in turns, each closed by an eos.

    Args:
        tokens: (N,) ids, memory-mapped.
        bounds: (P, 3) where each source begins, its target begins, and that ends.
        target_bytes: (P,) of the text of each target.
        around: the ids that the tokenizer puts before a text and behind it; the latter take the place of the eos.
        hidden: (P, 2) what is hidden in each target, see `TokenFiles.hidden`; None where nothing can be.
    """

    tokens: np.ndarray
    bounds: np.ndarray
    target_bytes: np.ndarray
    around: tuple[Sequence[int], Sequence[int]]
    hidden: np.ndarray | None = None

    @classmethod
    def of_documents(
        cls,
        tokens: np.ndarray,
        sizes: np.ndarray,
        around: tuple[Sequence[int], Sequence[int]],
        hidden: np.ndarray | None = None,
    ) -> "TokenPairs":
        """The pairs of a file by the tokens and bytes of its documents, (2 P, 2), and by what is hidden in these."""
        edges = np.concatenate(([0], sizes[:, 0].cumsum()))
        bounds = np.stack([edges[:-1:2], edges[1::2], edges[2::2]], axis=1)
        return cls(tokens, bounds, sizes[1::2, 1], around, None if hidden is None else hidden[1::2])

    def __len__(self) -> int:
        """P."""
        return len(self.bounds)

    @cached_property
    def lengths(self) -> np.ndarray:
        """Tokens of each source and target as a model reads them, (P, 2)."""
        return np.diff(self.bounds) + sum(map(len, self.around)) - 1

    def fitting(self, limit: int) -> "TokenPairs":
        """Those of which neither text has more than `limit` tokens."""
        return self.chosen(self.fits(limit))

    def fits(self, limit: int) -> np.ndarray:
        """Whether neither text of a pair has more than `limit` tokens, (P,) bool."""
        return (self.lengths <= limit).all(axis=1)

    def chosen(self, which: np.ndarray | slice) -> "TokenPairs":
        """Some of them."""
        hidden = None if self.hidden is None else self.hidden[which]
        return replace(self, bounds=self.bounds[which], target_bytes=self.target_bytes[which], hidden=hidden)

    def rows(self, pair: int) -> tuple[list[int], list[int]]:
        """The ids of a source and of its target."""
        begin, middle, end = self.bounds[pair]
        before, behind = self.around
        texts = (self.tokens[begin : middle - 1].tolist(), self.tokens[middle : end - 1].tolist())
        source, target = ([*before, *text, *behind] for text in texts)
        return source, target


@dataclass(frozen=True, eq=False)
class PairOrder:
    """The endless sequence of training pairs, a pure function of (seed, index).

    An epoch is a random order of all pairs. Stretches of it are sorted by length and cut into groups, whose order is
    random again. What does not fill a last group is left out, in each epoch another rest.

    Args:
        lengths: (P, 2) tokens of source and target.
        group: pairs of like length that stand together: those of a micro-batch.
        seed: any integer; other seeds give other orders.
    """

    lengths: np.ndarray
    group: int
    seed: int

    @property
    def pairs_per_epoch(self) -> int:
        """The same in every epoch."""
        return len(self.lengths) // self.group * self.group

    def at(self, first: int, count: int) -> np.ndarray:
        """The pairs `first ... first + count - 1`, counted over all epochs."""
        epochs, places = np.divmod(np.arange(first, first + count), self.pairs_per_epoch)
        pools, within = np.divmod(places, self.group * POOL_GROUPS)
        found = np.empty(count, dtype=np.int64)
        for epoch, pool in {*zip(epochs.tolist(), pools.tolist(), strict=True)}:
            chosen = (epochs == epoch) & (pools == pool)
            found[chosen] = self._pool(epoch, pool)[within[chosen]]
        return found

    @lru_cache(maxsize=8)  # noqa: B019 - an order lives as long as its run
    def _pool(self, epoch: int, pool: int) -> np.ndarray:
        size = self.group * POOL_GROUPS
        places = np.arange(pool * size, min((pool + 1) * size, self.pairs_per_epoch))
        pairs = ItemOrder(len(self.lengths), self.seed).shuffled(places, epoch)
        source, target = self.lengths[pairs].T
        groups = pairs[np.lexsort((source, target))].reshape(-1, self.group)
        order = permute(np.arange(len(groups)), len(groups), keys_of_epoch(self.seed, pool + 1, epoch)[1:])
        return groups[order].ravel()


class PaddedPairs:
    """Batches of pairs for encoder-decoders, see `Batches`: each as long as its longest source and target.

    Args:
        pairs: of the training text.
        order: of them.
        start_token_id: what the decoder begins with.
        pad_token_id: what nothing attends to, and no loss counts.
        pin_memory: whether a GPU is to fetch batches while the host goes on.
    """

    def __init__(
        self, pairs: TokenPairs, order: PairOrder, start_token_id: int, pad_token_id: int, pin_memory: bool = False
    ):
        self.pairs, self.order, self.pin_memory = pairs, order, pin_memory
        self.start_token_id, self.pad_token_id = start_token_id, pad_token_id
        self.examples_per_epoch = order.pairs_per_epoch

    def at(self, first: int, count: int, row_length: int | None = None) -> Batch:
        """The pairs `first ... first + count - 1`; they are never cut into rows."""
        sources, targets = zip(*map(self.pairs.rows, self.order.at(first, count)), strict=True)
        inputs = {
            "input_ids": self._padded(sources, self.pad_token_id),
            "attention_mask": self._padded(([1] * len(source) for source in sources), 0),
            "decoder_input_ids": self._padded(
                ([self.start_token_id, *target[:-1]] for target in targets), self.pad_token_id
            ),
        }
        return Batch(inputs, self._padded(targets, IGNORED), sum(map(len, targets)))

    def counted(self, first: int, count: int) -> int:
        """The tokens of their targets."""
        return int(self.pairs.lengths[self.order.at(first, count), 1].sum())

    def drawn(self, count: int) -> list[dict[str, Any]]:
        """All of them from one text."""
        return drawn_of_one("the training pairs", count, self.examples_per_epoch)

    def _padded(self, rows: Iterable[list[int]], padding: int) -> torch.Tensor:
        """Rows of different length as one tensor, (B, T)."""
        rows = list(rows)
        filled = torch.full((len(rows), max(map(len, rows))), padding, pin_memory=self.pin_memory)
        for number, row in enumerate(rows):
            filled[number, : len(row)] = torch.tensor(row)
        return filled
