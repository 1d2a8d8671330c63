import itertools
import tracemalloc
from dataclasses import dataclass

import numpy as np
import pytest

from smallm_hf.base.errors import UserError
from smallm_hf.data.batches import difficulty
from smallm_hf.data.batches import windows as windows_module
from smallm_hf.data.batches.difficulty import document_lengths, unigram_losses
from smallm_hf.data.batches.order import ItemOrder, interleave, permute
from smallm_hf.data.batches.packed import PackedWindows
from smallm_hf.data.batches.windows import WindowOrder
from smallm_hf.data.configuration import BatchingConfig

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


def test_each_item_is_drawn_once_in_an_epoch_and_in_another_order_in_the_next():
    order = ItemOrder(30, seed=5)
    epochs, items = order.at(np.arange(90))
    assert (epochs == np.repeat([0, 1, 2], 30)).all()
    assert all(sorted(epoch) == list(range(30)) for epoch in items.reshape(3, 30))
    assert len({tuple(epoch) for epoch in items.reshape(3, 30)}) == 3
    assert (order.at(np.arange(50, 70))[1] == items[50:70]).all()
    assert (ItemOrder(30, seed=5, number=1).at(np.arange(30))[1] != items[:30]).any()


@pytest.mark.parametrize("window", [0, 3_906_249, 123_456_789_012])  # of the first epoch the first and the last
def test_seeking_far_into_a_billion_tokens_takes_no_memory(tmp_path, window):
    path = tmp_path / "train.bin"
    with path.open("wb") as file:
        file.truncate(2 * 1_000_000_000)  # sparse: takes no room
    WindowOrder(100, 8, seed=1).starts(0, 1)  # NumPy imports its generators at the first call
    tracemalloc.start()
    tokens = np.memmap(path, dtype=np.uint16, mode="r")
    batch = PackedWindows(tokens, WindowOrder(len(tokens), 256, seed=1)).at(window, 32)
    _, most_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert batch.inputs["input_ids"].shape == (32, 256)
    assert most_bytes < 1_000_000  # 32 windows of int64, twice: 130,000; one byte per window would be 3,900,000


def test_exactly_one_window_makes_an_epoch():
    order = WindowOrder(17, 16, seed=1)
    assert order.windows_per_epoch == 1
    assert order.starts(0, 3).tolist() == [0, 0, 0]


def test_fewer_tokens_than_a_window_names_both_numbers():
    with pytest.raises(UserError, match=r"has 16 tokens, fewer than one window of training.context_length=16"):
        WindowOrder(16, 16, seed=1)


def test_the_order_is_that_of_earlier_versions():
    order = WindowOrder(10_000, 16, seed=1)
    assert order.starts(620, 8).tolist() == [2207, 3183, 3295, 127, 3947, 4395, 4683, 1915]
    assert WindowOrder(33, 8, seed=-3).starts(0, 12).tolist() == [9, 1, 17, 19, 11, 3, 10, 2, 18, 23, 15, 7]


def test_what_is_computed_ahead_is_what_is_asked_for(monkeypatch):
    whole = WindowOrder(10_000, 16, seed=1).starts(0, 2000)
    monkeypatch.setattr(windows_module, "AHEAD", 7)
    order = WindowOrder(10_000, 16, seed=1)
    for first, count in ((0, 5), (5, 2), (6, 3), (0, 1), (100, 50), (149, 1)):
        assert (order.starts(first, count) == whole[first : first + count]).all()


# --- a mixture -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Share:
    source: str
    weight: float | None
    first_token: int
    tokens: int


MIXTURE = [Share("books", 1.0, 0, 500), Share("news", 5.0, 500, 90), Share("notes", 0.5, 590, 300)]


def mixture(sources=MIXTURE, seed=1, **settings) -> WindowOrder:
    return WindowOrder(890, 8, seed, BatchingConfig(**settings), sources)


def source_of(starts: np.ndarray) -> np.ndarray:
    return np.searchsorted([500, 590], starts, side="right")


@pytest.mark.parametrize(
    ("weights", "most"), [([3, 1], 0.5), ([0.999, 0.001], 0.5), ([5, 4, 3, 2, 1, 1], 1.5), ([40, 3, 2, 1, 0.1], 1.5)]
)
def test_every_stretch_of_a_run_holds_the_proportions(weights, most):
    units = [round(weight * 1000) for weight in weights]
    dealt = interleave(np.arange(20_000), units)
    for (mine, places), weight in zip(dealt, weights, strict=True):
        assert (places == np.arange(len(places))).all()  # each window of a source once, in its order
        error = np.cumsum(mine) - np.arange(1, 20_001) * weight / sum(weights)
        assert abs(error).max() <= most + 1e-9
    assert (sum(mine.astype(int) for mine, _ in dealt) == 1).all()


def test_interleaving_is_a_pure_function_of_the_place():
    units = [7, 5, 1]
    whole = interleave(np.arange(1000), units)
    far = interleave(np.arange(700, 731), units)
    for (mine, places), (all_mine, all_places) in zip(far, whole, strict=True):
        assert (mine == all_mine[700:731]).all()
        assert (places == all_places[all_mine[:700].sum() :][: len(places)]).all()
    rest = interleave(np.array([10**11]), units)  # no 64-bit number overflows
    assert sum(mine.item() for mine, _ in rest) == 1
    assert all((places > 0).all() and (places < 10**11).all() for _, places in rest)


def test_no_window_of_a_mixture_reaches_into_another_source():
    starts = mixture().starts(0, 3000)
    assert (source_of(starts) == source_of(starts + 8)).all()  # the last target is in the source, too
    assert starts.min() < 8 and starts.max() > 870


def test_a_source_begins_again_where_it_is_exhausted_in_another_order():
    order = mixture()
    starts = order.starts(0, 300)
    news = starts[source_of(starts) == 1]
    per_epoch = order.parts[0].windows_per_epoch  # the heaviest stands first
    assert len(news) > 20 * per_epoch
    epochs = [news[begin : begin + per_epoch] for begin in range(0, len(news) - per_epoch, per_epoch)]
    assert all(len(set(epoch)) == per_epoch for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 0.9 * len(epochs)
    books = starts[source_of(starts) == 0]
    assert len(books) == len(set(books)) < 62  # and one with less weight than text is not through


def test_what_was_drawn_of_each_source_is_computed():
    order = mixture()
    for windows in (0, 1, 77, 3000):
        counted = np.bincount(source_of(order.starts(0, windows)), minlength=3)
        drawn = {item["source"]: item for item in order.drawn(windows)}
        assert [drawn[share.source]["windows"] for share in MIXTURE] == counted.tolist()
    assert drawn["news"]["share"] == pytest.approx(5 / 6.5)
    assert drawn["books"]["epochs"] == counted[0] / WindowOrder(500, 8, seed=1).windows_per_epoch
    assert sum(part.windows_per_epoch for part in order.parts) == order.windows_per_epoch
    assert WindowOrder(33, 8, 1).drawn(6) == [
        {"source": "the training text", "share": 1.0, "windows": 6, "epochs": 2.0}
    ]


def test_sources_without_weights_are_one_text():
    plain = WindowOrder(890, 8, seed=1).starts(0, 500)
    without = [Share("books", None, 0, 500), Share("news", None, 500, 390)]
    for sources in (without, without[:1], [Share("all", 2.0, 0, 890)]):
        assert (mixture(sources).starts(0, 500) == plain).all()


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (None, "data source news has weight none; give all sources of a mixture a weight above 0, or none of them one"),
        (0.0, "data source news has weight 0.0; give all sources"),
        (float("nan"), "data source news has weight nan; give all sources"),
        (1e-9, "data source news has weight 1e-09 of 1.5.* less than one window in 16777216; raise it or leave"),
    ],
)
def test_weights_that_are_no_proportions_are_refused(weight, message):
    with pytest.raises(UserError, match=message):
        mixture([MIXTURE[0], Share("news", weight, 500, 90), MIXTURE[2]])


def test_a_source_that_is_too_short_is_named():
    with pytest.raises(UserError, match="news has 8 tokens, fewer than one window of training.context_length=8"):
        mixture([MIXTURE[0], Share("news", 1.0, 500, 8)])


# --- windows that overlap --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("num_tokens", "context_length"), SIZES)
@pytest.mark.parametrize("share", [0.3, 0.5, 1])
def test_with_a_stride_every_token_is_in_as_many_windows_as_fit(num_tokens, context_length, share):
    stride = max(1, round(share * context_length))
    order = WindowOrder(num_tokens, context_length, 7, BatchingConfig(stride=stride))
    for epoch in range(4):
        starts = np.sort(order.starts(epoch * order.windows_per_epoch, order.windows_per_epoch))
        assert (np.diff(starts) == stride).all()
        assert 0 <= starts[0] < max(stride, 1)
        assert 0 <= num_tokens - 1 - (starts[-1] + context_length) < stride


def test_a_stride_as_long_as_the_window_is_the_plain_order_and_epochs_are_shifted():
    plain = WindowOrder(1000, 16, seed=1)
    assert (WindowOrder(1000, 16, 1, BatchingConfig(stride=16)).starts(0, 300) == plain.starts(0, 300)).all()
    order = WindowOrder(1000, 16, 1, BatchingConfig(stride=4))
    assert order.windows_per_epoch in (245, 246)  # (999 - 16) / 4
    assert len({order.starts(epoch * order.windows_per_epoch, 1)[0] % 4 for epoch in range(20)}) > 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stride": 0}, "batching.stride=0 is out of range; set it to a number above 0, or null"),
        ({"stride": 9}, "batching.stride=9 would leave tokens out between windows of training.context_length=8; lower"),
        ({"curriculum": "loss", "curriculum_tokens": 7}, "curriculum_tokens=7 is less than one window of .*=8"),
        ({"curriculum_tokens": 70}, "curriculum_tokens=70 has no order while batching.curriculum is null; set that to"),
        ({"curriculum_buckets": 1}, "curriculum_buckets=1 sorts nothing; set it to a number above 1"),
    ],
)
def test_settings_that_make_no_order_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        WindowOrder(100, 8, 1, BatchingConfig(**settings))


# --- a curriculum ----------------------------------------------------------------------------------------------------


EOS = 0


def documents(seed=0, count=60) -> np.ndarray:
    """Documents of 1 to 40 tokens, of which some are rare."""
    draw = np.random.default_rng(seed)
    return np.concatenate([[*draw.zipf(1.5, draw.integers(1, 40)) % 50 + 1, EOS] for _ in range(count)]).astype("<u2")


def lengths_by_hand(tokens, starts, context_length):
    ends = [index for index, token in enumerate(tokens) if token == EOS]
    document = np.searchsorted(ends, np.arange(len(tokens)))
    own = np.bincount(document)[document]
    return [own[start : start + context_length].mean() for start in starts]


def losses_by_hand(tokens, starts, context_length):
    frequency = np.bincount(tokens) / len(tokens)
    return [-np.log(frequency[tokens[start + 1 : start + 1 + context_length]]).mean() for start in starts]


BY_HAND = {"length": lengths_by_hand, "loss": losses_by_hand}


@pytest.mark.parametrize("block", [1 << 20, 64])
def test_difficulty_is_what_it_says(monkeypatch, block):
    monkeypatch.setattr(difficulty, "BLOCK", block)
    tokens = documents()
    starts = np.arange(3, len(tokens) - 9, 8)
    np.testing.assert_allclose(document_lengths(tokens, 8, EOS)(starts), lengths_by_hand(tokens, starts, 8))
    np.testing.assert_allclose(unigram_losses(tokens, 8)(starts), losses_by_hand(tokens, starts, 8))


@pytest.mark.parametrize("stride", [None, 3])
@pytest.mark.parametrize("curriculum", ["length", "loss"])
def test_the_first_epoch_goes_from_easy_to_hard_and_the_next_is_as_without(monkeypatch, curriculum, stride):
    tokens = documents()
    plain = WindowOrder(len(tokens), 8, 1, BatchingConfig(stride=stride))
    order = WindowOrder(len(tokens), 8, 1, BatchingConfig(stride=stride, curriculum=curriculum, curriculum_buckets=4))
    for module in (difficulty, windows_module):
        monkeypatch.setattr(module, "BLOCK", 50)
    order.read_difficulty(tokens, EOS)
    windows = order.windows_per_epoch
    ours, theirs = order.starts(0, 2 * windows), plain.starts(0, 2 * windows)
    assert sorted(ours[:windows]) == sorted(theirs[:windows])
    assert (ours[windows:] == theirs[windows:]).all()
    by_hand = np.array(BY_HAND[curriculum](tokens, ours[:windows], 8))
    buckets = np.array_split(by_hand, 4)
    for easier, harder in itertools.pairwise(buckets):
        assert easier.max() <= harder.min() + 1e-6
    assert (np.diff(buckets[0]) < 0).any()  # inside a bucket the order is random


def test_only_so_many_tokens_come_easy_first():
    tokens = documents()
    order = WindowOrder(len(tokens), 8, 1, BatchingConfig(curriculum="loss", curriculum_tokens=170))
    order.read_difficulty(tokens, EOS)
    plain = WindowOrder(len(tokens), 8, 1).starts(0, 400)
    ours = order.starts(0, 400)
    assert sorted(ours[:21]) == sorted(plain[:21])  # 170 tokens are 21 windows and a bit
    assert (ours[:21] != plain[:21]).any() and (ours[21:] == plain[21:]).all()
    for first, count in ((0, 10), (15, 10), (399, 1)):
        assert (order.starts(first, count) == ours[first : first + count]).all()


def test_a_curriculum_keeps_the_proportions_of_a_mixture():
    tokens = np.concatenate([documents(seed) for seed in range(3)])[:890]
    order = mixture(curriculum="loss", curriculum_tokens=800)
    order.read_difficulty(tokens, EOS)
    plain = mixture()
    assert (source_of(order.starts(0, 900)) == source_of(plain.starts(0, 900))).all()
    for number in range(3):
        ours, theirs = (found[source_of(found) == number] for found in (order.starts(0, 100), plain.starts(0, 100)))
        kept = min(len(ours), order.parts[[1, 0, 2][number]].windows_per_epoch)
        assert sorted(ours[:kept]) == sorted(theirs[:kept])


def test_where_all_windows_are_alike_the_order_stays():
    order = WindowOrder(500, 8, 1, BatchingConfig(curriculum="length"))
    order.read_difficulty(np.ones(500, dtype=np.uint16), EOS)
    assert (order.starts(0, 60) == WindowOrder(500, 8, 1).starts(0, 60)).all()
