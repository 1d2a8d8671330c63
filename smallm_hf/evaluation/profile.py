"""Where the loss lies: by certainty, by position in the context, by how frequent a token or a word is."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from smallm_hf.evaluation.word_loss import WordLoss, by_decade

# Bins of the confidence, equally wide (Guo et al. 2017).
CALIBRATION_BINS = 15
# Positions are binned by powers of two; no context is longer.
POSITION_BINS = 32


@dataclass(frozen=True)
class TokenScores:
    """What a model predicted of scored tokens; every array has shape (tokens,).

    Attributes:
        token_ids: the tokens.
        positions: tokens of the window before each; a causal model has read just these.
        nats: negative log-likelihood, float64.
        ranks: tokens that the model preferred, 0 for its first choice; of equal logits the lower id comes first.
        entropies: of the predicted distribution, in nats; None if not asked for.
        confidences: the probability of the first choice; None if not asked for.
        words: the word of each, by `WordLoss.find`; None if not asked for.
    """

    token_ids: np.ndarray
    positions: np.ndarray
    nats: np.ndarray
    ranks: np.ndarray
    entropies: np.ndarray | None = None
    confidences: np.ndarray | None = None
    words: np.ndarray | None = None


@dataclass
class Profile:
    """Counts and sums over scored tokens; additive over windows, batches and processes.

    Attributes:
        top_k: the k of the top-k accuracies.
        first_k: tokens among the first k choices, for each k.
        entropy: summed, in nats.
        by_confidence: tokens, summed confidence and tokens that were the first choice, for each bin.
        by_position: tokens and nats, for each bin.
        by_token: tokens and nats, for each entry of the vocabulary.
        by_word: occurrences and nats, for each word of the text; empty for a tokenizer without offsets, as the slow
            ones of transformers are.
    """

    top_k: tuple[int, ...]
    first_k: np.ndarray
    entropy: np.ndarray
    by_confidence: np.ndarray
    by_position: np.ndarray
    by_token: np.ndarray
    by_word: WordLoss

    @classmethod
    def empty(cls, top_k: Sequence[int], vocab_size: int) -> "Profile":
        """Nothing counted yet."""
        shapes = (len(top_k), 1, (3, CALIBRATION_BINS), (2, POSITION_BINS), (2, vocab_size))
        return cls(tuple(top_k), *map(np.zeros, shapes), WordLoss())

    def add(self, scores: TokenScores) -> None:
        """Adds tokens that were scored with entropies and confidences."""
        self.first_k += [(scores.ranks < k).sum() for k in self.top_k]
        self.entropy += scores.entropies.sum()
        confidences = np.nan_to_num(scores.confidences)  # NaN is refused at the end, by all processes
        bins = np.minimum((confidences * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
        _count(self.by_confidence, bins, confidences, scores.ranks == 0)
        _count(self.by_position, np.ceil(np.log2(scores.positions)).astype(int), scores.nats)
        _count(self.by_token, scores.token_ids, scores.nats)
        if scores.words is not None:
            self.by_word.add(scores.words, scores.nats)

    def __iadd__(self, other: "Profile") -> "Profile":
        """Adds the counts and sums of another process."""
        for field in fields(self)[1:]:
            counted = getattr(self, field.name)
            counted += getattr(other, field.name)
        return self

    def figures(self) -> dict[str, float]:
        """The top-k accuracies, the mean entropy and the expected calibration error (Guo et al. 2017, 3)."""
        tokens = float(self.by_token[0].sum())
        _, confidence, correct = self.by_confidence
        return {
            f"top{k}_accuracy": first / tokens for k, first in zip(self.top_k, self.first_k.tolist(), strict=True)
        } | {
            "mean_entropy_nats": float(self.entropy[0] / tokens),
            "calibration_error": float(np.abs(confidence - correct).sum() / tokens),
        }

    def tables(
        self, frequencies: np.ndarray | None = None, word_counts: Mapping[str, int] | None = None
    ) -> dict[str, list[dict[str, Any]]]:
        """The bins that hold tokens: `by_confidence` (reliability), `by_position`, `by_frequency`, `by_word_frequency`.

        Args:
            frequencies: occurrences of each entry of the vocabulary in another text, such as the training text, int of
                shape (V,); by default in the scored one.
            word_counts: occurrences of its words, from `count_words`.
        """
        tokens, confidence, correct = self.by_confidence
        reliability = [
            {
                "from": bin / CALIBRATION_BINS,
                "to": (bin + 1) / CALIBRATION_BINS,
                "tokens": int(tokens[bin]),
                "confidence": confidence[bin] / tokens[bin],
                "accuracy": correct[bin] / tokens[bin],
            }
            for bin in np.flatnonzero(tokens).tolist()
        ]
        counts = self.by_token[0] if frequencies is None else frequencies
        return {
            "by_confidence": reliability,
            "by_position": [
                {"from": 2**bin // 2 + 1, "to": 2**bin, "tokens": int(tokens), "loss": nats / tokens}
                for bin, (tokens, nats) in enumerate(self.by_position.T.tolist())
                if tokens
            ],
            "by_frequency": [
                {"from": low, "to": high, "tokens": int(tokens), "loss": nats / tokens, "entries": int(entries)}
                for low, high, (tokens, nats, entries) in by_decade(counts, *self.by_token, self.by_token[0] > 0)
                if tokens
            ],
            "by_word_frequency": self.by_word.table(word_counts),
        }


def _count(rows: np.ndarray, bins: np.ndarray, *weights: np.ndarray) -> None:
    """Adds 1 to the first row and each weight to the next ones, in the bin of each token."""
    for row, weight in zip(rows, (None, *weights), strict=True):
        row += np.bincount(bins, weights=weight, minlength=len(row))
