import functools
import itertools
import time

import pytest
import torch

from smallm_hf.base.errors import UserError
from smallm_hf.benchmarks.turns import Turns, take_turns


def work(turns: Turns, *, seconds: float, amount: int) -> dict:
    """Returns when it was at work, and on how many threads."""
    times = []
    turns.begin()
    while turns.share < 1:
        began = time.time()
        time.sleep(seconds)
        turns.did(amount)
        times.append((began, began + seconds))
    return {"times": times, "threads": torch.get_num_threads()}


def fail(turns: Turns) -> dict:
    turns.begin()
    raise ValueError("no fuel")


def test_one_works_at_a_time_and_each_has_its_seconds_and_its_rate():
    contestants = {
        "many": functools.partial(work, seconds=0.01, amount=30),
        "few": functools.partial(work, seconds=0.01, amount=10),
    }
    results = take_turns(contestants, seconds=0.6, turn=0.2, threads=1, say=lambda line: None)
    assert all(result["threads"] == 1 and 0 <= result["set_up_seconds"] < 1 for result in results.values())
    spans = [(begin, end, name) for name, result in results.items() for begin, end in result["times"]]
    spans.sort()
    assert all(one[1] <= other[0] + 1e-3 for one, other in itertools.pairwise(spans))
    changes = sum(one[2] != other[2] for one, other in itertools.pairwise(spans))
    assert changes >= 3  # more than one after the other
    assert results["many"]["ratio"]["median"] == 1
    ratio = results["few"]["ratio"]
    assert ratio["lowest"] <= ratio["median"] <= ratio["highest"]
    assert ratio["median"] > 1
    assert len(results["few"]["rates"]) >= 2


def test_one_that_fails_is_named_with_its_reason():
    with pytest.raises(UserError, match=r"broken failed \(ValueError: no fuel\)"):
        take_turns({"broken": fail}, seconds=1, turn=1, say=lambda line: None)
