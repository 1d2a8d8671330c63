"""Contestants that take turns, each in a process of its own, one working while the others wait.

A machine that slows down slows the turns around it too, so speeds are compared within a round. Each contestant has its
own clock and memory.
"""

import multiprocessing
import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

import torch

from smallm_hf.base.errors import UserError
from smallm_hf.benchmarks.rounds import ratio_of
from smallm_hf.training.clock import synchronize

# Takes its turns, and returns its results. It can be pickled, as it is sent to another process.
Contestant = Callable[["Turns"], dict[str, Any]]


class Turns:
    """A contestant's side: it sets itself up, calls `begin`, and works until `share` is 1, reporting work to `did`.

    Args:
        connection: to the process that gives the turns.
        seconds: of work in all, on the contestant's own clock.

    Attributes:
        set_up_seconds: until `begin`.
    """

    def __init__(self, connection: Connection, seconds: float):
        self._connection, self._seconds = connection, seconds
        self._spent = self._began = self._until = self.set_up_seconds = 0.0
        self._work = 0
        self._created = time.perf_counter()

    def begin(self) -> None:
        """Ends the set-up and waits for the first turn, where the clock starts."""
        self.set_up_seconds = time.perf_counter() - self._created
        self._connection.send({"ready": True})
        self._wait()

    @property
    def share(self) -> float:
        """The share of the seconds that are over."""
        return (self._spent + time.perf_counter() - self._began) / self._seconds

    def did(self, work: int) -> None:
        """Adds work, in tokens; if the turn is over, reports it and waits for the next."""
        self._work += work
        if time.perf_counter() < self._until and self.share < 1:
            return
        synchronize()  # what the device has not finished belongs to this turn
        now = time.perf_counter()
        self._spent += now - self._began
        self._connection.send({"work": self._work, "seconds": now - self._began})
        self._wait()

    def _wait(self) -> None:
        turn = self._connection.recv()
        self._work, self._began = 0, time.perf_counter()
        self._until = self._began + turn


def _contend(contestant: Contestant, connection: Connection, seconds: float, threads: int | None) -> None:
    try:
        if threads:
            torch.set_num_threads(threads)
        turns = Turns(connection, seconds)
        connection.send({"result": contestant(turns) | {"set_up_seconds": turns.set_up_seconds}})
    except Exception as error:  # reported by the main process
        connection.send({"error": f"{type(error).__name__}: {error}"})


def take_turns(
    contestants: Mapping[str, Contestant],
    *,
    seconds: float,
    turn: float,
    threads: int | None = None,
    say: Callable[[str], None] = print,
) -> dict[str, dict[str, Any]]:
    """Lets contestants work for `seconds` each, in turns of `turn` seconds, in another order in each round.

    Args:
        contestants: by name; the others are compared with the first.
        seconds: of work for each, set-up not counted.
        turn: seconds before the next one goes on.
        threads: of torch in each process; None leaves it to torch.
        say: called with the progress.

    Returns:
        For each what it returned, `set_up_seconds`, `rates` (work per second in each round), their median `rate`, the
        number of `rounds`, and `ratio`, the first one's rate over its own in each: median, lowest and highest.

    Raises:
        UserError: one of them failed.
    """
    context = multiprocessing.get_context("spawn")
    processes, ends = [], {}
    try:
        for name, contestant in contestants.items():
            say(f"setting up: {name}")
            ends[name], theirs = context.Pipe()
            given = (contestant, theirs, seconds, threads)
            processes.append(context.Process(target=_contend, args=given, daemon=True))
            processes[-1].start()
            theirs.close()
            _answer(name, ends[name])
        results, rates = _give_turns(ends, turn)
    finally:
        for process in processes:
            process.terminate()
            process.join()
    first = rates[next(iter(contestants))]
    for name, result in results.items():
        ratios = [one / other for one, other in zip(first, rates[name], strict=False)]
        result |= {"rates": rates[name], "rate": statistics.median(rates[name])}
        result |= {"ratio": ratio_of(ratios), "rounds": len(ratios)}
    return {name: results[name] for name in contestants}


def _give_turns(
    ends: Mapping[str, Connection], turn: float
) -> tuple[dict[str, dict[str, Any]], dict[str, list[float]]]:
    """Results and rates of all contestants, when the last one is done."""
    results: dict[str, dict[str, Any]] = {}
    rates: dict[str, list[float]] = {name: [] for name in ends}
    order = list(ends)
    while len(results) < len(ends):
        for name in order:
            if name in results:
                continue
            ends[name].send(turn)
            answer = _answer(name, ends[name])
            if "result" in answer:
                results[name] = answer["result"]
            else:
                rates[name].append(answer["work"] / answer["seconds"])
        order = order[1:] + order[:1]
    return results, rates


def _answer(name: str, connection: Connection) -> dict[str, Any]:
    answer = {"error": "its process ended without an answer"}
    with suppress(EOFError):
        answer = connection.recv()
    if "error" in answer:
        raise UserError(f"{name} failed ({answer['error']})")
    return answer
