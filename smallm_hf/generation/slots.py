"""The steps of texts that come and go: a fixed number of slots, each written as if nobody were in the others.

A prompt is read alone, by the shapes of its own; then all slots take each step together, empty ones too. So the sums
that make a token have the same order whoever writes beside it, and the same request has the same bits.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import torch
from torch import nn
from transformers import Cache, PreTrainedConfig
from transformers.cache_utils import CacheLayerMixin
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from smallm_hf.generation.engine import Engine, Text
from smallm_hf.generation.steps import CachedSteps, OwnSteps, compiled_step, compiling, one_step
from smallm_hf.inspection import vocabulary_size

logger = logging.getLogger(__name__)

# Rotary positions whose angles depend on the longest text of a step.
STRETCHING = {"dynamic", "longrope"}
# Kernels take so many rows at once, and what is left over by other sums; threads share the rows. Where rows turn out to
# differ all the same, so many more of them, which nobody writes in, may be alike.
ROWS = 8
MORE_ROWS = (0, 8, 16, 24)
# Places that a step reads at least; it reads twice as many, and so on, where a text is longer.
LEAST_SIZE = 64


class SlotLayer(CacheLayerMixin):
    """The keys and values (slots, heads, size, K) of a layer; what comes is stored at each slot's own place.

    Args:
        like: the layer of a cache that read one text, for its shapes.
        slots: texts beside each other.
        size: places for tokens.
        places: (slots,), where the next token of each goes; shared by all layers, and moved by whoever steps.

    Attributes:
        read: so many places, from the first on, are attended to.
    """

    is_compileable = True
    is_sliding = False

    def __init__(self, like: Any, slots: int, size: int, places: torch.Tensor):
        super().__init__()
        self.size, self.read, self.places, self.is_initialized = size, size, places, True
        self.slots = torch.arange(slots, device=places.device)
        self.keys = like.keys.new_zeros(slots, like.keys.shape[1], size, like.keys.shape[3])
        self.values = like.values.new_zeros(slots, like.values.shape[1], size, like.values.shape[3])

    def begin(self, slot: int, read: Any, length: int) -> None:
        """Takes over so many tokens of another layer; nothing is left of the text before, whose NaN would stay."""
        for mine, its in ((self.keys, read.keys), (self.values, read.values)):
            mine[slot, :, length:] = 0
            mine[slot, :, :length] = its[0, :, :length]

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Does nothing: all is there from the beginning."""

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any) -> tuple:
        """Stores one token of each slot, (slots, heads, 1, K)."""
        self.keys[self.slots, :, self.places] = key_states[:, :, 0]
        self.values[self.slots, :, self.places] = value_states[:, :, 0]
        return self.keys[:, :, : self.read], self.values[:, :, : self.read]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Those that are read, from the first on."""
        return self.read, 0

    def get_seq_length(self) -> int:
        """Not one number: the places of the tokens are given to the model."""
        return 0

    def get_max_length(self) -> int:
        """All places."""
        return self.size


def step_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor,
    scaling: float | None = None,
    position_bias: None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of one query (B, H, 1, K) each to keys and values (B, G, S, K), of which no query head gets a copy.

    torch's own kernel for a CPU gives each thread a buffer, at whose place in memory the libraries' products look: a
    text would depend on the thread that its slot falls to. All else that `sdpa` takes has no effect on one query.
    """
    assert position_bias is None
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    grouped = query.view(len(query), key.shape[1], -1, query.shape[-1])  # (B, H, 1, K) -> (B, G, H / G, K)
    weights = grouped @ key.transpose(-1, -2) * scaling + attention_mask
    mixed = weights.softmax(dim=-1) @ value
    return mixed.view(len(query), 1, -1, value.shape[-1]), None


ALL_ATTENTION_FUNCTIONS.register("smallm_step", step_attention)


@contextmanager
def attending_by_steps(config: PreTrainedConfig) -> Iterator[None]:
    """The model of a config attends by `step_attention`."""
    before, config._attn_implementation = config._attn_implementation, "smallm_step"
    try:
        yield
    finally:
        config._attn_implementation = before


def has_slots(engine: Engine) -> bool:
    """Whether `Slots` can step a model: its cache keeps every token, and each at a place of its own."""
    config = engine.model.config.get_text_config(decoder=True)
    keeps_all = set(getattr(config, "layer_types", None) or ()) <= {"full_attention"}
    kinds = " ".join(
        str(getattr(module, "rope_type", "")) for module in engine.model.modules()
    )  # or one for each layer
    stretching = any(kind in kinds for kind in STRETCHING)
    placed = engine.cached and engine.reads_padding and (engine.limit or 0) > 1 and not stretching
    return placed and keeps_all and config._attn_implementation == "sdpa"


class Slots:
    """A model that writes one token of every slot at a time.

    Args:
        engine: of a model that `has_slots`.
        count: slots.
        compile: compile the step, which takes 10 to 20 seconds.

    Raises:
        MemoryError: so many texts as long as the model's positions take more than half of the memory that is free.
    """

    def __init__(self, engine: Engine, count: int, *, compile: bool):
        self.engine, self.model, device, size = engine, engine.model, engine.model.device, engine.limit
        self.newest = torch.zeros(count, 1, dtype=torch.long, device=device)
        self.places = torch.zeros(count, dtype=torch.long, device=device)
        self.columns = torch.arange(size, device=device)
        self.lengths: dict[int, int] = {}  # of the texts that are there: what `places` holds, without asking a device
        alone = CachedSteps(self.model, [self.newest[0]])
        alone.logits()
        needed = size * count * sum(layer.keys.nbytes + layer.values.nbytes for layer in alone.cache.layers)
        if needed > (free := _free_bytes(device)) // 2:
            raise MemoryError(
                f"{count} of {size} tokens take {needed / 2**30:.1f} GiB, and {free / 2**30:.1f} are free"
            )
        self.cache = Cache([SlotLayer(layer, count, size, self.places) for layer in alone.cache.layers])
        self.sizes, self.one_step = [size], one_step
        if compile:  # for one size
            with compiling(self.model):
                self.one_step = compiled_step()
                self._read_places(size)
        else:
            smaller = (LEAST_SIZE << doubled for doubled in range(size.bit_length()))
            self.sizes = [*(places for places in smaller if places < size), size]

    def read(self, slot: int, text: Text) -> torch.Tensor:
        """Begins a text in a slot, or goes on with its last half; gives the logits (V,) of its next token."""
        alone = self.engine.prepare([text])
        self.lengths[slot] = text.token_ids.shape[1]
        return self._hold(slot, alone)

    def _hold(self, slot: int, alone: CachedSteps) -> torch.Tensor:
        logits, length = alone.logits()[0], alone.tokens.shape[1]
        for layer, read in zip(self.cache.layers, alone.cache.layers, strict=True):
            layer.begin(slot, read, length)
        self.places[slot] = length
        return logits

    def take(self, slot: int, token: torch.Tensor) -> None:
        """The next token (1, 1) of the text in a slot."""
        self.newest[slot] = token[0]

    def step(self) -> None:
        """Goes on with all slots; what comes of empty ones means nothing."""
        longest = max(self.lengths.values(), default=0)
        self._logits = self._read_places(next(size for size in self.sizes if size > longest))
        self.places.add_(1).clamp_(max=len(self.columns) - 1)  # an empty slot stays in the last place
        self.lengths = {slot: length + 1 for slot, length in self.lengths.items()}

    def _read_places(self, size: int) -> torch.Tensor:
        """The logits (slots, V) after the newest tokens, by the first places, which hold all texts."""
        unseen = self.columns[:size] > self.places[:, None]  # (slots, size)
        mask = torch.zeros(unseen.shape, dtype=self.model.dtype, device=unseen.device).masked_fill(unseen, -torch.inf)
        for layer in self.cache.layers:
            layer.read = size
        with attending_by_steps(self.model.config):
            places = {"attention_mask": mask[:, None, None], "position_ids": self.places[:, None]}
            return self.one_step(self.model, self.newest, self.cache, **places)

    def logits(self, slot: int) -> torch.Tensor:
        """Those (V,) that the last step made of the newest token of a slot."""
        return self._logits[slot]

    def leave(self, slot: int) -> None:
        """The text in a slot has ended; the next one overwrites it."""
        self.lengths.pop(slot, None)

    def keep_apart(self) -> bool:
        """Whether a text has the same logits in every slot, to the bit, and but for rounding those of one that is read.

        Measured by a step of texts of different length, which then change places, and half of which then change. Sizes
        by which they have other bits than by all places are given up.
        """
        texts = _random_texts(self.engine, len(self.places))
        for slot, ids in enumerate(texts):
            self._hold(slot, CachedSteps(self.model, [ids[:-1]]))
            self.take(slot, ids[None, -1:])
        whole = self._read_places(len(self.columns))
        self.sizes = [size for size in self.sizes if torch.equal(self._read_places(size), whole)]
        alone = CachedSteps(self.model, texts[-1:]).logits()[0]
        tolerance = torch.finfo(alone.dtype).eps ** 0.5 * alone.abs().max()
        alike = bool((whole[-1] - alone).abs().max() <= tolerance)
        state = [self.places, self.newest]
        state += [kept for layer in self.cache.layers for kept in (layer.keys, layer.values)]
        for moved in range(1, len(self.places)):
            for kept in state:
                kept.copy_(kept.roll(1, 0))
            for size in self.sizes[:: max(1, len(self.sizes) - 1)]:  # the least and the whole
                alike = alike and torch.equal(self._read_places(size), whole.roll(moved, 0))
        self.newest[::2] = self.newest[1::2]
        return alike and torch.equal(self._read_places(len(self.columns))[1::2], whole.roll(moved, 0)[1::2])


def _random_texts(engine: Engine, count: int) -> list[torch.Tensor]:
    """Token ids (T,) of so many texts of two tokens and more."""
    model, drawing = engine.model, torch.Generator().manual_seed(0)
    lengths = [min(2 + number % (LEAST_SIZE // 2), engine.limit) for number in range(count)]
    vocab_size = vocabulary_size(model)
    return [torch.randint(vocab_size, (length,), generator=drawing).to(model.device) for length in lengths]


def _free_bytes(device: torch.device) -> int:
    """Memory that nobody uses."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available


class SingleSteps:
    """As `Slots`, for a model that has none: each text by steps of its own, one after the other.

    Args:
        engine: of any model.
    """

    def __init__(self, engine: Engine):
        self.engine = engine
        self.steps: dict[int, CachedSteps | OwnSteps] = {}

    def read(self, slot: int, text: Text) -> torch.Tensor:
        """As that of `Slots`."""
        self.steps[slot] = self.engine.prepare([text])
        return self.steps[slot].logits()[0]

    def take(self, slot: int, token: torch.Tensor) -> None:
        """As that of `Slots`."""
        self.steps[slot].go_on([0], token)

    def step(self) -> None:
        """Does nothing: no text shares anything with another."""

    def logits(self, slot: int) -> torch.Tensor:
        """As those of `Slots`, made now."""
        return self.steps[slot].logits()[0]

    def leave(self, slot: int) -> None:
        """Forgets the text in a slot."""
        self.steps.pop(slot, None)


@torch.no_grad()
def steps_of(engine: Engine, count: int, *, compile: bool) -> Slots | SingleSteps:
    """The steps of so many texts, by which the same text has the same bits beside any others.

    Args:
        engine: of any model.
        count: slots.
        compile: as that of `Slots`.
    """
    if not has_slots(engine):
        return SingleSteps(engine)
    why: object = "in a step of several each would change"
    try:
        for more in MORE_ROWS:
            slots = Slots(engine, -(-count // ROWS) * ROWS + more, compile=compile)
            if slots.keep_apart():
                return slots
    except MemoryError as error:
        why = error
    logger.warning(f"texts of this {type(engine.model).__name__} are written one by one: {why}")
    return SingleSteps(engine)
