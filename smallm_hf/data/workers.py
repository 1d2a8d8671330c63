"""Processes that share the parts of a preparation."""

import itertools
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import psutil

from smallm_hf.base.errors import UserError

WORKER_BYTES = 1 << 30  # of memory, of which a process takes most only for books of many megabytes
PRELOADED = ["smallm_hf.data.stages"]  # by name: that module imports this one


class WorkerKilled(UserError):
    """A process that had a part to do is gone; the finished parts are not."""


class Workers:
    """Calls functions on many tasks; from the second task on in several processes, which start when they are needed.

    Args:
        number: of processes; None takes one for each core this process may use, and for each GiB of free memory.
    """

    def __init__(self, number: int | None):
        self.number = number or _affordable()
        self.pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *exception) -> None:
        if self.pool:
            self.pool.shutdown(cancel_futures=True)  # what is being written is finished: it need not be done again

    def map(self, function: Callable, tasks: Iterable[tuple]) -> Iterator[Any]:
        """Yields `function(*task)` in the order of the tasks, of which only a few are taken ahead.

        Raises:
            WorkerKilled: a process is gone; otherwise what the function raises.
        """
        tasks = iter(tasks)
        first = list(itertools.islice(tasks, 2))
        tasks = itertools.chain(first, tasks)
        if self.number == 1 or len(first) < 2:
            yield from itertools.starmap(function, tasks)
            return
        if self.pool is None:
            # Not forked from here: the libraries' threads and locks would be copied in whatever state they are.
            has_server = "forkserver" in multiprocessing.get_all_start_methods()
            context = multiprocessing.get_context("forkserver" if has_server else "spawn")
            context.set_forkserver_preload(PRELOADED)  # imported once, and shared
            self.pool = ProcessPoolExecutor(self.number, context, initializer=_begin)
        waiting = deque()
        try:
            for task in tasks:
                waiting.append(self.pool.submit(function, *task))
                if len(waiting) > 2 * self.number:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool as error:
            raise WorkerKilled(
                f"one of the {self.number} processes that prepare the text was killed, as they are when memory runs "
                "out, or could not start, as from a script without `if __name__ == '__main__':`; run again with fewer "
                "data.workers, and it goes on from what is done"
            ) from error


def _affordable() -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, psutil.virtual_memory().available // WORKER_BYTES))


def _begin() -> None:
    """Leaves Ctrl-C to the process that started this one, ends when that does, and has one thread for tokens."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.environ["RAYON_NUM_THREADS"] = "1"  # of rensa
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    multiprocessing.connection.wait([multiprocessing.parent_process().sentinel])
    os._exit(1)
