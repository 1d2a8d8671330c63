"""What an operator sees: one line in the log for each request, and the figures of all of them for Prometheus.

What a request costs is known where its texts are written, so it is counted there: each text finds the request it
belongs to by a context variable, and the API does not have to report anything.
"""

import json
import logging
import re
import time
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request as WebRequest
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from smallm_hf.generation.continuous import ContinuousWriter, Deliver, Job
from smallm_hf.generation.request import Request, Token
from smallm_hf.serving.refusals import CLIENT_LEFT

LOG = logging.getLogger("smallm_hf.serving")
# Request ids that a client may choose: nothing that could break a line of the log or a header.
SANE_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
# Seconds: from a step of a tiny model on a GPU to a long wait in the queue.
BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


@dataclass
class Asked:
    """A request, and what it has taken so far.

    Attributes:
        prompt_tokens: read, once for each of its texts.
        completion_tokens: written.
    """

    id: str
    prompts: list[Any] = field(default_factory=list)
    prompt_tokens: int = 0
    completion_tokens: int = 0


_ASKED: ContextVar[Asked | None] = ContextVar("asked", default=None)


class Metrics:
    """The figures of one server, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)

        def made(kind: type, name: str, what: str, *labels: str, **options: Any) -> Any:
            return kind(f"smallm_{name}", what, labels, registry=self.registry, **options)

        self.requests = made(Counter, "requests", "Requests answered.", "path", "status")
        self.prompt_tokens = made(Counter, "prompt_tokens", "Tokens read, once for each text.")
        self.completion_tokens = made(Counter, "completion_tokens", "Tokens written.")
        self.waiting = made(Gauge, "waiting_texts", "Texts that wait for a slot.")
        self.writing = made(Gauge, "slots_in_use", "Slots in which a text is written.")
        self.slots = made(Gauge, "slots", "Slots that there are.")
        first, between = "From a text being asked for to its first token.", "From one token of a text to the next."
        self.to_first = made(Histogram, "time_to_first_token_seconds", first, buckets=BUCKETS)
        self.between = made(Histogram, "seconds_between_tokens", between, buckets=BUCKETS)

    def watch(self, writer: ContinuousWriter) -> None:
        """Reads queue and slots of a writer whenever somebody asks for the figures."""
        self.waiting.set_function(lambda: len(writer.waiting))
        self.writing.set_function(lambda: len(writer.writing))
        self.slots.set(writer.slots)

    async def answer(self, request: WebRequest) -> Response:
        """All of them, in the format of Prometheus."""
        return Response(generate_latest(self.registry), media_type=CONTENT_TYPE_LATEST)

    def counted(self, deliver: Deliver) -> Deliver:
        """As `deliver`, and counts and times the tokens; called where a text is asked for."""
        asked, before, waited = _ASKED.get(), time.perf_counter(), self.to_first

        def count(token: Token | BaseException | None) -> None:
            nonlocal before, waited
            if isinstance(token, Token):
                now = time.perf_counter()
                waited.observe(now - before)
                before, waited = now, self.between
                self.completion_tokens.inc()
                if asked:
                    asked.completion_tokens += 1
            deliver(token)

        return count


class MeasuredWriter(ContinuousWriter):
    """A writer whose texts are counted for `Metrics` and for the log lines of their requests.

    Args:
        engine: as of `ContinuousWriter`, and so are the options.
        metrics: of the server.
    """

    def __init__(self, engine: Any, metrics: Metrics, **options: Any):
        super().__init__(engine, **options)
        self.metrics = metrics
        metrics.watch(self)

    def warm(self) -> None:
        """Writes a little, uncounted: the first text of a process takes longer than all others."""
        ended: Future[None] = Future()

        def deliver(token: Token | BaseException | None) -> None:
            if isinstance(token, BaseException):
                ended.set_exception(token)
            elif token is None:
                ended.set_result(None)

        super().submit([Request([0], max_new_tokens=2, min_new_tokens=2)], [deliver])
        ended.result()

    def submit(self, requests: Sequence[Request], deliver: Sequence[Deliver]) -> list[Job]:
        """As that of `ContinuousWriter`."""
        jobs = super().submit(requests, [self.metrics.counted(one) for one in deliver])
        read, asked = sum(job.prompt_tokens for job in jobs), _ASKED.get()
        self.metrics.prompt_tokens.inc(read)
        if asked:
            asked.prompt_tokens += read
            for request in requests:
                if request.prompt not in asked.prompts:  # as those of `n` texts are
                    asked.prompts.append(request.prompt)
        return jobs


class Observed:
    """Gives each request an id, returned as X-Request-Id, counts it, and writes its line into the log.

    Args:
        app: answers.
        metrics: of the server.
        log_prompts: write prompts into the log too.

    Attributes:
        paths: what requests are counted under; any other is counted as "other", or whoever sends nonsense would fill
            the memory with counters.
        decode: token ids of a prompt to its text.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, *, log_prompts: bool = False):
        self.app, self.metrics, self.log_prompts = app, metrics, log_prompts
        self.paths: set[str] = set()
        self.decode: Callable[[Sequence[int]], str] = str

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        given = Headers(scope=scope).get("x-request-id", "")
        asked = Asked(given if SANE_ID.fullmatch(given) else uuid.uuid4().hex)
        began, status = time.perf_counter(), CLIENT_LEFT

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(raw=message["headers"])["x-request-id"] = asked.id
            await send(message)

        token = _ASKED.set(asked)
        try:
            await self.app(scope, receive, send_with_id)
        except Exception:
            status = 500
            raise
        finally:
            _ASKED.reset(token)
            route = getattr(scope.get("route"), "path_format", scope["path"])
            self.metrics.requests.labels(route if route in self.paths else "other", status).inc()
            self._log(scope, asked, status, time.perf_counter() - began)

    def _log(self, scope: Scope, asked: Asked, status: int, seconds: float) -> None:
        line = f"{asked.id} {scope['method']} {quote(scope['path'])} {status}"
        line += f" in={asked.prompt_tokens} out={asked.completion_tokens} seconds={seconds:.3f}"
        if self.log_prompts and asked.prompts:
            texts = [prompt if isinstance(prompt, str) else self.decode(prompt) for prompt in asked.prompts]
            line += f" prompts={json.dumps(texts)}"  # ASCII in one line, whatever is in them
        LOG.info(line)
