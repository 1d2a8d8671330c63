"""Small models of several kinds, and what is read with them."""

import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from smallm_hf import SmaLLMConfig, SmaLLMForCausalLM

STORY = 'The cat sat on the mat. "A naïve cat 🐱!" said Lily.\n\nThe dog ran to the cat, and the cat ran to the mat.'
WORDS = ["</s>", "<unk>", "a", "he", "she", "cat", "dog", "ran", "sat"]


def gpt2(vocab_size: int = 300, positions: int = 64, **changes) -> GPT2LMHeadModel:
    torch.manual_seed(0)
    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "initializer_range": 0.6} | changes
    config = GPT2Config(vocab_size=vocab_size, n_positions=positions, bos_token_id=0, eos_token_id=0, **sizes)
    return GPT2LMHeadModel(config).requires_grad_(False).eval()


def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    return LlamaForCausalLM(LlamaConfig(vocab_size=300, max_position_embeddings=64, **sizes)).eval()


def ours(preset: str) -> SmaLLMForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    config = SmaLLMConfig(preset=preset, vocab_size=300, max_position_embeddings=64, **sizes)
    return SmaLLMForCausalLM(config).eval()


KINDS = {"gpt2": gpt2, "llama": llama, "classic": lambda: ours("classic"), "modern": lambda: ours("modern")}
