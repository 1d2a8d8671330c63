"""The feed-forward language model of Bengio et al. 2003, "A Neural Probabilistic Language Model".

Shapes: B batch, T positions, n tokens that a prediction reads, E width of their vectors, D hidden, V vocabulary.
"""

import torch
from torch import nn
from transformers import GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_outputs import BaseModelOutput, CausalLMOutput
from transformers.modeling_utils import slice_logits_to_keep
from transformers.utils import can_return_tuple

from .configuration_feedforward import FeedForwardConfig


class FeedForwardPreTrainedModel(PreTrainedModel):
    """What both models share: flags for the library, and initialisation."""

    config: FeedForwardConfig
    base_model_prefix = "model"
    _can_compile_fullgraph = True
    _is_stateful = True  # no cache that could be cut back, which assisted generation needs

    def __init__(self, config: FeedForwardConfig, *args, **kwargs):
        config.validate_architecture()  # its fields may have been set since it was made
        super().__init__(config, *args, **kwargs)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        """As the config says; the output head small, so that an untrained model finds all tokens alike."""
        super()._init_weights(module)
        is_head = module is self.get_output_embeddings()
        if isinstance(module, nn.Embedding) and not self.config.tie_word_embeddings:
            init.normal_(module.weight, std=1.0)
        elif isinstance(module, nn.Linear) and not is_head:
            init.normal_(module.weight, std=module.in_features**-0.5)


class FeedForwardModel(FeedForwardPreTrainedModel):
    """Embeddings and hidden layers: token ids in, hidden states out."""

    def __init__(self, config: FeedForwardConfig):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.embedding_size)
        first = nn.Linear(config.context_size * config.embedding_size, config.hidden_size)
        others = (nn.Linear(config.hidden_size, config.hidden_size) for _ in range(config.num_hidden_layers - 1))
        self.layers = nn.ModuleList([first, *others])
        self.act_fn = ACT2FN[config.hidden_act]
        self.dropout = nn.Dropout(config.dropout)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
    ) -> BaseModelOutput:
        """Hidden states of each position, which depend on its own token and the n - 1 before it.

        What lies before the first token of a text, of a row or behind left padding, is read as zero vectors.

        Args:
            input_ids: Tokens, (B, T). Exactly one of this and `inputs_embeds` is given.
            attention_mask: 1 for tokens, 0 for padding, (B, T).
            position_ids: Place of each token in its text, (B, T); where it restarts, another text begins. Without it
                places are counted from the first token that is no padding.
            inputs_embeds: Vectors in place of `input_ids`, (B, T, E).
            use_cache: Without effect: there is no state beside the tokens.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        inputs_embeds = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        size = self.config.context_size
        vectors = nn.functional.pad(self.dropout(inputs_embeds), (0, 0, size - 1, 0))
        windows = vectors.unfold(1, size, 1)  # (B, T + n - 1, E) -> (B, T, E, n)
        if position_ids is None and attention_mask is not None:
            position_ids = (attention_mask.long().cumsum(dim=-1) - 1).clamp(min=0)
        if position_ids is not None:
            distances = torch.arange(size - 1, -1, -1, device=windows.device)  # (n,)
            within = distances <= position_ids[..., None]  # (B, T, n)
            windows = windows * within.unsqueeze(2)
        hidden_states = windows.flatten(2)  # (B, T, E * n)
        for layer in self.layers:
            hidden_states = self.dropout(self.act_fn(layer(hidden_states)))
        return BaseModelOutput(last_hidden_state=hidden_states)


class FeedForwardForCausalLM(FeedForwardPreTrainedModel, GenerationMixin):
    """The model with a head that scores every token of the vocabulary as the next one."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: FeedForwardConfig):
        super().__init__(config)
        self.model = FeedForwardModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        num_items_in_batch: int | torch.Tensor | None = None,
    ) -> CausalLMOutput:
        """Scores of the next token, and the loss where `labels` are given; the other arguments are the base model's.

        Args:
            labels: Tokens to predict, (B, T), equal to `input_ids` and shifted in here; -100 is not counted.
            logits_to_keep: Number of last positions, or indices of positions, to score; 0 scores all.
            num_items_in_batch: What the summed loss is divided by in place of the counted labels.

        Returns:
            `loss` in nats per counted label and `logits`, (B, T, V).
        """
        hidden_states = self.model(input_ids, attention_mask, position_ids, inputs_embeds).last_hidden_state
        logits = self.lm_head(slice_logits_to_keep(hidden_states, logits_to_keep))  # (B, T, D) -> (B, T, V)
        loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels, self.config.vocab_size, num_items_in_batch=num_items_in_batch)
        return CausalLMOutput(loss=loss, logits=logits)

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False

    def prepare_inputs_for_generation(
        self, input_ids: torch.LongTensor, attention_mask: torch.Tensor | None = None, **kwargs
    ) -> dict:
        """The last n tokens: nothing else is read, so that a step takes equally long however long the text is."""
        size = self.config.context_size
        mask = None if attention_mask is None else attention_mask[:, -size:]
        return {"input_ids": input_ids[:, -size:], "attention_mask": mask, "logits_to_keep": 1}
