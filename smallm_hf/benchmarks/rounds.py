"""Ways to do one thing that take turns in one process: what a machine does to one, it does to those around it."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def in_rounds(ways: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, dict[str, Any]]:
    """Does everything once in each round, in another order each time.

    Args:
        ways: by name, each does its work and returns how much it was; the first is what the others are compared with.
        rounds: how often.

    Returns:
        For each its `rates` (work per second), their median `rate`, and `ratio`, its rate over the first one's of the
        same round: median, lowest and highest.
    """
    rates: dict[str, list[float]] = {name: [] for name in ways}
    order = list(ways)
    for _ in range(rounds):
        for name in order:
            began = time.perf_counter()
            work = ways[name]()
            rates[name].append(work / (time.perf_counter() - began))
        order = order[1:] + order[:1]
    first = rates[next(iter(ways))]
    results = {}
    for name, own in rates.items():
        ratio = ratio_of([one / other for one, other in zip(own, first, strict=True)])
        results[name] = {"rates": own, "rate": statistics.median(own), "ratio": ratio}
    return results


def ratio_of(rounds: Sequence[float]) -> dict[str, float]:
    """The ratios of all rounds as median, lowest and highest."""
    return {"median": statistics.median(rounds), "lowest": min(rounds), "highest": max(rounds)}


def spread(ratio: Mapping[str, float]) -> str:
    """A ratio as a table shows it."""
    return f"{ratio['median']:.2f} ({ratio['lowest']:.2f} to {ratio['highest']:.2f})"
