"""Programs that others wrote ask the API over a socket, as they ask OpenAI's: its client, and lm_eval."""

import asyncio
import json
import random
from contextlib import contextmanager

import pytest
from small_server import NAME, byte_tokenizer, served, shared, small_engine, small_model

from smallm_hf.serving.app import create_app
from smallm_hf.serving.configuration import Limits
from smallm_hf.serving.listening import address_of, bind, listening

pytestmark = pytest.mark.ecosystem
PAIRS = [("the cat sleeps.", "the cat sleep."), ("où est-il?", "où sont-il?"), ("she likes it.", "she like it.")]
TEXTS = ["Once upon a time.", "Ü, said the  owl.\nNobody answered.", "one sheep, two sheep, " * 9]  # the last is long


@contextmanager
def listening_to(one):
    limits, listener = Limits(), bind("127.0.0.1", 0)
    with listening(create_app(one, limits), listener, limits):
        yield address_of(listener)


@pytest.fixture(scope="module")
def address():
    with listening_to(shared(chats=True)) as address:
        yield address


@pytest.fixture
def openai(address):
    library = pytest.importorskip("openai", reason="openai is not installed: pip install -e .[test-ecosystem]")
    with library.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client:
        client.library = library
        yield client


ASKED = {"model": NAME, "prompt": "Once", "max_tokens": 9, "seed": 3}
TALK = {"model": NAME, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 9, "seed": 3}


def test_the_client_of_openai_reads_every_answer(openai):
    assert [model.id for model in openai.models.list()] == [NAME]
    assert openai.models.retrieve(NAME).id == NAME
    whole = openai.completions.create(**ASKED, logprobs=1, echo=True)
    assert whole.choices[0].text.startswith("Once")
    assert len(whole.choices[0].logprobs.token_logprobs) == 4 + 9
    parts = [*openai.completions.create(**ASKED, stream=True, stream_options={"include_usage": True})]
    text = "".join(choice.text for part in parts for choice in part.choices)
    assert (f"Once{text}", parts[-1].usage) == (whole.choices[0].text, whole.usage)
    talk = openai.chat.completions.create(**TALK, logprobs=True, top_logprobs=2).choices[0]
    assert len(talk.logprobs.content[0].top_logprobs) == 2
    parts = [part.choices[0].delta.content for part in openai.chat.completions.create(**TALK, stream=True)]
    assert "".join(parts) == talk.message.content
    one, two = (
        openai.embeddings.create(model=NAME, input="Once", encoding_format=kind) for kind in ("float", "base64")
    )
    assert len(one.data[0].embedding) == 16
    packed = openai.embeddings.create(model=NAME, input="Once")  # the client asks for base64 and unpacks it
    assert packed.data[0].embedding == pytest.approx(one.data[0].embedding)
    assert isinstance(two.data[0].embedding, str)


def test_the_client_of_openai_raises_its_own_errors(openai):
    library = openai.library
    with pytest.raises(library.BadRequestError, match="max_tokens: -1 is not valid"):
        openai.completions.create(**ASKED | {"max_tokens": -1})
    with pytest.raises(library.NotFoundError, match='"gpt-5" is not served here'):
        openai.completions.create(**ASKED | {"model": "gpt-5"})


def test_a_client_that_closes_its_stream_ends_the_text():
    openai = pytest.importorskip("openai", reason="openai is not installed: pip install -e .[test-ecosystem]")
    one = served(small_engine(), slots=1)
    one.engine.limit = None  # so that the text outlives the stream, were it not ended
    with listening_to(one) as address, openai.OpenAI(base_url=f"{address}/v1", api_key="none") as client:
        stream = client.completions.create(**ASKED | {"max_tokens": 4000}, stream=True)
        next(iter(stream))
        (job,) = one.writer.writing.values()
        stream.close()
        assert job.cancelled.wait(30)
    one.writer.close()


# --- lm_eval ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tasks(tmp_path_factory) -> list[dict]:
    """Of minimal pairs, as its template for BLiMP has them, and of the perplexity of texts."""
    folder = tmp_path_factory.mktemp("tasks")
    pairs = [{"sentence_good": good, "sentence_bad": bad} for good, bad in PAIRS]
    for name, lines in (("pairs", pairs), ("texts", [{"text": text} for text in TEXTS])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return [
        {
            **{"task": "pairs", "dataset_path": "json", "validation_split": "train", "output_type": "multiple_choice"},
            **{"dataset_kwargs": {"data_files": {"train": str(folder / "pairs.jsonl")}}},
            **{"doc_to_text": "", "doc_to_target": 0, "doc_to_choice": "{{[sentence_good, sentence_bad]}}"},
            **{"metric_list": [{"metric": "acc"}]},
        },
        {
            **{"task": "texts", "dataset_path": "json", "test_split": "test", "output_type": "loglikelihood_rolling"},
            **{"dataset_kwargs": {"data_files": {"test": str(folder / "texts.jsonl")}}},
            **{"doc_to_text": "", "doc_to_target": "{{text}}", "metric_list": [{"metric": "bits_per_byte"}]},
        },
    ]


@pytest.mark.parametrize("options", ["", ",num_concurrent=3,batch_size=2"])
def test_lm_eval_finds_through_the_api_what_it_finds_in_the_model(options, address, tasks, tmp_path):
    lm_eval = pytest.importorskip("lm_eval", reason="lm_eval is not installed: pip install -e .[test-ecosystem]")
    small_model().save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    silent = {"bootstrap_iters": 0, "log_samples": True}
    # Its windows over an API are two tokens shorter than over a model: one is for what is written.
    found = [
        lm_eval.simple_evaluate(
            "hf", f"pretrained={tmp_path},dtype=float32,max_length=62", tasks=tasks, device="cpu", **silent
        ),
        lm_eval.simple_evaluate(
            "local-completions",
            f"model={NAME},base_url={address}/v1/completions,max_length=64{options}",
            tasks=tasks,
            **silent,
        ),
    ]
    for task, count in (("pairs", len(PAIRS)), ("texts", len(TEXTS))):
        theirs, ours = ([one["resps"] for one in result["samples"][task]] for result in found)
        assert len(theirs) == len(ours) == count
        for one, other in zip(theirs, ours, strict=True):
            flat = [[value for choice in item for value in _values(choice)] for item in (one, other)]
            assert flat[1] == pytest.approx(flat[0], abs=2e-4)
        assert ours != [[]] * count
    assert found[0]["results"]["pairs"]["acc,none"] == found[1]["results"]["pairs"]["acc,none"]


def _values(answer) -> list[float]:
    """The numbers in one response, however deep it is."""
    if isinstance(answer, list | tuple):
        return [value for one in answer for value in _values(one)]
    return [float(answer)]


# --- many clients ----------------------------------------------------------------------------------------------------


def test_a_hundred_requests_in_any_order_have_the_answers_they_have_alone(address):
    httpx2 = pytest.importorskip("httpx2")
    asked = [
        {"prompt": "abc"[: number % 4], "max_tokens": 1 + number % 40, "seed": number, "logprobs": number % 2}
        for number in range(100)
    ]

    async def answers(numbers, at_once: int):
        may_ask = asyncio.Semaphore(at_once)

        async def ask(client, number):
            async with may_ask:
                return (await client.post("/v1/completions", json=asked[number])).json()["choices"]

        async with httpx2.AsyncClient(base_url=address, timeout=300) as client:
            return await asyncio.gather(*(ask(client, number) for number in numbers))

    alone = asyncio.run(answers(range(100), 1))
    numbers = random.Random(0).sample(range(100), 100)
    assert asyncio.run(answers(numbers, 32)) == [alone[number] for number in numbers]
