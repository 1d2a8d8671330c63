"""Truncated back-propagation through time: a recurrent state that goes on from window to window."""

from typing import Any

import torch
from transformers import PreTrainedModel

from smallm_hf.models.modeling_recurrent import CACHE_NAME, RecurrentCache
from smallm_hf.training.objectives import LanguageModelling


class CarriedLanguageModelling(LanguageModelling):
    """The cross entropy of the next tokens, by a model that begins each window with the state before it in the text.

    Gradients end where a window begins (Williams and Peng 1990; Mikolov et al. 2010). Examples are those of
    `ContiguousRows`.

    Args:
        rows: windows of an update, each of which has a state of its own.
        options: those of `LanguageModelling`.
    """

    def __init__(self, model: PreTrainedModel, *, rows: int, **options: Any):
        super().__init__(model, **options)
        self.rows = rows

    def forward(
        self, input_ids: torch.Tensor, targets: torch.Tensor, rows: torch.Tensor, begins: torch.Tensor, **inputs: Any
    ) -> torch.Tensor:
        """Summed nats of the targets (B, T) of these rows (B,); those that begin (B,) forget what was before."""
        before = self.model.base_model.new_states(self.rows) if self.carried is None else self.carried
        fresh = begins[None, :, None]
        cache = RecurrentCache([tuple(part[:, rows].masked_fill(fresh, 0) for part in state) for state in before])
        nats = super().forward(input_ids, targets, **inputs, **{CACHE_NAME: cache})
        self.carried = [
            tuple(whole.index_copy(1, rows, part.detach().to(whole)) for whole, part in zip(*layer, strict=True))
            for layer in zip(before, cache.states, strict=True)
        ]
        return nats
