"""Small models of every kind, whose texts can be read."""

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BloomConfig,
    BloomForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Mamba2Config,
    Mamba2ForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from smallm_hf import RecurrentConfig, RecurrentForCausalLM, SmaLLMConfig, SmaLLMForCausalLM
from smallm_hf.generation.engine import Engine
from smallm_hf.generation.request import Request
from smallm_hf.models.configuration_feedforward import FeedForwardConfig
from smallm_hf.models.configuration_ngram import NgramConfig
from smallm_hf.models.modeling_feedforward import FeedForwardForCausalLM
from smallm_hf.models.modeling_ngram import NgramForCausalLM
from smallm_hf.training.kneser_ney import count_ngrams, fill_model


def counted(model: NgramForCausalLM) -> NgramForCausalLM:
    """An n-gram model of random text."""
    stream = np.random.default_rng(0).integers(0, len(LETTERS), size=500)
    fill_model(model, count_ngrams(stream, model.config.order, len(LETTERS), 0))
    return model


LETTERS = ["</s>", *" abcdefghij,.\n"]
SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
STATE = {"hidden_size": 16, "state_size": 4, "num_heads": 4, "head_dim": 8, "n_groups": 1, "num_hidden_layers": 1}
POSITIONS = {"max_position_embeddings": 32}
TOKENS = {"vocab_size": len(LETTERS), "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
T5 = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2, "initializer_factor": 6.0}
BART = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "init_std": 0.5}
BART |= {"decoder_attention_heads": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "forced_eos_token_id": None}
WILD = {"initializer_range": 0.5}
BEGINS = {"decoder_start_token_id": 0}
SPREAD = WILD | {"embedding_initializer_range": 0.5, "tie_word_embeddings": False}
ODD = {"intermediate_size": 25, "num_attention_heads": 4, "head_dim": 6, "output_projection_init": "scaled"}
ODD |= {"hidden_act": "gelu_pytorch_tanh"}
WRITERS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**TOKENS | SIZES | POSITIONS | WILD)),
    "smallm": lambda: SmaLLMForCausalLM(SmaLLMConfig(**TOKENS | SIZES | POSITIONS | SPREAD)),
    "classic": lambda: SmaLLMForCausalLM(SmaLLMConfig(preset="classic", **TOKENS | SIZES | POSITIONS | SPREAD)),
    "odd": lambda: SmaLLMForCausalLM(SmaLLMConfig(**TOKENS | SIZES | POSITIONS | SPREAD | ODD)),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(**TOKENS | WILD, n_positions=32, n_embd=16, n_layer=2, n_head=2)),
    "bloom": lambda: BloomForCausalLM(BloomConfig(**TOKENS | WILD, hidden_size=16, n_layer=2, n_head=2)),
    "mamba2": lambda: Mamba2ForCausalLM(Mamba2Config(**TOKENS | STATE | WILD)),
    "recurrent": lambda: RecurrentForCausalLM(RecurrentConfig(**TOKENS, hidden_size=16, initializer_range=2.0)),
    "feedforward": lambda: FeedForwardForCausalLM(FeedForwardConfig(**TOKENS, context_size=3, hidden_size=8)),
    "ngram": lambda: counted(NgramForCausalLM(NgramConfig(**TOKENS, order=3))),
}
ANSWERERS = {
    "t5": lambda: T5ForConditionalGeneration(T5Config(**TOKENS | T5 | BEGINS)),
    "bart": lambda: BartForConditionalGeneration(BartConfig(**TOKENS | BART | POSITIONS | BEGINS)),
}


def engine_of(kind: str, **options) -> Engine:
    """A random model of that kind, and a tokenizer of letters."""
    torch.manual_seed(0)
    model = (WRITERS | ANSWERERS)[kind]().requires_grad_(False)
    tokenizer = Tokenizer(models.WordLevel({letter: id for id, letter in enumerate(LETTERS)}, unk_token="a"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(""), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return Engine(model, PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>"), **options)


def requests_for(kind: str, **settings) -> list[Request]:
    """Of different lengths and settings; some end early, some go on beyond the positions."""
    asked = [
        {"temperature": 0.0},
        {"temperature": 1.3, "min_new_tokens": 45},
        {"top_k": 5, "top_p": 0.9, "repetition_penalty": 1.3, "min_new_tokens": 20},
        {"max_new_tokens": 3},
    ]
    reads = "source" if kind in ANSWERERS else "prompt"
    texts = ["abba", "a cab, a bee. \n", "", "jig"] if reads == "prompt" else ["abba", "a cab, a bee. \n", "j", "jig"]
    return [
        Request(**{reads: text}, **{"max_new_tokens": 50, "seed": seed, **one, **settings})
        for seed, (text, one) in enumerate(zip(texts, asked, strict=True))
    ]
