"""Cuts sequences of tokens into the windows that a model reads, by the protocols of `scoring.py`."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from smallm_hf.base.errors import UserError
from smallm_hf.evaluation.configuration import Protocol

# Contexts beyond this are used only when asked for: models of 128k positions would not fit beside their logits.
LONGEST_DEFAULT_CONTEXT = 2048


@dataclass(frozen=True)
class Window:
    """The tokens that a model reads at once.

    Attributes:
        token_ids: int64 of shape (tokens,); those before the scored ones are context.
        scored: how many of them, from the end, are scored.
        source_ids: what the encoder of a seq2seq model reads beside it.
        words: the word that each scored token belongs to, by `WordLoss.find`; None if not asked for.
    """

    token_ids: np.ndarray
    scored: int
    source_ids: Sequence[int] | None = None
    words: np.ndarray | None = None

    @property
    def labels(self) -> np.ndarray:
        """The scored tokens."""
        return self.token_ids[len(self.token_ids) - self.scored :]


def resolve_context_length(limit: int | None, requested: int | None, trained: int | None = None) -> int:
    """The tokens per window: the number requested, else what the model was trained on, else `LONGEST_DEFAULT_CONTEXT`.

    Raises:
        UserError: the number requested is above the `limit` of the model's positions, or below one.
    """
    if requested is None:
        trained = trained or LONGEST_DEFAULT_CONTEXT
        return min(limit or trained, trained)
    if requested < 1:
        raise UserError(f"context_length={requested} is out of range; give 1 or more")
    if limit is not None and requested > limit:
        raise UserError(f"context_length={requested} exceeds the model's {limit} positions; give {limit} or less")
    return requested


def resolve_stride(protocol: Protocol, requested: int | None, context_length: int) -> int | None:
    """The tokens from one window to the next under `sliding`, by default half a window; None under the others.

    Raises:
        UserError: a stride for another protocol, longer than a window, or below one.
    """
    if protocol != "sliding":
        if requested is not None:
            raise UserError(f"stride={requested} belongs to protocol sliding and not to {protocol}; leave out one")
        return None
    if requested is None:
        return max(1, context_length // 2)
    if not 1 <= requested <= context_length:
        raise UserError(f"stride={requested} must be from 1 to context_length={context_length}, or tokens go unscored")
    return requested


def cut_text(
    before: Sequence[int],
    token_ids: Sequence[int],
    context_length: int,
    stride: int | None = None,
    source_ids: Sequence[int] | None = None,
    words: np.ndarray | None = None,
) -> Iterator[Window]:
    """Cuts a text into windows; every token of it is scored in one of them.

    Args:
        before: one or more tokens before the text, which are read and not scored.
        token_ids: of the text.
        context_length: tokens of a window beyond the first, which is only read.
        stride: scored tokens of every window but the first and the last; None cuts disjoint windows.
        source_ids: what an encoder reads with each window.
        words: the word of each token of the text.
    """
    sequence = np.array([*before, *token_ids], dtype=np.int64)
    done, planned_end = len(before), context_length + 1
    while done < len(sequence):
        end = min(planned_end, len(sequence))
        begin = (end if stride else planned_end) - context_length - 1
        if end > done:
            of_scored = None if words is None else words[done - len(before) : end - len(before)]
            yield Window(sequence[max(0, begin) : end], end - done, source_ids, of_scored)
            done = end
        planned_end += stride or context_length


def cut_stream(token_ids: np.ndarray, index: int, context_length: int, words: np.ndarray | None = None) -> Window:
    """Window `index` of a stream: up to `context_length` tokens behind the one before; its last precedes its first."""
    begin = index * context_length
    end = begin + context_length
    ids = np.concatenate(([token_ids[begin - 1]], token_ids[begin:end])).astype(np.int64)
    return Window(ids, len(ids) - 1, words=None if words is None else words[begin:end])
