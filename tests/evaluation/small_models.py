"""Models of every family and a tokenizer of letters, small enough to reckon by hand."""

from types import SimpleNamespace

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from torch import nn
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

TEXTS = ["  abc cab\n", "b", "caféa, ba 日本 " * 4, "bac"]  # surrounding whitespace, short, longer than a context of 8
LETTERS = ["</s>", "<s>", "<unk>", *" abcdef,\n"]


def letter_tokenizer(around: str | None = None, **special_tokens: str) -> PreTrainedTokenizerFast:
    """One token per letter; bos, eos and unknown are ids 1, 0 and 2. Around a text stands what is asked for."""
    tokenizer = Tokenizer(models.WordLevel({letter: id for id, letter in enumerate(LETTERS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(""), "isolated")
    tokenizer.decoder = decoders.Fuse()
    if around:
        tokenizer.post_processor = processors.TemplateProcessing(around, special_tokens=[("<s>", 1), ("</s>", 0)])
    special_tokens = special_tokens or {"bos_token": "<s>", "eos_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", **special_tokens)


def mask_tokenizer() -> PreTrainedTokenizerFast:
    """As BERT's: a text stands between <s> and </s>; what is masked looks like an unknown letter."""
    names = {"cls_token": "<s>", "sep_token": "</s>", "mask_token": "<unk>", "pad_token": "</s>"}
    return letter_tokenizer("<s> $A </s>", **names)


def gpt2(seed: int = 0, **changes) -> GPT2LMHeadModel:
    torch.manual_seed(seed)
    config = GPT2Config(**{"vocab_size": 16, "n_positions": 32, "n_embd": 16, "n_layer": 2, "n_head": 2, **changes})
    return GPT2LMHeadModel(config).requires_grad_(False).apply(_spread)


def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=16, max_position_embeddings=32, tie_word_embeddings=False, **sizes)
    return LlamaForCausalLM(config).requires_grad_(False).apply(_spread)


def t5() -> T5ForConditionalGeneration:
    torch.manual_seed(0)
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2, "dropout_rate": 0.0}
    config = T5Config(vocab_size=16, decoder_start_token_id=0, pad_token_id=0, eos_token_id=0, **sizes)
    return T5ForConditionalGeneration(config).requires_grad_(False).eval()


def bart() -> BartForConditionalGeneration:
    torch.manual_seed(0)
    sides = {"layers": 1, "attention_heads": 2, "ffn_dim": 24}
    sizes = {f"{side}_{name}": size for side in ("encoder", "decoder") for name, size in sides.items()}
    tokens = {"bos_token_id": 1, "eos_token_id": 0, "pad_token_id": 0, "decoder_start_token_id": 0}
    config = BartConfig(vocab_size=16, d_model=16, max_position_embeddings=32, init_std=0.4, **sizes, **tokens)
    return BartForConditionalGeneration(config).requires_grad_(False).eval()


def bert() -> BertForMaskedLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = BertConfig(vocab_size=16, max_position_embeddings=18, initializer_range=0.4, **sizes)
    return BertForMaskedLM(config).requires_grad_(False).eval()


def _spread(module: nn.Module) -> None:
    """Random weights large enough for predictions that differ from the uniform ones."""
    for parameter in module.parameters(recurse=False):
        if parameter.dim() > 1:
            parameter.mul_(20)


class Table(PreTrainedModel):
    """A bigram model: the logits of the next token stand in the row of the last one."""

    config_class = GPT2Config

    def __init__(self, logits: list[list[float]]):
        super().__init__(GPT2Config(vocab_size=len(logits), n_positions=64))
        self.table = nn.Embedding.from_pretrained(torch.tensor(logits))
        self.shapes = []

    def forward(self, input_ids, use_cache=None):
        self.shapes.append(tuple(input_ids.shape))
        return SimpleNamespace(logits=self.table(input_ids))


def save(folder, model: PreTrainedModel | None = None, tokenizer: PreTrainedTokenizerFast | None = None):
    """Writes a model and a tokenizer as `save_pretrained` does, and returns the folder."""
    for part in (model or gpt2(), tokenizer or letter_tokenizer()):
        part.save_pretrained(folder)
    return folder
