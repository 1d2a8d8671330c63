"""A few real updates on made-up tokens: what a run costs on this machine, measured before it begins."""

import statistics
import time
from contextlib import closing
from dataclasses import dataclass

import numpy as np
from accelerate.utils import set_seed
from transformers import PreTrainedConfig

from smallm_hf.data.batches.packed import PackedWindows
from smallm_hf.data.batches.windows import WindowOrder
from smallm_hf.pretrained import fresh_model
from smallm_hf.training.checkpoints import LoopState
from smallm_hf.training.clock import synchronize
from smallm_hf.training.configuration import TrainingConfig
from smallm_hf.training.devices import peak_memory_bytes
from smallm_hf.training.launch import build_accelerator
from smallm_hf.training.objectives import LanguageModelling
from smallm_hf.training.update import Updater

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
    accelerator = build_accelerator(precision)
    order = WindowOrder(len(tokens), training.context_length, training.seed)
    batches = PackedWindows(tokens.astype(np.uint32), order, pin_memory=accelerator.device.type == "cuda")
    objective = LanguageModelling.of_run(fresh_model(architecture), training, accelerator)
    with closing(Updater.build(objective, batches, training, accelerator, LoopState(), print)) as updater:
        if training.compile:
            updater.warm_up()
        set_up, seconds = time.perf_counter() - began, []
        for update in range(UPDATES):
            began = time.perf_counter()
            updater.update(update * training.windows_per_step, 1.0, training.context_length)
            synchronize()
            seconds.append(time.perf_counter() - began)
    timed = seconds[UNCOUNTED:]
    slowest = statistics.quantiles(timed, n=10)[-1]
    return Probe(len(timed), statistics.median(timed), slowest, set_up, peak_memory_bytes())
