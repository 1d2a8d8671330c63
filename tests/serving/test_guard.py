"""What stands before the API, around an app of three lines: what is let through, and what a client is told instead."""

import asyncio
import json
from base64 import b64encode
from contextlib import suppress

import httpx2
import pytest
from starlette.applications import Starlette
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route

from smallm_hf.serving.configuration import Limits, Serving
from smallm_hf.serving.guard import Gate, guarded
from smallm_hf.serving.keys import Keys
from smallm_hf.serving.observing import Metrics

LIMITS = Limits(max_body_bytes=1000, max_receive_seconds=0.5)


class Model:
    """Writes words as long as nobody ends it, and knows who did."""

    def __init__(self):
        self.ended_early, self.begun = [], asyncio.Queue()

    async def write(self, request):
        self.begun.put_nowait(request.url.path)
        try:
            await asyncio.sleep(float((await request.json())["seconds"]))
        except asyncio.CancelledError:
            self.ended_early.append(request.url.path)
            raise
        return JSONResponse({"text": "word"})

    async def stream(self, request):
        async def words():
            yield 'data: {"text": "word"}\n\n'
            await self.write(request)
            yield "data: [DONE]\n\n"

        return StreamingResponse(words(), media_type="text/event-stream")

    @property
    def app(self):
        paths = {"/v1/write": self.write, "/v1/stream": self.stream, "/health": self.ready, "/ready": self.ready}
        return Starlette(routes=[Route(path, answer, methods=["GET", "POST"]) for path, answer in paths.items()])

    async def ready(self, request):
        return JSONResponse({"status": "ok"})


class Server:
    """All of it without a socket."""

    def __init__(self, serving=None, limits=LIMITS, keys=()):
        self.gate, self.model, self.metrics = Gate(limits.max_seconds), Model(), Metrics()
        self.app = guarded(self.gate, Keys(keys), self.metrics, serving or Serving(), limits)
        self.client = httpx2.AsyncClient(transport=httpx2.ASGITransport(self.app), base_url="http://localhost:8000")

    async def ask(self, method="POST", path="/v1/write", **given):
        given = {"json": {"seconds": 0}} | given if method == "POST" and "content" not in given else given
        return await self.client.request(method, path, **given)

    async def open(self, grace_seconds=5.0):
        """Gives what ends when the server has."""
        opened = asyncio.create_task(self.gate.serve(self.model.app, grace_seconds))
        await asyncio.sleep(0)
        return opened


def answers(*asked, **server):
    """What a server answers to requests, one after the other."""

    async def ask():
        one = Server(**server)
        opened = await one.open()
        found = [await one.ask(**request) for request in asked]
        one.gate.stop()
        await opened
        return found

    return asyncio.run(ask())


def error_of(response, status):
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == ("server_error" if status >= 500 else "invalid_request_error")
    return error["message"]


# --- keys ------------------------------------------------------------------------------------------------------------

KEYS = ("first-key", "second-key")


@pytest.mark.parametrize("sent", ["Bearer first-key", "bearer second-key", "Bearer  second-key "])
def test_any_of_the_keys_opens(sent):
    (response,) = answers({"headers": {"Authorization": sent}}, keys=KEYS)
    assert response.json() == {"text": "word"}


def basic(words):
    return f"Basic {b64encode(words.encode('latin-1')).decode()}"


NO_KEY = [None, "", "first-key", "Bearer", "Bearer first", "Bearer f\xe9", basic("anybody:first-key")]


@pytest.mark.parametrize("sent", NO_KEY)
def test_nothing_else_opens(sent):
    headers = [] if sent is None else [("Authorization", sent.encode("latin-1"))]
    (response,) = answers({"headers": headers}, keys=KEYS)
    assert "Authorization: Bearer KEY" in error_of(response, 401)
    assert response.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("words", ["first-key", "first-key:", "any:first", ":f\xe9", "", "anybody:first-key"])
def test_a_page_takes_a_key_as_a_password_as_browsers_ask_for_it(words):
    headers = {"Authorization": basic(words)}
    found = answers(*({"method": "GET", "path": path, "headers": headers} for path in ("/", "/demo/x")), keys=KEYS)
    for response in found:
        assert response.status_code == (404 if words == "anybody:first-key" else 401)  # there is no page here
        assert response.headers.get("www-authenticate", "Basic").startswith("Basic")


def test_who_watches_the_server_needs_no_key():
    asked = [{"method": "GET", "path": path} for path in ("/health", "/ready", "/metrics", "/v1/nowhere", "/")]
    assert [response.status_code for response in answers(*asked, keys=KEYS)] == [200, 200, 401, 401, 401]


# --- browsers --------------------------------------------------------------------------------------------------------

PAGE = "https://example.org"


@pytest.mark.parametrize(
    ("host", "status"),
    [
        *((host, 200) for host in ("localhost", "LOCALHOST:1", "127.0.0.1:8000", "[::1]:8000", "127.0.0.2")),
        *((host, 403) for host in ("example.org", "localhost.example.org", "127.0.0.1.example.org:8000", "", "[::1")),
    ],
)
def test_a_private_server_answers_to_its_own_names_alone(host, status):
    (response,) = answers({"headers": {"Host": host}}, serving=Serving(host="127.0.0.2"))
    assert response.status_code == status
    if status == 403:
        assert "localhost" in error_of(response, 403)


def test_a_server_in_the_open_may_have_any_name():
    (response,) = answers({"headers": {"Host": "models.example.org"}}, serving=Serving(host="0.0.0.0"))
    assert response.status_code == 200


@pytest.mark.parametrize("origin", [PAGE, "null", "http://localhost:9999", "http://[", "http://localhost"])
def test_pages_of_other_origins_are_refused(origin):
    (response,) = answers({"headers": {"Origin": origin}})
    assert "may not ask; start the server with --allow_origin" in error_of(response, 403)


def test_the_own_pages_of_a_server_may_ask():
    (response,) = answers({"headers": {"Origin": "http://localhost:8000"}})
    assert response.status_code == 200 and "access-control-allow-origin" not in response.headers


def test_pages_of_an_allowed_origin_may_ask_with_a_key():
    before = {"Origin": PAGE, "Access-Control-Request-Method": "POST"}
    before |= {"Access-Control-Request-Headers": "authorization,content-type"}
    wrong = {"Origin": PAGE, "Authorization": "Bearer wrong"}
    asked = [{"method": "OPTIONS", "headers": before}, {"headers": wrong}, {"headers": {"Origin": f"{PAGE}:1"}}]
    preflight, refused, other = answers(*asked, serving=Serving(allow_origin=[PAGE]), keys=KEYS)
    assert (preflight.status_code, refused.status_code, other.status_code) == (200, 401, 403)
    for response in (preflight, refused):
        assert response.headers["access-control-allow-origin"] == PAGE


# --- bodies ----------------------------------------------------------------------------------------------------------


async def chunks(number, size=100, seconds=0.0):
    for _ in range(number):
        await asyncio.sleep(seconds)
        yield b" " * size


def test_a_body_may_be_as_long_as_is_allowed():
    body = json.dumps({"seconds": 0}).encode()
    (response,) = answers({"content": body + b" " * (1000 - len(body))})
    assert response.status_code == 200


@pytest.mark.parametrize("content", [b" " * 1001, chunks(11)], ids=["announced", "in chunks"])
def test_a_body_that_is_too_large_is_refused(content):
    (response,) = answers({"content": content})
    assert "more than 1,000 bytes" in error_of(response, 413)


def test_a_body_that_does_not_arrive_is_not_waited_for():
    (response,) = answers({"content": chunks(20, size=1, seconds=0.1)})
    assert "not arrived within 0.5 seconds" in error_of(response, 408)


# --- beginning, deadline and end -------------------------------------------------------------------------------------


def test_until_the_model_is_loaded_only_health_is_answered():
    async def ask():
        server = Server()
        asked = [("GET", "/health"), ("GET", "/ready"), ("POST", "/v1/write"), ("GET", "/")]
        return [await server.ask(*one) for one in asked]

    health, *others = asyncio.run(ask())
    assert health.status_code == 200
    for response in others:
        assert "still being loaded" in error_of(response, 503)
        assert int(response.headers["retry-after"]) > 0


@pytest.mark.parametrize("stopping", [False, True])
def test_an_answer_is_cut_at_its_deadline_and_when_the_grace_is_over(stopping):
    status, reason = (503, "the server is stopping") if stopping else (504, "longer than 0.5 seconds")

    async def ask():
        server = Server(limits=Limits(max_seconds=60 if stopping else 0.5))
        opened = await server.open(grace_seconds=0.1)
        asked = [server.ask(path=path, json={"seconds": 30}) for path in ("/v1/write", "/v1/stream")]
        waiting = asyncio.gather(*asked)
        for _ in asked:
            await server.model.begun.get()
        if stopping:
            server.gate.stop()
        found = await waiting
        server.gate.stop()
        await opened
        return server, found

    server, (whole, stream) = asyncio.run(ask())
    assert sorted(server.model.ended_early) == ["/v1/stream", "/v1/write"]
    assert reason in error_of(whole, status)
    first, error, done, end = stream.text.split("\n\n")
    assert (first, done, end) == ('data: {"text": "word"}', "data: [DONE]", "")
    assert reason in json.loads(error.removeprefix("data: "))["error"]["message"]


def test_what_runs_may_finish_while_nothing_new_is_begun():
    async def ask():
        server = Server(limits=Limits())
        opened = await server.open()
        running = asyncio.create_task(server.ask(json={"seconds": 0.2}))
        await server.model.begun.get()
        server.gate.stop()
        found = [await server.ask(*one) for one in (("POST",), ("GET", "/ready"), ("GET", "/health"))]
        found.append(await running)
        await asyncio.wait_for(opened, 5)
        return found

    refused, ready, health, finished = asyncio.run(ask())
    assert "stopping" in error_of(refused, 503) and "stopping" in error_of(ready, 503)
    assert refused.headers["retry-after"]
    assert (health.status_code, finished.json()) == (200, {"text": "word"})


def test_a_reader_that_stands_still_holds_up_neither_the_deadline_nor_the_end(monkeypatch):
    monkeypatch.setattr("smallm_hf.serving.guard.FAREWELL_SECONDS", 0.05)

    async def ask():
        server = Server(limits=Limits(max_seconds=0.2))
        opened = await server.open()
        body = [{"type": "http.request", "body": b'{"seconds": 0}', "more_body": False}]

        async def receive():
            return body.pop() if body else await asyncio.Event().wait()

        async def send(message):
            if message["type"] == "http.response.body":
                await asyncio.Event().wait()

        headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
        scope = {"type": "http", "method": "POST", "path": "/v1/stream", "headers": headers, "query_string": b""}
        with suppress(OSError):
            await asyncio.wait_for(server.app(scope, receive, send), 5)
        assert not server.gate.running
        server.gate.stop()
        await asyncio.wait_for(opened, 5)

    asyncio.run(ask())


# --- what is seen of it ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", ["mine-1", "a" * 129, "a b", 'x"y', ""])
def test_a_sane_request_id_is_kept_and_any_other_replaced(given, caplog):
    caplog.set_level("INFO", "smallm_hf.serving")
    (response,) = answers({"headers": {"X-Request-Id": given}})
    named = response.headers["x-request-id"]
    assert (named == given) == (given == "mine-1")
    assert named and f"{named} POST /v1/write 200 in=0 out=0 seconds=0." in caplog.text


def test_nothing_a_client_sends_begins_a_line_of_the_log(caplog):
    caplog.set_level("INFO", "smallm_hf.serving")
    answers({"path": "/v1/%0Aforged%20line", "headers": {"X-Request-Id": "x y"}})
    (record,) = [record for record in caplog.records if record.name == "smallm_hf.serving"]
    assert "/v1/%0Aforged%20line 404" in record.getMessage() and "\n" not in record.getMessage()


def test_requests_are_counted_by_known_paths_and_status():
    async def ask():
        server = Server()
        server.app.paths = {"/v1/write"}
        opened = await server.open()
        for path in ("/v1/write", "/v1/write", "/v1/nonsense-1", "/v1/nonsense-2"):
            await server.ask(path=path)
        await server.ask(headers={"Host": "example.org"})
        server.gate.stop()
        await opened
        return {
            tuple(sample.labels.values()): sample.value
            for metric in server.metrics.requests.collect()
            for sample in metric.samples
            if sample.name.endswith("_total")
        }

    assert asyncio.run(ask()) == {("/v1/write", "200"): 2, ("other", "404"): 2, ("/v1/write", "403"): 1}
