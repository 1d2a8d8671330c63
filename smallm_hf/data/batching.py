"""Windows over the token files: in which order they train, and how they become a batch.

The order is computed, never stored: where a run stands in its data is one integer.
"""

from dataclasses import dataclass

import numpy as np
import torch

from smallm_hf.errors import UserError

ROUNDS = 6


@dataclass(frozen=True)
class WindowOrder:
    """The endless sequence of training windows, a pure function of (seed, epoch, index).

    In each epoch the tokens are cut into windows at boundaries shifted by that epoch's offset, and the windows come in
    that epoch's random order. Each token is in exactly one window of an epoch, but for fewer than `context_length` at
    either end.

    Args:
        num_tokens: length of the token file.
        context_length: tokens per window.
        seed: any integer; other seeds give other orders.

    Raises:
        UserError: fewer tokens than one window.
    """

    num_tokens: int
    context_length: int
    seed: int

    def __post_init__(self):
        if self.num_inputs < self.context_length:
            raise UserError(
                f"the training text has {self.num_tokens} tokens, fewer than one window of training.context_length="
                f"{self.context_length} and the token after it; bring more text or lower training.context_length"
            )

    @property
    def num_inputs(self) -> int:
        """Tokens that can stand in a window: the last of the file is a target only."""
        return self.num_tokens - 1

    @property
    def offsets(self) -> range:
        """Where the first window of an epoch may start, so that less than a window is left over at either end."""
        left_over = self.num_inputs % self.context_length
        # Two ranges do with a constant number of windows per epoch; we take the longer, as every shift is new data.
        if left_over + 1 < self.context_length // 2 and self.num_inputs >= 2 * self.context_length:
            return range(left_over + 1, self.context_length)
        return range(left_over + 1)

    @property
    def windows_per_epoch(self) -> int:
        """The same in every epoch."""
        return (self.num_inputs - self.offsets[-1]) // self.context_length

    def starts(self, first_index: int, count: int) -> np.ndarray:
        """Returns the first tokens of the windows `first_index ... first_index + count - 1`, counted over all epochs.

        Takes time and memory for `count` windows, however far `first_index` is.
        """
        indices = np.arange(first_index, first_index + count, dtype=np.int64)
        epochs, within = np.divmod(indices, self.windows_per_epoch)
        starts = np.empty(count, dtype=np.int64)
        for epoch in np.unique(epochs):
            offset_key, *keys = np.random.SeedSequence([abs(self.seed), self.seed < 0, epoch]).generate_state(
                1 + ROUNDS, np.uint64
            )
            offset = self.offsets[int(offset_key) % len(self.offsets)]
            chosen = epochs == epoch
            windows = permute(within[chosen], self.windows_per_epoch, np.array(keys))
            starts[chosen] = offset + windows * self.context_length
        return starts


def permute(indices: np.ndarray, size: int, keys: np.ndarray) -> np.ndarray:
    """Maps integers in [0, size) one to one onto [0, size), in an order that depends on the keys (uint64).

    A Feistel network (Luby & Rackoff 1988) permutes the integers below the next power of four; what falls outside walks
    on along its cycle until it is inside (Black & Rogaway 2002, "Ciphers with Arbitrary Finite Domains", section 3),
    which takes 4 steps on average at most.
    """
    half = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
    mask = (np.uint64(1) << half) - np.uint64(1)
    values = np.asarray(indices).astype(np.uint64)
    outside = np.ones(len(values), dtype=bool)
    while outside.any():
        left, right = values[outside] >> half, values[outside] & mask
        for key in keys:
            left, right = right, left ^ (_mix(right + key) & mask)
        values[outside] = left << half | right
        outside[outside] = values[outside] >= size
    return values.astype(np.int64)


def _mix(values: np.ndarray) -> np.ndarray:
    """The output function of SplitMix64 (Steele, Lea & Flood 2014), arithmetic modulo 2^64."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def next_token_batch(tokens: np.ndarray, starts: np.ndarray, context_length: int) -> dict[str, torch.Tensor]:
    """Returns `input_ids` and `targets`, (B, T) int64: target t is the token that follows input t.

    The targets reach one token beyond the window. Shifted labels within it would leave its last position without one,
    so that a table of learned positions kept its last row as it was initialised.
    """
    windows = np.stack([tokens[start : start + context_length + 1] for start in starts])
    windows = torch.from_numpy(windows.astype(np.int64))
    return {"input_ids": windows[:, :-1].contiguous(), "targets": windows[:, 1:].contiguous()}
