"""Continuous batching: a text is the same to the bit whoever else is served, and no error ends the thread."""

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future
from contextlib import closing, contextmanager

import pytest
import torch
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, LlamaConfig, LlamaForCausalLM
from writers import ANSWERERS, POSITIONS, SIZES, TOKENS, WRITERS, engine_of, requests_for

from smallm_hf.generation import slots
from smallm_hf.generation.continuous import Busy, Closed, ContinuousWriter
from smallm_hf.generation.engine import Engine
from smallm_hf.generation.request import Request, Token
from smallm_hf.generation.slots import SingleSteps, Slots, has_slots

IN_SLOTS = ("llama", "smallm", "classic", "odd", "gpt2")


@pytest.fixture
def two_threads():
    """What a text is must not depend on the thread that its slot falls to."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


class Taken:
    """Takes a text."""

    def __init__(self) -> None:
        self.tokens: list[Token] = []
        self.ended: Future[None] = Future()

    def __call__(self, token: Token | BaseException | None) -> None:
        """Called by the writer."""
        if isinstance(token, Token):
            self.tokens.append(token)
        elif token is None:
            self.ended.set_result(None)
        else:
            self.ended.set_exception(token)

    def all(self) -> tuple[Token, ...]:
        """Waits for the end."""
        self.ended.result(timeout=60)
        return tuple(self.tokens)


def write(writer: ContinuousWriter, requests: list[Request]) -> list[tuple[Token, ...]]:
    """The texts of requests that are made at once."""
    taken = [Taken() for _ in requests]
    writer.submit(requests, taken)
    return [one.all() for one in taken]


def varied(kind: str) -> list[Request]:
    """Requests with everything that one can ask for."""
    reads = {"source" if kind in ANSWERERS else "prompt": "a cab"}
    most = {"max_new_tokens": 20, "seed": 7, "logprobs": 1}
    return [
        *requests_for(kind, logprobs=2),
        Request(**reads, **most, stop=("b", "cd"), min_new_tokens=20),
        Request(**reads, **most, presence_penalty=1.5, frequency_penalty=0.5, logit_bias=((3, 2.0), (4, -100.0))),
        Request(**reads, **most, min_p=0.2, temperature=1.5),
    ]


# --- the same bits ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [*WRITERS, *ANSWERERS])
def test_a_text_has_the_same_bits_alone_in_any_slot_beside_any_others_and_after_a_restart(kind, two_threads):
    engine, requests = engine_of(kind), varied(kind)
    if kind not in IN_SLOTS:
        requests = requests[2:4]
    with closing(ContinuousWriter(engine, slots=3)) as writer:
        assert isinstance(writer.steps, Slots if kind in IN_SLOTS else SingleSteps)
        alone = [write(writer, [request])[0] for request in requests]
    with closing(ContinuousWriter(engine_of(kind), slots=3)) as writer:
        order = (3, 0, 6, 0, 0, 5, 1, 4, 2) if kind in IN_SLOTS else (1, 0, 0, 1)
        assert write(writer, [requests[number] for number in order]) == [alone[number] for number in order]
    assert max(map(len, alone)) >= 20 and len({text[0].log_probability for text in alone}) > 1
    if kind not in IN_SLOTS:
        assert alone == [engine.write([request])[0].tokens for request in requests]


@pytest.mark.parametrize("kind", ["odd", "gpt2"])
def test_slots_write_what_the_engine_writes_where_rounding_decides_nothing(kind):
    engine, requests = engine_of(kind), varied(kind)
    engine.model.double()
    with closing(ContinuousWriter(engine)) as writer:
        assert write(writer, requests) == [engine.write([request])[0].tokens for request in requests]


def test_a_step_reads_no_more_places_than_its_texts_need_and_no_bit_depends_on_that(monkeypatch):
    monkeypatch.setitem(POSITIONS, "max_position_embeddings", 200)
    read = []
    with closing(ContinuousWriter(engine_of("llama"))) as writer:
        sizes, read_places = writer.steps.sizes, writer.steps._read_places
        assert sizes[-1] == 200 and set(sizes) <= {64, 128, 200}
        monkeypatch.setattr(writer.steps, "_read_places", lambda size: read.append(size) or read_places(size))
        short = Request("abba", max_new_tokens=9, min_new_tokens=9, logprobs=1)
        (alone,) = write(writer, [short])
        assert read == [sizes[0]] * 8
        for length in (100, 150):
            assert write(writer, [Request([1] * length, max_new_tokens=2, min_new_tokens=2), short])[1] == alone
            assert read[8] == next(size for size in sizes if size > length) and read[-1] == sizes[0]
            del read[8:]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["llama", "odd", "gpt2"])
def test_a_compiled_step_has_the_same_bits_in_any_slot(kind, two_threads):
    engine, requests = engine_of(kind), varied(kind)
    with closing(ContinuousWriter(engine, slots=3, compile=True)) as writer:
        assert isinstance(writer.steps, Slots)
        alone = [write(writer, [request])[0] for request in requests]
        assert write(writer, requests[::-1] * 2) == alone[::-1] * 2
    for text, plain in zip(alone, [engine.write([request])[0] for request in requests], strict=True):
        assert [token.id for token in text] == [token.id for token in plain.tokens]


def test_nothing_is_left_in_a_slot_of_what_was_there_before():
    with closing(ContinuousWriter(engine_of("llama"))) as writer:
        request = requests_for("llama", logprobs=1)[1]
        before = write(writer, [request])
        for layer in writer.steps.cache.layers:
            layer.keys.fill_(torch.nan), layer.values.fill_(torch.nan)
        assert write(writer, [request]) == before


def test_a_model_that_forgets_tokens_or_stretches_its_positions_has_no_slots():
    plain, tokenizer = TOKENS | SIZES | POSITIONS, engine_of("llama").tokenizer
    stretching = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    for model, has in (
        (LlamaForCausalLM(LlamaConfig(**plain)), True),
        (LlamaForCausalLM(LlamaConfig(**plain, rope_parameters=stretching)), False),
        (Gemma3ForCausalLM(Gemma3TextConfig(**plain, head_dim=8, num_key_value_heads=1, sliding_window=8)), False),
    ):
        assert has_slots(Engine(model, tokenizer)) == has


@contextmanager
def stepping_by(step) -> Iterator[pytest.MonkeyPatch]:
    """All slots take another step than `one_step`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(slots, "one_step", step)
        patch.setattr(slots, "MORE_ROWS", (0, 8))
        yield patch


def by_row(model, input_ids, cache, **places):
    """Logits that depend on the row, a little."""
    logits = one_step(model, input_ids, cache, **places)
    return logits * (1 + 1e-6 * torch.arange(len(logits))[:, None])


def without_places(model, input_ids, cache, **places):
    """The same for all rows, and wrong."""
    return one_step(model, input_ids, cache, **places | {"position_ids": torch.zeros_like(places["position_ids"])})


def by_neighbours(model, input_ids, cache, **places):
    """Logits that depend on what else is in the step, a little."""
    return one_step(model, input_ids, cache, **places) * (1 + 1e-6 * input_ids.sum())


one_step = slots.one_step


@pytest.mark.parametrize("step", [by_row, by_neighbours, without_places])
def test_a_model_that_steps_make_something_else_of_is_written_text_by_text(step, caplog):
    engine, requests = engine_of("llama"), requests_for("llama")
    with stepping_by(step), closing(ContinuousWriter(engine)) as writer:
        assert isinstance(writer.steps, SingleSteps)
        assert write(writer, requests) == [engine.write([request])[0].tokens for request in requests]
    (record,) = caplog.records
    assert record.message.startswith("texts of this LlamaForCausalLM are written one by one: in a step of several")


def test_texts_that_would_not_fit_into_memory_side_by_side_are_written_one_by_one(monkeypatch, caplog):
    monkeypatch.setattr(slots, "_free_bytes", lambda device: 2 * 8 * 32 * 256 - 1)
    with closing(ContinuousWriter(engine_of("llama"))) as writer:
        assert isinstance(writer.steps, SingleSteps)
    assert "one by one: 8 of 32 tokens take 0.0 GiB, and 0.0 are free" in caplog.text
    monkeypatch.setattr(slots, "_free_bytes", lambda device: 2 * 8 * 32 * 256)  # two layers of 16 keys and 16 values
    with closing(ContinuousWriter(engine_of("llama"))) as writer:
        assert isinstance(writer.steps, Slots)


def test_more_rows_are_taken_where_fewer_are_not_alike(caplog):
    def last_of_eight_differs(model, input_ids, cache, **places):
        logits = one_step(model, input_ids, cache, **places)
        return by_row(model, input_ids, cache, **places) if len(logits) == 8 else logits

    with stepping_by(last_of_eight_differs), closing(ContinuousWriter(engine_of("llama"), slots=3)) as writer:
        assert len(writer.steps.places) == 16 and caplog.records == []


# --- the queue -------------------------------------------------------------------------------------------------------


@contextmanager
def held(writer: ContinuousWriter) -> Iterator[None]:
    """The writer writes nothing inside the block."""
    begun, goes_on = threading.Event(), threading.Event()
    writer.run(lambda: (begun.set(), goes_on.wait(60)))
    begun.wait(60)
    try:
        yield
    finally:
        goes_on.set()


ASKED = Request("abba", max_new_tokens=5, min_new_tokens=5)
LONG = Request("abba", max_new_tokens=10**6, min_new_tokens=10**6)


@pytest.fixture(scope="module")
def engine() -> Engine:
    return engine_of("llama")


def test_as_many_texts_are_taken_as_there_is_room_for_and_all_of_a_request_or_none(engine):
    with closing(ContinuousWriter(engine, slots=1, waiting=1)) as writer:
        taken = [Taken() for _ in range(3)]
        with held(writer):
            with pytest.raises(Busy, match="3 texts were asked for and there is room for 2; ask again later"):
                writer.submit([ASKED] * 3, taken)
            with pytest.raises(ValueError, match="token id 99 is outside the model's vocabulary"):
                writer.submit([ASKED, Request([99])], taken[:2])
            assert not writer.waiting
            writer.submit([ASKED] * 2, taken[:2])
            with pytest.raises(Busy, match="1 texts were asked for and there is room for 0"):
                writer.submit([ASKED], taken[2:])
        assert taken[0].all() == taken[1].all() and not taken[2].tokens


def test_a_text_that_is_cancelled_while_it_waits_frees_its_place_at_once(engine):
    with closing(ContinuousWriter(engine, slots=1, waiting=1)) as writer:
        taken = [Taken() for _ in range(3)]
        with held(writer):
            first, second = writer.submit([ASKED] * 2, taken[:2])
            second.cancel()
            writer.submit([ASKED], taken[2:])
        assert len(taken[0].all()) == len(taken[2].all()) == 5
        assert taken[1].all() == ()
        assert first.prompt_tokens == 5


def test_a_text_that_is_cancelled_while_it_is_written_leaves_its_slot_to_the_next(engine):
    with closing(ContinuousWriter(engine, slots=1)) as writer:
        taken, next_one = Taken(), Taken()
        three = threading.Event()

        def deliver(token):
            taken(token)
            if len(taken.tokens) == 3:
                three.set()

        (job,) = writer.submit([LONG], [deliver])
        writer.submit([ASKED], [next_one])
        assert three.wait(60)
        job.cancel()
        assert len(next_one.all()) == 5 and len(taken.all()) >= 3


# --- what goes wrong -------------------------------------------------------------------------------------------------


def test_an_error_of_one_text_ends_that_one(engine):
    with closing(ContinuousWriter(engine)) as writer:
        (alone,) = write(writer, [ASKED])

        def gone(token):
            raise asyncio.CancelledError  # no Exception, and what a client that left raises

        other = Taken()
        writer.submit([ASKED, ASKED], [gone, other])
        assert other.all() == alone
        assert write(writer, [ASKED]) == [alone]


@pytest.mark.parametrize("kind", ["llama", "recurrent"])
def test_an_error_of_a_step_ends_those_that_share_it_and_the_next_are_written(kind):
    engine = engine_of(kind)
    with closing(ContinuousWriter(engine)) as writer, pytest.MonkeyPatch.context() as patch:
        (alone,) = write(writer, [ASKED])
        taken = [Taken(), Taken()]
        go_on, steps = writer.steps.logits if kind == "recurrent" else writer.steps.step, []

        def fail_once(*slot):
            steps.append(slot)
            if len(steps) == 3:
                raise MemoryError("no room")
            return go_on(*slot)

        patch.setattr(writer.steps, "logits" if kind == "recurrent" else "step", fail_once)
        writer.submit([ASKED] * 2, taken)
        errors = [one.ended.exception(timeout=60) for one in taken]
        assert [str(error) for error in errors if error] == ["no room"] * (1 if kind == "recurrent" else 2)
        assert {len(one.tokens) for one in taken} == ({2, 5} if kind == "recurrent" else {3})
        assert write(writer, [ASKED]) == [alone]


def test_closing_ends_all_texts_and_what_comes_after_is_refused(engine):
    writer = ContinuousWriter(engine, slots=1)
    written, waits = Taken(), Taken()
    writer.submit([LONG, ASKED], [written, waits])
    writer.run(lambda: None).result(timeout=60)
    errands = []
    writer.run(lambda: errands.extend([writer.run(dict), threading.Thread(target=writer.close).start()]))
    for one in (written, waits):
        with pytest.raises(Closed, match="the writer is closed"):
            one.all()
    writer.close()
    with pytest.raises(CancelledError):
        errands[0].result(timeout=60)
    for ask in (lambda: writer.submit([ASKED], [Taken()]), lambda: writer.run(dict)):
        with pytest.raises(Closed, match="the writer is closed and writes nothing any more"):
            ask()


# --- everything else that needs the model ----------------------------------------------------------------------------


def test_an_errand_runs_in_the_thread_of_the_model_between_two_tokens(engine):
    with closing(ContinuousWriter(engine)) as writer:
        taken, errands = Taken(), []

        def deliver(token):
            taken(token)
            if len(taken.tokens) == 3 and not errands:
                errands.extend(writer.run(lambda: (len(taken.tokens), threading.current_thread())) for _ in range(2))

        writer.submit([ASKED], [deliver])
        found = [errand.result(timeout=60) for errand in errands] if taken.all() else []
        assert [tokens for tokens, _ in found] == [3, 4] and {thread.name for _, thread in found} == {"writer"}
        with pytest.raises(ZeroDivisionError):
            writer.run(lambda: 1 / 0).result(timeout=60)
        assert writer.run(torch.is_grad_enabled).result(timeout=60) is False


def test_as_many_errands_wait_as_texts_may(engine):
    with closing(ContinuousWriter(engine, waiting=1)) as writer, held(writer):
        writer.run(dict).cancel()  # which frees its place
        writer.run(dict)
        with pytest.raises(Busy, match="1 wait for the model and 1 may; ask again later"):
            writer.run(dict)


def test_no_more_prompts_are_read_between_two_steps_than_texts_in_the_slots_can_wait_for(engine, monkeypatch):
    monkeypatch.setattr("smallm_hf.generation.continuous.PROMPT_TOKENS", 8)
    with closing(ContinuousWriter(engine)) as writer:
        begun = [Taken() for _ in range(5)]
        seen = []

        def deliver(number):
            return lambda token: (seen.append(number), begun[number](token))

        with held(writer):
            writer.submit([ASKED] * 5, [deliver(number) for number in range(5)])  # of 5 tokens each
        assert all(one.all() for one in begun)
        assert seen[:8] == [0, 1, 0, 1, 2, 3, 0, 1]
