"""Tiny models that read the last few tokens only: the laws are stated once and hold for each."""

import numpy as np
import torch
from transformers import PreTrainedModel

from smallm_hf.models.configuration_feedforward import FeedForwardConfig
from smallm_hf.models.configuration_ngram import NgramConfig
from smallm_hf.models.modeling_feedforward import FeedForwardForCausalLM
from smallm_hf.models.modeling_ngram import NgramForCausalLM
from smallm_hf.training.kneser_ney import count_ngrams, fill_model

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


def make_ngram() -> NgramForCausalLM:
    """Counted in random text, and in the rows of the fixture `tokens`, after others and after themselves."""
    rows = torch.randint(3, 64, (2, 12), generator=torch.Generator().manual_seed(1)).numpy()
    known = [np.r_[7, 7, 7, row, 2] for row in rows]
    stream = np.concatenate([np.random.default_rng(0).integers(3, 64, size=4000), *known])
    model = NgramForCausalLM(NgramConfig(vocab_size=64, order=CONTEXT_SIZE + 1, **SPECIAL))
    fill_model(model, count_ngrams(stream, CONTEXT_SIZE + 1, 64, SPECIAL["eos_token_id"]))
    return model.eval()


MODELS = {
    "ngram": make_ngram,
    "feedforward": make_feedforward,
    "feedforward-deep-tied": lambda: make_feedforward(
        num_hidden_layers=2, hidden_size=8, tie_word_embeddings=True, hidden_act="silu"
    ),
}


def make_model(kind: str) -> PreTrainedModel:
    """The model of a kind."""
    return MODELS[kind]()
