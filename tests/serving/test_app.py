"""Chats, embeddings, tokens and facts; and clients that leave, or read slowly."""

import asyncio
import base64
import json
import threading

import numpy as np
import pytest
from small_server import EOS, NAME, POSITIONS, client_of, served, shared, small_engine

from smallm_hf import NgramConfig, NgramForCausalLM
from smallm_hf.generation.continuous import Closed
from smallm_hf.generation.engine import Engine
from smallm_hf.generation.request import Request
from smallm_hf.serving.app import create_app
from smallm_hf.serving.configuration import Limits

CHAT = "/v1/chat/completions"
TURNS = [{"role": "system", "content": "be"}, {"role": "user", "content": [{"type": "text", "text": "h"}] * 2}]
WRITTEN_OUT = b"s:be;u:hh;a:"  # by the template


@pytest.fixture(scope="module")
def client():
    return client_of(shared(chats=True))


@pytest.fixture(scope="module")
def engine():
    return small_engine()


def answered(response) -> dict:
    assert response.status_code == 200, response.text
    return response.json()


# --- chats -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_a_chat_goes_on_from_the_template(name, client, engine):
    answer = answered(client.post(CHAT, json={"messages": TURNS, name: 9, "seed": 5, "n": 2}))
    (expected,) = engine.write([Request([*WRITTEN_OUT], max_new_tokens=9, temperature=1.0, seed=5)])
    first, second = answer["choices"]
    assert first["message"] == {"role": "assistant", "content": expected.text}
    assert second["message"]["content"] != expected.text
    assert (first["finish_reason"], first["logprobs"], answer["object"]) == ("length", None, "chat.completion")
    assert answer["usage"] == {"prompt_tokens": 12, "completion_tokens": 18, "total_tokens": 30}


def test_a_chat_may_fill_the_context(client):
    asked = {"messages": TURNS, "seed": 5, "logit_bias": {"256": -100}}
    assert answered(client.post(CHAT, json=asked))["usage"]["total_tokens"] == POSITIONS


def test_a_chat_tells_its_log_probabilities(client, engine):
    asked = {"messages": TURNS, "max_tokens": 9, "seed": 5, "logprobs": True, "top_logprobs": 2}
    (choice,) = answered(client.post(CHAT, json=asked))["choices"]
    (expected,) = engine.write([Request([*WRITTEN_OUT], max_new_tokens=9, temperature=1.0, seed=5, logprobs=2)])
    for told, token in zip(choice["logprobs"]["content"], expected.tokens, strict=True):
        assert told["bytes"] == [token.id]
        assert told["logprob"] == pytest.approx(token.log_probability, abs=1e-5)
        assert [one["bytes"] for one in told["top_logprobs"]] == [[token_id] for token_id, _ in token.alternatives]
    asked.pop("top_logprobs")
    (choice,) = answered(client.post(CHAT, json=asked))["choices"]
    assert [told["top_logprobs"] for told in choice["logprobs"]["content"]] == [[]] * 9


def test_a_streamed_chat_adds_up_to_the_whole_answer(client):
    asked = {"messages": TURNS, "max_tokens": 9, "seed": 5, "logprobs": True, "top_logprobs": 1}
    (whole,) = answered(client.post(CHAT, json=asked))["choices"]
    stream = client.post(CHAT, json=asked | {"stream": True, "stream_options": {"include_usage": True}})
    *lines, done, _ = stream.text.split("\n\n")
    *parts, last = (json.loads(line.removeprefix("data: ")) for line in lines)
    choices = [choice for part in parts for choice in part["choices"]]
    assert (done, last["choices"], last["usage"]["completion_tokens"]) == ("data: [DONE]", [], 9)
    assert {part["object"] for part in parts} == {"chat.completion.chunk"}
    assert [choice["delta"].get("role") for choice in choices] == ["assistant"] + [None] * (len(choices) - 1)
    assert "".join(choice["delta"]["content"] for choice in choices) == whole["message"]["content"]
    told = [token for choice in choices if choice["logprobs"] for token in choice["logprobs"]["content"]]
    assert told == whole["logprobs"]["content"]


# --- embeddings ------------------------------------------------------------------------------------------------------


def test_texts_are_embedded_as_numbers_or_bytes(client, engine):
    expected = [engine.embed([256, *text]) for text in (b"one", b"two")]
    for asked in ({}, {"encoding_format": "float"}, {"encoding_format": "base64"}):
        answer = answered(client.post("/v1/embeddings", json={"input": ["one", "two"], **asked}))
        for index, (told, vector) in enumerate(zip(answer["data"], expected, strict=True)):
            numbers = told["embedding"]
            if asked.get("encoding_format") == "base64":
                numbers = np.frombuffer(base64.b64decode(numbers), "<f4").tolist()
            assert (numbers, told["index"], told["object"]) == (vector.tolist(), index, "embedding")
        assert answer["usage"] == {"prompt_tokens": 8, "total_tokens": 8}
    by_ids = answered(client.post("/v1/embeddings", json={"input": [256, *b"two"]}))
    assert by_ids["data"][0]["embedding"] == expected[1].tolist()


def test_a_model_without_hidden_states_embeds_nothing():
    one = served(Engine(NgramForCausalLM(NgramConfig(vocab_size=257, eos_token_id=256)), shared().engine.tokenizer))
    response = client_of(one).post("/v1/embeddings", json={"input": "a"})
    assert response.status_code == 400
    assert "has no hidden states" in response.json()["error"]["message"]
    one.writer.close()


# --- tokens and facts ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "tokens"),
    [
        ({}, [256, 97, 256]),
        ({"add_special_tokens": False}, [97, 256]),
        ({"add_special_tokens": False, "parse_special": False}, [97, *EOS.encode()]),
    ],
)
def test_texts_become_tokens_and_tokens_texts(asked, tokens, client):
    answer = answered(client.post("/tokenize", json={"prompt": f"a{EOS}", **asked}))
    assert answer == {"tokens": tokens, "count": len(tokens), "max_model_len": POSITIONS}
    start = EOS if not asked else ""
    assert answered(client.post("/detokenize", json={"tokens": tokens})) == {"prompt": f"{start}a{EOS}"}


def test_what_is_served_can_be_asked(client):
    listed = answered(client.get("/v1/models"))
    assert [model["id"] for model in listed["data"]] == [NAME]
    assert answered(client.get(f"/v1/models/{NAME}")) == listed["data"][0]
    assert (answered(client.get("/health")), answered(client.get("/ready"))) == ({"status": "ok"}, {"status": "ready"})
    props = answered(client.get("/props"))
    assert [props[name] for name in ("model", "family", "positions", "trained_length", "vocabulary", "slots")] == [
        *(NAME, "llama", POSITIONS, None, 257, 8)
    ]
    assert (props["limits"]["max_tokens"], props["chat"], "torch" in props["versions"]) == (4096, True, True)
    info = answered(client.get("/tokenizer_info"))
    assert (info["eos_token"], info["bos_token"], "raise_exception" in info["chat_template"]) == (EOS, None, True)


# --- clients that leave, or stand still ------------------------------------------------------------------------------


class Connection:
    """One request to an app, whose client may leave, and read no further than it wants."""

    def __init__(self, app, **asked):
        self.body, self.sent = json.dumps(asked).encode(), []
        self.left, self.reads = asyncio.Event(), asyncio.Event()
        headers = [(b"content-type", b"application/json")]
        scope = {"type": "http", "method": "POST", "path": "/v1/completions", "query_string": b"", "headers": headers}
        scope |= {"asgi": {"version": "3.0", "spec_version": "2.3"}}
        self.answered = asyncio.create_task(app(scope, self.receive, self.send))

    async def receive(self):
        if self.body is not None:
            body, self.body = self.body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message):
        await self.reads.wait()
        self.sent.append(message.get("body", b""))


class Held:
    """A writer whose texts stand still before their tenth token until they may go on."""

    def __init__(self, monkeypatch):
        self.served, self.may_go_on = served(small_engine(), slots=2), threading.Event()
        step = self.served.writer.steps.step

        def slowly():
            if any(job.text.written >= 9 for job in self.served.writer.writing.values()):
                self.may_go_on.wait(30)
            step()

        monkeypatch.setattr(self.served.writer.steps, "step", slowly)

    async def until(self, condition):
        async with asyncio.timeout(30):
            while not condition():
                await asyncio.sleep(0.005)


@pytest.mark.parametrize("stream", [False, True])
def test_who_leaves_ends_the_texts_and_those_that_wait(stream, monkeypatch):
    held = Held(monkeypatch)
    writer = held.served.writer

    async def leave():
        app = create_app(held.served, Limits())
        one = Connection(app, prompt="a", n=5, max_tokens=60, stream=stream, logit_bias={"256": -100})
        one.reads.set()
        await held.until(lambda: len(writer.writing) == 2 and len(writer.waiting) == 3)
        jobs = [*writer.writing.values(), *writer.waiting]
        one.left.set()
        await one.answered
        held.may_go_on.set()
        await held.until(lambda: not writer.writing and not writer.waiting)
        assert max(job.text.written for job in jobs) < 60
        return one.sent

    sent = asyncio.run(leave())
    assert b'finish_reason":"length' not in b"".join(sent)
    writer.close()


def test_a_stream_that_nobody_reads_holds_up_nobody():
    one = served(small_engine(), slots=1)

    async def stand_still():
        app = create_app(one, Limits())
        slow = Connection(app, prompt="a", max_tokens=60, stream=True, seed=1)
        quick = Connection(app, prompt="b", max_tokens=60, seed=1)
        quick.reads.set()
        async with asyncio.timeout(30):
            await quick.answered  # in the only slot, behind the other
        assert slow.sent == []
        slow.reads.set()
        await slow.answered
        return b"".join(slow.sent)

    assert asyncio.run(stand_still()).endswith(b"data: [DONE]\n\n")
    one.writer.close()


def test_what_waits_for_the_model_learns_that_the_writer_was_closed():
    one, may_end = served(small_engine()), threading.Event()
    one.writer.run(lambda: may_end.wait(30))

    async def wait_behind():
        waiting = asyncio.create_task(one.run(lambda: "never"))
        await asyncio.sleep(0)
        closing = asyncio.create_task(asyncio.to_thread(one.writer.close))
        while not one.writer._closed:
            await asyncio.sleep(0.005)
        may_end.set()
        with pytest.raises(Closed):
            await waiting
        await closing

    asyncio.run(wait_behind())
