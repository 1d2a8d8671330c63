"""A family of models as a newcomer would add it: two gated recurrent layers, in one file, and one entry."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput, CausalLMOutput

from smallm_hf.families import FAMILIES, Family, register


@strict
class TinyGRUConfig(PreTrainedConfig):
    model_type = "tiny_gru"

    vocab_size: int = 300
    hidden_size: int = 16
    num_hidden_layers: int = 2
    tie_word_embeddings: bool = False
    use_cache: bool = False
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None


class TinyGRUPreTrainedModel(PreTrainedModel):
    config: TinyGRUConfig
    base_model_prefix = "model"


class TinyGRUModel(TinyGRUPreTrainedModel):
    def __init__(self, config: TinyGRUConfig):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.gru = nn.GRU(config.hidden_size, config.hidden_size, config.num_hidden_layers, batch_first=True)
        self.mix = nn.Linear(config.hidden_size, config.hidden_size)
        self.post_init()

    def forward(self, input_ids: torch.Tensor, **kwargs) -> BaseModelOutput:
        return BaseModelOutput(last_hidden_state=self.mix(self.gru(self.embed_tokens(input_ids))[0]))


class TinyGRUForCausalLM(TinyGRUPreTrainedModel, GenerationMixin):
    def __init__(self, config: TinyGRUConfig):
        super().__init__(config)
        self.model = TinyGRUModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor | None = None, **kwargs) -> CausalLMOutput:
        logits = self.lm_head(self.model(input_ids).last_hidden_state)
        loss = None if labels is None else self.loss_function(logits, labels, self.config.vocab_size)
        return CausalLMOutput(loss=loss, logits=logits)


def gru_flops(model: PreTrainedModel, context_length: int) -> int:
    return 6 * sum(p.numel() for p in model.parameters() if p.ndim == 2) - 6 * model.model.embed_tokens.weight.numel()


FAMILY = Family(
    TinyGRUConfig,
    TinyGRUForCausalLM,
    TinyGRUModel,
    native=lambda config: (None, "transformers has no recurrent model of this shape"),
    flops_per_token=gru_flops,
    activations=lambda config, context_length: (4 * config.num_hidden_layers * config.hidden_size, 0),
)


@contextmanager
def registered() -> Iterator[Family]:
    """The family is known inside the block."""
    register(FAMILY)
    try:
        yield FAMILY
    finally:
        del FAMILIES["tiny_gru"]
