"""Texts on their way from the thread that writes them to the client that asked for them."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Sequence
from functools import partial

from starlette.requests import Request as WebRequest
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from smallm_hf.generation.continuous import ContinuousWriter, Job
from smallm_hf.generation.request import Request, Token
from smallm_hf.serving.refusals import CLIENT_LEFT


class Texts:
    """The texts of one request while they are written.

    What is not read yet waits here, and the writer goes on: at most all tokens that were asked for.

    Args:
        writer: is asked for them.
        requests: one for each text; may be none.
    """

    def __init__(self, writer: ContinuousWriter, requests: Sequence[Request]):
        self.writer, self.requests = writer, requests
        self.jobs: list[Job] = []
        self._come: asyncio.Queue[tuple[int, Token | BaseException | None]] = asyncio.Queue()
        self._loop, self._cancelled = asyncio.get_running_loop(), False

    async def begin(self) -> "Texts":
        """Asks for them.

        Raises:
            Busy, Closed, UserError: as `ContinuousWriter.submit`.
        """
        if self.requests:
            deliver = [partial(self._deliver, number) for number in range(len(self.requests))]
            try:
                self.jobs = await asyncio.to_thread(self.writer.submit, self.requests, deliver)
            except asyncio.CancelledError:  # the thread goes on, and what it asks for ends with its first token
                self.cancel()
                raise
        return self

    async def __aiter__(self) -> AsyncIterator[tuple[int, Token]]:
        """Each token with the number of its text, as they come.

        Raises:
            Exception: what went wrong with one of them.
        """
        left = len(self.jobs)
        while left:
            number, token = await self._come.get()
            if isinstance(token, BaseException):
                raise token
            left -= token is None
            if token is not None:
                yield number, token

    def cancel(self) -> None:
        """Ends them before their next token."""
        self._cancelled = True
        for job in self.jobs:
            job.cancel()

    def _deliver(self, number: int, token: Token | BaseException | None) -> None:
        """Called by the writing thread, for which an error here is the end of the text."""
        if self._cancelled:
            raise RuntimeError("nobody waits for this text any more")
        self._loop.call_soon_threadsafe(self._come.put_nowait, (number, token))


class TextStream(StreamingResponse):
    """Server-sent events; when the answer ends, for whatever reason, so do its texts.

    Args:
        events: data of each.
        texts: of which they tell.
    """

    def __init__(self, events: AsyncIterator[str], texts: Texts):
        super().__init__((f"data: {data}\n\n" async for data in events), media_type="text/event-stream")
        self.headers["cache-control"] = "no-cache"
        self.texts = texts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends them."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.texts.cancel()


async def unless_left(request: WebRequest, answer: Awaitable[Response]) -> Response:
    """What answers a request; it is cancelled as soon as the client has left."""

    async def leave() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working, left = asyncio.ensure_future(answer), asyncio.ensure_future(leave())
    try:
        await asyncio.wait({working, left}, return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else Response(status_code=CLIENT_LEFT)
    finally:
        working.cancel()
        left.cancel()
