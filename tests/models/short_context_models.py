"""Tiny models that read the last few tokens only: the laws are stated once and hold for each."""

import torch
from transformers import PreTrainedModel

from smallm_hf.models.configuration_feedforward import FeedForwardConfig
from smallm_hf.models.modeling_feedforward import FeedForwardForCausalLM

SPECIAL = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
CONTEXT_SIZE = 3  # of each of them


def make_feedforward(**fields) -> FeedForwardForCausalLM:
    """A model in evaluation mode, each of its weights random."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "context_size": CONTEXT_SIZE, "embedding_size": 8, "hidden_size": 16}
    model = FeedForwardForCausalLM(FeedForwardConfig(**{**sizes, **SPECIAL, **fields}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return model.eval()


MODELS = {
    "feedforward": make_feedforward,
    "feedforward-deep-tied": lambda: make_feedforward(
        num_hidden_layers=2, hidden_size=8, tie_word_embeddings=True, hidden_act="silu"
    ),
}


def make_model(kind: str) -> PreTrainedModel:
    """The model of a kind."""
    return MODELS[kind]()
