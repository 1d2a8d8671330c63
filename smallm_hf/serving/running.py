"""A model and a socket become a server, from loading to its orderly end."""

import asyncio
import logging
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from types import FrameType

from smallm_hf.base.settings import Loading
from smallm_hf.serving.app import create_app
from smallm_hf.serving.configuration import Limits, Serving
from smallm_hf.serving.guard import Gate, guarded
from smallm_hf.serving.keys import Keys
from smallm_hf.serving.listening import address_of, listening
from smallm_hf.serving.loading import load_to_serve, served_name
from smallm_hf.serving.observing import LOG, Metrics
from smallm_hf.serving.served import Served

METRICS = "/metrics"


def serve(model: str, loading: Loading, serving: Serving, limits: Limits, keys: Keys, listener: socket.socket) -> None:
    """Serves a model until SIGTERM or Ctrl-C, which let running texts finish for `grace_seconds`; twice, they do not.

    From the beginning, /health is answered and all else refused; a signal before the model is loaded ends at once.

    Raises:
        UserError: a model cannot be loaded, or is not causal.
    """
    gate, metrics, stopping = Gate(limits.max_seconds), Metrics(), threading.Event()
    observed = guarded(gate, keys, metrics, serving, limits)
    with (
        _logging_to_stderr(),
        _hearing_signals(gate, stopping),
        listening(observed, listener, limits) as loop,
        closing(load_to_serve(model, loading, serving, limits, metrics)) as writer,
    ):
        served = Served(writer, served_name(model))
        app = create_app(served, limits)
        app.add_route(METRICS, metrics.answer, include_in_schema=False)
        if serving.demo:
            from smallm_hf.demo.page import add_demo  # imports Gradio

            add_demo(app, served, model, loading, serving, limits)
        observed.paths, observed.decode = {METRICS, *app.openapi()["paths"]}, served.vocabulary.decode
        ended = asyncio.run_coroutine_threadsafe(gate.serve(app, serving.grace_seconds), loop)
        asks = "an API key is asked for" if keys else "no API key is asked for"
        LOG.info(f"serving {served.name} at {address_of(listener)}, {serving.slots} slots, {asks}")
        while not stopping.wait(1) and not ended.done():
            pass
        LOG.info(f"stopping: running texts may finish for {serving.grace_seconds:g} seconds; again ends at once")
        loop.call_soon_threadsafe(gate.stop)
        ended.result()


@contextmanager
def _hearing_signals(gate: Gate, stopping: threading.Event) -> Iterator[None]:
    def hear(number: int, frame: FrameType | None) -> None:
        again = stopping.is_set()
        stopping.set()  # should a library swallow the exit, the server ends as soon as it has begun
        if again or gate.app is None:
            raise SystemExit(0)

    before = {number: signal.signal(number, hear) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _logging_to_stderr() -> Iterator[None]:
    handler, errors = logging.StreamHandler(), logging.getLogger("uvicorn.error")
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    for logger, level in ((LOG, logging.INFO), (errors, logging.WARNING)):
        logger.addHandler(handler)
        logger.setLevel(level)
    try:
        yield
    finally:
        for logger in (LOG, errors):
            logger.removeHandler(handler)
