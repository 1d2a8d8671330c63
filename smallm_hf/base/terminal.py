"""Keeps a script working whatever happens to its standard output and error."""

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from smallm_hf.base.errors import UserError, is_disk_full


class _Output(io.FileIO):
    """A file descriptor to which every write seems to succeed; `lost` is the first error."""

    lost: OSError | None = None

    def write(self, data: bytes) -> int:
        try:
            return super().write(data)
        except OSError as error:
            self.lost = self.lost or error
            if not is_disk_full(error):  # a pipe or a terminal was closed: nobody will read from it again
                discard(self.fileno())
            return memoryview(data).nbytes


def discard(descriptor: int) -> None:
    """Redirects a descriptor to nowhere for all who write to it: other streams, libraries, later processes."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)


@contextmanager
def lasting_output() -> Iterator[None]:
    """Inside the block, neither a reader that goes away nor a character breaks standard output and error.

    A character that their encoding lacks is printed as `?`. What cannot be written is dropped: `| head` does not end a
    training. Streams that are not plain files stay as they are: those of a notebook or a test, and the console of
    Windows, whose encoding is UTF-8.
    """
    before = sys.stdout, sys.stderr
    let_output_last()
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        sys.stdout, sys.stderr = before


def let_output_last() -> None:
    """Does what `lasting_output` does until the process ends, for one that was started to do a part of the work."""
    sys.stdout, sys.stderr = map(_lasting, (sys.stdout, sys.stderr))


def _lasting(stream: TextIO | None) -> TextIO:
    if stream is None:  # it was closed before Python started
        return open(os.devnull, "w", encoding="utf-8")
    if type(_raw(stream)) is not io.FileIO:
        return stream
    try:
        stream.flush()
    except OSError:
        discard(stream.fileno())
    raw = _Output(stream.fileno(), "w", closefd=False)
    return io.TextIOWrapper(
        raw if stream.buffer is _raw(stream) else io.BufferedWriter(raw),  # python -u has no buffer
        encoding=stream.encoding,
        errors=stream.errors if stream.errors == "backslashreplace" else "replace",  # stderr never fails anyway
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


def _raw(stream: TextIO) -> object:
    """What a text stream finally writes to."""
    buffer = getattr(stream, "buffer", None)
    return getattr(buffer, "raw", buffer)


def require_written() -> None:
    """Makes sure that no full disk has cut what was printed; that nobody reads it is not an error.

    Raises:
        UserError: some of it is missing.
    """
    sys.stdout.flush()
    lost = getattr(_raw(sys.stdout), "lost", None)
    if lost and is_disk_full(lost):
        raise UserError(f"standard output could not all be written ({lost.strerror}); free some space and run again")


def print_piece(text: str) -> None:
    """Prints at once and without a line break, for a script that does nothing else and so ends with its reader.

    Raises:
        SystemExit: nobody reads it any more.
        UserError: no space is left for it.
    """
    print(text, end="", flush=True)
    require_written()
    if getattr(_raw(sys.stdout), "lost", None):
        raise SystemExit(0)
