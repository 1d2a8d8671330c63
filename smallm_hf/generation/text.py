"""The text of tokens that arrive one by one."""

from collections.abc import Callable, Sequence

UNFINISHED = "\ufffd"  # what a decoder makes of a character whose last bytes are still to come
# Tokens that are decoded again with each new one, at most, and those that are kept of them: enough that what stands
# before a token makes of it what it makes of it in the whole text.
WINDOW, KEPT = 32, 8


class GrowingText:
    """Gives the text of each new token as soon as nothing that follows can change it.

    The pieces joined are what the decoded prompt and continuation have behind the prompt, so no space is lost between
    them; a piece never stops inside a character. The text ends before the first of the stop strings.

    Args:
        decode: token ids to text, without special tokens.
        prompt: the ids that the text begins behind.
        stop: strings, none of them empty.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], prompt: Sequence[int], stop: Sequence[str] = ()):
        self.decode, self.ids, self.stop = decode, list(prompt), stop
        self.given = len(decode(self.ids))  # characters of the window that were added to `held` already
        self.held = ""  # what may be the beginning of a stop string

    def add(self, token_id: int, last: bool = False) -> tuple[str, bool]:
        """The piece that became final with a token, and whether a stop string ends the text behind it.

        Args:
            token_id: the next one.
            last: whether none follows, so that nothing is held back.
        """
        self.ids.append(token_id)
        text = self.decode(self.ids)
        if last or not text.endswith(UNFINISHED):
            self.held += text[self.given :]
            self.given = max(self.given, len(text))
            if len(self.ids) > WINDOW:
                self.ids = self.ids[-KEPT:]
                self.given = len(self.decode(self.ids))
        found = [place for string in self.stop if (place := self.held.find(string)) >= 0]
        if found:
            return self.held[: min(found)], True
        final = len(self.held) - (0 if last else self._begun())
        piece, self.held = self.held[:final], self.held[final:]
        return piece, False

    def _begun(self) -> int:
        """The length of the longest end of `held` that a stop string begins with."""
        ends = (size for string in self.stop for size in range(1, len(string)) if self.held.endswith(string[:size]))
        return max(ends, default=0)
