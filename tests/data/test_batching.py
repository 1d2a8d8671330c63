import time
import tracemalloc

import numpy as np
import pytest
import torch

from smallm_hf.data.batching import WindowOrder, next_token_batch, permute
from smallm_hf.errors import UserError

SIZES = [(n, t) for n in (2, 3, 9, 17, 32, 33, 100, 1001) for t in (1, 2, 3, 8, 16) if t < n]


@pytest.mark.parametrize(("num_tokens", "context_length"), SIZES)
def test_an_epoch_covers_every_token_once_but_for_less_than_a_window_at_either_end(num_tokens, context_length):
    order = WindowOrder(num_tokens, context_length, seed=7)
    for epoch in range(4):
        covered = np.zeros(num_tokens - 1, int)  # as inputs; the last token is a target only
        for start in order.starts(epoch * order.windows_per_epoch, order.windows_per_epoch):
            assert 0 <= start <= num_tokens - 1 - context_length
            covered[start : start + context_length] += 1
        inside = np.flatnonzero(covered)
        assert inside[0] < context_length
        assert num_tokens - 2 - inside[-1] < context_length
        assert (covered[inside[0] : inside[-1] + 1] == 1).all()


def test_the_order_is_a_pure_function_of_seed_epoch_and_index():
    order = WindowOrder(10_000, 16, seed=1)
    whole = order.starts(0, 2000)
    for first, count in ((0, 1), (620, 20), (1999, 1), (5, 700)):  # also across the ends of epochs
        assert (WindowOrder(10_000, 16, seed=1).starts(first, count) == whole[first : first + count]).all()
    assert len(order.starts(3, 0)) == 0


def test_seeds_and_epochs_have_orders_and_offsets_of_their_own():
    orders = [WindowOrder(10_000, 16, seed).starts(0, 1200) for seed in (1, 2, -1)]
    assert not (orders[0] == orders[1]).all()
    assert not (orders[0] == orders[2]).all()
    per_epoch = WindowOrder(10_000, 16, 1).windows_per_epoch
    epochs = [WindowOrder(10_000, 16, 1).starts(epoch * per_epoch, per_epoch) for epoch in range(30)]
    assert len({tuple(epoch) for epoch in epochs}) == 30
    assert len({epoch[0] % 16 for epoch in epochs}) > 5


def test_the_order_is_random_not_consecutive():
    starts = WindowOrder(1_600_001, 16, seed=3).starts(0, 90_000)
    steps = np.diff(starts)
    assert abs(np.corrcoef(starts[:-1], starts[1:])[0, 1]) < 0.02
    assert (steps == 16).mean() < 0.001
    halves = starts[:45_000].mean() / starts[45_000:].mean()
    assert abs(halves - 1) < 0.02


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 17, 1000, 4097])
def test_the_permutation_is_one_to_one(size):
    keys = np.arange(6, dtype=np.uint64)
    assert sorted(permute(np.arange(size), size, keys)) == list(range(size))


@pytest.mark.parametrize("window", [0, 3_906_249, 123_456_789_012])  # of the first epoch the first and the last
def test_seeking_far_into_a_billion_tokens_takes_no_time_and_no_memory(tmp_path, window):
    path = tmp_path / "train.bin"
    with path.open("wb") as file:
        file.truncate(2 * 1_000_000_000)  # sparse: takes no room
    WindowOrder(100, 8, seed=1).starts(0, 1)  # NumPy imports its generators at the first call
    tracemalloc.start()
    began = time.perf_counter()
    tokens = np.memmap(path, dtype=np.uint16, mode="r")
    batch = next_token_batch(tokens, WindowOrder(len(tokens), 256, seed=1).starts(window, 32), 256)
    seconds = time.perf_counter() - began
    _, most_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert batch["input_ids"].shape == (32, 256)
    assert seconds < 1
    assert most_bytes < 1_000_000  # 32 windows of int64, twice: 130,000; one byte per window would be 3,900,000


def test_exactly_one_window_makes_an_epoch():
    order = WindowOrder(17, 16, seed=1)
    assert order.windows_per_epoch == 1
    assert order.starts(0, 3).tolist() == [0, 0, 0]


def test_fewer_tokens_than_a_window_names_both_numbers():
    with pytest.raises(UserError, match=r"has 16 tokens, fewer than one window of training.context_length=16"):
        WindowOrder(16, 16, seed=1)


def test_targets_are_the_tokens_after_the_inputs():
    batch = next_token_batch(np.arange(100, 120, dtype=np.uint16), np.array([3, 0]), 4)
    assert batch["input_ids"].tolist() == [[103, 104, 105, 106], [100, 101, 102, 103]]
    assert batch["targets"].tolist() == [[104, 105, 106, 107], [101, 102, 103, 104]]
    assert batch["input_ids"].dtype == batch["targets"].dtype == torch.int64
