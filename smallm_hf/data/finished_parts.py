"""The folder where finished parts wait for the rest of their token files: whose they are, and when they go.

It lies beside the folder of the token files. After a kill it is there again, for the same settings, text and versions
alone; after success, or a mistake that another run would make again, it is gone.
"""

import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from smallm_hf.base.errors import DiskFull, UserError, is_disk_full, one_line
from smallm_hf.base.folders import write_whole
from smallm_hf.data.stages import WorkerKilled

IDENTITY = "identity.json"


def parts_folder(folder: Path) -> Path:
    """Where finished parts wait for the rest of the token files in `folder`."""
    return folder.with_name(f".{folder.name}.parts")


@contextmanager
def finished_parts(folder: Path, identity: str, report: Callable[[str], None]) -> Iterator[Path]:
    """The parts of one process and its workers: there again after a kill, gone after success or a user's mistake.

    Args:
        folder: of the token files.
        identity: all that decides what the parts hold; those of another identity are removed.
        report: called with a line of what is kept.

    Raises:
        DiskFull: in place of another error that means it.
    """
    parts = parts_folder(folder)
    made = [parent for parent in folder.parents if not parent.exists()]
    written = parts / IDENTITY
    if not (written.is_file() and written.read_text(encoding="utf-8") == identity):
        shutil.rmtree(parts, ignore_errors=True)
        parts.mkdir(parents=True)
        write_whole(written, identity)
    try:
        yield parts
    except BaseException as error:
        is_full = isinstance(error, OSError) and is_disk_full(error)
        if isinstance(error, WorkerKilled) or not (isinstance(error, UserError) or is_full):
            report(f"what is finished waits in {parts}; the same command goes on from there")
            raise
        shutil.rmtree(parts, ignore_errors=True)
        for parent in made:
            with suppress(OSError):  # somebody else writes there too
                parent.rmdir()
        if is_full:
            raise DiskFull(f"no space left to write {folder} ({one_line(error)}); free some and run again") from error
        raise
    shutil.rmtree(parts)


def shared_parts(folder: Path, identity: str) -> Path:
    """The parts that several machines make together; the first one makes their folder.

    Args:
        folder: of the token files.
        identity: all that decides what the parts hold.

    Raises:
        UserError: the parts that are there are of another identity.
    """
    parts = parts_folder(folder)
    parts.mkdir(parents=True, exist_ok=True)
    written = parts / IDENTITY
    if not written.exists():
        fresh = parts / uuid.uuid4().hex  # several tasks may do so at once
        fresh.write_text(identity, encoding="utf-8")
        fresh.replace(written)
    if written.read_text(encoding="utf-8") != identity:
        raise UserError(
            f"{parts} holds parts of other settings, another text or other versions of the software; remove it"
        )
    return parts
