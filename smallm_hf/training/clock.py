"""The training time of a run, which is neither that of its validations nor that of its start."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Clock:
    """Training time in seconds: runs, except inside `stopped`."""

    def __init__(self, seconds: float):
        self._before = seconds
        self._since: float | None = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Training time so far."""
        return self._before if self._since is None else self._before + time.perf_counter() - self._since

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Time spent inside does not count."""
        synchronize()
        self._before, self._since = self.seconds, None
        try:
            yield
            synchronize()
        finally:  # a run may go on without what failed
            self._since = time.perf_counter()


def synchronize() -> None:
    """Waits for the accelerator, whose work a clock on the CPU would otherwise miss."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
