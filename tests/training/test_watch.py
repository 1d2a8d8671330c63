import math

import numpy as np
import pytest
import torch

from smallm_hf.training.checkpoints import LoopState
from smallm_hf.training.watch import SPIKE_HISTORY, UpdateWatch


def watching(state: LoopState, threshold: float | None = None) -> UpdateWatch:
    return UpdateWatch(torch.device("cpu"), state, threshold)


def judged(watch: UpdateWatch, loss: float, norm: float) -> bool:
    return bool(watch.judge(torch.tensor(loss), torch.tensor(norm)))


def test_usable_updates_are_summed_and_the_others_counted():
    state = LoopState(skipped_steps=4)
    watch = watching(state)
    assert judged(watch, 2.0, 1.0)
    assert not judged(watch, math.nan, 1.0)
    assert not judged(watch, 3.0, math.inf)
    assert watch.read(state) == (3.0, math.inf)
    assert (state.nats_since_log, state.updates_since_log) == (2.0, 1)
    assert (state.skipped_steps, state.skipped_in_a_row, state.gradient_norm) == (6, 2, math.inf)
    watch.begin_record()
    assert judged(watch, 4.0, 1.5)
    watch.read(state)
    assert (state.nats_since_log, state.updates_since_log) == (4.0, 1)
    assert (state.skipped_steps, state.skipped_in_a_row, state.gradient_norm) == (6, 0, 1.5)


@pytest.mark.parametrize(("loss", "norm", "usable"), [(2.1, 1.0, True), (9.0, 1.0, False), (2.0, 40.0, False)])
def test_a_spike_stands_far_above_the_updates_before(loss, norm, usable):
    watch = watching(LoopState(), threshold=5.0)
    random = np.random.default_rng(0)
    for _ in range(SPIKE_HISTORY // 2):
        assert judged(watch, 2 + 0.1 * random.standard_normal(), 1 + 0.1 * random.standard_normal())
    assert judged(watch, loss, norm) is usable


def test_nothing_is_a_spike_before_half_the_history_is_known():
    watch = watching(LoopState(), threshold=5.0)
    for _ in range(SPIKE_HISTORY // 2 - 1):
        judged(watch, 2.0, 1.0)
    assert judged(watch, 900.0, 1.0)


def test_a_watch_begun_from_saved_counters_judges_and_counts_as_the_first_would_have():
    state, random = LoopState(), np.random.default_rng(0)
    first = watching(state, threshold=3.0)
    numbers = random.lognormal(0.0, 1.0, (300, 2)).tolist()
    for loss, norm in numbers[:150]:
        judged(first, loss, norm)
    first.read(state)
    restored = LoopState(**vars(state))
    second = watching(restored, threshold=3.0)
    decisions = [(judged(first, *pair), judged(second, *pair)) for pair in numbers[150:]]
    assert all(one == other for one, other in decisions)
    assert {one for one, _ in decisions} == {True, False}
    first.read(state)
    second.read(restored)
    assert state == restored
