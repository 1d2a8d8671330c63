"""The client that soaks a server and the one that compares several: they find what is wrong, and nothing else."""

import asyncio
import contextlib
import os
from types import SimpleNamespace

import pytest
from rich.console import Console
from small_server import NAME, byte_tokenizer, small_engine
from starlette.applications import Starlette
from starlette.responses import JSONResponse, PlainTextResponse, StreamingResponse
from starlette.routing import Route

from smallm_hf.base.errors import UserError
from smallm_hf.benchmarks import serve
from smallm_hf.benchmarks.serve import OURS, Turn, _load, _summary, print_servers
from smallm_hf.benchmarks.servers import Running, started
from smallm_hf.benchmarks.soak import KINDS, print_soak, soak
from smallm_hf.serving.app import create_app
from smallm_hf.serving.configuration import Limits, Serving
from smallm_hf.serving.guard import Gate, guarded
from smallm_hf.serving.keys import Keys
from smallm_hf.serving.listening import address_of, bind, listening
from smallm_hf.serving.observing import MeasuredWriter, Metrics
from smallm_hf.serving.served import Served


@contextlib.contextmanager
def running(app):
    listener = bind("127.0.0.1", 0)
    with listening(app, listener, Limits()) as loop:
        yield Running(address_of(listener), SimpleNamespace(pid=os.getpid())), loop


@pytest.fixture(scope="module")
def server():
    """A tiny model behind everything that guards it."""
    metrics, limits = Metrics(), Limits()
    gate = Gate(limits.max_seconds)
    with (
        running(guarded(gate, Keys(), metrics, Serving(), limits)) as (server, loop),
        contextlib.closing(MeasuredWriter(small_engine(), metrics, slots=4)) as writer,
    ):
        app = create_app(Served(writer, NAME), limits)
        app.add_route("/metrics", metrics.answer)
        ended = asyncio.run_coroutine_threadsafe(gate.serve(app, 1.0), loop)
        yield server
        loop.call_soon_threadsafe(gate.stop)
        ended.result()


def test_a_soak_finds_nothing_wrong_with_our_server(server):
    found = asyncio.run(soak(server, requests=60, clients=4, seed=1))
    assert found["wrong"] == [] and found["still_written"] == 0
    assert sum(sum(counts.values()) for counts in found["statuses"].values()) == 60
    assert len(found["statuses"]) > len(KINDS) / 2 and found["statuses"]["good"]["200"]
    console = Console(record=True, width=160)
    print_soak(found | {"requests": 60, "clients": 4}, console)
    assert "0 wrong answers" in console.export_text()


async def breaks(request):
    raise RuntimeError("on purpose")


def cut_short(request):
    return StreamingResponse(iter(['data: {"choices": []}\n\n']), media_type="text/event-stream")


@pytest.mark.parametrize(
    "answer",
    [
        lambda request: JSONResponse({}),
        lambda request: JSONResponse({"error": {"message": None}}, 400),
        lambda request: PlainTextResponse("no", 400),
        lambda request: PlainTextResponse('{"choices": [], "usage": NaN}'),
        cut_short,
        breaks,
    ],
    ids=["empty", "without message", "text", "NaN", "cut short", "500"],
)
def test_a_soak_finds_what_is_wrong_with_another(answer, monkeypatch):
    monkeypatch.setattr("smallm_hf.benchmarks.soak.SETTLE_SECONDS", 0)
    metrics = Route("/metrics", lambda request: PlainTextResponse("smallm_slots_in_use 2.0\n"))
    app = Starlette(routes=[metrics, Route("/{path:path}", answer, methods=["GET", "POST", "DELETE"])])
    with running(app) as (server, _):
        found = asyncio.run(soak(server, requests=20, clients=2))
    assert found["still_written"] == 2
    wrong = {line.split()[0] for line in found["wrong"]}
    assert {"good", "stream"} <= wrong and "leaving" not in wrong


def test_tokens_and_times_of_a_load_are_those_of_its_streams(server):
    turn = _load("ours", server, {"logit_bias": {"256": -100}}, byte_tokenizer(), clients=3, texts=2, tokens=4)
    assert len(turn.first) == 6 and min(turn.first) > 0
    assert 0 < len(turn.between) <= 6 * 3
    assert turn.tokens >= 6 and turn.seconds >= max(turn.first) and turn.peak_bytes > 2**20


def test_a_summary_has_the_percentiles_of_all_rounds():
    turns = [Turn(10, 2.0, 5, [1.0, 2.0], [0.1]), Turn(30, 2.0, 4, [3.0], []), Turn(20, 1.0, 3, [4.0], [])]
    found = _summary(turns)
    assert found["rates"] == [5, 15, 20] and found["rate"] == 15 and found["peak_bytes"] == 5
    assert found["first"] == {"p50": 2.5, "p95": pytest.approx(3.85)} and found["between"]["p50"] == 0.1
    console = Console(record=True, width=160)
    results = {"model": "tiny", "new_tokens": 4, "servers": {OURS: {"8": found}}, "left_out": {"other": ["fastapi"]}}
    print_servers(results, console)
    text = console.export_text()
    assert "2.500 3.850" in text and "left out: other (fastapi not installed)" in text


def test_what_is_not_installed_is_left_out_and_named(monkeypatch, tmp_path):
    monkeypatch.setattr(serve, "find_spec", lambda name: None)
    said = []
    contestants, left_out = serve._contestants("model", tmp_path, said.append, compile="false")
    assert list(contestants) == [OURS] and left_out["transformers serve"] == ["fastapi"]
    assert "leaving out llama-cpp-python: llama_cpp, gguf" in said[1]


def test_a_server_that_refuses_what_it_is_asked_for_is_named(server):
    with pytest.raises(UserError, match="ours does not write as it is asked to .*400"):
        _load("ours", server, {"max_tokens": -1}, byte_tokenizer(), clients=1, texts=1, tokens=4)


def test_a_server_that_does_not_start_is_named_with_its_last_words():
    with (
        pytest.raises(UserError, match="other does not answer at /ready; its last words: no model"),
        started("other", ["sh", "-c", "echo no model"], "/ready"),
    ):
        pass
