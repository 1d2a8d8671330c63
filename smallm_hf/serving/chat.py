"""/v1/chat/completions, for a model whose tokenizer says how a conversation is written."""

import asyncio
from typing import Any

from fastapi import APIRouter
from jinja2 import TemplateError
from starlette.requests import Request as WebRequest
from starlette.responses import Response

from smallm_hf.base.errors import UserError, one_line
from smallm_hf.generation.request import as_number
from smallm_hf.serving.answers import Answer, Piece, Shape, requests_of, with_seed
from smallm_hf.serving.bodies import JsonRoute
from smallm_hf.serving.configuration import Limits
from smallm_hf.serving.schemas import ChatCompletionRequest
from smallm_hf.serving.served import Served
from smallm_hf.serving.texts import Texts, unless_left
from smallm_hf.serving.vocabulary import Vocabulary

NO_TOOLS = "the model calls no functions"
UNSUPPORTED = {
    **dict.fromkeys(("tools", "tool_choice", "functions", "function_call"), NO_TOOLS),
    "response_format": "the model writes text of no promised form",
    "modalities": "the model writes text alone",
    "audio": "the model writes text alone",
}


def chat_router(served: Served, limits: Limits) -> APIRouter:
    """The endpoint of a model."""
    router = APIRouter(route_class=JsonRoute)

    @router.post("/v1/chat/completions")
    async def chat(asked: ChatCompletionRequest, request: WebRequest) -> Response:
        """Answers the last message of a conversation."""
        served.require(asked.model)
        if not served.engine.tokenizer.chat_template:
            raise UserError(
                f"{served.name} has no chat template: it was not trained on conversations; ask /v1/completions"
            )
        asked.require_known_fields(limits, UNSUPPORTED)
        asked.require_allowed(limits)
        return await unless_left(request, _answer(served, limits, with_seed(asked)))

    return router


async def _answer(served: Served, limits: Limits, asked: ChatCompletionRequest) -> Response:
    turns = [message.turn for message in asked.messages]
    try:
        token_ids = await asyncio.to_thread(served.vocabulary.encode_chat, turns)
    except TemplateError as error:
        raise UserError(f"the model's chat template does not take these messages: {one_line(error)}") from error
    prompts = await served.read([token_ids], limits, texts=asked.n or 1)
    tokens = served.tokens_to_write(prompts, asked.most_tokens, limits.max_tokens, limits)
    logprobs = (asked.top_logprobs or 0) if asked.logprobs else None
    requests = requests_of(asked, prompts, tokens, logprobs)
    openings = [Piece("", begins=True)] * len(requests)
    texts = await Texts(served.writer, requests).begin()
    return await Answer(SHAPE, served, asked, openings, texts, len(token_ids)).respond()


def _whole(piece: Piece, vocabulary: Vocabulary) -> dict[str, Any]:
    return {"message": {"role": "assistant", "content": piece.text}, **_ending(piece, vocabulary)}


def _part(piece: Piece, vocabulary: Vocabulary) -> dict[str, Any]:
    speaker = {"role": "assistant"} if piece.begins else {}
    return {"delta": speaker | {"content": piece.text}, **_ending(piece, vocabulary)}


def _ending(piece: Piece, vocabulary: Vocabulary) -> dict[str, Any]:
    logprobs = None
    if piece.tokens is not None:
        logprobs = {
            "content": [
                _named(token.id, token.log_probability, vocabulary)
                | {"top_logprobs": [_named(*one, vocabulary) for one in token.alternatives]}
                for token in piece.tokens
            ]
        }
    return {"logprobs": logprobs, "finish_reason": piece.finish_reason}


def _named(token_id: int, log_probability: float, vocabulary: Vocabulary) -> dict[str, Any]:
    spelling = vocabulary.spelling(token_id)
    return {
        "token": vocabulary.shown(token_id),
        "logprob": as_number(log_probability),
        "bytes": None if spelling is None else list(spelling),
    }


SHAPE = Shape("chatcmpl", "chat.completion", "chat.completion.chunk", _whole, _part)
