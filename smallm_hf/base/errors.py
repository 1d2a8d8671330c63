"""The exceptions that a user may cause, and the one failure of a machine that can hit every write."""

import errno

# How a full disk shows: by the error number of the file system, or by the words of libraries that write files.
NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
NO_SPACE_WORDS = (
    *("No space left", "Disk quota exceeded", "File too large"),
    *("PytorchStreamWriter failed writing", "basic_ios::clear: iostream error"),  # torch.save
    " requested and ",  # numpy: so many items requested and so many written
)


class UserError(ValueError):
    """A user's mistake: bad config, bad data, a wrong folder.

    The message is one line that names what is wrong, both values, and what to change. Scripts print it and exit with
    status 2; any other exception is our own fault and keeps its traceback.
    """

    def __init__(self, message: str):
        super().__init__(printable(message))


class TooLong(UserError):
    """A text takes more tokens than a model has positions."""


class DiskFull(UserError):
    """No space is left for something that can be written again later."""


class Interrupted(Exception):
    """The run was asked to stop and has saved its state; a script exits with 75."""


def is_disk_full(error: BaseException | None) -> bool:
    """Whether an exception of a write, or one that caused it, means that no space is left."""
    if error is None:
        return False
    if isinstance(error, OSError) and error.errno in NO_SPACE:
        return True
    return any(words in str(error) for words in NO_SPACE_WORDS) or is_disk_full(error.__cause__ or error.__context__)


def printable(text: str) -> str:
    """Text that can be written as UTF-8: what is not Unicode in it, such as the bytes of a file name, is escaped."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def one_line(error: object) -> str:
    """An exception's message, or anything's text, as one line of at most 300 characters; its type where it is empty."""
    return " ".join(str(error).split())[:300] or type(error).__name__
