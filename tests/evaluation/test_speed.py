"""Times against a model that takes as long as it is told."""

import mmap
import os
import time
from types import SimpleNamespace

import pytest
from small_models import bert, gpt2, letter_tokenizer, mask_tokenizer, save, t5

from smallm_hf.base.errors import UserError
from smallm_hf.evaluation import speed
from smallm_hf.evaluation.speed import in_own_process, load_and_measure, measure_speed, median_and_range, peak_memory
from smallm_hf.generation.engine import Engine

ASKED = {"batch_size": 2, "prompt_tokens": 5, "new_tokens": 4, "repetitions": 3}


def test_prompt_and_new_tokens_are_timed_apart(monkeypatch):
    model, calls, now = gpt2(), [], [0.0]
    forward = type(model).forward

    def timed_forward(*args, input_ids, **options):
        calls.append(tuple(input_ids.shape))
        now[0] += 5 if input_ids.shape[1] > 1 else 2  # seconds of a clock that nothing else moves
        return forward(*args, input_ids=input_ids, **options)

    monkeypatch.setattr(type(model), "forward", timed_forward)
    monkeypatch.setattr(speed, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    found = measure_speed(Engine(model, letter_tokenizer()), **ASKED)
    assert calls == [(2, 5), (2, 1), (2, 1), (2, 1)] * 4  # a warm-up and three; the last token is not read
    assert found["seconds_to_first_token"]["median"] == 5
    assert found["prefill_tokens_per_second"]["median"] == 2 * 5 / 5
    assert found["decode_tokens_per_second"]["median"] == 2 * 3 / 6
    assert {name: found[name] for name in ASKED} == ASKED


def test_figures_are_summed_up_by_median_lowest_and_highest():
    assert median_and_range([3.0, 1.0, 2.0]) == {"median": 2.0, "low": 1.0, "high": 3.0}


def test_a_seq2seq_model_is_timed_too():
    assert measure_speed(Engine(t5(), letter_tokenizer()), **ASKED)["decode_tokens_per_second"]["low"] > 0


def test_a_fresh_process_loads_a_model_and_measures_it(tmp_path):
    folder = str(save(tmp_path))
    found = in_own_process(load_and_measure, folder, {"device": "cpu"}, **ASKED)
    assert found["decode_tokens_per_second"]["low"] > 0
    assert found["load_seconds"] > 0
    assert found["peak_memory_bytes"] > gpt2().num_parameters() * 4


def test_what_goes_wrong_in_a_fresh_process_is_told():
    with pytest.raises(ValueError, match="'no number'"):
        in_own_process(int, "no number")
    with pytest.raises(UserError, match="3: its process was ended from outside, by lack of memory perhaps"):
        in_own_process(os._exit, 3)


def test_peak_memory_is_what_was_held_at_most_and_not_what_is_left():
    with peak_memory() as peak:
        with mmap.mmap(-1, 64 * 2**20) as block:  # an array might take memory that was kept when another was freed
            block[::4096] = bytes(len(block) // 4096)
            time.sleep(0.1)
        assert 60 * 2**20 < peak() < 160 * 2**20


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt_tokens": 30}, "30 tokens and 4 new ones exceed the model's 32 positions"),
        ({"new_tokens": 1}, "new_tokens=1 cannot be timed; give 2 or more"),
        ({"batch_size": 0}, "batch_size=0 cannot be timed"),
        ({"repetitions": 0}, "repetitions=0 cannot be timed"),
    ],
)
def test_what_cannot_be_timed_is_told(changes, message):
    with pytest.raises(UserError, match=message):
        measure_speed(Engine(gpt2(), letter_tokenizer()), **{**ASKED, **changes})


def test_a_masked_model_is_not_timed(tmp_path):
    with pytest.raises(UserError, match="BertForMaskedLM fills in masks and writes no text"):
        load_and_measure(str(save(tmp_path, bert(), mask_tokenizer())), {"device": "cpu"}, **ASKED)
