"""How a script reads its command line, and how it ends: with success, or with one clear line and a status to match."""

import os
import sys
from argparse import ArgumentError
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from smallm_hf.base.errors import Interrupted, UserError, is_disk_full, one_line
from smallm_hf.base.terminal import lasting_output, require_written

Fields = TypeVar("Fields")

# The status of a script that was asked to stop and can be resumed: EX_TEMPFAIL of BSD's sysexits.h.
EXIT_INTERRUPTED = 75
# The home of users who have none, as Debian calls it: libraries manage without the folder, but not without its name.
NO_HOME = "/nonexistent"


def is_main_process() -> bool:
    """True in the one process that prints; known before any process group exists."""
    return int(os.environ.get("RANK", "0")) == 0


def called(name: str) -> str:
    """How a command is called here: `smallm NAME`, or as the script where it was one that was called."""
    return f"python scripts/{name}.py" if Path(sys.argv[0]).parent.name == "scripts" else f"smallm {name}"


def exit_clearly(main: Callable[[], None]) -> None:
    """Runs `main` and turns a user's mistake, or a full disk, into one line on stderr and exit status 2.

    A run that saved its state because it was asked to stop exits with 75, Ctrl-C before there is a state with 130. Any
    other exception is our own fault and keeps its traceback. A terminal that is closed, or that lacks a character, does
    not end `main`, see `lasting_output`.
    """
    if os.path.expanduser("~") == "~":  # a user unknown to the system, as in some containers
        os.environ["HOME"] = NO_HOME
    with lasting_output():
        try:
            sys.argv[1:] = map(_as_utf8, sys.argv[1:])
            main()
            require_written()
        except UserError as error:
            _stop(f"error: {error}", 2)
        except ArgumentError as error:  # of a parser with exit_on_error=False
            _stop(f"error: {one_line(error)}; see --help", 2)
        except UnicodeEncodeError as error:
            if error.encoding == "utf-8" or error.encoding != sys.getfilesystemencoding():
                raise
            named = f"{error.object!a} cannot be the name of a file here, where names are in {error.encoding}"
            _stop(f"error: {named}; set PYTHONUTF8=1", 2)
        except Interrupted as request:
            _stop(str(request), EXIT_INTERRUPTED)
        except KeyboardInterrupt:
            _stop("interrupted", 130)
        except Exception as error:
            if not is_disk_full(error):
                raise
            file = getattr(error, "filename", None) or "a file"
            _stop(f"error: no space left writing {file}; free some space and run again", 2)


def _as_utf8(word: str) -> str:
    """A word of the command line, decoded as UTF-8 where the locale is more limited.

    Raises:
        UserError: it is not UTF-8, so that neither a model nor a library could use it as text or as a path.
    """
    try:
        return word.encode("utf-8", "surrogateescape").decode("utf-8")
    except UnicodeError as error:
        raise UserError(
            f"{word!a} on the command line is not UTF-8, which the locale says it is; set LC_ALL to the encoding of "
            "the terminal, or rename the file of this name"
        ) from error


def _stop(line: str, status: int) -> None:
    if is_main_process():
        sys.stdout.flush()
        print(line, file=sys.stderr, flush=True)
    # os._exit would skip the destructors of a process group; sys.exit lets them run.
    sys.exit(status)


def take(kind: type[Fields], given: dict[str, Any]) -> Fields:
    """Takes the fields of a dataclass out of the given options; the dataclass refuses values out of range."""
    return kind(**{field.name: given.pop(field.name) for field in fields(kind)})
