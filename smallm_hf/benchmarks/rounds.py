"""Ways to do one thing that take turns in one process, so that a machine that slows down slows all of them."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def in_rounds(ways: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, dict[str, Any]]:
    """Runs every way once in each round, in another order each time.

    Args:
        ways: by name; each does its work and returns how much it was. The others are compared with the first.
        rounds: number of rounds.

    Returns:
        For each way its `rates` (work per second), their median `rate`, and `ratio`, its rate over that of the first
        way in the same round: median, lowest and highest.
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
    return {
        name: {
            "rates": own,
            "rate": statistics.median(own),
            "ratio": ratio_of([one / other for one, other in zip(own, first, strict=True)]),
        }
        for name, own in rates.items()
    }


def ratio_of(rounds: Sequence[float]) -> dict[str, float]:
    """Median, lowest and highest ratio of all rounds."""
    return {"median": statistics.median(rounds), "lowest": min(rounds), "highest": max(rounds)}


def ratio_text(ratio: Mapping[str, float]) -> str:
    """What `ratio_of` returns, as a table shows it."""
    return f"{ratio['median']:.2f} ({ratio['lowest']:.2f} to {ratio['highest']:.2f})"
