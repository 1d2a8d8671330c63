"""What is asked of the engine and what it answers, and how prompts and sources become tokens.

A prompt is read as the beginning of a document: its tokens are preceded by bos (eos where there is none), the token
that stands before every document in training and in scoring. `pipeline("text-generation")` leaves that to the
tokenizer, so with GPT-2's its texts begin in the middle of nowhere and differ from these.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from smallm_hf.base.errors import TooLong, UserError
from smallm_hf.base.settings import Sampling
from smallm_hf.inspection import position_limit
from smallm_hf.tokenizing.encoding import added_around, encode_ordinary, start_token_id, valid_unicode

# Why a text ended: at eos or a stop string, or at its number of tokens.
FinishReason = Literal["stop", "length"]
# The most probable tokens in a place, best first, with their log-probabilities.
Ranked = tuple[tuple[int, float], ...]
# JSON has no infinities: a probability of 0, which masks make, is told as this logarithm of it, as OpenAI does.
LEAST = -9999.0


@dataclass(frozen=True)
class Request(Sampling):
    """One text to write.

    Args:
        prompt: the text to continue, read as ordinary text, or its token ids as they are; may be empty.
        source: what the encoder of an encoder-decoder reads, text or token ids; None for every other model.
        stop: strings that end the text before them, also where one spans several tokens.
        presence_penalty: is taken from the logit of each token that the continuation holds already; -2 to 2.
        frequency_penalty: the same, as often as it holds it; -2 to 2.
        logit_bias: token ids, and what is added to the logit of each, -100 to 100.
        logprobs: how many of the most probable tokens are named beside each, with their log-probabilities; 0 gives that
            of the token itself alone, None not even that.
    """

    prompt: str | Sequence[int] = ""
    source: str | Sequence[int] | None = None
    stop: tuple[str, ...] = ()
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    logprobs: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.stop, str) or "" in self.stop:
            raise UserError(f"stop={self.stop!r} is no list of strings that hold a character or more; give one")
        for name in ("presence_penalty", "frequency_penalty"):
            if not -2 <= getattr(self, name) <= 2:
                raise UserError(f"{name}={getattr(self, name)} is out of range; give -2 to 2")
        for token_id, bias in self.logit_bias:
            if not -100 <= bias <= 100:
                raise UserError(f"logit_bias={bias} of token {token_id} is out of range; give -100 to 100")
        if self.logprobs is not None and self.logprobs < 0:
            raise UserError(f"logprobs={self.logprobs} is out of range; give 0 or more")


@dataclass(frozen=True)
class Token:
    """One token as it was written.

    Attributes:
        id: in the vocabulary of the model.
        text: what became final with it. Empty while a character, or what may be a stop string, is incomplete; all
            these pieces joined are the text.
        log_probability: natural logarithm of the probability that the model itself gave it, before temperature,
            `top_k`, `top_p` and penalties; None where it was not asked for.
        alternatives: the most probable tokens in its place, with their log-probabilities.
        finish_reason: on the last token, None before.
    """

    id: int
    text: str
    log_probability: float | None = None
    alternatives: Ranked = ()
    finish_reason: FinishReason | None = None


@dataclass(frozen=True)
class Written:
    """A text by its tokens."""

    tokens: tuple[Token, ...]

    @property
    def text(self) -> str:
        """All of it."""
        return "".join(token.text for token in self.tokens)

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why it ended; None where it was interrupted."""
        return self.tokens[-1].finish_reason if self.tokens else None


def seed_of(*parts: int | str) -> int:
    """A seed that follows from numbers and texts, on every machine alike; other parts give another one.

    One seed for several prompts would make the same draws behind each, and their texts would repeat each other.
    """
    return int.from_bytes(hashlib.sha256(json.dumps(parts).encode()).digest()[:4], "big")


def as_number(log_probability: float | None) -> float | None:
    """A logarithm as JSON can tell it: never below `LEAST`, which is also what NaN becomes."""
    return None if log_probability is None else max(LEAST, log_probability)


def encode_chat(tokenizer: PreTrainedTokenizerBase, turns: Sequence[dict[str, str]]) -> list[int]:
    """The tokens of a conversation up to where its next answer begins, by the chat template.

    Args:
        tokenizer: with a `chat_template`.
        turns: each with `role` and `content`.

    Raises:
        jinja2.TemplateError: the template does not take such turns.
    """
    return tokenizer.apply_chat_template(list(turns), add_generation_prompt=True, return_dict=False)


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[int]:
    """The start token and the tokens of a text, of any length."""
    start = start_token_id(tokenizer)
    return ([] if start is None else [start]) + encode_ordinary(tokenizer, [prompt])[0]


def prompt_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str | Sequence[int]) -> list[int]:
    """The start token and the tokens of a prompt.

    Raises:
        UserError: a prompt that leaves no room in the model's context or holds half of a character, or an empty one and
            neither bos nor eos to begin with.
    """
    if isinstance(prompt, str):
        if prompt != valid_unicode(prompt):
            raise UserError(f"the prompt {prompt!a} holds half of a character (a lone surrogate); give whole ones")
        prompt = encode_prompt(tokenizer, prompt)
    if not len(prompt):
        raise UserError("the prompt is empty and the tokenizer has neither bos nor eos to begin with; give a prompt")
    limit = position_limit(model)
    if limit is not None and len(prompt) >= limit:
        raise TooLong(
            f"the prompt takes {len(prompt)} tokens and the model's context holds {limit}, the continuation included; "
            "shorten the prompt"
        )
    return list(prompt)


def source_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, source: str | Sequence[int]) -> list[int]:
    """The tokens of a source as the encoder was trained to read it.

    Raises:
        UserError: it has more tokens than the encoder has positions.
    """
    if isinstance(source, str):
        first, last = added_around(tokenizer)
        source = [*first, *encode_ordinary(tokenizer, [source])[0], *last] or [tokenizer.eos_token_id]
    limit = position_limit(model)
    if limit is not None and len(source) > limit:
        raise TooLong(f"a source text takes {len(source)} tokens and the encoder reads {limit}; shorten it")
    return list(source)
