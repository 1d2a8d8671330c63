"""Answers in OpenAI's shapes: whole or streamed, of completions or of chats."""

import json
import secrets
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from starlette.responses import JSONResponse, Response

from smallm_hf.generation.request import FinishReason, Ranked, Request, seed_of
from smallm_hf.serving.errors import told
from smallm_hf.serving.schemas import TextRequest
from smallm_hf.serving.served import Served
from smallm_hf.serving.texts import Texts, TextStream
from smallm_hf.serving.vocabulary import Vocabulary

DONE = "[DONE]"
# Fields that go to the engine as they are, and what OpenAI takes where the engine takes something else.
HONOURED = (
    *("temperature", "top_p", "top_k", "min_p", "repetition_penalty"),
    *("presence_penalty", "frequency_penalty"),
)
DEFAULTS = {"temperature": 1.0}

AnyTextRequest = TypeVar("AnyTextRequest", bound=TextRequest)


@dataclass(frozen=True)
class Spoken:
    """A token in an answer, or what was read before it.

    Attributes:
        offset: characters of the answer before it.
        log_probability: None where nothing stands before it.
    """

    id: int
    offset: int
    log_probability: float | None
    alternatives: Ranked = ()


@dataclass(frozen=True)
class Piece:
    """What is added to one of the texts of an answer.

    Attributes:
        tokens: those told of; None where none are asked for.
        begins: whether nothing stands before it.
    """

    text: str
    tokens: tuple[Spoken, ...] | None = None
    finish_reason: FinishReason | None = None
    begins: bool = False


@dataclass(frozen=True)
class Shape:
    """How an endpoint writes its answers.

    Args:
        prefix: of their ids.
        whole_object: the kind of a whole answer.
        part_object: the kind of a part of one that is streamed.
        whole: the fields of a text, but its number.
        part: the fields of a part of one, but its number.
    """

    prefix: str
    whole_object: str
    part_object: str
    whole: Callable[[Piece, Vocabulary], dict[str, Any]]
    part: Callable[[Piece, Vocabulary], dict[str, Any]]


class Answer:
    """An answer, whole or streamed.

    Args:
        shape: of its endpoint.
        served: the model.
        asked: for this, with its seed.
        openings: what each text has before anything is written; may be none.
        texts: that are being written.
        prompt_tokens: read, once for each prompt.
    """

    def __init__(
        self,
        shape: Shape,
        served: Served,
        asked: TextRequest,
        openings: Sequence[Piece],
        texts: Texts,
        prompt_tokens: int,
    ):
        self.shape, self.served, self.openings, self.texts = shape, served, openings, texts
        self.streams, self.tells_usage = asked.stream, asked.tells_usage
        self.prompt_tokens, self.completion_tokens = prompt_tokens, 0
        kind = shape.part_object if asked.stream else shape.whole_object
        self.head = {"id": f"{shape.prefix}-{uuid.uuid4().hex}", "object": kind, "created": int(time.time())}
        self.head |= {"model": served.name, "seed": asked.seed}

    async def respond(self) -> Response:
        """What is sent; a whole answer when all its texts have ended."""
        if self.streams:
            return TextStream(self._events(), self.texts)
        try:
            return JSONResponse(await self._whole())
        finally:
            self.texts.cancel()

    @property
    def _usage(self) -> dict[str, int]:
        total = self.prompt_tokens + self.completion_tokens
        read, written = self.prompt_tokens, self.completion_tokens
        return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": total}

    async def _pieces(self) -> AsyncIterator[tuple[int, Piece]]:
        offsets = Counter({number: len(opening.text) for number, opening in enumerate(self.openings)})
        for number, opening in enumerate(self.openings):
            yield number, opening
        async for number, token in self.texts:
            self.completion_tokens += 1
            tokens = None
            if token.log_probability is not None:
                tokens = (Spoken(token.id, offsets[number], token.log_probability, token.alternatives),)
            yield number, Piece(token.text, tokens, token.finish_reason)
            offsets[number] += len(token.text)

    async def _whole(self) -> dict[str, Any]:
        texts: dict[int, list[Piece]] = {}
        async for number, piece in self._pieces():
            texts.setdefault(number, []).append(piece)
        choices = [
            {"index": number, **self.shape.whole(_joined(pieces), self.served.vocabulary)}
            for number, pieces in sorted(texts.items())
        ]
        return self.head | {"choices": choices, "usage": self._usage}

    async def _events(self) -> AsyncIterator[str]:
        beside = {"usage": None} if self.tells_usage else {}
        try:
            async for number, piece in self._pieces():
                if piece.text or piece.tokens or piece.finish_reason or piece.begins:
                    part = {"index": number, **self.shape.part(piece, self.served.vocabulary)}
                    yield _json(self.head | {"choices": [part]} | beside)
            if self.tells_usage:
                yield _json(self.head | {"choices": [], "usage": self._usage})
        except Exception as error:
            yield bytes(told(error, f"a stream of {self.shape.whole_object}").body).decode()
        yield DONE


def _joined(pieces: Sequence[Piece]) -> Piece:
    tokens = None
    if pieces[-1].tokens is not None:
        tokens = tuple(token for piece in pieces for token in piece.tokens or ())
    return Piece("".join(piece.text for piece in pieces), tokens, pieces[-1].finish_reason)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def with_seed(asked: AnyTextRequest) -> AnyTextRequest:
    """A request that can be repeated: without a seed, it gets one."""
    return asked if asked.seed is not None else asked.model_copy(update={"seed": secrets.randbits(31)})


def requests_of(
    asked: TextRequest, prompts: Sequence[Sequence[int]], tokens: int, logprobs: int | None
) -> list[Request]:
    """The texts that are asked for: `n` for each prompt, the first with the seed itself, as the engine alone writes it.

    The seeds of a prompt do not depend on the prompts beside it.

    Args:
        asked: with its seed.
        prompts: token ids of each.
        tokens: to write; 0 asks for no text.
        logprobs: as of `Request`.
    """
    if not tokens:
        return []
    given = {name: value for name in HONOURED if (value := getattr(asked, name)) is not None}
    given |= {"stop": asked.stops, "logit_bias": tuple((asked.logit_bias or {}).items())}
    given |= {"max_new_tokens": tokens, "logprobs": logprobs}
    seeds = [seed_of(asked.seed, number) if number else asked.seed for number in range(asked.n or 1)]
    return [Request(prompt, seed=seed, **DEFAULTS | given) for prompt in prompts for seed in seeds]
