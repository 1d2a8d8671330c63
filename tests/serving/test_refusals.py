"""What cannot be answered is refused in OpenAI's shape, by one readable line, whatever is wrong with it."""

import json
import re

import pytest
from small_server import client_of, served, shared, small_engine
from starlette.testclient import TestClient

from smallm_hf.serving.app import create_app
from smallm_hf.serving.configuration import Limits

COMPLETIONS, CHAT, EMBEDDINGS = "/v1/completions", "/v1/chat/completions", "/v1/embeddings"
HELLO = [{"role": "user", "content": "Hello"}]
NEEDED = {COMPLETIONS: {}, CHAT: {"messages": HELLO}, EMBEDDINGS: {"input": "a"}, "/tokenize": {"prompt": "a"}}
NEEDED["/detokenize"] = {"tokens": [97]}
JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def client():
    return client_of(shared(chats=True))


def error_of(response, status: int) -> dict:
    assert response.status_code == status, response.text
    error = response.json().pop("error")
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == {429: "rate_limit_error", 500: "server_error", 503: "server_error"}.get(
        status, "invalid_request_error"
    )
    assert "\n" not in error["message"] and len(error["message"]) < 400
    return error


# --- wrong values ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "field", "value", "message"),
    [
        *((path, "model", 1, "model: 1 is not valid; give the name of a model") for path in NEEDED),
        *((path, "user", [], "user: .* is not valid") for path in NEEDED),
        *((path, "max_tokens", -1, "max_tokens: -1 is not valid; give a whole number") for path in (COMPLETIONS, CHAT)),
        *((path, "max_tokens", 0, "max_tokens=0 asks for no text at all") for path in (COMPLETIONS, CHAT)),
        (COMPLETIONS, "max_tokens", 1.5, "max_tokens: 1.5 is not valid"),
        (COMPLETIONS, "max_tokens", True, "max_tokens: true is not valid"),
        (COMPLETIONS, "max_tokens", 5000, "max_tokens=5000 is more than the 4096 that this server allows"),
        (COMPLETIONS, "max_tokens", 10**30, "max_tokens=10+ is more than"),
        (COMPLETIONS, "temperature", "hot", 'temperature: "hot" is not valid; give 0, or a number of 0.001 to 100'),
        *((COMPLETIONS, "temperature", value, "temperature: .* is not valid") for value in (-1, 101, 1e-9, "1", True)),
        (COMPLETIONS, "top_p", 0, "top_p=0.0 is out of range; give above 0 and at most 1"),
        (COMPLETIONS, "top_p", "all", 'top_p: "all" is not valid; give a number above 0 and at most 1'),
        (COMPLETIONS, "top_k", -1, "top_k=-1 is out of range"),
        (COMPLETIONS, "top_k", 0.5, "top_k: 0.5 is not valid"),
        (COMPLETIONS, "min_p", 2, "min_p=2.0 is out of range"),
        (COMPLETIONS, "repetition_penalty", 0, "repetition_penalty: 0 is not valid"),
        (COMPLETIONS, "repetition_penalty", 1e300, "repetition_penalty: 1e\\+300 is not valid; give a number of 0.01"),
        (COMPLETIONS, "presence_penalty", 2.5, "presence_penalty.*2.5"),
        (COMPLETIONS, "frequency_penalty", -3, "frequency_penalty.*-3"),
        (COMPLETIONS, "logit_bias", {"a": 1}, 'logit_bias: "a" is not valid; give at most 300 token ids'),
        (COMPLETIONS, "logit_bias", {"-1": 1}, "logit_bias"),
        (COMPLETIONS, "logit_bias", {"1": 101}, "logit_bias.*101"),
        (COMPLETIONS, "logit_bias", {str(number): 1 for number in range(301)}, "logit_bias: .* is not valid"),
        (COMPLETIONS, "logit_bias", {"257": 1}, "token id 257 is outside the model's vocabulary of 257"),
        (COMPLETIONS, "seed", "x", 'seed: "x" is not valid; give a whole number of 64 bits'),
        (COMPLETIONS, "seed", 2**63, "seed: 9223372036854775808 is not valid"),
        *((COMPLETIONS, "stop", value, "stop: .* is not valid") for value in ("", [""], [1], {}, ["a", None])),
        (COMPLETIONS, "stop", ["a"] * 17, "stop strings=17 is more than the 16"),
        (COMPLETIONS, "stop", "a" * 500_000, "characters of a stop string=500000 is more than the 1000"),
        (COMPLETIONS, "n", 0, "n: 0 is not valid"),
        (COMPLETIONS, "n", 10_000, "n=10000 is more than the 16 that this server allows"),
        (COMPLETIONS, "stream", "yes", "stream: \"yes\" is not valid; give true or false"),
        (COMPLETIONS, "stream_options", {"include_usage": 1}, "stream_options: 1 is not valid"),
        (COMPLETIONS, "stream_options", {"include_usage": True}, "stream_options is given without stream=true"),
        (COMPLETIONS, "logprobs", True, "logprobs: true is not valid; give a whole number"),
        (COMPLETIONS, "logprobs", 21, "logprobs=21 is more than the 20 that this server allows"),
        (COMPLETIONS, "echo", 1, "echo: 1 is not valid"),
        (COMPLETIONS, "best_of", 2, "best_of=2 is not n=1"),
        (COMPLETIONS, "suffix", "end", "suffix is not supported: the model goes on with a text"),
        *((COMPLETIONS, "prompt", value, "prompt: .* is not valid; give a text, a list of texts") for value in
          (1, [], [[]], [[], [1]], [1, "a"], ["a", 1], [-1], [1.0], [True], {"a": 1}, None)),
        (COMPLETIONS, "prompt", [257], "token id 257 is outside the model's vocabulary of 257"),
        (COMPLETIONS, "prompt", ["a"] * 65, "65 prompts in one request are more than the 64"),
        (COMPLETIONS, "prompt", "a" * 64, "holds 64 tokens, and 66 were asked for: 65 in the prompt and 1 behind it"),
        (COMPLETIONS, "prompt", "a" * 20_000, "a prompt of 20001 tokens is longer than the 16384"),
        *((CHAT, "messages", value, "messages: .* is not valid; give a list of messages") for value in
          ("Hello", [], [1], [{"role": "robot", "content": "a"}], [{"role": "user"}], [{"role": "user", "content": 1}],
           [{"role": "user", "content": [{"type": "image_url", "image_url": "a"}]}])),
        (CHAT, "messages", [*HELLO, {"role": "system", "content": "a"}], "does not take these messages: system comes"),
        (CHAT, "logprobs", 2, "logprobs: 2 is not valid; give true or false"),
        (CHAT, "top_logprobs", 2, "top_logprobs=2 is given without logprobs=true"),
        (CHAT, "top_logprobs", 21, "top_logprobs=21 is more than the 20"),
        (CHAT, "max_completion_tokens", 0, "max_completion_tokens: 0 is not valid"),
        (CHAT, "tools", [{"type": "function"}], "tools is not supported: the model calls no functions"),
        (CHAT, "response_format", {"type": "json_object"}, "response_format is not supported"),
        (EMBEDDINGS, "input", [], "input: .* is not valid; give a text, a list of texts"),
        (EMBEDDINGS, "input", "a" * 64, "the text takes 65 tokens and the model reads 64; shorten it"),
        (EMBEDDINGS, "encoding_format", "hex", 'encoding_format: "hex" is not valid; give float or base64'),
        (EMBEDDINGS, "dimensions", 5, "dimensions is not supported"),
        ("/tokenize", "prompt", 1, "prompt: 1 is not valid; give a text"),
        ("/tokenize", "parse_special", None, "parse_special: null is not valid"),
        ("/detokenize", "tokens", "a", 'tokens: "a" is not valid; give a list of token ids'),
        ("/detokenize", "tokens", [2**40], "token id 1099511627776 is outside the model's vocabulary"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_named_with_its_field_and_what_to_give(path, field, value, message, client):
    error = error_of(client.post(path, json=NEEDED[path] | {field: value}), 400)
    assert re.search(message, error["message"]), error["message"]


@pytest.mark.parametrize(("path", "field"), [(CHAT, "messages"), (EMBEDDINGS, "input"), ("/detokenize", "tokens")])
def test_a_missing_field_is_named(path, field, client):
    error = error_of(client.post(path, json={}), 400)
    assert error["message"].startswith(f"{field} is missing; give a ")
    assert error["param"] == field


@pytest.mark.parametrize("path", NEEDED)
def test_another_model_is_not_found(path, client):
    error = error_of(client.post(path, json=NEEDED[path] | {"model": "gpt-5"}), 404)
    assert (error["code"], error["param"]) == ("model_not_found", "model")
    assert '"gpt-5" is not served here; user/tiny is' in error["message"]
    assert error_of(client.get("/v1/models/gpt-5"), 404)["code"] == "model_not_found"


@pytest.mark.parametrize("path", NEEDED)
def test_unknown_fields_are_ignored_or_refused_by_a_strict_server(path, client):
    asked = NEEDED[path] | {"zeal": 1, "metadata": {"a": None}}
    assert client.post(path, json=asked).status_code == 200
    strict = client_of(shared(chats=True), strict=True)
    error = error_of(strict.post(path, json=asked), 400)
    assert error["message"] == 'unknown fields: ["metadata", "zeal"]; leave them out'
    assert strict.post(path, json=NEEDED[path]).status_code == 200


# --- bodies that are not what they should be -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "the request has no body"),
        (b"null", "the request has no body|the body is null"),
        (b"[]", r"the body is \[\]; send a JSON object"),
        (b'"text"', 'the body is "text"; send a JSON object'),
        (b"{", "the body is not JSON: "),
        (b"[" * 100_000, "the body is not JSON: "),
        (b'{"n": ' + b"1" * 5000 + b"}", "the body is not JSON: "),
        (b'{"temperature": NaN}', "the body holds NaN, which is not JSON"),
        (b'{"zeal": [-Infinity]}', "the body holds -Infinity, which is not JSON"),
        (b'{"temperature": 1e999}', "temperature: .* is not valid"),
        (b'{"prompt": "\xff"}', "the body is not UTF-8: byte 12 is 0xff"),
        (b'{"prompt": "\\ud83d"}', "the body holds half of a character"),
        (b'{"\\udc00": 1}', "the body holds half of a character"),
    ],
)
def test_a_body_that_is_no_json_object_is_refused(body, message, client):
    for path in NEEDED if body[:2] != b'{"' else (COMPLETIONS,):
        error = error_of(client.post(path, content=body, headers=JSON), 400)
        assert re.match(message, error["message"]), error["message"]


def test_prompts_times_n_are_limited_together(client):
    error = error_of(client.post(COMPLETIONS, json={"prompt": ["a"] * 8, "n": 9}), 400)
    assert "72 texts (8 prompts with n=9) in one request are more than the 64" in error["message"]


def test_whole_characters_may_be_escaped(client):
    body = b'{"prompt": "\\ud83c\\udf83", "echo": true, "max_tokens": 0}'
    assert client.post(COMPLETIONS, content=body, headers=JSON).json()["choices"][0]["text"] == "🎃"


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "", "json"])
def test_a_body_has_to_say_that_it_is_json(kind, client):
    response = client.post(COMPLETIONS, content=b"{}", headers={"Content-Type": kind})
    assert "send Content-Type: application/json" in error_of(response, 415)["message"]
    charset = {"Content-Type": "Application/JSON; charset=utf-8"}
    assert client.post(COMPLETIONS, content=b"{}", headers=charset).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/", 404), ("POST", "/v1/nowhere", 404), ("GET", COMPLETIONS, 405), ("DELETE", "/v1/models/a", 405)],
)
def test_other_paths_and_methods_are_refused(method, path, status, client):
    response = client.request(method, path)
    assert error_of(response, status)["message"].startswith(f"{method} {path}")
    assert ("allow" in response.headers) == (status == 405)


# --- what is nobody's fault ------------------------------------------------------------------------------------------


def test_who_asks_a_busy_server_is_told_to_come_back():
    one = served(slots=1, waiting=2)
    response = client_of(one).post(COMPLETIONS, json={"n": 4})
    assert "4 texts were asked for and there is room for 3" in error_of(response, 429)["message"]
    assert int(response.headers["retry-after"]) >= 1
    one.writer.close()


@pytest.mark.parametrize("asked", [{}, {"stream": True}, {"echo": True, "logprobs": 0, "max_tokens": 0}])
def test_a_writer_that_is_closed_is_no_mistake_of_the_client(asked):
    one = served()
    one.writer.close()
    response = client_of(one).post(COMPLETIONS, json=asked)
    assert "the server is stopping" in error_of(response, 503)["message"]
    assert "retry-after" in response.headers


class Broken(Exception):
    """Raised by a model."""


@pytest.mark.parametrize("asked", [{}, {"stream": True}, {"echo": True, "logprobs": 0, "max_tokens": 0}])
def test_what_we_did_not_foresee_is_told_without_its_secrets(asked, monkeypatch, caplog):
    one = served(small_engine())

    def fail(*args, **options):
        raise Broken("secret")

    monkeypatch.setattr(one.engine, "prepare", fail)
    monkeypatch.setattr(one.engine, "prompt_log_probabilities", fail)
    response = client_of(one).post(COMPLETIONS, json=asked)
    if asked.get("stream"):  # the status has been sent: the last event tells it
        told, done, _ = response.text.split("\n\n")
        error = json.loads(told.removeprefix("data: "))["error"]
        assert done == "data: [DONE]"
    else:
        error = error_of(response, 500)
    assert error["message"] == "the server failed to answer; its log says why"
    assert "Broken: secret" in caplog.text
    one.writer.close()


def test_a_model_without_a_chat_template_says_so():
    error = error_of(client_of(shared()).post(CHAT, json=NEEDED[CHAT]), 400)
    assert error["message"].startswith("user/tiny has no chat template")


def test_the_schema_tells_every_endpoint():
    described = TestClient(create_app(shared(), Limits())).get("/openapi.json").json()
    assert {*NEEDED, "/v1/models", "/health", "/ready", "/props"} <= described["paths"].keys()
    fields = described["components"]["schemas"]["CompletionRequest"]["properties"]
    assert fields["temperature"]["description"] == "0, or a number of 0.001 to 100"
