"""The set that a run is validated on stands for the bytes that went in, whatever its tokenizer makes of them."""

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from smallm_hf.data.configuration import DataConfig, SelectionConfig, TokenizerConfig
from smallm_hf.data.prepare import find_or_prepare
from smallm_hf.data.request import DataRequest
from smallm_hf.training.validation import ValidationSet

WORDS = ["the", "cat", "sat", "on", "a", "mat"]
TEXTS = [f"the cat sat on a {'mat' if number % 2 else 'zebra'} number{number}" for number in range(12)]


def words_after_spaces() -> Tokenizer:
    """Puts a space before each text, as Llama's tokenizer does, and takes one away when it decodes."""
    letters = sorted({letter for text in TEXTS for letter in text} - {" "})
    entries = ["<unk>", "<eos>", "\u2581", *letters]
    tokenizer = Tokenizer(models.BPE({entry: number for number, entry in enumerate(entries)}, [], unk_token="<unk>"))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    return tokenizer


def known_words() -> Tokenizer:
    """Has one token for all words that it does not know."""
    entries = ["<unk>", "<eos>", *WORDS]
    tokenizer = Tokenizer(models.WordLevel({entry: number for number, entry in enumerate(entries)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


@pytest.mark.parametrize("tokenizer", [words_after_spaces(), known_words()], ids=["spaces", "unknown words"])
def test_bytes_of_a_cut_set_are_those_of_its_documents(tmp_path, tokenizer):
    given, validation = tmp_path / "tokenizer", tmp_path / "validation.txt"
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="<eos>").save_pretrained(given)
    (tmp_path / "train.txt").write_text("a cat sat on the mat")
    validation.write_text("\n<|endoftext|>\n".join(TEXTS))
    data = DataConfig(str(tmp_path / "train.txt"), validation_source=str(validation), workers=1)
    keep = SelectionConfig(duplicates="keep", max_leakage=1)
    request = DataRequest(data, TokenizerConfig(str(given)), tokenizer.get_vocab_size(), selection=keep)
    files = find_or_prepare(request, tmp_path / "tokens", 32)
    assert files.meta.validation.documents == len(TEXTS)
    for documents in (1, 5, len(TEXTS)):
        ids = [len(tokenizer.encode(text).ids) + 1 for text in TEXTS[:documents]]
        chosen = ValidationSet.choose(files, sum(ids), 32)
        assert len(chosen.tokens) == sum(ids)
        assert chosen.bytes == sum(len(text.encode()) + 1 for text in TEXTS[:documents])
