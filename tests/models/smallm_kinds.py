"""Tiny SmaLLM models of every kind: the laws are stated once and hold for each."""

import torch

from smallm_hf import SmaLLMConfig, SmaLLMForCausalLM

SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 32,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
# Name -> (fields, the native class that must be able to load it, None where none can)
KINDS = {
    "modern": ({}, "Qwen3ForCausalLM"),
    "modern-untied-biased": (
        {"tie_word_embeddings": False, "attention_bias": True, "head_dim": 12, "num_key_value_heads": 1},
        "Qwen3ForCausalLM",
    ),
    "llama": ({"qk_norm": False}, "LlamaForCausalLM"),
    "llama-biased": ({"qk_norm": False, "attention_bias": True, "mlp_bias": True}, "LlamaForCausalLM"),
    "classic": ({"preset": "classic"}, "GPT2LMHeadModel"),
    "classic-untied-relu": (
        {"preset": "classic", "tie_word_embeddings": False, "hidden_act": "relu", "intermediate_size": 40},
        "GPT2LMHeadModel",
    ),
    "classic-rms": ({"preset": "classic", "norm_type": "rms"}, None),
    "modern-learned": ({"position_embedding_type": "learned", "hidden_act": "tanh"}, None),
}


def make_model(kind: str, **fields) -> SmaLLMForCausalLM:
    """A model in evaluation mode, each of its weights random, so that none can be forgotten without a difference."""
    torch.manual_seed(0)
    model = SmaLLMForCausalLM(SmaLLMConfig(**SIZES | KINDS[kind][0] | fields))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return model.eval()
