"""Contestants that take turns: each in a process of its own, one working while the others wait.

What a machine does to one turn, it does to the turns around it, so speeds are compared within a round. A contestant's
clock and memory are its own.
"""

import multiprocessing
import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

from smallm_hf.base.errors import UserError
from smallm_hf.benchmarks.rounds import ratio_of
from smallm_hf.training.clock import synchronize

# What a contestant does: takes its turns, and returns what it has to say at the end. Importable, as it is sent.
Contestant = Callable[["Turns"], dict[str, Any]]


class Turns:
    """A contestant's side: it works until `share` is 1 and tells what it has done by `did`.

    Args:
        connection: to the one that says whose turn it is.
        seconds: of work in all, on the contestant's own clock.
    """

    def __init__(self, connection: Connection, seconds: float):
        self._connection, self._seconds = connection, seconds
        self._spent = self._began = self._until = 0.0
        self._work = 0

    def begin(self) -> None:
        """Everything is set up: waits for the first turn, from which on the clock runs."""
        self._connection.send({"ready": True})
        self._wait()

    @property
    def share(self) -> float:
        """The share of the work that is done, by the clock."""
        return (self._spent + time.perf_counter() - self._began) / self._seconds

    def did(self, work: int) -> None:
        """Counts work, in tokens; where the turn is over, tells of it and waits for the next."""
        self._work += work
        if time.perf_counter() < self._until and self.share < 1:
            return
        synchronize()  # what a device still has to do belongs to this turn
        now = time.perf_counter()
        self._spent += now - self._began
        self._connection.send({"work": self._work, "seconds": now - self._began})
        self._wait()

    def _wait(self) -> None:
        turn = self._connection.recv()
        self._work, self._began = 0, time.perf_counter()
        self._until = self._began + turn


def _contend(contestant: Contestant, connection: Connection, seconds: float) -> None:
    try:
        connection.send({"result": contestant(Turns(connection, seconds))})
    except Exception as error:  # for the one process that can tell it
        connection.send({"error": f"{type(error).__name__}: {error}"})


def take_turns(
    contestants: Mapping[str, Contestant], *, seconds: float, turn: float, say: Callable[[str], None] = print
) -> dict[str, dict[str, Any]]:
    """Lets contestants work for `seconds` each, in turns of `turn` seconds and another order in each round.

    Args:
        contestants: by name; the first is what the others are compared with.
        seconds: of work for each, set-up not counted.
        turn: seconds before the next one goes on.
        say: told who is being set up.

    Returns:
        For each what it returned, `rates` (work per second in each round) and, of those rates, the median; `ratio`, the
        first one's rate over its own in each round: median, lowest and highest.

    Raises:
        UserError: one of them failed.
    """
    context = multiprocessing.get_context("spawn")
    processes, ends = {}, {}
    try:
        for name, contestant in contestants.items():
            say(f"setting up: {name}")
            ends[name], theirs = context.Pipe()
            processes[name] = context.Process(target=_contend, args=(contestant, theirs, seconds), daemon=True)
            processes[name].start()
            theirs.close()
            _answer(name, ends[name])
        rates: dict[str, list[float]] = {name: [] for name in contestants}
        results: dict[str, dict[str, Any]] = {}
        order = list(contestants)
        while len(results) < len(contestants):
            for name in order:
                if name in results:
                    continue
                ends[name].send(turn)
                answer = _answer(name, ends[name])
                if "result" in answer:
                    results[name] = answer["result"]
                    continue
                rates[name].append(answer["work"] / answer["seconds"])
            order = order[1:] + order[:1]
    finally:
        for process in processes.values():
            process.terminate()
            process.join()
    first = next(iter(contestants))
    for name, result in results.items():
        ratios = [one / other for one, other in zip(rates[first], rates[name], strict=False)]
        result |= {
            "rates": rates[name],
            "rate": statistics.median(rates[name]),
            "ratio": ratio_of(ratios),
            "rounds": len(ratios),
        }
    return {name: results[name] for name in contestants}


def _answer(name: str, connection: Connection) -> dict[str, Any]:
    answer = {"error": "its process ended without a word"}
    with suppress(EOFError):
        answer = connection.recv()
    if "error" in answer:
        raise UserError(f"{name} failed ({answer['error']})")
    return answer
