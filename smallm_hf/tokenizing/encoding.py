"""Texts to token ids: a corpus on all cores, a few texts to score or continue. Special tokens in a text are text."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import tiktoken
from tiktoken_ext.openai_public import r50k_pat_str
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from smallm_hf.tokenizing.loading import EOS, GPT2, GPT2_FINGERPRINT, tokenizer_fingerprint

ORDINARY = {"add_special_tokens": False, "split_special_tokens": True, "verbose": False}
Encoder = Callable[[list[str]], list[Sequence[int]]]


def make_encoder(tokenizer: PreTrainedTokenizerFast) -> Encoder:
    """Returns a function that encodes a batch of texts on all cores; no eos is added, the tokenizer stays as it is.

    `TOKENIZERS_PARALLELISM=false` keeps it to one thread, where several processes share the cores. Special tokens
    written out in a text are ordinary text. GPT-2 goes through tiktoken, three times as fast and with the same ids;
    every other tokenizer through its own `tokenizers` backend.
    """
    if tokenizer_fingerprint(tokenizer) == GPT2_FINGERPRINT:
        return _tiktoken_encoder(tokenizer)
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.encode_special_tokens = True
    backend.no_truncation()
    backend.no_padding()

    def encode(texts: list[str]) -> list[Sequence[int]]:
        encodings = backend.encode_batch_fast([valid_unicode(text) for text in texts], add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    return encode


def _tiktoken_encoder(tokenizer: PreTrainedTokenizerFast) -> Encoder:
    codes = {ord(letter): byte for byte, letter in bytes_to_unicode().items()}
    vocab = tokenizer.get_vocab()
    eos = vocab.pop(EOS)
    ranks = {token.translate(codes).encode("latin-1"): rank for token, rank in vocab.items()}
    encoding = tiktoken.Encoding(GPT2, pat_str=r50k_pat_str, mergeable_ranks=ranks, special_tokens={EOS: eos})
    threads = 1 if os.environ.get("TOKENIZERS_PARALLELISM") == "false" else os.cpu_count() or 1
    executor = ThreadPoolExecutor(threads)

    def encode_share(texts: list[str]) -> list[Sequence[int]]:
        # Straight into arrays: lists of integers would be built under the interpreter's lock, one thread at a time.
        return [
            encoding.encode_to_numpy(valid_unicode(text), allowed_special=set(), disallowed_special=())
            for text in texts
        ]

    def encode(texts: list[str]) -> list[Sequence[int]]:
        return [ids for share in executor.map(encode_share, _even_shares(texts, threads)) for ids in share]

    return encode


def _even_shares(texts: list[str], number: int) -> Iterator[list[str]]:
    """Cuts a list into at most `number` consecutive parts of about the same number of characters."""
    goal = sum(map(len, texts)) / number
    share, characters = [], 0
    for text in texts:
        share.append(text)
        characters += len(text)
        if characters >= goal:
            yield share
            share, characters = [], 0
    if share:
        yield share


def valid_unicode(text: str) -> str:
    """Returns the text with lone surrogates, which UTF-8 cannot hold, replaced by U+FFFD; JSON can bring them in."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def start_token_id(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The token before a text's first: bos, or eos, which is what stands there in packed training data."""
    return tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id


def encode_ordinary(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of the texts alone: nothing is added, and `<|endoftext|>` inside a text is text."""
    return tokenizer(list(texts), **ORDINARY)["input_ids"]


def encode_placed(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> Iterator[tuple[list[int], list[int]]]:
    """`encode_ordinary` of each text, and where each token begins in it, in characters; for fast tokenizers."""
    encoded = tokenizer(list(texts), return_offsets_mapping=True, **ORDINARY)
    for ids, offsets in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True):
        yield ids, [start for start, _ in offsets]


def encode_pieces(tokenizer: PreTrainedTokenizerBase, text: str) -> Iterator[tuple[int, str]]:
    """`encode_ordinary` of a text, each token with what it stands for; for fast tokenizers."""
    encoded = tokenizer(text, return_offsets_mapping=True, **ORDINARY)
    for id, (start, stop) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True):
        yield id, text[start:stop]


def added_around(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """The special tokens that the tokenizer puts before and behind a text."""
    encoded = tokenizer("a", return_special_tokens_mask=True)
    ids, special = encoded["input_ids"], encoded["special_tokens_mask"]
    ordinary = [place for place, added in enumerate(special) if not added] or [len(ids)]
    return ids[: ordinary[0]], ids[ordinary[-1] + 1 :]
