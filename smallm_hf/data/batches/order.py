"""In which order items are drawn: computed, never stored, so that where a run stands in its data is one integer."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

ROUNDS = 6


@dataclass(frozen=True)
class ItemOrder:
    """An endless sequence of N items, each once in an epoch: a pure function of (seed, number, place).

    Args:
        items: N.
        seed: any integer; other seeds give other orders.
        number: which of several sequences with one seed this is; each has orders of its own.
    """

    items: int
    seed: int
    number: int = 0

    def at(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The epochs of ascending places, counted over all epochs, and the items that stand there; each in [0, N)."""
        epochs, within = np.divmod(places, self.items)
        found = np.empty(len(places), dtype=np.int64)
        for epoch in range(epochs[0], epochs[-1] + 1) if len(places) else ():
            chosen = epochs == epoch
            found[chosen] = self.shuffled(within[chosen], epoch)
        return epochs, found

    def shuffled(self, places: np.ndarray, epoch: int) -> np.ndarray:
        """The items at these places of one epoch."""
        return permute(places, self.items, keys_of_epoch(self.seed, self.number, epoch)[1:])


@lru_cache(maxsize=64)
def keys_of_epoch(seed: int, number: int, epoch: int) -> np.ndarray:
    """What decides an epoch of a sequence, (1 + ROUNDS,) uint64: a number for an offset, and its permutation."""
    sequence = np.random.SeedSequence([abs(seed), seed < 0, epoch], spawn_key=(number,) if number else ())
    return sequence.generate_state(1 + ROUNDS, np.uint64)


def interleave(indices: np.ndarray, units: Sequence[int]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Deals the places of a sequence to sources, each as often as its units are among all, evenly everywhere.

    The first source gets its rounded share of the first n places, for every n; of what is left the second gets its
    own, and so on, as Bresenham's line rises (1965). With units that fall no count is ever off by 1.5 (measured), with
    two sources by more than a half.

    Returns:
        For each source a mask over the indices, and the places that those have in the source's own sequence.
    """
    dealt, rest, total = [], indices, sum(units)
    free = np.ones(len(indices), dtype=bool)
    for unit in units:
        before = rounded_share(rest, unit, total)
        mine = free & (rounded_share(rest + 1, unit, total) > before)
        dealt.append((mine, before[mine]))
        free = free & ~mine
        rest, total = rest - before, total - unit
    return dealt


def rounded_share(count: Any, units: int, total: int) -> Any:
    """`count` x `units` / `total`, rounded; counts up to 2^38 stay within 64 bits."""
    return (count * units + total // 2) // total


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
