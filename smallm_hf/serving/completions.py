"""/v1/completions: texts that go on from prompts, and what the model makes of the prompts themselves."""

import asyncio
from functools import partial
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request as WebRequest
from starlette.responses import Response

from smallm_hf.base.errors import TooLong
from smallm_hf.generation.request import as_number
from smallm_hf.inspection import vocabulary_size
from smallm_hf.serving.answers import Answer, Piece, Shape, Spoken, requests_of, with_seed
from smallm_hf.serving.bodies import JsonRoute
from smallm_hf.serving.configuration import Limits
from smallm_hf.serving.schemas import CompletionRequest, as_list
from smallm_hf.serving.served import Served
from smallm_hf.serving.texts import Texts, unless_left
from smallm_hf.serving.vocabulary import Vocabulary

# Of one prompt whose log-probabilities are told: a GiB in float32, all of them at once.
MAX_LOGITS = 2**28
UNSUPPORTED = {"suffix": "the model goes on with a text, and fills no gap before another"}


def completions_router(served: Served, limits: Limits) -> APIRouter:
    """The endpoint of a model."""
    router = APIRouter(route_class=JsonRoute)

    @router.post("/v1/completions")
    async def complete(asked: CompletionRequest, request: WebRequest) -> Response:
        """Continues prompts."""
        served.require(asked.model)
        asked.require_known_fields(limits, UNSUPPORTED)
        asked.require_allowed(limits)
        return await unless_left(request, _answer(served, limits, with_seed(asked)))

    return router


async def _answer(served: Served, limits: Limits, asked: CompletionRequest) -> Response:
    given = as_list(asked.prompt)
    prompts = await served.read(given, limits, texts=asked.n or 1)
    tokens = served.tokens_to_write(prompts, asked.max_tokens, limits.default_max_tokens, limits)
    requests = requests_of(asked, prompts, tokens, asked.logprobs)
    openings = []
    if asked.echo:
        reason = None if requests else "length"
        for text, token_ids in zip(given, prompts, strict=True):
            opening = await _echo(served, text, token_ids, asked.logprobs, reason)
            openings += [opening] * (asked.n or 1)
    texts = await Texts(served.writer, requests).begin()
    return await Answer(SHAPE, served, asked, openings, texts, sum(map(len, prompts))).respond()


async def _echo(
    served: Served, given: str | list[int], token_ids: list[int], logprobs: int | None, reason: str | None
) -> Piece:
    """A prompt as it was given; its log-probabilities are those of its own tokens, without the start token before."""
    pieces = await asyncio.to_thread(served.vocabulary.pieces, token_ids)
    text = given if isinstance(given, str) else "".join(pieces)
    if logprobs is None:
        return Piece(text, finish_reason=reason)
    vocab_size = vocabulary_size(served.engine.model)
    if len(token_ids) * vocab_size > MAX_LOGITS:
        raise TooLong(
            f"log-probabilities of a prompt are told up to {MAX_LOGITS // vocab_size} tokens, and this has "
            f"{len(token_ids)}; shorten it"
        )
    told = await served.run(partial(served.engine.prompt_log_probabilities, token_ids, logprobs))
    tokens, offset = [], len(text) - sum(map(len, pieces))  # decoders of some put a space before a text
    for token_id, piece, (log_probability, ranked) in zip(token_ids, pieces, [(None, ()), *told], strict=True):
        tokens.append(Spoken(token_id, max(0, offset), log_probability, ranked))
        offset += len(piece)
    added = len(served.vocabulary.start) if isinstance(given, str) else 0
    return Piece(text, tuple(tokens[added:]), reason)


def _fields(piece: Piece, vocabulary: Vocabulary) -> dict[str, Any]:
    return {
        "text": piece.text,
        "logprobs": None if piece.tokens is None else _log_probabilities(piece.tokens, vocabulary),
        "finish_reason": piece.finish_reason,
    }


def _log_probabilities(tokens: tuple[Spoken, ...], vocabulary: Vocabulary) -> dict[str, list]:
    return {
        "tokens": [vocabulary.shown(token.id) for token in tokens],
        "token_logprobs": [as_number(token.log_probability) for token in tokens],
        "top_logprobs": [_by_name(token, vocabulary) for token in tokens],
        "text_offset": [token.offset for token in tokens],
    }


def _by_name(token: Spoken, vocabulary: Vocabulary) -> dict[str, float] | None:
    """The most probable tokens in its place and itself, each by a name of its own, though two may look alike."""
    if token.log_probability is None:
        return None
    named: dict[str, float] = {}
    for token_id, log_probability in (dict(token.alternatives) | {token.id: token.log_probability}).items():
        shown = vocabulary.shown(token_id)
        named[f"token_id:{token_id}" if shown in named else shown] = as_number(log_probability)
    return named


SHAPE = Shape("cmpl", "text_completion", "text_completion", _fields, _fields)
