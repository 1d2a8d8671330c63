"""The sums over a scored text, and the figures made of them by one division at the end."""

import math
import operator
from collections.abc import Iterable
from dataclasses import asdict, astuple, dataclass, fields

import numpy as np

from smallm_hf.base.errors import UserError
from smallm_hf.evaluation.perplexity.figures import of_sums, perplexity_of
from smallm_hf.evaluation.profile import TokenScores


@dataclass(frozen=True)
class Sums:
    """Sums over what was scored so far; additive over windows, batches and processes.

    Attributes:
        nats: summed negative log-likelihood of the scored tokens.
        tokens: scored tokens.
        top1: tokens that were the model's first choice; of equal logits the lower id comes first.
        top3: tokens among its first three choices.
        bytes: UTF-8 bytes of the scored text; 0 where only tokens are known.
        characters: Unicode code points of it; 0 where only tokens are known.
        words: runs of it between white space; 0 where only tokens are known.
        unknown: scored tokens that hide a piece of the text, see `tokenizing.spelling`.
        spelling: nats to spell what they hide.
    """

    nats: float = 0.0
    tokens: int = 0
    top1: int = 0
    top3: int = 0
    bytes: int = 0
    characters: int = 0
    words: int = 0
    unknown: int = 0
    spelling: float = 0.0

    def __add__(self, other: "Sums") -> "Sums":
        """The sums of both."""
        return Sums(*map(operator.add, astuple(self), astuple(other)))

    @classmethod
    def of_floats(cls, values: Iterable[float]) -> "Sums":
        """From what `astuple` gives, in float64, which holds counts exactly up to 2**53: they are whole again."""
        return cls(*(field.type(value) for field, value in zip(fields(cls), values, strict=True)))

    @property
    def text_nats(self) -> float:
        """Of the text, which is more than its tokens where some are unknown."""
        return self.nats + self.spelling

    @classmethod
    def of_text(cls, text: str) -> "Sums":
        """The size of a text of which nothing is scored yet."""
        return cls(bytes=len(text.encode()), characters=len(text), words=len(text.split()))

    @classmethod
    def of_hidden(cls, costs: np.ndarray) -> "Sums":
        """Those of unknown tokens, by what it costs to spell what each stands for."""
        return cls(unknown=len(costs), spelling=costs.sum().item())

    @classmethod
    def of_tokens(cls, scores: TokenScores) -> "Sums":
        """The sums of scored tokens."""
        ranks = scores.ranks
        return cls(scores.nats.sum().item(), len(ranks), (ranks < 1).sum().item(), (ranks < 3).sum().item())


def summarize(sums: Sums, may_hide: bool = False) -> dict[str, float | int]:
    """Divides once.

    Args:
        sums: of a text.
        may_hide: whether its tokenizer has an unknown token, whose share then stands beside the other figures.

    Returns:
        loss in nats per token, perplexity (as our `evaluate` metric has them), bits per byte, accuracies, counts; where
        characters and words are known also bits per character and word perplexity, exp(nats / words). Bits per byte and
        character and word perplexity are of the text, and count what it takes to spell what unknown tokens hide.

    Raises:
        UserError: nothing was scored, or the nats are NaN.
    """
    if not sums.tokens:
        raise UserError("there was no token to score; give text that is not empty")
    if math.isnan(sums.nats):
        raise UserError("the model's logits are NaN; its weights are damaged, or its dtype overflows")
    divided = of_sums([asdict(sums)])
    figures = {name: divided[name] for name in ("loss", "perplexity", "bits_per_byte")}
    if sums.words:
        figures["bits_per_character"] = sums.text_nats / math.log(2) / sums.characters
        figures["word_perplexity"] = perplexity_of(sums.text_nats / sums.words)
    figures["top1_accuracy"], figures["top3_accuracy"] = sums.top1 / sums.tokens, sums.top3 / sums.tokens
    if may_hide:
        figures["unknown_rate"] = sums.unknown / sums.tokens
        figures["spelling_bits_per_byte"] = sums.spelling / math.log(2) / sums.bytes if sums.bytes else None
    counted = ("tokens", "bytes", "characters", "words") if sums.words else ("tokens", "bytes")
    return figures | {name: getattr(sums, name) for name in counted}
