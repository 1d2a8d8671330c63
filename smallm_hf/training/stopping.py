"""How a run learns that it should stop: by a signal, or because the launcher that started it is gone."""

import os
import signal
import time
from types import FrameType

# A terminal that is closed says SIGHUP; Windows has no such signal.
SIGNALS = (signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else []))
# A terminal's Ctrl-C reaches launcher and run alike, and some launchers pass it on: within this time it is one request.
ONE_REQUEST_SECONDS = 2.0

# When this module is imported, before the long work of a start: a launcher that dies meanwhile is noticed as well.
PROCESS, PARENT = os.getpid(), os.getppid()


class StopRequest:
    """Notices, inside its `with` block, that the run should stop; the loop asks it at every boundary of a step.

    The first signal is noted, a second ends the process at once, as it would have without us.
    """

    def __init__(self) -> None:
        self.reason: str | None = None
        self._since = 0.0
        # `accelerate launch` passes no signal on: its end is the message. Without a launcher a parent may come and go.
        self._parent = PARENT if os.getpid() == PROCESS else os.getppid()  # forked after the import, as from a notebook
        self._launched = "ACCELERATE_MIXED_PRECISION" in os.environ or "LOCAL_WORLD_SIZE" in os.environ

    def __enter__(self) -> "StopRequest":
        try:
            # What is ignored stays so: a job in the background is not meant by the Ctrl-C of its terminal.
            heard = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
            self._before = {number: signal.signal(number, self._note) for number in heard}
        except ValueError:  # not the main thread, which alone may listen: the caller's own handlers stay
            self._before = {}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def __bool__(self) -> bool:
        """Whether to stop; `reason` then says why."""
        if self.reason is None and self._launched and os.getppid() != self._parent:
            self.reason = "its launcher is gone"
        return self.reason is not None

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.reason is None:
            self.reason, self._since = f"signal {signal.Signals(number).name}", time.monotonic()
        elif time.monotonic() - self._since > ONE_REQUEST_SECONDS:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
