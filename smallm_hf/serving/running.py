"""A model and a socket become a server, from loading to its orderly end."""

import asyncio
import logging
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict
from pathlib import Path
from types import FrameType

from smallm_hf.base.allocation import keep_freed_memory
from smallm_hf.base.errors import UserError
from smallm_hf.base.settings import Loading
from smallm_hf.generation.engine import Engine
from smallm_hf.generation.steps import lay_out_for_decoding
from smallm_hf.inspection import refuse_lookahead
from smallm_hf.pretrained import find_kind, load_causal_lm
from smallm_hf.serving.app import create_app
from smallm_hf.serving.configuration import Limits, Serving
from smallm_hf.serving.guard import Gate, guarded
from smallm_hf.serving.keys import Keys
from smallm_hf.serving.listening import address_of, listening
from smallm_hf.serving.observing import LOG, MeasuredWriter, Metrics
from smallm_hf.serving.served import Served
from smallm_hf.training.devices import COMPILE_PAYS_TOKENS, resolve_decoding_compile

# Why a model that is not causal has no place behind an API that continues prompts.
OTHERS = {
    "masked": "fills in masks and continues no text; serve a causal model",
    "seq2seq": "is an encoder-decoder: it answers a source, and the API continues prompts; use scripts/generate.py",
}
METRICS = "/metrics"
# The folders of a run that hold a model: the run's name says more.
IN_A_RUN = ("best", "final")


def serve(model: str, loading: Loading, serving: Serving, limits: Limits, keys: Keys, listener: socket.socket) -> None:
    """Serves a model until SIGTERM or Ctrl-C, which let running texts finish for `grace_seconds`; twice, they do not.

    From the beginning, /health is answered and all else refused; a signal before the model is loaded ends at once.

    Raises:
        UserError: the model cannot be loaded, or is not causal.
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
        observed.paths, observed.decode = {METRICS, *app.openapi()["paths"]}, served.vocabulary.decode
        ended = asyncio.run_coroutine_threadsafe(gate.serve(app, serving.grace_seconds), loop)
        asks = "an API key is asked for" if keys else "no API key is asked for"
        LOG.info(f"serving {served.name} at {address_of(listener)}, {serving.slots} slots, {asks}")
        while not stopping.wait(1):
            pass
        LOG.info(f"stopping: running texts may finish for {serving.grace_seconds:g} seconds; again ends at once")
        loop.call_soon_threadsafe(gate.stop)
        ended.result()


def load_to_serve(model: str, loading: Loading, serving: Serving, limits: Limits, metrics: Metrics) -> MeasuredWriter:
    """A writer whose model is loaded, compiled and has written.

    Raises:
        UserError: the model cannot be loaded, or is not causal.
    """
    kind = find_kind(model)
    if kind in OTHERS:
        raise UserError(f"{model} {OTHERS[kind]}")
    compiled = resolve_decoding_compile(serving.compile, COMPILE_PAYS_TOKENS, LOG.info)  # a server writes many
    keep_freed_memory()
    loaded, tokenizer = load_causal_lm(model, **asdict(loading))
    refuse_lookahead(loaded)
    engine = Engine(lay_out_for_decoding(loaded), tokenizer)
    writer = MeasuredWriter(engine, metrics, slots=serving.slots, waiting=limits.max_waiting, compile=compiled)
    writer.warm()
    return writer


def served_name(model: str) -> str:
    """What clients call a model: its Hub id, or the name of its folder or run, and not where that lies."""
    folder = Path(model).expanduser()
    if not folder.is_dir():
        return model
    folder = folder.resolve()
    return folder.parent.name if folder.name in IN_A_RUN and folder.parent.name else folder.name


@contextmanager
def _hearing_signals(gate: Gate, stopping: threading.Event) -> Iterator[None]:
    def hear(number: int, frame: FrameType | None) -> None:
        if gate.app is None or stopping.is_set():
            raise SystemExit(0)
        stopping.set()

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
