"""/v1/completions: each field is honoured as the engine honours it, or refused; nothing depends on who asks beside."""

import asyncio
import json
import random

import httpx2
import pytest
from small_server import EOS, NAME, POSITIONS, client_of, served, shared, small_engine, small_model
from writers import engine_of

from smallm_hf.generation.engine import Engine
from smallm_hf.generation.request import LEAST, Request, encode_prompt, seed_of
from smallm_hf.serving import completions
from smallm_hf.serving.app import create_app
from smallm_hf.serving.configuration import Limits

PATH = "/v1/completions"
ASKED = {"prompt": "Once", "max_tokens": 12, "seed": 3}


@pytest.fixture(scope="module")
def client():
    return client_of(shared())


@pytest.fixture(scope="module")
def engine():
    """What writes the expected texts: the same weights, and no server."""
    return small_engine()


def complete(client, **asked):
    response = client.post(PATH, json=ASKED | asked)
    assert response.status_code == 200, response.text
    return response.json()


def texts(answer) -> list[str]:
    assert [choice["index"] for choice in answer["choices"]] == [*range(len(answer["choices"]))]
    return [choice["text"] for choice in answer["choices"]]


def events(response) -> list[dict]:
    """Of a stream, without the last, which says that it is one."""
    assert response.headers["content-type"].startswith("text/event-stream")
    lines = response.text.removesuffix("\n\n").split("\n\n")
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def written(engine: Engine, **settings) -> str:
    (text,) = engine.write(
        [Request(**{"prompt": "Once", "max_new_tokens": 12, "temperature": 1.0, "seed": 3} | settings)]
    )
    return text.text


# --- fields that are honoured ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "settings"),
    [
        ({}, {}),
        ({"model": NAME, "user": "me", "best_of": 1, "logit_bias": {}, "stop": [], "suffix": None}, {}),
        ({"prompt": [79, 110]}, {"prompt": [79, 110]}),
        ({"prompt": ""}, {"prompt": ""}),
        ({"prompt": f"{EOS} é 🎃"}, {"prompt": f"{EOS} é 🎃"}),
        ({"max_tokens": 3}, {"max_new_tokens": 3}),
        ({"max_tokens": None}, {"max_new_tokens": 16}),
        ({"temperature": 0}, {"temperature": 0.0}),
        ({"temperature": 1.7}, {"temperature": 1.7}),
        ({"temperature": None}, {"temperature": 1.0}),
        ({"top_p": 0.5}, {"top_p": 0.5}),
        ({"top_k": 4}, {"top_k": 4}),
        ({"min_p": 0.1}, {"min_p": 0.1}),
        ({"repetition_penalty": 1.8}, {"repetition_penalty": 1.8}),
        ({"presence_penalty": 2, "temperature": 0}, {"presence_penalty": 2.0, "temperature": 0.0}),
        ({"frequency_penalty": -2.0, "temperature": 0}, {"frequency_penalty": -2.0, "temperature": 0.0}),
        ({"logit_bias": {"97": 100}}, {"logit_bias": ((97, 100.0),)}),
        ({"seed": -(2**63)}, {"seed": -(2**63)}),
        ({"stop": "G", "logit_bias": {"71": 9}}, {"stop": ("G",), "logit_bias": ((71, 9.0),)}),
        ({"stop": ["X", "G"], "logit_bias": {"71": 9}}, {"stop": ("X", "G"), "logit_bias": ((71, 9.0),)}),
    ],
    ids=repr,
)
def test_a_field_does_what_the_engine_does_with_it(asked, settings, client, engine):
    assert texts(complete(client, **asked)) == [written(engine, **settings)]


def test_settings_make_a_difference(engine):
    """Or the test above would pass where they are dropped."""
    changes = [{"top_p": 0.5}, {"top_k": 4}, {"min_p": 0.1}, {"repetition_penalty": 1.8}, {"temperature": 1.7}]
    assert len({written(engine, **change, max_new_tokens=40) for change in [{}, *changes]}) == 1 + len(changes)


def test_the_answer_says_how_it_ended_and_what_it_cost(client):
    answer = complete(client, prompt=["Once", "On"], logit_bias={"71": 100}, stop="GG", n=2)
    assert [choice["finish_reason"] for choice in answer["choices"]] == ["stop"] * 4
    assert answer["usage"] == {"prompt_tokens": 5 + 3, "completion_tokens": 8, "total_tokens": 16}
    assert (answer["object"], answer["model"], texts(answer)) == ("text_completion", NAME, [""] * 4)
    assert complete(client)["choices"][0]["finish_reason"] == "length"
    assert complete(client, logit_bias={"256": 100})["usage"]["completion_tokens"] == 1


def test_several_prompts_have_the_texts_that_each_has_alone(client):
    for prompts in (["Once", "A", ""], [[79, 110], [65]]):
        alone = [text for prompt in prompts for text in texts(complete(client, prompt=prompt, n=2))]
        assert texts(complete(client, prompt=prompts, n=2)) == alone


def test_n_texts_differ_and_can_be_repeated(client, engine):
    first = texts(complete(client, n=3))
    assert first == [written(engine, seed=seed) for seed in (3, seed_of(3, 1), seed_of(3, 2))]
    assert len(set(first)) == 3


def test_without_a_seed_the_answer_tells_the_one_that_repeats_it(client):
    answer = complete(client, seed=None, n=2)
    assert answer["seed"] != complete(client, seed=None)["seed"]
    assert texts(complete(client, seed=answer["seed"], n=2)) == texts(answer)


def test_a_prompt_may_fill_the_context_and_no_more(client):
    full = [97] * (POSITIONS - 12)
    assert complete(client, prompt=full)["usage"]["total_tokens"] == POSITIONS
    response = client.post(PATH, json=ASKED | {"prompt": [*full, 97]})
    assert (response.status_code, response.json()["error"]["code"]) == (400, "context_length_exceeded")
    assert f"holds {POSITIONS} tokens, and {POSITIONS + 1} were asked for" in response.json()["error"]["message"]
    assert complete(client, prompt=[97] * (POSITIONS - 2), max_tokens=None)["usage"]["completion_tokens"] == 2


@pytest.mark.parametrize("kind", ["smallm", "classic", "gpt2", "recurrent", "feedforward", "ngram"])
def test_every_family_is_served_alike(kind):
    engine, one = engine_of(kind), served(engine_of(kind))
    asked = {"prompt": "a cab", "temperature": 0, "echo": True, "logprobs": 1}
    (choice,) = complete(client_of(one), **asked)["choices"]
    (expected,) = engine.write([Request("a cab", max_new_tokens=12, temperature=0.0, logprobs=1)])
    told = choice["logprobs"]["token_logprobs"]
    before = [value for value, _ in engine.prompt_log_probabilities(encode_prompt(engine.tokenizer, "a cab"))]
    assert choice["text"] == f"a cab{expected.text}"
    assert told == pytest.approx([*before, *(token.log_probability for token in expected.tokens)], abs=1e-5)
    one.writer.close()


def test_a_model_without_positions_has_no_context_to_fill():
    one = served(engine_of("recurrent"))
    answer = complete(client_of(one), prompt="a" * 99, max_tokens=99, logit_bias={"0": -100})
    assert answer["usage"]["total_tokens"] == 100 + 99
    one.writer.close()


def test_a_prompt_whose_logits_would_fill_the_memory_is_refused(monkeypatch, client):
    monkeypatch.setattr(completions, "MAX_LOGITS", 257 * 4)
    assert texts(complete(client, prompt=[97] * 4, echo=True, logprobs=0, max_tokens=0)) == ["aaaa"]
    response = client.post(PATH, json=ASKED | {"prompt": [97] * 5, "echo": True, "logprobs": 0})
    assert "told up to 4 tokens, and this has 5" in response.json()["error"]["message"]


# --- log-probabilities -----------------------------------------------------------------------------------------------


def test_what_is_written_is_told_with_its_log_probabilities(client, engine):
    (choice,) = complete(client, logprobs=2)["choices"]
    (expected,) = engine.write([Request("Once", max_new_tokens=12, temperature=1.0, seed=3, logprobs=2)])
    told = choice["logprobs"]
    assert told["token_logprobs"] == pytest.approx([token.log_probability for token in expected.tokens], abs=1e-5)
    for token, shown, log_probability, named in zip(
        expected.tokens, told["tokens"], told["token_logprobs"], told["top_logprobs"], strict=True
    ):
        best = [value for _, value in token.alternatives]
        assert [*named.values()][:2] == pytest.approx(best, abs=1e-5)
        assert named[shown] == log_probability
        assert len(named) == 2 + (token.id not in dict(token.alternatives))
    assert complete(client)["choices"][0]["logprobs"] is None
    assert [len(named) for named in complete(client, logprobs=0)["choices"][0]["logprobs"]["top_logprobs"]] == [1] * 12


@pytest.mark.parametrize("prompt", ["Où 🎃?", [*"Où 🎃?".encode(), 256, 0xC3]], ids=["text", "tokens"])
def test_echo_tells_the_prompt_with_its_log_probabilities(prompt, client, engine):
    (choice,) = complete(client, prompt=prompt, echo=True, logprobs=1)["choices"]
    ids = [256, *prompt.encode()] if isinstance(prompt, str) else prompt
    expected = engine.prompt_log_probabilities(ids)
    told, hidden = choice["logprobs"], isinstance(prompt, str)
    assert choice["text"].startswith("Où 🎃?")
    assert told["tokens"][:5] == ["O", "bytes:\\xc3", "bytes:\\xb9", " ", "bytes:\\xf0"]
    assert told["text_offset"][:9] == [0, 1, 1, 2, 3, 3, 3, 3, 4]
    assert {len(values) for values in told.values()} == {len(ids) - hidden + 12}
    if hidden:  # behind the start token, which is not told of
        assert told["token_logprobs"][: len(ids) - 1] == [value for value, _ in expected]
    else:
        assert (told["token_logprobs"][0], told["top_logprobs"][0]) == (None, None)
        assert told["token_logprobs"][1 : len(ids)] == [value for value, _ in expected]
        assert told["tokens"][-14:-12] == [EOS, "bytes:\\xc3"]
    for log_probability, named in zip(told["token_logprobs"][1:], told["top_logprobs"][1:], strict=True):
        assert log_probability in named.values()


def test_no_token_asks_for_the_prompt_alone(client):
    answer = complete(client, prompt=["Once", "On"], echo=True, max_tokens=0, logprobs=1, n=2)
    assert texts(answer) == ["Once", "Once", "On", "On"]
    assert answer["usage"] == {"prompt_tokens": 8, "completion_tokens": 0, "total_tokens": 8}
    assert {choice["finish_reason"] for choice in answer["choices"]} == {"length"}
    assert texts(complete(client, echo=True, max_tokens=0)) == ["Once"]


def test_tokens_that_look_alike_keep_their_names_and_no_probability_is_a_finite_number():
    model = small_model()
    model.resize_token_embeddings(259)  # two more than the tokenizer has
    model.lm_head.weight[1:] = 0
    model.lm_head.weight[:1] = float("inf") * model.lm_head.weight[:1].sign()
    one = served(Engine(model, shared().engine.tokenizer))
    asked = {"prompt": [97, 257, 98], "echo": True, "logprobs": 20, "max_tokens": 0}
    (choice,) = complete(client_of(one), **asked)["choices"]
    assert choice["logprobs"]["tokens"] == ["a", "token_id:257", "b"]
    assert len(choice["logprobs"]["top_logprobs"][1]) in (20, 21)
    values = [value for named in choice["logprobs"]["top_logprobs"][1:] for value in named.values()]
    assert min(values) == LEAST
    one.writer.close()


# --- streams ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "asked", [{}, {"logprobs": 1, "n": 2}, {"echo": True, "logprobs": 1, "prompt": ["é", "b"]}], ids=repr
)
def test_a_stream_adds_up_to_the_whole_answer(asked, client):
    whole = complete(client, **asked)
    parts = events(client.post(PATH, json=ASKED | asked | {"stream": True}))
    assert {(part["object"], part["model"], part["seed"]) for part in parts} == {("text_completion", NAME, 3)}
    for choice in whole["choices"]:
        mine = [one for part in parts for one in part["choices"] if one["index"] == choice["index"]]
        assert "".join(one["text"] for one in mine) == choice["text"]
        assert [one["finish_reason"] for one in mine] == [None] * (len(mine) - 1) + [choice["finish_reason"]]
        for name, values in (choice["logprobs"] or {}).items():
            assert [value for one in mine for value in one["logprobs"][name]] == values


def test_a_stream_tells_its_usage_where_that_is_asked_for(client):
    *parts, last = events(client.post(PATH, json=ASKED | {"stream": True, "stream_options": {"include_usage": True}}))
    assert (last["choices"], last["usage"]) == ([], complete(client)["usage"])
    assert [part["usage"] for part in parts] == [None] * len(parts)


# --- beside others ---------------------------------------------------------------------------------------------------


def test_sixteen_clients_at_once_get_what_each_gets_alone(client):
    asked = [
        ASKED | {"prompt": "ab"[number % 2] * number, "seed": number, "logprobs": number % 3, "n": 1 + number % 2}
        for number in range(16)
    ]
    alone = [client.post(PATH, json=one).json()["choices"] for one in asked]

    async def all_at_once(numbers):
        transport = httpx2.ASGITransport(create_app(shared(), Limits()))
        async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as many:
            answers = await asyncio.gather(*(many.post(PATH, json=asked[number]) for number in numbers))
        return [answer.json()["choices"] for answer in answers]

    for seed in (0, 1):
        numbers = random.Random(seed).sample(range(16), 16)
        assert asyncio.run(all_at_once(numbers)) == [alone[number] for number in numbers]
