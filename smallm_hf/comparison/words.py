"""The probability of the next word, summed over all token paths that spell it, so that vocabularies can be compared.

A *word* is what a reader sees and no token: a run of letters, digits and apostrophes, or one other character that is no
white space. White space before it is passed over. It ends where a character follows that cannot belong to it, or the
text ends: "sat" is not counted for a text that goes on with "satin". A prompt that stops after a letter can also be
gone on with inside its last word; the rest of that word is then an *ending*. End of text and the other special tokens
are events of their own beside the words. This is meant for languages that write spaces between words.

The search follows the most probable unfinished paths first. It stops early, but what it has not seen is known: all
probability adds up to 1, so `left_out` is what the words that were found lack, and no word can have more than that in
addition. A model whose tokens are whole words needs one step and leaves out nothing.
"""

import heapq
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode

from smallm_hf.base.errors import UserError
from smallm_hf.evaluation.readers import LOGITS_BYTES
from smallm_hf.evaluation.variety import WORD_OR_MARK
from smallm_hf.inspection import position_limit, vocabulary_size
from smallm_hf.tokenizing.encoding import encode_ordinary

REST = re.compile(r"[\w'’]+")
BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")
BYTE_OF_LETTER = {letter: byte for byte, letter in bytes_to_unicode().items()}
UNKNOWN_CHARACTER = "\ufffd"

# The search: paths followed at most, at a time, the share of the probability that is enough, and of one path that is
# too little. More of them leave out less and take longer.
MAX_PATHS, PATHS_AT_A_TIME, ENOUGH, NEGLIGIBLE = 256, 32, 0.99, 1e-6

TokenPath = tuple[int, ...]
# From paths of tokens behind the prompt to the probabilities of the next token, float64 of shape (paths, V).
Predict = Callable[[Sequence[TokenPath]], np.ndarray]


@dataclass(frozen=True)
class Word:
    """What comes next: a `word`, the `ending` of the prompt's last word, or a `special` token."""

    text: str
    kind: Literal["word", "ending", "special"] = "word"


@dataclass(frozen=True)
class NextWords:
    """Words by falling probability, and the probability that the search has not assigned."""

    probabilities: dict[Word, float]
    left_out: float


@dataclass(frozen=True)
class Vocabulary:
    """What each token adds to a text.

    Attributes:
        pieces: UTF-8 bytes, which may stop inside a character; None for a special token.
        names: how the tokenizer calls it.
        closes: bool of shape (V,): whether it ends a word that stands before it.
    """

    pieces: list[bytes | None]
    names: list[str]
    closes: np.ndarray


def read_vocabulary(tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> Vocabulary:
    """Decodes every token behind another one, as inside a text; ids the tokenizer does not know are special."""
    special, known = set(tokenizer.all_special_ids), min(vocab_size, len(tokenizer))
    anchor = encode_ordinary(tokenizer, ["a"])[0] or [id for id in range(known) if id not in special][:1]
    decode = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
    before = len(tokenizer.decode(anchor, **decode))
    texts = tokenizer.batch_decode([[*anchor, id] for id in range(known)], **decode)
    names = tokenizer.convert_ids_to_tokens(list(range(known))) + ["<unused>"] * (vocab_size - known)
    pieces = [
        None if id >= known or id in special else _bytes_of(names[id], texts[id][before:]) for id in range(vocab_size)
    ]
    closes = [piece is None or bool(re.match(r"[^\w'’]", _text(piece))) for piece in pieces]
    return Vocabulary(pieces, names, np.array(closes))


def _bytes_of(name: str, text: str) -> bytes:
    """The bytes of a token; one that stops inside a character cannot be decoded alone, but its name spells them."""
    if UNKNOWN_CHARACTER in text:
        if byte := BYTE_TOKEN.fullmatch(name):
            return bytes([int(byte[1], 16)])
        if all(letter in BYTE_OF_LETTER for letter in name):
            return bytes(BYTE_OF_LETTER[letter] for letter in name)
    return text.encode()


def _text(spelled: bytes) -> str:
    """The whole characters; what is none, or not yet, is passed over."""
    return spelled.decode(errors="ignore")


def ends_in_a_word(prompt: str) -> bool:
    """Whether letters that follow the prompt at once would belong to its last word."""
    return bool(re.search(r"\w[\w'’]*$", prompt))


def first_word(text: str, inside: bool) -> tuple[Word | None, bool]:
    """The word that a text begins with, and whether any longer text has the same one.

    Args:
        text: what follows the prompt.
        inside: whether the prompt `ends_in_a_word`.
    """
    if inside and (rest := REST.match(text)):
        return Word(rest[0], "ending"), rest.end() < len(text)
    if not (found := WORD_OR_MARK.match(text)):
        return None, False
    return Word(found["word"] or found["mark"]), found["mark"] is not None or found.end() < len(text)


def next_words(
    predict: Predict,
    vocabulary: Vocabulary,
    *,
    inside: bool,
    longest: int | None = None,
    max_paths: int = MAX_PATHS,
    at_a_time: int = PATHS_AT_A_TIME,
    enough: float = ENOUGH,
    negligible: float = NEGLIGIBLE,
) -> NextWords:
    """Searches for the next words of one prompt.

    Args:
        predict: the model behind the prompt.
        vocabulary: its tokens.
        inside: whether the prompt `ends_in_a_word`.
        longest: tokens that a path may have for `predict`; None for any number.
        max_paths: paths that are gone on with at most.
        at_a_time: of these, paths of one call of `predict`; more calls of fewer paths follow long words further.
        enough: assigned probability at which the search ends.
        negligible: probability below which a path is given up.
    """
    found: dict[Word, float] = defaultdict(float)
    whole_words = bool(vocabulary.closes.all())
    unfinished: list[tuple[float, TokenPath]] = [(-1.0, ())]  # a heap, the most probable first
    while unfinished and max_paths > 0 and sum(found.values()) < enough:
        count = min(at_a_time, max_paths, len(unfinished))
        paths = [heapq.heappop(unfinished) for _ in range(count)]
        max_paths -= count
        for (negative, path), probabilities in zip(paths, predict([path for _, path in paths]), strict=True):
            joint = -negative * probabilities
            spelled = b"".join(vocabulary.pieces[token] for token in path)
            begun, _ = first_word(_text(spelled), inside)
            candidates = joint >= negligible
            if begun and _text(spelled).encode() == spelled:
                found[begun] += joint[vocabulary.closes].sum()
                candidates &= ~vocabulary.closes
            for token in np.flatnonzero(candidates):
                piece = vocabulary.pieces[token]
                if piece is None:
                    found[begun or Word(vocabulary.names[token], "special")] += joint[token]
                    continue
                word, closed = first_word(_text(spelled + piece), inside)
                if word and (closed or whole_words):
                    found[word] += joint[token]
                elif longest is None or len(path) < longest:
                    heapq.heappush(unfinished, (-joint[token], (*path, int(token))))
    ranked = sorted(found.items(), key=lambda item: (-item[1], item[0].text, item[0].kind))
    return NextWords({word: float(p) for word, p in ranked if p > 0}, max(0.0, 1.0 - float(sum(found.values()))))


def predictor(model: PreTrainedModel, prompt: Sequence[int]) -> tuple[Predict, int | None]:
    """The `predict` of a causal model behind a prompt, and the tokens its positions leave for a path.

    Args:
        model: causal; later tokens change no earlier prediction, so shorter paths are filled up at their end.
        prompt: its token ids.
    """
    limit = position_limit(model)
    vocab_size = vocabulary_size(model)

    @torch.inference_mode()
    def predict(paths: Sequence[TokenPath]) -> np.ndarray:
        longest = len(prompt) + max(map(len, paths))
        rows = max(1, LOGITS_BYTES // (4 * vocab_size * longest))
        parts = []
        for first in range(0, len(paths), rows):
            part = paths[first : first + rows]
            input_ids = torch.tensor([[*prompt, *path, *[0] * (longest - len(prompt) - len(path))] for path in part])
            logits = model(input_ids=input_ids.to(model.device), use_cache=False).logits
            last = torch.tensor([len(prompt) + len(path) - 1 for path in part], device=logits.device)
            parts.append(to_probabilities(logits[torch.arange(len(part), device=logits.device), last]))
        return np.concatenate(parts)

    return predict, None if limit is None else limit - len(prompt)


def to_probabilities(logits: torch.Tensor) -> np.ndarray:
    """Softmax in float64 over the last dimension.

    Raises:
        UserError: the logits are not numbers.
    """
    probabilities = logits.cpu().double().softmax(-1).numpy()
    if np.isnan(probabilities).any():
        raise UserError("the model's logits are not numbers (NaN); its weights are damaged, or its dtype overflows")
    return probabilities


def entropy_bits(probabilities: np.ndarray) -> float:
    """How open the choice is: 0 for a sure one, log2 V for a blind one."""
    positive = probabilities[probabilities > 0]
    return float(-(positive * np.log2(positive)).sum())
