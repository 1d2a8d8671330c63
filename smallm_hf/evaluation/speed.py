"""How fast a model reads and writes, and the memory that it takes."""

import multiprocessing
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, TypeVar

import psutil
import torch

from smallm_hf.base.errors import UserError
from smallm_hf.base.terminal import let_output_last
from smallm_hf.families import require_writer
from smallm_hf.generation.engine import Engine
from smallm_hf.generation.request import Request
from smallm_hf.inspection import position_limit, vocabulary_size
from smallm_hf.pretrained import load_scorable

Result = TypeVar("Result")

MEMORY_LOOK_SECONDS = 0.005
SEED = 0  # of the prompt, whose tokens are drawn: what they say changes no time


def median_and_range(values: Sequence[float]) -> dict[str, float]:
    """Median, lowest and highest of what was measured several times."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def measure_speed(
    engine: Engine, *, batch_size: int, prompt_tokens: int, new_tokens: int, repetitions: int
) -> dict[str, Any]:
    """Times greedy texts of one batch, after one repetition that does not count.

    Args:
        engine: with a causal or a seq2seq model; the prompt of the latter is for its encoder.
        batch_size: texts at a time.
        prompt_tokens: tokens of each prompt.
        new_tokens: tokens written behind each, 2 or more.
        repetitions: times that count.

    Returns:
        What was asked, and median and range of `seconds_to_first_token`, from the call to the first new token of all
        texts; `prefill_tokens_per_second`, prompt tokens in that time; `decode_tokens_per_second`, the others after it.

    Raises:
        UserError: a number that is too small, or a text longer than the model's positions.
    """
    model = engine.model
    asked = {"batch_size": batch_size, "prompt_tokens": prompt_tokens, "new_tokens": new_tokens}
    for name, value in (asked | {"repetitions": repetitions}).items():
        if value < (least := 2 if name == "new_tokens" else 1):
            raise UserError(f"{name}={value} cannot be timed; give {least} or more")
    limit = position_limit(model)
    if limit is not None and prompt_tokens + new_tokens > limit:
        raise UserError(
            f"a prompt of {prompt_tokens} tokens and {new_tokens} new ones exceed the model's {limit} positions; "
            "give less of either"
        )
    draw = torch.Generator().manual_seed(SEED)
    prompts = torch.randint(vocabulary_size(model), (batch_size, prompt_tokens), generator=draw).tolist()
    length = {"max_new_tokens": new_tokens, "min_new_tokens": new_tokens, "temperature": 0}
    reads = "source" if model.config.is_encoder_decoder else "prompt"
    requests = [Request(**{reads: prompt}, **length) for prompt in prompts]
    first, later = [], []
    for _ in range(1 + repetitions):
        began = time.perf_counter()
        times = [time.perf_counter() for number, _ in engine.stream_batch(requests) if number == batch_size - 1]
        first.append(times[0] - began)
        later.append(times[-1] - times[0])
    read, written = batch_size * prompt_tokens, batch_size * (new_tokens - 1)
    return asked | {
        "repetitions": repetitions,
        "seconds_to_first_token": median_and_range(first[1:]),
        "prefill_tokens_per_second": median_and_range([read / seconds for seconds in first[1:]]),
        "decode_tokens_per_second": median_and_range([written / seconds for seconds in later[1:]]),
    }


def load_and_measure(model: str, loading: Mapping[str, Any], **asked: int) -> dict[str, Any]:
    """Loads a model and calls `measure_speed`; memory and load time are only right in a process of its own.

    Args:
        model: a folder or a Hub id.
        loading: arguments of `load_causal_lm` beside the model.
        asked: arguments of `measure_speed` beside the model.

    Returns:
        What `measure_speed` returns, `load_seconds` and `peak_memory_bytes`, of loading, reading and writing.
    """
    with peak_memory() as peak_memory_bytes:
        began = time.perf_counter()
        loaded, tokenizer = load_scorable(model, **loading)
        load_seconds = time.perf_counter() - began
        require_writer(loaded)
        measured = measure_speed(Engine(loaded, tokenizer), **asked)
        return measured | {"load_seconds": load_seconds, "peak_memory_bytes": peak_memory_bytes()}


def in_own_process(measure: Callable[..., Result], model: str, *given: Any, **options: Any) -> Result:
    """What a function of a model returns or raises in a fresh process, which leaves no memory or state behind.

    Raises:
        UserError: the process was ended from outside.
    """
    spawned = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawned, initializer=let_output_last) as pool:
        try:
            return pool.submit(measure, model, *given, **options).result()
        except BrokenProcessPool as error:
            raise UserError(f"{model}: its process was ended from outside, by lack of memory perhaps") from error


@contextmanager
def peak_memory() -> Iterator[Callable[[], int]]:
    """Gives a function that says how many bytes the block has taken at most so far, beyond what it began with.

    Of a GPU it is what torch has allocated there; else the resident memory of this process, looked at every few
    milliseconds, because the system's own record of the peak also knows what stood in this place before.
    """
    process, most, ended = psutil.Process(), 0, threading.Event()
    before = process.memory_info().rss
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()

    def look() -> None:
        nonlocal most
        while not ended.wait(MEMORY_LOOK_SECONDS):
            most = max(most, process.memory_info().rss - before)

    def peak() -> int:
        on_gpu = torch.cuda.is_available() and torch.cuda.max_memory_allocated()
        return on_gpu or max(most, process.memory_info().rss - before)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        ended.set()
        thread.join()
