"""The steps of texts that come and go: a fixed number of slots, each written as if nobody were in the others.

A prompt is read alone, by the shapes of its own; then all slots take each step together, empty ones too. So the sums
that make a token have the same order whoever writes beside it, and the same request has the same bits.
"""

from typing import Any

import torch
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import CacheLayerMixin

from smallm_hf.generation.steps import compiled_step, compiling, decodes_directly, one_step
from smallm_hf.inspection import position_limit


class SlotLayer(CacheLayerMixin):
    """The keys and values (slots, heads, size, K) of a layer; what comes is stored at each slot's own place.

    Args:
        like: the layer of a cache that read one text, for its shapes.
        slots: texts beside each other.
        size: places for tokens.
        places: (slots,), where the next token of each goes; shared by all layers, and moved by whoever steps.
    """

    is_compileable = True
    is_sliding = False

    def __init__(self, like: Any, slots: int, size: int, places: torch.Tensor):
        super().__init__()
        self.size, self.places, self.is_initialized = size, places, True
        self.slots = torch.arange(slots, device=places.device)
        self.keys = like.keys.new_zeros(slots, like.keys.shape[1], size, like.keys.shape[3])
        self.values = like.values.new_zeros(slots, like.values.shape[1], size, like.values.shape[3])

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Does nothing: all is there from the beginning."""

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any) -> tuple:
        """Stores one token of each slot, (slots, heads, 1, K)."""
        self.keys[self.slots, :, self.places] = key_states[:, :, 0]
        self.values[self.slots, :, self.places] = value_states[:, :, 0]
        return self.keys, self.values

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """All places, from the first on."""
        return self.size, 0

    def get_seq_length(self) -> int:
        """Not one number: the places of the tokens are given to the model."""
        return 0

    def get_max_length(self) -> int:
        """All places."""
        return self.size


def has_slots(model: PreTrainedModel) -> bool:
    """Whether `Slots` can step a model: its cache keeps every token, and each at a place of its own."""
    config = model.config.get_text_config(decoder=True)
    full = all(kind == "full_attention" for kind in getattr(config, "layer_types", None) or ())
    return decodes_directly(model) and full and position_limit(model) is not None


class Slots:
    """A model that writes one token of every slot at a time.

    Args:
        model: one that `has_slots`, in evaluation mode.
        count: slots.
        compile: compile the step, which takes 10 to 20 seconds.
    """

    def __init__(self, model: PreTrainedModel, count: int, *, compile: bool):
        self.model, device = model, model.device
        self.newest = torch.zeros(count, 1, dtype=torch.long, device=device)
        self.places = torch.zeros(count, dtype=torch.long, device=device)
        self.columns = torch.arange(position_limit(model), device=device)
        alone = self._read(self.newest[:1])[1]
        self.cache = Cache([SlotLayer(layer, count, len(self.columns), self.places) for layer in alone.layers])
        self.one_step = one_step
        if compile:
            with compiling(model):
                self.one_step = compiled_step()
                self.step()

    @torch.no_grad()
    def _read(self, token_ids: torch.Tensor) -> tuple[torch.Tensor, DynamicCache]:
        cache = DynamicCache(config=self.model.config.get_text_config(decoder=True))
        return one_step(self.model, token_ids, cache), cache

    def read(self, slot: int, token_ids: torch.Tensor) -> torch.Tensor:
        """Begins a text in a slot with its tokens (1, T); gives the logits (1, V) after them."""
        logits, alone = self._read(token_ids)
        length = token_ids.shape[1]
        for mine, read in zip(self.cache.layers, alone.layers, strict=True):
            mine.keys[slot, :, :length], mine.values[slot, :, :length] = read.keys[0], read.values[0]
        self.places[slot] = length
        return logits

    def take(self, slot: int, token: torch.Tensor) -> None:
        """The next token (1, 1) of a slot."""
        self.newest[slot] = token[0]

    @torch.no_grad()
    def step(self) -> torch.Tensor:
        """The logits (slots, V) after the newest token of each; those of empty slots mean nothing."""
        seen = self.columns <= self.places[:, None]  # (slots, size)
        places = {"attention_mask": seen[:, None, None], "position_ids": self.places[:, None]}
        logits = self.one_step(self.model, self.newest, self.cache, **places)
        self.places.add_(1).clamp_(max=len(self.columns) - 1)  # an empty slot stays in the last place
        return logits
