"""The fixed set that every validation of a run scores."""

import json
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from smallm_hf.evaluation.scoring import Sums, score_token_stream, summarize

VALIDATION_FILE = "validation.json"


@dataclass(frozen=True)
class ValidationSet:
    """Token ids of whole documents, each closed by eos, and the bytes they stand for, an eos counted as one."""

    tokens: np.ndarray
    bytes: int

    @classmethod
    def choose(
        cls, tokens: np.ndarray, all_bytes: int, limit: int | None, tokenizer: PreTrainedTokenizerFast
    ) -> "ValidationSet":
        """The whole documents among the first `limit` tokens, or all of them.

        Args:
            tokens: every validation token, each document closed by eos.
            all_bytes: bytes of all of them, eos counted as one.
            limit: tokens at most; None takes all.
            tokenizer: counts the bytes where the set is cut.
        """
        if limit is None or limit >= len(tokens):
            return cls(tokens, all_bytes)
        kept = np.asarray(tokens[:limit])
        ends = np.flatnonzero(kept == tokenizer.eos_token_id)
        kept = kept[: ends[-1] + 1] if len(ends) else kept
        text = tokenizer.decode(kept[kept != tokenizer.eos_token_id], clean_up_tokenization_spaces=False)
        return cls(kept, len(text.encode()) + len(ends))

    def score(
        self, model: PreTrainedModel, context_length: int, batch_size: int, accelerator: Accelerator
    ) -> dict[str, float]:
        """Scores the set by the `packed` protocol, in the precision of the weights, shared over the processes."""
        shard = (accelerator.process_index, accelerator.num_processes)
        sums = score_token_stream(model, self.tokens, context_length=context_length, batch_size=batch_size, shard=shard)
        if accelerator.num_processes > 1:
            shares = accelerator.gather(torch.tensor([astuple(sums)], dtype=torch.float64, device=accelerator.device))
            nats, *counts = shares.sum(dim=0).tolist()
            sums = Sums(nats, *(round(count) for count in counts))
        figures = summarize(sums + Sums(bytes=self.bytes))
        return {f"validation_{name}": value for name, value in figures.items()}


def write_validation(folder: Path, validated: dict[str, float]) -> None:
    """Leaves the figures of a validation, and its step, beside the weights they belong to."""
    (folder / VALIDATION_FILE).write_text(json.dumps(validated, indent=2) + "\n", encoding="utf-8")


def read_validation(folder: Path) -> dict[str, float] | None:
    """The figures that lie beside weights; None where there are none."""
    path = folder / VALIDATION_FILE
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
