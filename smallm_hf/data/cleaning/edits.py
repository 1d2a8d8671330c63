"""Edits of a text, `(start, end, new)`, in its own positions and in those of the raw text before all rules."""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

Edit = tuple[int, int, str]  # the text from start to end becomes the string
Rule = Callable[[str], Iterable[Edit]]  # the edits come in any order; one that begins inside another does not count


@dataclass(frozen=True)
class Span:
    """A stretch of the raw text that a rule removed or changed, and what it became."""

    rule: str
    start: int
    end: int
    new: str


@dataclass(frozen=True)
class CleanedText:
    """A cleaned text and the edits that led to it, rule by rule, in positions of the text that the rule was given."""

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
    """Returns the way back through one rule: from a position after it to the position before it."""
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


def apply_rule(rule: Rule, text: str) -> tuple[str, list[Edit]]:
    """Returns the text after a rule, and the rule's edits in order, without those that begin inside another."""
    edits, parts, position = [], [], 0
    for edit in sorted(rule(text), key=lambda edit: (edit[0], -edit[1])):
        start, end, new = edit
        if start >= position:
            edits.append(edit)
            parts += [text[position:start], new]
            position = end
    return "".join(parts) + text[position:], edits


def removal(text: str, match: re.Match) -> Edit:
    """Returns the edit that removes a match, with the space before it unless a letter follows."""
    start, end = match.span()
    follows = text[end : end + 1]
    return start - (text[start - 1 : start] == " " and not follows.isalnum()), end, ""
