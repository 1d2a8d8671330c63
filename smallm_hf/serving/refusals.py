"""How a request is refused: in the shape that OpenAI's clients read."""

from typing import Any

from starlette.responses import JSONResponse

# The status in the log of a request whose client left before it was answered, as nginx writes it.
CLIENT_LEFT = 499


def error_body(status: int, message: str, *, code: str | None = None, param: str | None = None) -> dict[str, Any]:
    """What a client is told in place of an answer, as JSON.

    Args:
        status: of HTTP; says of what type the error is.
        message: one line: what is wrong, both values, and what to change.
        code: a word for programs to look at.
        param: the field of the request that is wrong.
    """
    kind = "server_error" if status >= 500 else "rate_limit_error" if status == 429 else "invalid_request_error"
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def refusal(
    status: int, message: str, *, code: str | None = None, param: str | None = None, **headers: str
) -> JSONResponse:
    """A response with `error_body`; underscores in the names of headers stand for hyphens."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return JSONResponse(error_body(status, message, code=code, param=param), status, named)
