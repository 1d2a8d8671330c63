"""Edits of a text, `(start, end, new)`, in its own positions and in those of the text that many rules ago was raw."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

Edit = tuple[int, int, str]  # what stands from start to end becomes the string
Rule = Callable[[str], Iterable[Edit]]


@dataclass(frozen=True)
class Span:
    """A stretch of the raw text that a rule removed or changed, and what stands there now."""

    rule: str
    start: int
    end: int
    new: str


@dataclass(frozen=True)
class Cleaned:
    """A cleaned text and the edits that led to it, rule by rule, each rule's in positions of the text it was given."""

    text: str
    stages: tuple[tuple[str, list[Edit]], ...]
    is_book: bool

    def spans(self, rule: str | None = None) -> Iterator[Span]:
        """Yields the edits, or those of one rule, in positions of the raw text, rule by rule."""
        back: list[Callable[[int, bool], int]] = []
        for name, edits in self.stages:
            for start, end, new in edits if rule in (None, name) else ():
                for step in reversed(back):
                    start, end = step(start, True), step(end, False)
                yield Span(name, start, max(start, end), new)
            back.append(_back(edits))


def _back(edits: list[Edit]) -> Callable[[int, bool], int]:
    """Returns the way back through one rule: from a position behind it to the position before it."""
    starts, ends = np.array([edit[:2] for edit in edits]).T
    grown = np.cumsum([len(new) - (end - start) for start, end, new in edits])
    new_ends = ends + grown
    new_starts = new_ends - [len(new) for _, _, new in edits]

    def step(position: int, is_start: bool) -> int:
        index = int(np.searchsorted(new_starts, position, "right" if is_start else "left")) - 1
        if index < 0:
            return position
        if position < new_ends[index]:  # inside of what the rule put in
            return int(starts[index] if is_start else ends[index])
        return int(position - grown[index])

    return step


def apply_edits(text: str, edits: Iterable[Edit]) -> str:
    """Returns the text with edits, which are in order and do not overlap, carried out."""
    parts, position = [], 0
    for start, end, new in edits:
        parts += [text[position:start], new]
        position = end
    return "".join(parts) + text[position:]
