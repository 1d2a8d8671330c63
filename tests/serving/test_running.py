"""A server from its start to its end, around a tiny model; those in processes of their own are slow."""

import asyncio
import json
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import httpx2
import pytest
from rich.console import Console
from small_server import NAME, byte_tokenizer, small_engine, small_model

from smallm_hf.base.errors import UserError
from smallm_hf.base.settings import Loading
from smallm_hf.benchmarks.serve import OURS, SERVE, compare_servers, print_servers
from smallm_hf.benchmarks.servers import started
from smallm_hf.benchmarks.soak import KINDS, soak
from smallm_hf.generation import slots
from smallm_hf.serving.app import create_app
from smallm_hf.serving.configuration import Limits, Serving
from smallm_hf.serving.guard import Gate, guarded
from smallm_hf.serving.keys import Keys
from smallm_hf.serving.listening import address_of, bind
from smallm_hf.serving.observing import MeasuredWriter, Metrics
from smallm_hf.serving.running import load_to_serve, serve, served_name
from smallm_hf.serving.served import Served

PATH = "/v1/completions"
PRIVATE = Serving(compile=False, grace_seconds=0.2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny") / "best"
    small_model().save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def slow_steps(monkeypatch):
    """Steps of a twentieth of a second."""
    step = slots.Slots.step

    def slow(self):
        time.sleep(0.05)
        return step(self)

    monkeypatch.setattr(slots.Slots, "step", slow)


# --- what is loaded --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "bert", "architectures": ["BertForMaskedLM"]}, "fills in masks and continues no text"),
        ({"model_type": "t5", "is_encoder_decoder": True}, "is an encoder-decoder: it answers a source, and the API"),
    ],
)
def test_a_model_that_continues_no_text_is_refused_before_it_is_loaded(tmp_path, config, message):
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match=message):
        load_to_serve(str(tmp_path), Loading(), PRIVATE, Limits(), Metrics())


def test_a_model_has_the_name_of_its_folder_run_or_repository(tmp_path):
    for path in ("runs/tiny/best", "models/other"):
        (tmp_path / path).mkdir(parents=True)
    names = {"runs/tiny/best": "tiny", "models/other": "other"}
    assert {path: served_name(str(tmp_path / path)) for path in names} == names
    assert served_name("user/name") == "user/name"


# --- what is seen and ended ------------------------------------------------------------------------------------------


def guarded_model(limits: Limits, ask, *, log_prompts: bool = False):
    """What `ask` gives of a client and the parts behind it."""
    metrics, gate = Metrics(), Gate(limits.max_seconds)
    writer = MeasuredWriter(small_engine(), metrics, slots=2)
    model = Served(writer, NAME)
    app = guarded(gate, Keys(), metrics, Serving(log_prompts=log_prompts), limits)
    app.paths, app.decode = {PATH}, model.vocabulary.decode

    async def within():
        opened = asyncio.create_task(gate.serve(create_app(model, limits), 1.0))
        transport = httpx2.ASGITransport(app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as client:
            await asyncio.sleep(0)
            found = await ask(client, writer, metrics)
        gate.stop()
        await opened
        return found

    try:
        return asyncio.run(within())
    finally:
        writer.close()


@pytest.mark.parametrize("log_prompts", [False, True])
def test_the_tokens_of_each_request_are_logged_and_counted(caplog, log_prompts):
    caplog.set_level("INFO", "smallm_hf.serving")

    async def ask(client, writer, metrics):
        body = {"prompt": ["ab\n", "abcd"], "max_tokens": 3, "n": 2, "logit_bias": {"256": -100}}
        for stream in (False, True):
            assert (await client.post(PATH, json=body | {"stream": stream})).status_code == 200
        registry = metrics.registry.get_sample_value
        assert (registry("smallm_prompt_tokens_total"), registry("smallm_completion_tokens_total")) == (36, 24)
        assert registry("smallm_time_to_first_token_seconds_count") == 8
        assert registry("smallm_seconds_between_tokens_count") == 16
        assert (registry("smallm_slots"), registry("smallm_waiting_texts")) == (2, 0)

    guarded_model(Limits(), ask, log_prompts=log_prompts)
    lines = [record.getMessage() for record in caplog.records if record.name == "smallm_hf.serving"]
    assert len(lines) == 2
    for line in lines:
        assert f"POST {PATH} 200 in=18 out=12 seconds=" in line
        assert line.endswith(r'prompts=["<|end|>ab\n", "<|end|>abcd"]') == log_prompts
        assert ("abcd" in line) == log_prompts


@pytest.mark.parametrize("stream", [False, True])
def test_the_texts_of_an_answer_end_at_its_deadline(slow_steps, stream):
    async def ask(client, writer, metrics):
        body = {"prompt": "ab", "max_tokens": 50, "logit_bias": {"256": -100}, "n": 3, "stream": stream}
        response = await client.post(PATH, json=body)
        until = time.monotonic() + 5
        while (writer.writing or writer.waiting) and time.monotonic() < until:
            await asyncio.sleep(0.01)
        return response, len(writer.writing) + len(writer.waiting)

    response, left = guarded_model(Limits(max_seconds=0.3), ask)
    assert left == 0
    assert response.status_code == (200 if stream else 504)
    assert "has taken longer than 0.3 seconds" in response.text


def test_a_server_cuts_what_has_not_ended_within_its_grace(folder, slow_steps, capsys):
    listener, before, found = bind("127.0.0.1", 0), signal.getsignal(signal.SIGTERM), []
    body = {"prompt": "ab", "max_tokens": 60, "logit_bias": {"256": -100}, "stream": True}

    def use(client):
        while client.get("/ready").status_code != 200:
            time.sleep(0.02)
        with client.stream("POST", PATH, json=body) as response:
            lines = response.iter_lines()
            found.append(next(lines))
            os.kill(os.getpid(), signal.SIGTERM)
            found.extend(lines)

    def use_and_end():
        with httpx2.Client(base_url=address_of(listener), timeout=30) as client:
            try:
                use(client)
            except BaseException:
                os.kill(os.getpid(), signal.SIGTERM)
                raise

    signal.signal(signal.SIGTERM, lambda number, frame: None)  # should the server be gone too early
    try:
        with ThreadPoolExecutor(1) as pool:
            using = pool.submit(use_and_end)
            serve(str(folder), Loading(), PRIVATE, Limits(), Keys(), listener)
            using.result()
    finally:
        signal.signal(signal.SIGTERM, before)
    events = [line.removeprefix("data: ") for line in found if line]
    assert events[-1] == "[DONE]" and 2 < len(events) < 60
    assert "stopping and has cut this answer" in json.loads(events[-2])["error"]["message"]


# --- in a process of its own -----------------------------------------------------------------------------------------


def serving(folder, *options):
    return started("serve", [*SERVE, str(folder), *options], "/ready")


@pytest.mark.slow
def test_the_same_request_has_the_same_text_after_a_kill_under_load(folder):
    asked = {"prompt": "ab", "max_tokens": 40, "seed": 7, "logprobs": 2}
    answers = []
    for _ in range(2):
        with serving(folder, "--compile", "false") as server, ThreadPoolExecutor(8) as pool:

            def ask(body, address=server.address):
                with suppress(httpx2.TransportError):  # those that the kill meets
                    return httpx2.post(address + PATH, json=body, timeout=60).json()["choices"]

            answers.append(ask(asked))
            load = [pool.submit(ask, asked | {"seed": seed}) for seed in range(200)]
            answers.append(load[asked["seed"]].result())
            server.process.send_signal(signal.SIGKILL)
            server.process.wait()
            assert any(one.result() is None for one in load)
    assert answers[0] and all(answer == answers[0] for answer in answers)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_before_the_model_is_loaded_ends_the_process_at_once(folder, number):
    command = [*SERVE, str(folder), "--compile", "false"]
    with started("serve", command, "/health") as server:  # which is answered long before
        server.process.send_signal(number)
        assert server.process.wait(120) == 0  # seconds, but for a machine that is busy


@pytest.mark.slow
def test_requests_of_every_kind_leave_a_server_as_it_was(folder):
    with serving(folder, "--compile", "false") as server:
        found = asyncio.run(soak(server, requests=200, clients=8))
    assert found["wrong"] == [] and found["still_written"] == 0
    assert set(found["statuses"]) == set(KINDS)
    assert found["memory"]["at_the_end"] < 1.2 * found["memory"]["after_a_tenth"]
    assert server.process.returncode == 0


@pytest.mark.slow
def test_a_quick_comparison_of_servers_reports_each_of_them(folder):
    results = json.loads(json.dumps(compare_servers(str(folder), clients=[1, 2], quick=True, say=lambda line: None)))
    assert OURS in results["servers"] and len(results["servers"]) + len(results["left_out"]) == 3
    for loads in results["servers"].values():
        for numbers in loads.values():
            assert numbers["rate"] > 0 and numbers["first"]["p95"] >= numbers["first"]["p50"] > 0
            assert numbers["peak_bytes"] > 2**20
    console = Console(record=True, width=160)
    print_servers(results, console)
    assert "tokens/s" in console.export_text()
