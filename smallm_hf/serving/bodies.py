"""Bodies of requests as JSON: RFC 8259 alone, where Python's parser takes more, and nothing that UTF-8 cannot hold."""

import json
from collections.abc import Callable, Coroutine
from typing import Any, NoReturn

from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response

from smallm_hf.serving.errors import Refused


def parse(body: bytes) -> Any:
    """The value of a body.

    Raises:
        Refused: it is not JSON in UTF-8, or holds half of a character.
    """

    def refuse(constant: str) -> NoReturn:
        raise Refused(400, f"the body holds {constant}, which is not JSON; send a number or null")

    try:
        value = json.loads(body.decode(), parse_constant=refuse)
        if b"\\u" in body:
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeDecodeError as error:
        raise Refused(400, f"the body is not UTF-8: byte {error.start} is {body[error.start]:#04x}") from error
    except UnicodeEncodeError as error:
        raise Refused(400, "the body holds half of a character (a lone surrogate); send whole ones") from error
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits, and lists in lists as deep
        raise Refused(400, f"the body is not JSON: {error}") from error
    return value


class JsonRequest(Request):
    """A request whose body, if it is read, has to be JSON."""

    async def body(self) -> bytes:
        """As it was sent, once it is said to be JSON: a page of another site cannot say so without asking first."""
        kind = self.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise Refused(415, f"the body is sent as {kind or 'nothing'!r}; send Content-Type: application/json")
        return await super().body()

    async def json(self) -> Any:
        """The value of the body."""
        return parse(await self.body())


class JsonRoute(APIRoute):
    """A route that reads bodies as `JsonRequest` does."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The function that answers a request."""
        answer = super().get_route_handler()

        async def answer_json(request: Request) -> Response:
            return await answer(JsonRequest(request.scope, request.receive))

        return answer_json
