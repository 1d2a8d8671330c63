"""How single tokens are shown, by tokenizers of several kinds; and texts that several threads cut at once."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from small_server import EOS, byte_tokenizer
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from smallm_hf.serving.vocabulary import Vocabulary


def sentencepiece_tokenizer() -> PreTrainedTokenizerFast:
    """As Llama's: a space is a letter, and what the vocabulary lacks is written in bytes."""
    tokens = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "▁a", "\ufffd"]
    vocab = {token: number for number, token in enumerate(tokens)}
    backend = Tokenizer(models.BPE(vocab, [("▁", "a")], byte_fallback=True, unk_token="<unk>"))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(steps)
    backend.add_special_tokens([AddedToken("</s>", special=True)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")


def word_tokenizer() -> PreTrainedTokenizerFast:
    """Of whole words, which transformers joins by spaces."""
    backend = Tokenizer(models.WordLevel({"<unk>": 0, "</s>": 1, "the": 2, "cat": 3}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")


@pytest.mark.parametrize(
    ("tokenizer", "text", "shown", "pieces"),
    [
        (byte_tokenizer(), "é a", [EOS, "bytes:\\xc3", "bytes:\\xa9", " ", "a"], ["", "", "é", " ", "a"]),
        (
            sentencepiece_tokenizer(),
            "a aé",
            ["</s>", " a", " a", "bytes:\\xc3", "bytes:\\xa9"],
            ["", "a", " a", "", "é"],
        ),
        (sentencepiece_tokenizer(), "\ufffd", ["</s>", " ", "\ufffd"], ["", "", "\ufffd"]),
        (word_tokenizer(), "the dog", ["</s>", " the", " <unk>"], ["", "the", " <unk>"]),
    ],
    ids=["bytes", "sentencepiece", "a true replacement character", "words"],
)
def test_a_token_is_shown_as_its_text_or_its_bytes(tokenizer, text, shown, pieces):
    vocabulary = Vocabulary(tokenizer)
    token_ids = vocabulary.encode(text)
    assert [vocabulary.shown(token_id) for token_id in token_ids] == shown
    assert vocabulary.pieces(token_ids) == pieces
    assert vocabulary.shown(len(tokenizer)) == f"token_id:{len(tokenizer)}"


def test_threads_may_cut_and_show_at_once():
    """Fast tokenizers raise "Already borrowed" where two threads use one."""
    vocabulary = Vocabulary(byte_tokenizer())
    text = "ab" * 2000

    def use(number: int) -> tuple:
        vocabulary.spelling.cache_clear()
        cut = vocabulary.encode(text), vocabulary.encode_alone(text, special=number % 2 == 0)
        return *map(len, cut), vocabulary.shown(number), len(vocabulary.decode(cut[1]))

    with ThreadPoolExecutor(4) as pool:
        assert [*pool.map(use, range(97, 113))] == [(4001, 4000, chr(number), 4000) for number in range(97, 113)]
