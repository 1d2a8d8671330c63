"""A random model whose tokens are bytes, served without a socket."""

import functools

import torch
from starlette.testclient import TestClient
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from smallm_hf.generation.continuous import ContinuousWriter
from smallm_hf.generation.engine import Engine
from smallm_hf.serving.app import create_app
from smallm_hf.serving.configuration import Limits
from smallm_hf.serving.served import Served
from smallm_hf.serving.vocabulary import BYTES

EOS = "<|end|>"
NAME = "user/tiny"
POSITIONS = 64
TEMPLATE = """{%- for message in messages -%}
{%- if message.role == "system" and not loop.first -%}{{ raise_exception("system comes first") }}{%- endif -%}
{{ message.role[0] }}:{{ message.content }};
{%- endfor -%}
{%- if add_generation_prompt -%}a:{%- endif -%}"""


def byte_tokenizer(**options) -> PreTrainedTokenizerFast:
    """A token for each byte, by its number, and one behind them that ends documents."""
    backend = Tokenizer(models.BPE({letter: byte for letter, byte in BYTES.items()}, []))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(EOS, special=True)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=EOS, **options)


def small_model() -> LlamaForCausalLM:
    """Random, and sure enough of itself that rounding decides nothing."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(
        vocab_size=257, max_position_embeddings=POSITIONS, initializer_range=0.5, eos_token_id=256, **sizes
    )
    return LlamaForCausalLM(config).requires_grad_(False)


def small_engine(chats: bool = False) -> Engine:
    return Engine(small_model(), byte_tokenizer(**{"chat_template": TEMPLATE} if chats else {}))


def served(engine: Engine | None = None, **options) -> Served:
    return Served(ContinuousWriter(engine or small_engine(), **options), NAME)


def client_of(one: Served, **limits) -> TestClient:
    return TestClient(create_app(one, Limits(**limits)), raise_server_exceptions=False)


@functools.cache
def shared(chats: bool = False) -> Served:
    """One for all tests that leave it as it is."""
    return served(small_engine(chats))
