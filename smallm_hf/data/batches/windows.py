"""Which windows of the token files train, and in which order: offsets, strides, mixtures and curricula.

Like the order of the items in it, that is computed; only a curriculum keeps a table.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from smallm_hf.base.errors import UserError
from smallm_hf.data.batches.difficulty import BLOCK, Difficulty, document_lengths, in_blocks, unigram_losses
from smallm_hf.data.batches.order import ItemOrder, interleave, keys_of_epoch, rounded_share
from smallm_hf.data.configuration import BatchingConfig

# Weights become integers of about this sum, so that proportions are exact however long a run is.
WEIGHT_UNITS = 1 << 24
# Windows whose places in the text are computed in one go: the cost is that of the calls, hardly that of the windows.
AHEAD = 1024
DEFAULT_BATCHING = BatchingConfig()


class Segment(Protocol):
    """A stretch of the token file that is one source of a mixture."""

    source: str
    weight: float | None
    first_token: int
    tokens: int


@dataclass(frozen=True, eq=False)
class SourceOrder:
    """The endless sequence of windows of one source, a pure function of (seed, number, epoch, index).

    In each epoch the tokens are cut into windows at boundaries shifted by that epoch's offset, and the windows come in
    that epoch's random order. Where windows do not overlap, each token is in exactly one of an epoch, but for fewer
    than a window at either end.

    Args:
        name: of the source, for messages.
        first_token: where it begins in the token file.
        num_tokens: its length.
        context_length: tokens per window.
        stride: tokens between the starts of neighbouring windows.
        seed: any integer; other seeds give other orders.
        number: which of the sources this is; each has orders of its own.
        easy_first: (N,) the first N windows in another order, as places in the random one.

    Raises:
        UserError: fewer tokens than one window.
    """

    name: str
    first_token: int
    num_tokens: int
    context_length: int
    stride: int
    seed: int
    number: int = 0
    easy_first: np.ndarray | None = None

    def __post_init__(self):
        if self.num_inputs < self.context_length:
            raise UserError(
                f"{self.name} has {self.num_tokens} tokens, fewer than one window of training.context_length="
                f"{self.context_length} and the token after it; bring more text or lower training.context_length"
            )

    @property
    def num_inputs(self) -> int:
        """Tokens that can stand in a window: the last one is a target only."""
        return self.num_tokens - 1

    @cached_property
    def offsets(self) -> range:
        """Where the first window of an epoch may start, so that less than a stride is left over at either end."""
        left_over = (self.num_inputs - self.context_length) % self.stride
        # Two ranges do with a constant number of windows per epoch; we take the longer, as every shift is new data.
        if left_over + 1 < self.stride // 2 and self.num_inputs >= self.context_length + self.stride:
            return range(left_over + 1, self.stride)
        return range(left_over + 1)

    @cached_property
    def windows_per_epoch(self) -> int:
        """The same in every epoch."""
        return (self.num_inputs - self.offsets[-1] - self.context_length) // self.stride + 1

    def starts(self, places: np.ndarray) -> np.ndarray:
        """First tokens of the windows at these places of the sequence, which ascend."""
        if self.easy_first is not None:
            sorted_places = np.searchsorted(places, len(self.easy_first))
            places = np.concatenate((self.easy_first[places[:sorted_places]], places[sorted_places:]))
        epochs, windows = self.order.at(places)
        present, which = np.unique(epochs, return_inverse=True)
        offsets = np.array([self.offset(epoch) for epoch in present.tolist()], dtype=np.int64)[which]
        return self.first_token + offsets + windows * self.stride

    @property
    def order(self) -> ItemOrder:
        """Of the windows, counted from the front of the text."""
        return ItemOrder(self.windows_per_epoch, self.seed, self.number)

    def offset(self, epoch: int) -> int:
        """Where the first window of an epoch starts."""
        return self.offsets[int(keys_of_epoch(self.seed, self.number, epoch)[0]) % len(self.offsets)]

    def sorted_by(self, difficulty: Difficulty, windows: int, buckets: int) -> "SourceOrder":
        """The same windows with the first so many, at most an epoch, in equal groups from easy to hard.

        Inside a group the order stays random. Takes 4 bytes for each window of the text and 20 for each of the first
        ones, of which it keeps 4.
        """
        windows = min(windows, self.windows_per_epoch)
        by_window = np.empty(self.windows_per_epoch, dtype=np.float32)
        by_place = np.empty(windows, dtype=np.float32)
        for chosen in in_blocks(self.windows_per_epoch, max(1, BLOCK // self.stride)):
            starts = self.first_token + self.offset(0) + np.arange(chosen.start, chosen.stop) * self.stride
            by_window[chosen] = difficulty(starts)
        for chosen in in_blocks(windows, BLOCK):
            by_place[chosen] = by_window[self.order.shuffled(np.arange(chosen.start, chosen.stop), epoch=0)]
        places = np.argsort(by_place, kind="stable")
        for group in np.array_split(places, buckets):
            group.sort()  # back into the random order
        return replace(self, easy_first=places.astype(np.uint32))


class WindowOrder:
    """The endless sequence of training windows, a pure function of seed, settings and index.

    One text, or several without weights, is one `SourceOrder`. Sources with weights each have theirs, begun again where
    it is exhausted, and are interleaved so that their proportions hold over every stretch of a run; no window reaches
    from one into the next. An epoch then is as many windows as all of them have together: a source that weighs more
    than its share of the text repeats within it, one that weighs less is not through at its end.

    Args:
        num_tokens: length of the token file.
        context_length: tokens per window.
        seed: any integer; other seeds give other orders.
        batching: the section of the run config; for its curriculum see `read_difficulty`.
        sources: the stretches of the file; none where it is one text.

    Raises:
        UserError: fewer tokens than one window, settings that do not fit it, or weights that are no proportions.
    """

    def __init__(
        self,
        num_tokens: int,
        context_length: int,
        seed: int,
        batching: BatchingConfig = DEFAULT_BATCHING,
        sources: Sequence[Segment] = (),
    ):
        batching.check(context_length)
        self.batching, self.context_length = batching, context_length
        self.known, self.known_starts = range(0), np.empty(0, dtype=np.int64)
        shape = (context_length, batching.stride or context_length, seed)
        if all(source.weight is None for source in sources):
            self.units, self.parts = [WEIGHT_UNITS], [SourceOrder("the training text", 0, num_tokens, *shape)]
            return
        units = _units_of_weights(sources)
        self.units = sorted(units, reverse=True)  # the heaviest first, as `interleave` wants them
        self.parts = [
            SourceOrder(source.source, source.first_token, source.tokens, *shape, number)
            for number, source in sorted(enumerate(sources), key=lambda item: -units[item[0]])
        ]

    @property
    def windows_per_epoch(self) -> int:
        """The same in every epoch."""
        return sum(part.windows_per_epoch for part in self.parts)

    def starts(self, first_index: int, count: int) -> np.ndarray:
        """Returns the first tokens of the windows `first_index ... first_index + count - 1`, counted over all epochs.

        Takes time and memory for `count` windows, or `AHEAD`, however far `first_index` is.
        """
        if first_index < self.known.start or first_index + count > self.known.stop:
            self.known = range(first_index, first_index + max(count, min(AHEAD, self.windows_per_epoch)))
            indices = np.array(self.known, dtype=np.int64)
            self.known_starts = np.empty(len(indices), dtype=np.int64)
            for part, (mine, places) in zip(self.parts, interleave(indices, self.units), strict=True):
                self.known_starts[mine] = part.starts(places)
        begin = first_index - self.known.start
        return self.known_starts[begin : begin + count].copy()

    def drawn(self, windows: int) -> list[dict[str, Any]]:
        """What the first so many windows hold of each source: its share of the weights, windows, epochs over it."""
        drawn, rest, total = {}, windows, sum(self.units)
        for part, units in zip(self.parts, self.units, strict=True):
            count = rounded_share(rest, units, total)
            share, epochs = units / sum(self.units), count / part.windows_per_epoch
            drawn[part.number] = {"source": part.name, "share": share, "windows": count, "epochs": epochs}
            rest, total = rest - count, total - units
        return [drawn[number] for number in sorted(drawn)]

    def read_difficulty(self, tokens: np.ndarray, eos_token_id: int) -> None:
        """Puts easy windows before hard ones, where the settings ask for a curriculum.

        The windows that would come first at random still do, from easy to hard: the "baby steps" of Bengio et al. 2009
        ("Curriculum Learning") and Spitkovsky et al. 2010. Each source is sorted by itself, so that proportions hold.
        Reads the text from front to back, for `loss` twice: about 7 seconds per GB of tokens of two bytes, on one CPU
        core. For the memory see `SourceOrder.sorted_by` and `document_lengths`.

        Args:
            tokens: the token file.
            eos_token_id: closes every document.
        """
        if self.batching.curriculum is None:
            return
        first_tokens = self.batching.curriculum_tokens
        windows = first_tokens // self.context_length if first_tokens else self.windows_per_epoch
        if self.batching.curriculum == "length":
            difficulty = document_lengths(tokens, self.context_length, eos_token_id)
        else:
            difficulty = unigram_losses(tokens, self.context_length)
        buckets = self.batching.curriculum_buckets
        self.known = range(0)
        drawn = self.drawn(windows)
        self.parts = [part.sorted_by(difficulty, drawn[part.number]["windows"], buckets) for part in self.parts]


def _units_of_weights(sources: Sequence[Segment]) -> list[int]:
    """The weights as integers of about `WEIGHT_UNITS` together."""
    for source in sources:
        if source.weight is None or not 0 < source.weight < float("inf"):
            weight = "none" if source.weight is None else source.weight
            raise UserError(
                f"data source {source.source} has weight {weight}; give all sources of a mixture a weight above 0, or "
                "none of them one"
            )
    total = sum(source.weight for source in sources)
    units = [round(source.weight / total * WEIGHT_UNITS) for source in sources]
    for source, unit in zip(sources, units, strict=True):
        if not unit:
            raise UserError(
                f"data source {source.source} has weight {source.weight} of {total} in all, less than one window in "
                f"{WEIGHT_UNITS}; raise it or leave the source out"
            )
    return units
