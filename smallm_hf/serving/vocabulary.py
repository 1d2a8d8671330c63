"""Texts to tokens and back while others write: what a prompt is read as, and how a single token is shown."""

import copy
import functools
import re
import threading
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode

from smallm_hf.generation.request import encode_chat, encode_prompt
from smallm_hf.generation.text import UNFINISHED, GrowingText
from smallm_hf.tokenizing.encoding import start_token_id

BYTES = {letter: byte for byte, letter in bytes_to_unicode().items()}
FALLBACK = re.compile("<0x([0-9A-F]{2})>")  # a byte in vocabularies of sentencepiece


class Vocabulary:
    """A tokenizer for several threads, and apart from the one that the writer uses: fast ones raise when shared.

    Args:
        tokenizer: of which copies are made.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self.start = [] if start_token_id(tokenizer) is None else [start_token_id(tokenizer)]
        self._texts, self._lock = copy.deepcopy(tokenizer), threading.Lock()
        self._single, self._single_lock = copy.deepcopy(tokenizer), threading.Lock()
        self.spelling = functools.cache(self._spelling)

    def encode(self, text: str) -> list[int]:
        """The start token and those of a text, in which special tokens that are written out are text."""
        with self._lock:
            return encode_prompt(self._texts, text)

    def encode_alone(self, text: str, *, special: bool) -> list[int]:
        """The tokens of a text alone; `special` says whether special tokens that are written out count as such."""
        with self._lock:
            options = {"add_special_tokens": False, "split_special_tokens": not special, "verbose": False}
            return self._texts(text, **options)["input_ids"]

    def encode_chat(self, messages: Sequence[dict[str, str]]) -> list[int]:
        """The tokens of a conversation up to where the answer begins, by the chat template."""
        with self._lock:
            return encode_chat(self._texts, messages)

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of tokens, special ones written out."""
        with self._lock:
            return self._texts.decode(token_ids, clean_up_tokenization_spaces=False)

    def pieces(self, token_ids: Sequence[int]) -> list[str]:
        """What each token adds to the text of those before it, as `Token.text`: special ones add nothing."""

        def decode(ids: Sequence[int]) -> str:
            return self._texts.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)

        with self._lock:
            growing, last = GrowingText(decode, []), len(token_ids) - 1
            return [growing.add(token_id, last=place == last)[0] for place, token_id in enumerate(token_ids)]

    def shown(self, token_id: int) -> str:
        """A token by itself: its text, or its bytes as OpenAI shows them where these are only a part of a character."""
        spelling = self.spelling(token_id)
        if spelling is None:
            return f"token_id:{token_id}"
        try:
            return spelling.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in spelling)

    def _spelling(self, token_id: int) -> bytes | None:
        """The UTF-8 of a token; None where the model has a token that the tokenizer has not."""
        with self._single_lock:
            token = self._single.convert_ids_to_tokens(token_id)
            if token is None or token_id in self._single.all_special_ids:
                return token and token.encode()
            once, twice = (
                self._single.decode([token_id] * times, clean_up_tokenization_spaces=False) for times in (1, 2)
            )
        text = twice[len(once) :]  # behind another token: some decoders drop the space at the beginning of a text
        if UNFINISHED not in twice:
            return text.encode()
        if fallback := FALLBACK.fullmatch(token):
            return bytes.fromhex(fallback[1])
        return bytes(BYTES[letter] for letter in token) if BYTES.keys() >= set(token) else text.encode()
