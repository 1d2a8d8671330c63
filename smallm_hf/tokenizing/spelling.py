"""What a tokenizer hides behind its unknown token, and what it costs to spell that out.

A model that predicts `<|unk|>` has not yet said which word stands there. Figures of a text, which are compared with
those of other tokenizers, make that good: each hidden piece, with the space that belongs to it, is spelled in UTF-8
bytes and an end sign, drawn from one unigram distribution. With n(s) the occurrences of a sign s among N in the
different pieces of the training text, each piece taken once, s costs -ln((n(s) + 1) / (N + 257)) nats. These 257
probabilities sum to 1, and so those of all texts, their tokens and spellings together, sum to at most 1, as they do
where nothing is lost.

The counts stand in `tokenizer_config.json`, under `spelling`. A tokenizer without them has seen nothing: N is 0, and
every sign costs ln 257. What a tokenizer loses otherwise, such as capitals, is not counted.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase

from smallm_hf.tokenizing.encoding import encode_pieces

SPELLING = "spelling"
END = 256  # behind the bytes
SIGNS = 257


def count_signs(pieces: Iterable[str]) -> list[int]:
    """How often each byte and the end occurs in pieces; (257,)."""
    pieces = [piece.encode() for piece in pieces]
    counts = np.bincount(np.frombuffer(b"".join(pieces), np.uint8), minlength=SIGNS)
    counts[END] = len(pieces)
    return counts.tolist()


@dataclass(frozen=True, eq=False)
class Speller:
    """Spells what a tokenizer hides.

    Attributes:
        tokenizer: a fast one.
        nats: of each sign, (257,).
    """

    tokenizer: PreTrainedTokenizerBase
    nats: np.ndarray

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> "Speller | None":
        """None for a tokenizer that has no unknown token of its own, or never needs it."""
        unknown, is_fast = tokenizer.unk_token_id, tokenizer.is_fast
        if unknown is None or unknown == tokenizer.eos_token_id or not is_fast:
            return None
        if getattr(tokenizer.backend_tokenizer.model, "byte_fallback", False):
            return None
        counts = np.array(tokenizer.init_kwargs.get(SPELLING, [0] * SIGNS))
        return cls(tokenizer, -np.log((counts + 1) / (counts.sum() + SIGNS)))

    def cost(self, piece: str) -> float:
        """Nats of one spelled piece, its end included."""
        return float(self.nats[[*piece.encode(), END]].sum())

    def hidden(self, text: str, ids: Sequence[int] | np.ndarray) -> list[str]:
        """What each of the unknown tokens of a text with these ids stands for."""
        unknown = self.tokenizer.unk_token_id
        if not np.any(np.asarray(ids) == unknown):
            return []
        return [piece for id, piece in encode_pieces(self.tokenizer, text) if id == unknown]

    def costs(self, text: str, ids: Sequence[int] | np.ndarray) -> np.ndarray:
        """Nats to spell each of these, (unknown tokens,)."""
        return np.array([*map(self.cost, self.hidden(text, ids))])
