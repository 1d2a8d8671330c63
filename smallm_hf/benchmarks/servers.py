"""Servers in processes of their own: started, waited for, watched, and ended."""

import contextlib
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import httpx2
import psutil

from smallm_hf.base.errors import UserError, one_line

START_SECONDS = 300.0
END_SECONDS = 30.0


@dataclass(frozen=True)
class Running:
    """A server that answers.

    Attributes:
        address: its URL, without a path.
    """

    address: str
    process: subprocess.Popen

    def resident_bytes(self) -> int:
        """Memory that it and its children hold now."""
        own, held = psutil.Process(self.process.pid), 0
        for process in [own, *own.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                held += process.memory_info().rss
        return held


@contextlib.contextmanager
def started(name: str, command: Sequence[str], ready: str) -> Iterator[Running]:
    """A server that runs for the length of the block; it is given a free port of the loopback as `--port`.

    Args:
        name: for errors.
        command: starts it.
        ready: a path that it answers with 200 once it can be used.

    Raises:
        UserError: it has ended instead, or is not ready after five minutes.
    """
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    running = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as said:
        process = subprocess.Popen([*command, "--port", str(port)], stdout=said, stderr=subprocess.STDOUT)
        try:
            until = time.monotonic() + START_SECONDS
            while not _answers(running + ready):
                if process.poll() is not None or time.monotonic() > until:
                    said.seek(0)
                    last = one_line(said.read()[-300:])
                    raise UserError(f"{name} does not answer at {ready}; its last words: {last}")
                time.sleep(0.2)
            yield Running(running, process)
        finally:
            process.terminate()
            try:
                process.wait(END_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _answers(url: str) -> bool:
    with contextlib.suppress(httpx2.HTTPError):
        return httpx2.get(url, timeout=5).status_code == 200
    return False
