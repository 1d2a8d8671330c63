"""Standard output and error while a script runs: nothing that happens to them ends its work."""

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from smallm_hf.base.errors import UserError, is_disk_full


class _Output(io.FileIO):
    """A file descriptor to which every write succeeds; `lost` is the error of the first that did not."""

    lost: OSError | None = None

    def write(self, data: bytes) -> int:
        try:
            return super().write(data)
        except OSError as error:
            self.lost = self.lost or error
            if not is_disk_full(error):  # nobody will read it again: a pipe or a terminal was closed
                discard(self.fileno())
            return memoryview(data).nbytes


def discard(descriptor: int) -> None:
    """Leads a descriptor nowhere, for all who write to it: other streams, libraries, processes begun later."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)


@contextmanager
def lasting_output() -> Iterator[None]:
    """Standard output and error that no reader who goes away and no character can break, until the block ends.

    What their encoding lacks is printed as `?`. What cannot be written is dropped: `| head` ends no training. Streams
    that are not plain files stay as they are: those of a notebook or a test, and the console of Windows, whose encoding
    is UTF-8.
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
    """As `lasting_output`, to the end of the process: for one that was begun to do a part of the work."""
    sys.stdout, sys.stderr = map(_lasting, (sys.stdout, sys.stderr))


def _lasting(stream: TextIO | None) -> TextIO:
    if stream is None:  # it was closed before Python began
        return open(os.devnull, "w", encoding="utf-8")
    if type(_raw(stream)) is not io.FileIO:
        return stream
    try:
        stream.flush()
    except OSError:
        discard(stream.fileno())
    raw = _Output(stream.fileno(), "w", closefd=False)
    return io.TextIOWrapper(
        raw if stream.buffer is _raw(stream) else io.BufferedWriter(raw),  # under python -u there is no buffer
        encoding=stream.encoding,
        errors=stream.errors if stream.errors == "backslashreplace" else "replace",  # stderr already never fails
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


def _raw(stream: TextIO) -> object:
    """What a text stream writes to in the end."""
    buffer = getattr(stream, "buffer", None)
    return getattr(buffer, "raw", buffer)


def require_written() -> None:
    """Makes sure that what was printed has not met a full disk; that nobody has read it is no error.

    Raises:
        UserError: some of it is missing where it was led to.
    """
    sys.stdout.flush()
    lost = getattr(_raw(sys.stdout), "lost", None)
    if lost and is_disk_full(lost):
        raise UserError(f"standard output could not all be written ({lost.strerror}); free some space and run again")


def print_piece(text: str) -> None:
    """Prints at once and without the end of a line, for a script that does nothing else: it ends with its reader.

    Raises:
        SystemExit: nobody reads it any more.
        UserError: there is no space for it.
    """
    print(text, end="", flush=True)
    require_written()
    if getattr(_raw(sys.stdout), "lost", None):
        raise SystemExit(0)
