"""The OpenAI-compatible API of one model, as an app: no keys, no log and no process of its own."""

import asyncio
import base64
import platform
import time
from dataclasses import asdict
from functools import partial
from importlib.metadata import version
from typing import Any

import torch
from fastapi import APIRouter, FastAPI
from starlette.requests import Request as WebRequest
from starlette.responses import JSONResponse, Response

import smallm_hf
from smallm_hf.inspection import require_known, trained_length, vocabulary_size
from smallm_hf.serving.bodies import JsonRoute
from smallm_hf.serving.chat import chat_router
from smallm_hf.serving.completions import completions_router
from smallm_hf.serving.configuration import Limits
from smallm_hf.serving.errors import answer_errors
from smallm_hf.serving.schemas import DetokenizeRequest, EmbeddingRequest, TokenizeRequest, as_list
from smallm_hf.serving.served import Served
from smallm_hf.serving.texts import unless_left

UNSUPPORTED = {"dimensions": "a vector has as many numbers as the model's hidden states"}


def create_app(served: Served, limits: Limits) -> FastAPI:
    """The API of a model.

    Every error is answered in OpenAI's shape. What guards it (keys, sizes of bodies, time limits) stands before it.

    Args:
        served: the model.
        limits: what one request may ask for.
    """
    app = FastAPI(title="smallm_hf", version=smallm_hf.__version__, docs_url=None, redoc_url=None)
    answer_errors(app)
    for router in (completions_router, chat_router, embeddings_router, tokens_router, facts_router):
        app.include_router(router(served, limits))
    return app


def embeddings_router(served: Served, limits: Limits) -> APIRouter:
    """Texts as vectors."""
    router = APIRouter(route_class=JsonRoute)

    @router.post("/v1/embeddings")
    async def embed(asked: EmbeddingRequest, request: WebRequest) -> Response:
        """The mean of the last hidden states of each text."""
        served.require(asked.model)
        asked.require_known_fields(limits, UNSUPPORTED)
        return await unless_left(request, answer(asked))

    async def answer(asked: EmbeddingRequest) -> Response:
        texts = await served.read(as_list(asked.input), limits)
        vectors = [await served.run(partial(served.engine.embed, token_ids)) for token_ids in texts]
        shown = _as_base64 if asked.encoding_format == "base64" else torch.Tensor.tolist
        data = [
            {"object": "embedding", "index": index, "embedding": shown(vector)} for index, vector in enumerate(vectors)
        ]
        tokens = sum(map(len, texts))
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return JSONResponse({"object": "list", "data": data, "model": served.name, "usage": usage})

    return router


def _as_base64(vector: torch.Tensor) -> str:
    """As OpenAI's clients read it: float32, the least significant byte first."""
    return base64.b64encode(vector.cpu().numpy().astype("<f4").tobytes()).decode()


def tokens_router(served: Served, limits: Limits) -> APIRouter:
    """Texts as tokens: what vLLM's clients ask for, and lm_eval where it has no tokenizer of its own."""
    router, vocabulary = APIRouter(route_class=JsonRoute), served.vocabulary
    tokenizer = served.engine.tokenizer

    @router.post("/tokenize")
    async def tokenize(asked: TokenizeRequest) -> dict[str, Any]:
        """The token ids of a text."""
        served.require(asked.model)
        asked.require_known_fields(limits, {})
        token_ids = await asyncio.to_thread(vocabulary.encode_alone, asked.prompt, special=asked.parse_special)
        token_ids = [*vocabulary.start, *token_ids] if asked.add_special_tokens else token_ids
        return {"tokens": token_ids, "count": len(token_ids), "max_model_len": served.engine.limit}

    @router.post("/detokenize")
    async def detokenize(asked: DetokenizeRequest) -> dict[str, Any]:
        """The text of token ids."""
        served.require(asked.model)
        asked.require_known_fields(limits, {})
        require_known(max(asked.tokens, default=0), vocabulary_size(served.engine.model))
        return {"prompt": await asyncio.to_thread(vocabulary.decode, asked.tokens)}

    @router.get("/tokenizer_info")
    async def tokenizer_info() -> dict[str, Any]:
        """What a client has to know of the tokenizer."""
        named = {name: getattr(tokenizer, name) for name in ("bos_token", "eos_token", "pad_token", "unk_token")}
        return {"tokenizer_class": type(tokenizer).__name__, **named, "chat_template": tokenizer.chat_template}

    return router


def facts_router(served: Served, limits: Limits) -> APIRouter:
    """What is served, and that it is."""
    router, model = APIRouter(), served.engine.model
    listed = {"id": served.name, "object": "model", "created": int(time.time()), "owned_by": "smallm_hf"}

    @router.get("/v1/models")
    async def models() -> dict[str, Any]:
        """The model that is served."""
        return {"object": "list", "data": [listed]}

    @router.get("/v1/models/{name:path}")
    async def model_by_name(name: str) -> dict[str, Any]:
        """The same, by its name."""
        served.require(name)
        return listed

    @router.get("/health")
    async def health() -> dict[str, str]:
        """Whether the process answers."""
        return {"status": "ok"}

    @router.get("/ready")
    async def ready() -> dict[str, str]:
        """Whether the model answers."""
        return {"status": "ready"}

    @router.get("/props")
    async def props() -> dict[str, Any]:
        """What the model is and what may be asked of it."""
        versions = {name: version(name) for name in ("torch", "transformers", "fastapi")}
        return {
            "model": served.name,
            "family": model.config.model_type,
            "class": type(model).__name__,
            "parameters": model.num_parameters(),
            "positions": served.engine.limit,
            "trained_length": trained_length(model),
            "vocabulary": vocabulary_size(model),
            "chat": bool(served.engine.tokenizer.chat_template),
            "slots": served.writer.slots,
            "limits": asdict(limits),
            "versions": {"smallm_hf": smallm_hf.__version__, "python": platform.python_version(), **versions},
        }

    return router
