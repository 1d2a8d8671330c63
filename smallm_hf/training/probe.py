"""A few real updates on made-up tokens: what a run costs on this machine, measured before it begins."""

import statistics
import tempfile
import time
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from accelerate.utils import set_seed
from transformers import PreTrainedConfig

from smallm_hf.pretrained import fresh_model
from smallm_hf.training.clock import synchronize
from smallm_hf.training.configuration import TrainingConfig
from smallm_hf.training.devices import build_accelerator, peak_memory_bytes
from smallm_hf.training.loop import TrainingLoop

UPDATES = 20
UNCOUNTED = 2  # the first ones fill caches and make the optimizer's state


@dataclass(frozen=True)
class Probe:
    """What some updates of a run took.

    Args:
        updates: that were timed, in rows of full length.
        step_seconds: median of them.
        slowest: the 90th percentile.
        set_up_seconds: making the model and compiling.
        peak_memory_bytes: of this process, as `peak_memory_bytes` counts.
    """

    updates: int
    step_seconds: float
    slowest: float
    set_up_seconds: float
    peak_memory_bytes: int


def probe(architecture: PreTrainedConfig, training: TrainingConfig, precision: str) -> Probe:
    """Trains a fresh model for `UPDATES` updates on random tokens, of which nothing is kept.

    Args:
        architecture: the model's config.
        training: every `auto` decided.
        precision: of the run.
    """
    began = time.perf_counter()
    set_seed(training.seed)
    windows = UPDATES * training.windows_per_step
    vocab_size = architecture.get_text_config().vocab_size
    tokens = np.random.default_rng(training.seed).integers(0, vocab_size, windows * training.context_length + 1)
    with tempfile.TemporaryDirectory() as run, ExitStack() as ends:
        loop = TrainingLoop(
            model=fresh_model(architecture),
            tokenizer=None,
            train_tokens=tokens.astype(np.uint32),
            validation=None,
            training=training,
            run=Path(run),
            accelerator=build_accelerator(precision),
            flops_per_token=1.0,
            identity={},
        )
        ends.enter_context(closing(loop))
        set_up, seconds = time.perf_counter() - began, []
        for update in range(UPDATES):
            began = time.perf_counter()
            loop.advance(1.0 - 1 / (update + 2))
            synchronize()
            seconds.append(time.perf_counter() - began)
    timed = seconds[UNCOUNTED:]
    slowest = statistics.quantiles(timed, n=10)[-1]
    return Probe(len(timed), statistics.median(timed), slowest, set_up, peak_memory_bytes())
