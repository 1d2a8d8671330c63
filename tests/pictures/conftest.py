"""Fixtures of the pictures: tokenizers whose tokens can be counted by hand, and small models."""

import pytest
from picture_models import KINDS, STORY, WORDS, gpt2
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

from smallm_hf.tokenizing.schemes import train_bpe


@pytest.fixture(scope="session")
def bpe() -> PreTrainedTokenizerFast:
    return train_bpe([STORY] * 3, 300)


@pytest.fixture(scope="session")
def words() -> PreTrainedTokenizerFast:
    """A token for each word that it knows."""
    tokenizer = Tokenizer(models.WordLevel({word: id for id, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>")


@pytest.fixture(scope="session")
def model() -> GPT2LMHeadModel:
    return gpt2()


@pytest.fixture(params=KINDS)
def any_model(request):
    return KINDS[request.param]()
