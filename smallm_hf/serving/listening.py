"""The server itself: uvicorn on a socket of ours, in a thread of its own, with a limit on connections."""

import asyncio
import errno
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from smallm_hf.base.errors import UserError
from smallm_hf.serving.configuration import Limits
from smallm_hf.serving.refusals import refusal

# For answers that are still being sent when the server ends.
CLOSING_SECONDS = 3


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens: before a model is loaded, so that a mistake shows at once.

    Args:
        host: name or address.
        port: 0 takes one that is free.

    Raises:
        UserError: the port is in use, or the address is not one of this machine's.
    """
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family, backlog=1024)
    except OSError as error:  # of looking up the name as well
        if error.errno == errno.EADDRINUSE:
            why = f"port {port} of {host} is in use; give another --port, or 0 for one that is free"
        else:
            why = f"cannot listen at {host}, port {port} ({error.strerror}); give another --host or --port"
        raise UserError(why) from error


def address_of(listener: socket.socket) -> str:
    """What a browser or a client is pointed at."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def connection_class(limits: Limits) -> type[H11Protocol]:
    """The connections of a server: uvicorn's, but not more than are allowed, and none that never asks for anything.

    uvicorn has a time limit between two requests, and none for headers that arrive byte by byte.
    """

    class Connection(H11Protocol):
        asking: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            if len(self.connections) > limits.max_connections:
                many = f"this server has its {limits.max_connections} connections, which are allowed; ask again later"
                self.app = refusal(503, many, code="unavailable", Retry_After="1", Connection="close")
            self._time_headers()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._time_headers()

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            if self.asking:
                self.asking.cancel()

        def _time_headers(self) -> None:
            incomplete = self.conn.their_state is h11.IDLE
            if incomplete and not self.asking:
                self.asking = self.loop.call_later(limits.max_receive_seconds, self.transport.close)
            elif not incomplete and self.asking:
                self.asking.cancel()
                self.asking = None

    return Connection


@contextmanager
def listening(app: ASGIApp, listener: socket.socket, limits: Limits) -> Iterator[asyncio.AbstractEventLoop]:
    """Answers requests in a thread, for as long as the block takes; gives the event loop of that thread.

    The socket is closed at the end. Headers such as X-Forwarded-For are not believed.
    """
    config = uvicorn.Config(
        app,
        http=connection_class(limits),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=CLOSING_SECONDS,
    )
    server = uvicorn.Server(config)
    with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:  # cancels what is left in the end
        loop = runner.get_loop()
        thread = threading.Thread(target=runner.run, args=[server.serve([listener])], name="http")
        thread.start()
        try:
            yield loop
        finally:
            server.should_exit = True
            thread.join()
