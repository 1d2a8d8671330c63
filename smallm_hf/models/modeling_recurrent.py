"""Recurrent language models: RNN, GRU and LSTM, by torch's own fused cells. Their state is the cache of `generate`.

Shapes: B batch, T positions, E embedding, D width of a layer, V vocabulary.
"""

import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from transformers import GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import slice_logits_to_keep
from transformers.utils import can_return_tuple
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_recurrent import RecurrentConfig

CELLS = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}
# The library's name of what `generate` carries: `past_key_values` until transformers 5.23, then `cache`. An output has
# this name; `forward` takes both.
CACHE_NAME = "cache" if "cache" in CausalLMOutputWithPast.__annotations__ else "past_key_values"
LOSS_OPTIONS = ("num_items_in_batch", "shift_labels", "ignore_index")
# Every other option of `forward`: what the library records.
RECORDED = ("output_hidden_states", "output_attentions")

# Of one layer, (1, B, D) each: what it gave last and, in an LSTM, its memory.
State = tuple[torch.Tensor, ...]


class RecurrentCache:
    """The state of every layer after the last token it has read: all that is kept of a text, however long that is.

    What `generate` asks of a cache is answered as by the library's own.

    Attributes:
        states: of each layer; None before the first token.
    """

    is_compileable = is_croppable = False
    is_linear = (False,)  # a text that goes on is given without what was read before

    def __init__(self, states: list[State] | None = None):
        self.states, self.seen = states, 0

    def update(self, states: list[State], tokens: int) -> None:
        """Takes the states after so many more tokens."""
        self.states, self.seen = states, self.seen + tokens

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens read, padding counted."""
        return self.seen

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keeps these rows, in this order; beam search may take one twice."""
        if self.states is not None:
            self.states = [tuple(part.index_select(1, indices.to(part.device)) for part in s) for s in self.states]

    reorder_cache = batch_select_indices

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Copies each row."""
        if self.states is not None:
            self.states = [tuple(part.repeat_interleave(repeats, dim=1) for part in s) for s in self.states]

    def reset(self) -> None:
        """Forgets the text."""
        self.states, self.seen = None, 0


def drop_for_all_positions(hidden_states: torch.Tensor, probability: float, training: bool) -> torch.Tensor:
    """Drop the same entries at all positions of a row (B, T, D): variational dropout (Gal and Ghahramani 2016)."""
    if not (training and probability):
        return hidden_states
    return hidden_states * nn.functional.dropout(torch.ones_like(hidden_states[:, :1]), probability)


class RecurrentLayer(GradientCheckpointingLayer):
    """One layer of cells, from left to right."""

    def __init__(self, config: RecurrentConfig, input_size: int, width: int):
        super().__init__()
        options = {"nonlinearity": config.hidden_act} if config.cell_type == "rnn" else {}
        self.cell = CELLS[config.cell_type](input_size, width, batch_first=True, **options)
        self.recurrent_dropout = config.recurrent_dropout

    def forward(
        self, hidden_states: torch.Tensor, state: State, mask: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, State]:
        """Return what the layer gives at each position, (B, T, D), and its state after the last one.

        Args:
            hidden_states: What the layer reads.
            state: The one to begin with.
            mask: False where a position is padding, (B, T), over which the state does not move; None where none is.
        """
        if mask is None:
            return self.run(hidden_states, state)
        # Tokens to the front of their row, in their order: a packed sequence stops behind the last of each.
        order = mask.argsort(dim=1, descending=True, stable=True)[..., None]
        lengths = mask.sum(dim=1)
        moved = hidden_states.gather(1, order.expand_as(hidden_states))
        packed = pack_padded_sequence(moved, lengths.clamp(min=1).cpu(), batch_first=True, enforce_sorted=False)
        outputs, after = self.run(packed, state)
        outputs, _ = pad_packed_sequence(outputs, batch_first=True, total_length=mask.shape[1])
        reads = (lengths > 0)[None, :, None]
        after = tuple(torch.where(reads, new, old) for new, old in zip(after, state, strict=True))
        return torch.zeros_like(outputs).scatter(1, order.expand_as(outputs), outputs), after

    def run(self, hidden_states, state: State):
        """The fused cell, on a tensor or a packed sequence; in training some weights of its state are dropped.

        A cell reads its weights from this list, not from its parameters.
        """
        whole = self.cell._flat_weights
        if self.training and self.recurrent_dropout:
            input_weight, state_weight, *biases = whole
            state_weight = nn.functional.dropout(state_weight, self.recurrent_dropout)
            self.cell._flat_weights = [input_weight, state_weight, *biases]
        try:
            # A CPU's LSTM fails under autocast where the processor has no bfloat16 (torch 2.13).
            with torch.autocast("cpu", enabled=False):
                outputs, state = self.cell(hidden_states, state if len(state) == 2 else state[0])
        finally:
            self.cell._flat_weights = whole
        return outputs, state if isinstance(state, tuple) else (state,)


class RecurrentPreTrainedModel(PreTrainedModel):
    """What both models share: flags for the library, and initialisation."""

    config: RecurrentConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ("RecurrentLayer",)
    _skip_keys_device_placement = (CACHE_NAME,)
    _can_record_outputs = {"hidden_states": RecurrentLayer}  # noqa: RUF012
    _is_stateful = True  # the library then knows that no token can be taken back

    def __init__(self, config: RecurrentConfig, *args, **kwargs):
        config.validate_architecture()  # its fields may have been set since it was made
        super().__init__(config, *args, **kwargs)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        """Layers as torch's, embeddings and head within `initializer_range` (Merity et al. 2017, section 5)."""
        if isinstance(module, nn.RNNBase):
            bound = module.hidden_size**-0.5
            for parameter in module.parameters():
                init.uniform_(parameter, -bound, bound)
        elif isinstance(module, nn.Embedding | nn.Linear):
            init.uniform_(module.weight, -self.config.initializer_range, self.config.initializer_range)
            if getattr(module, "bias", None) is not None:
                init.zeros_(module.bias)


class RecurrentModel(RecurrentPreTrainedModel):
    """Embeddings and layers: token ids in, hidden states out."""

    def __init__(self, config: RecurrentConfig):
        super().__init__(config)
        widths = config.layer_widths
        self.embed_tokens = nn.Embedding(config.vocab_size, config.embedding_size)
        inputs = [config.embedding_size, *widths[:-1]]
        self.layers = nn.ModuleList(map(lambda size, width: RecurrentLayer(config, size, width), inputs, widths))
        self.gradient_checkpointing = False
        self.post_init()

    def new_states(self, rows: int) -> list[State]:
        """The states of so many texts before their first token: zeros."""
        parts = 2 if self.config.cell_type == "lstm" else 1
        return [(self.embed_tokens.weight.new_zeros(1, rows, width),) * parts for width in self.config.layer_widths]

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        cache: RecurrentCache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        past_key_values: RecurrentCache | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPast:
        """Hidden states of each position, which depend on no later one.

        Args:
            input_ids: Tokens, (B, T). Exactly one of this and `inputs_embeds` is given.
            attention_mask: 1 for tokens, 0 for padding, (B, S), of which the last T count; nothing is read of padding.
            cache: The state to begin with; moved on in place.
            inputs_embeds: Vectors in place of `input_ids`, (B, T, E).
            use_cache: Whether to return the state.
            past_key_values: The name of `cache` until transformers 5.23.
            **kwargs: `output_hidden_states`.

        Raises:
            TypeError: An option that nothing here reads; ignored, it would give wrong results in silence.
        """
        for name in kwargs:
            if name not in RECORDED:
                raise TypeError(f"{type(self).__name__}.forward() got an unexpected keyword argument {name!r}")
        if cache is not None and past_key_values is not None:
            raise ValueError("cache and past_key_values are two names of one argument; give one of them")
        cache = past_key_values if cache is None else cache
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        hidden_states = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        mask = None
        if attention_mask is not None:
            mask = attention_mask[:, -hidden_states.shape[1] :].bool()
            mask = None if mask.all() else mask
        if use_cache and cache is None:
            cache = RecurrentCache()
        before = None if cache is None else cache.states
        before = self.new_states(len(hidden_states)) if before is None else before
        config, after = self.config, []
        hidden_states = drop_for_all_positions(hidden_states, config.embedding_dropout, self.training)
        for layer, state in zip(self.layers, before, strict=True):
            hidden_states, state = layer(hidden_states, state, mask)
            hidden_states = drop_for_all_positions(hidden_states, config.hidden_dropout, self.training)
            after.append(state)
        if cache is not None:
            cache.update(after, hidden_states.shape[1])
        return BaseModelOutputWithPast(last_hidden_state=hidden_states, **{CACHE_NAME: cache if use_cache else None})


class RecurrentForCausalLM(RecurrentPreTrainedModel, GenerationMixin):
    """A recurrent model with a head that scores every token of the vocabulary as the next one."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: RecurrentConfig):
        super().__init__(config)
        self.model = RecurrentModel(config)
        self.lm_head = nn.Linear(config.layer_widths[-1], config.vocab_size)
        self.post_init()

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        """`forward` makes the state: keys and values, which `generate` would prepare room for, are none of ours."""
        return False

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        cache: RecurrentCache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        past_key_values: RecurrentCache | None = None,
        **kwargs,
    ) -> CausalLMOutputWithPast:
        """Scores of the next token, and the loss where `labels` are given; the other arguments are `RecurrentModel`'s.

        Args:
            labels: Tokens to predict, (B, T), equal to `input_ids` and shifted in here; -100 is not counted.
            logits_to_keep: Number of last positions, or indices of positions, to score; 0 scores all.
            **kwargs: `num_items_in_batch`, by which the summed loss is divided instead of the counted labels,
                `shift_labels` and `ignore_index` of the library's loss; the rest goes to `RecurrentModel.forward`.

        Returns:
            `loss` in nats per counted label and `logits`, (B, T, V).

        Raises:
            TypeError: An option that nothing here reads.
        """
        loss_options = {name: kwargs.pop(name) for name in LOSS_OPTIONS if name in kwargs}
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            cache=cache,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            past_key_values=past_key_values,
            **kwargs,
        )
        logits = self.lm_head(slice_logits_to_keep(outputs.last_hidden_state, logits_to_keep))  # (B, T, D) -> (B, T, V)
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **loss_options)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            **{CACHE_NAME: outputs.get(CACHE_NAME)},
            hidden_states=outputs.hidden_states,
        )
