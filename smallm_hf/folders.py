"""Writing a folder whole or not at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from smallm_hf.errors import UserError, is_disk_full, one_line


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """Gives an empty folder beside `folder` that takes its place when the block ends without an exception.

    After an exception what stood there still stands, and nothing else is left, no folder made on the way either.

    Raises:
        UserError: the disk is full.
    """
    fresh, old = (folder.with_name(f".{folder.name}.{end}") for end in ("partial", "replaced"))
    made = [parent for parent in folder.parents if not parent.exists()]
    shutil.rmtree(fresh, ignore_errors=True)  # of a process that was killed
    try:
        fresh.mkdir(parents=True)
        yield fresh
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            folder.rename(old)
        fresh.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    except BaseException as error:
        shutil.rmtree(fresh, ignore_errors=True)
        for parent in made:
            with suppress(OSError):  # somebody else writes there too
                parent.rmdir()
        # safetensors and torch report a full disk as errors of their own, the file system as OSError.
        if isinstance(error, OSError | SafetensorError | RuntimeError) and is_disk_full(error):
            raise UserError(f"no space left to write {folder} ({one_line(error)}); free some and run again") from error
        raise


def require_writable(path: Path, option: str, *, folder: bool) -> None:
    """Makes sure, before any work, that a file or a folder can be written at `path`.

    Raises:
        UserError: something of the other kind is there, or the nearest existing folder is closed to us.
    """
    existing = path
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if existing.is_dir() != (folder or existing != path):
        kind = "folder" if existing.is_dir() else "file"
        raise UserError(f"{option} {path}: {existing} is a {kind}; give another {option}")
    if not os.access(existing, os.W_OK):
        raise UserError(f"{option} {path}: {existing} cannot be written to; give another {option}")
