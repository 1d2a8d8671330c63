"""The exceptions a user may cause, and the one fault of a machine that every writer may meet."""

import errno

# How a full disk shows: by the file system's number, or in the words of libraries that write files by themselves.
NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
NO_SPACE_WORDS = (
    *("No space left", "Disk quota exceeded", "File too large"),
    *("PytorchStreamWriter failed writing", "basic_ios::clear: iostream error"),  # torch.save
    " requested and ",  # numpy: so many items requested and so many written
)


class UserError(ValueError):
    """A user's mistake: bad config, bad data, a wrong folder.

    The message is one line that names what is wrong, both values, and what to change. Scripts print it and exit
    with status 2; every other exception is our own fault and keeps its traceback.
    """

    def __init__(self, message: str):
        super().__init__(printable(message))


class TooLong(UserError):
    """A text takes more tokens than a model has positions."""


class DiskFull(UserError):
    """There was no space left for something that can be written again later."""


class Interrupted(Exception):
    """Work was given up because the run was asked to stop; what leaves a script has saved the state and exits 75."""


def is_disk_full(error: BaseException | None) -> bool:
    """Whether an exception of a write, or one that led to it, means that there is no space left."""
    if error is None:
        return False
    if isinstance(error, OSError) and error.errno in NO_SPACE:
        return True
    return any(words in str(error) for words in NO_SPACE_WORDS) or is_disk_full(error.__cause__ or error.__context__)


def printable(text: str) -> str:
    """Text that can be written as UTF-8: what is no Unicode in it, such as the bytes of a file name, is escaped."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def one_line(error: object) -> str:
    """An exception's message, or anything's text, as one line of at most 300 characters; its type where it is empty."""
    return " ".join(str(error).split())[:300] or type(error).__name__
