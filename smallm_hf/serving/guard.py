"""What stands between the network and the API: each class lets a request through, or answers in its place.

All of them are plain ASGI, know nothing of what is served, and refuse in the shape of OpenAI's errors.
"""

import asyncio
import json
from base64 import b64decode
from collections.abc import Collection
from contextlib import suppress
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from smallm_hf.serving.configuration import Limits, Serving
from smallm_hf.serving.keys import Keys
from smallm_hf.serving.observing import Metrics, Observed
from smallm_hf.serving.refusals import error_body, refusal

LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
# Asked by whoever starts, watches and restarts servers, who needs no key.
HEALTH, READY = "/health", "/ready"
# Below this the model works; what is elsewhere is answered at once, or is a page.
WORK = "/v1/"
# Below this are pages for people, whose browsers ask them for a name and a password: any name, and a key.
PAGES = "/demo"
PASSWORD = 'Basic realm="any name, and an API key as password"'
# A body that is too large is read and dropped for so long: a client that is still sending would not see our answer.
LINGER_SECONDS = 2.0
# For the last words of a stream to be taken by its reader.
FAREWELL_SECONDS = 2.0
RETRY_SECONDS = 5


class Browsers:
    """Refuses what pages of other sites make a user's browser ask for.

    A page cannot read what another origin answers, unless its own name is made to point here after it was loaded (DNS
    rebinding, Jackson et al. 2007); then the browser names the page's host in the header Host.

    Args:
        app: answers what is let through.
        hosts: names that this server has, without port; None where it may have any.
        origins: whose pages may ask, beside this server's own.
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str] | None, origins: Collection[str] = ()):
        self.app, self.hosts, self.origins = app, hosts, origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        headers = Headers(scope=scope)
        host, origin = headers.get("host", ""), headers.get("origin")
        answer = self.app
        if self.hosts is not None and _name_of(f"//{host}") not in self.hosts:
            names = ", ".join(sorted(self.hosts))
            answer = refusal(403, f"the Host header names {host!a}, and this server answers to {names} alone")
        elif origin is not None and origin not in self.origins and _place_of(origin) != host.lower():
            answer = refusal(403, f"pages of {origin!a} may not ask; start the server with --allow_origin {origin!a}")
        await answer(scope, receive, send)


def _name_of(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:  # brackets that do not close
        return None


def _place_of(url: str) -> str | None:
    try:
        return urlsplit(url).netloc.lower()
    except ValueError:
        return None


class Locked:
    """Asks for one of the API keys, where there are any: of programs as a token, of browsers as a password.

    Args:
        app: answers what is let through.
        keys: of the server.
    """

    def __init__(self, app: ASGIApp, keys: Keys):
        self.app, self.keys = app, keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        answer, headers = self.app, Headers(scope=scope)
        page = scope["path"] == "/" or scope["path"].startswith(PAGES)
        needed = self.keys and scope["path"] not in (HEALTH, READY)
        if needed and not self.keys.accept(_key_in(headers.get("authorization", ""), password=page)):
            asks = "this server asks for one of its API keys: send the header Authorization: Bearer KEY"
            way = PASSWORD if page else "Bearer"
            answer = refusal(401, asks, code="invalid_api_key", WWW_Authenticate=way)
        await answer(scope, receive, send)


def _key_in(authorization: str, *, password: bool) -> str:
    kind, _, given = authorization.partition(" ")
    if kind.lower() == "basic" and password:
        with suppress(ValueError):  # neither base64 nor UTF-8
            return b64decode(given, validate=True).decode().partition(":")[2]
    return given.strip() if kind.lower() == "bearer" else ""


class Bodies:
    """Reads the body of each request before the app is called: no more of it, and for no longer, than is allowed.

    Args:
        app: is given whole bodies.
        max_bytes: of a body, whether its length is announced or not.
        max_seconds: for a body to arrive.
    """

    def __init__(self, app: ASGIApp, *, max_bytes: int, max_seconds: float):
        self.app, self.max_bytes, self.max_seconds = app, max_bytes, max_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        announced = Headers(scope=scope).get("content-length", "0")  # digits: uvicorn refuses all else
        body, message = bytearray(), {"more_body": True}
        try:
            async with asyncio.timeout(self.max_seconds):
                while message["more_body"] and max(len(body), int(announced)) <= self.max_bytes:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return
                    body += message.get("body", b"")
        except TimeoutError:
            slow = f"the body of the request has not arrived within {self.max_seconds:g} seconds"
            return await refusal(408, slow, Connection="close")(scope, receive, send)
        if max(len(body), int(announced)) > self.max_bytes:
            body.clear()
            if message["more_body"] and "expect" not in Headers(scope=scope):  # who waits for a word has sent nothing
                await _drop(receive)
            large = f"the body of the request has more than {self.max_bytes:,} bytes, which are allowed; send less"
            return await refusal(413, large, Connection="close")(scope, receive, send)
        whole: list[Message] = [{"type": "http.request", "body": bytes(body), "more_body": False}]
        del body

        async def receive_whole() -> Message:
            return whole.pop() if whole else await receive()

        await self.app(scope, receive_whole, send)


async def _drop(receive: Receive) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(LINGER_SECONDS):
            while (await receive()).get("more_body"):
                pass


class Answer:
    """An answer on its way to the client, which may have to be ended by somebody else than its app.

    Args:
        scope: of the request, with `receive` and `send`.
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send):
        self.scope, self.receive, self._send = scope, receive, send
        self.begun = self.streams = self.complete = False

    async def send(self, message: Message) -> None:
        """Sends a part of it."""
        if message["type"] == "http.response.start":
            self.begun = True
            self.streams = Headers(raw=message["headers"]).get("content-type", "").startswith("text/event-stream")
        else:
            self.complete = not message.get("more_body", False)
        await self._send(message)

    async def end(self, status: int, reason: str, code: str) -> None:
        """Says why there is no more; where that cannot be said, uvicorn closes the connection."""
        with suppress(TimeoutError):
            async with asyncio.timeout(FAREWELL_SECONDS):  # a reader that stands still
                if not self.begun:
                    await refusal(status, reason, code=code)(self.scope, self.receive, self._send)
                elif self.streams and not self.complete:
                    last = f"data: {json.dumps(error_body(status, reason, code=code))}\n\ndata: [DONE]\n\n"
                    await self._send({"type": "http.response.body", "body": last.encode(), "more_body": False})


def _later(reason: str) -> ASGIApp:
    return refusal(503, reason, code="unavailable", Retry_After=str(RETRY_SECONDS))


class Gate:
    """Lets requests through from when there is an app until it is time to stop, and ends those that take too long.

    What is ended has its task cancelled, so the app learns of it as of any cancelled task. Its client gets an error:
    in place of an answer that has not begun, and as the last event of a stream that has, before [DONE].

    Args:
        max_seconds: for an answer of the model.

    Attributes:
        running: the time limits of requests for work of the model.
    """

    def __init__(self, max_seconds: float):
        self.max_seconds = max_seconds
        self.app: ASGIApp | None = None
        self.stopping = False
        self.running: set[asyncio.Timeout] = set()
        self._stop = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        works = scope["path"].startswith(WORK)
        if self.app is None and scope["path"] == HEALTH:
            answer: ASGIApp = JSONResponse({"status": "ok"})
        elif self.app is None:
            answer = _later("the model is still being loaded; ask again later")
        elif self.stopping and (works or scope["path"] == READY):
            answer = _later("the server is stopping; ask again later, or another server")
        else:
            answer = self._work if works else self.app
        await answer(scope, receive, send)

    async def _work(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer = Answer(scope, receive, send)
        limit = asyncio.timeout(self.max_seconds)
        try:
            async with limit:
                self.running.add(limit)
                await self.app(scope, receive, answer.send)
        except TimeoutError:
            if not limit.expired():
                raise
            if self.stopping:
                return await answer.end(503, "the server is stopping and has cut this answer", "stopping")
            late = f"the answer has taken longer than {self.max_seconds:g} seconds, which are allowed, and was cut"
            await answer.end(504, f"{late}; ask for fewer tokens", "deadline_exceeded")
        finally:
            self.running.discard(limit)

    async def serve(self, app: Starlette, grace_seconds: float) -> None:
        """Lets requests through to an app until `stop` is called; then what runs may finish for so many seconds."""
        async with app.router.lifespan_context(app):
            self.app = app
            await self._stop.wait()
            await self._ended(grace_seconds)
            for limit in self.running:
                if not limit.expired():
                    limit.reschedule(0)  # now
            await self._ended(2 * FAREWELL_SECONDS)

    def stop(self) -> None:
        """Lets in no more work; called in the thread of the event loop."""
        self.stopping = True
        self._stop.set()

    async def _ended(self, seconds: float) -> None:
        """Waits until nothing runs, but no longer than this."""
        until = asyncio.get_running_loop().time() + seconds
        while self.running and asyncio.get_running_loop().time() < until:
            await asyncio.sleep(0.05)


def guarded(gate: Gate, keys: Keys, metrics: Metrics, serving: Serving, limits: Limits) -> Observed:
    """Everything that stands before a gate, in its order: what costs least to refuse is refused first."""
    app: ASGIApp = Bodies(gate, max_bytes=limits.max_body_bytes, max_seconds=limits.max_receive_seconds)
    app = Locked(app, keys)
    if serving.allow_origin:  # before the lock: browsers ask without a key whether they may ask
        asked = {"allow_methods": ["GET", "POST"], "allow_headers": ["Authorization", "Content-Type", "X-Request-Id"]}
        app = CORSMiddleware(app, serving.allow_origin, **asked, expose_headers=["X-Request-Id"])
    names = LOOPBACK_NAMES | {serving.host} if serving.is_private else None
    return Observed(Browsers(app, names, serving.allow_origin), metrics, log_prompts=serving.log_prompts)
