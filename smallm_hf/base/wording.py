"""Words that fit what they are said of."""

from collections.abc import Iterable
from difflib import get_close_matches


def counted(number: int, noun: str) -> str:
    """`1 document`, `1,200 documents`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def nearest(name: str, valid: Iterable[str], prefix: str = "") -> str:
    """The end of an error line: the valid name that looks most like `name`; "" if none does."""
    found = get_close_matches(name, list(valid), n=1)
    return f"; did you mean {prefix}{found[0]}?" if found else ""
