"""What a client is told when something is wrong, whatever raised it: one readable line in OpenAI's shape."""

import json
import logging
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse

from smallm_hf.base.errors import TooLong, UserError
from smallm_hf.generation.continuous import Busy, Closed
from smallm_hf.serving.refusals import refusal

LOG = logging.getLogger(__name__)
RETRY_SECONDS = "1"
SHOWN_CHARACTERS = 80  # of a value that is wrong


class Refused(HTTPException):
    """A request is refused.

    Args:
        status: of HTTP.
        message: as of `refusals.error_body`, and so are the others.
    """

    def __init__(self, status: int, message: str, code: str | None = None, param: str | None = None):
        super().__init__(status, message)
        self.code, self.param = code, param


def shown(value: Any) -> str:
    """A value as a client wrote it, or the beginning of a long one."""
    written = json.dumps(value, ensure_ascii=False, default=repr)
    return written if len(written) <= SHOWN_CHARACTERS else written[:SHOWN_CHARACTERS] + "..."


def answer_errors(app: FastAPI) -> None:
    """Makes an app answer every error in OpenAI's shape."""

    async def answer(request: Request, error: Exception) -> JSONResponse:
        return told(error, f"{request.method} {request.url.path}")

    for kind in (UserError, HTTPException, RequestValidationError, Exception):
        app.add_exception_handler(kind, answer)


def told(error: Exception, asked: str) -> JSONResponse:
    """The answer to a request that an error ends.

    Args:
        error: any.
        asked: method and path of the request.
    """
    match error:
        case Refused():
            return refusal(error.status_code, error.detail, code=error.code, param=error.param)
        case HTTPException(status_code=404):
            return refusal(404, f"{asked} is not in this API; see /openapi.json", code="unknown_url")
        case HTTPException():
            headers = {name.replace("-", "_"): value for name, value in (error.headers or {}).items()}
            return refusal(error.status_code, f"{asked}: {HTTPStatus(error.status_code).phrase.lower()}", **headers)
        case RequestValidationError():
            return refusal(400, 'the request has no body; send a JSON object, such as {"prompt": "Once"}')
        case Busy():
            return refusal(429, str(error), code="rate_limit_exceeded", Retry_After=RETRY_SECONDS)
        case Closed():
            return refusal(
                503, "the server is stopping; ask again later", code="unavailable", Retry_After=RETRY_SECONDS
            )
        case TooLong():
            return refusal(400, str(error), code="context_length_exceeded")
        case UserError():
            return refusal(400, str(error))
    LOG.error(f"{asked} failed", exc_info=error)
    return refusal(500, "the server failed to answer; its log says why", code="internal_error")
