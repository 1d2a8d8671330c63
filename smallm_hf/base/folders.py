"""Writes folders and files whole or not at all, and so that they survive a power cut."""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock
from safetensors import SafetensorError

from smallm_hf.base.errors import DiskFull, UserError, is_disk_full, one_line

PARTIAL, REPLACED = ".partial", ".replaced"


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """Gives an empty folder beside `folder` that takes its place when the block ends without an exception.

    After an exception what stood there still stands, and nothing else is left, not even a parent folder. A process that
    is killed leaves the one or the other; `restored` gives it its name back.

    Raises:
        DiskFull: no space was left.
    """
    fresh, old = _beside(folder)
    restored(folder)
    made = [parent for parent in folder.parents if not parent.exists()]
    try:
        fresh.mkdir(parents=True)
        yield fresh
        for path in [*fresh.rglob("*"), fresh]:
            _to_disk(path)
        if folder.exists():
            folder.rename(old)
        fresh.rename(folder)
        _to_disk(folder.parent)
        shutil.rmtree(old, ignore_errors=True)
    except BaseException as error:
        shutil.rmtree(fresh, ignore_errors=True)
        for parent in made:
            with suppress(OSError):  # another process writes there too
                parent.rmdir()
        # safetensors and torch report a full disk as errors of their own, the file system as OSError.
        if isinstance(error, OSError | SafetensorError | RuntimeError) and is_disk_full(error):
            raise DiskFull(f"no space left to write {folder} ({one_line(error)}); free some and run again") from error
        raise


def restored(folder: Path) -> Path:
    """The folder, put back if a process was killed between moving it aside and moving the new one in.

    Several processes may do so at once.
    """
    fresh, old = _beside(folder)
    if old.exists() and not folder.exists():
        with suppress(FileNotFoundError):  # another process was faster
            old.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
    shutil.rmtree(fresh, ignore_errors=True)
    return folder


def restore_all(parent: Path) -> None:
    """Puts back every folder in `parent` that a killed process had moved aside, and removes what it left."""
    for beside in parent.glob(".*"):
        if beside.suffix in (PARTIAL, REPLACED):
            restored(parent / beside.stem.removeprefix("."))


def remove(folder: Path) -> None:
    """Removes a folder; a process that is killed meanwhile leaves it whole, or for `restore_all` to remove."""
    fresh, _ = _beside(folder)
    restored(folder).rename(fresh)
    shutil.rmtree(fresh)


def file_sha256(path: Path) -> str:
    """The sha256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_whole(path: Path, text: str) -> None:
    """Writes a file; a process that is killed leaves it as it was, or whole."""
    fresh = path.with_name(f".{path.name}{PARTIAL}")
    fresh.write_text(text, encoding="utf-8")
    _to_disk(fresh)
    fresh.replace(path)


def _beside(folder: Path) -> tuple[Path, Path]:
    """Where a folder is written, and where the one it replaces waits."""
    return folder.with_name(f".{folder.name}{PARTIAL}"), folder.with_name(f".{folder.name}{REPLACED}")


def _to_disk(path: Path) -> None:
    """Waits until a file's content, or a folder's list of names, would survive a power cut."""
    if path.is_dir() and os.name == "nt":  # Windows opens no folders
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def lock(folder: Path) -> FileLock:
    """A lock that one process of this machine at a time can hold on a folder; it ends with its process.

    It lies among the temporary files, because beside the folder it would stay behind.
    """
    user = os.getuid() if hasattr(os, "getuid") else ""  # the lock of another user cannot be opened
    name = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:16]
    return FileLock(Path(tempfile.gettempdir()) / f"smallm_hf-{user}-{name}.lock")


def require_writable(path: Path, option: str, *, folder: bool) -> None:
    """Makes sure, before any work, that a file or a folder can be written at `path`.

    Raises:
        UserError: something of the other kind is there, or the nearest existing folder is not writable.
    """
    existing = path
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if existing.is_dir() != (folder or existing != path):
        kind = "folder" if existing.is_dir() else "file"
        raise UserError(f"{option} {path}: {existing} is a {kind}; give another {option}")
    if not os.access(existing, os.W_OK):
        raise UserError(f"{option} {path}: {existing} cannot be written to; give another {option}")
