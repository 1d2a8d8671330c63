"""The fixed set that every validation of a run scores."""

import math
from collections.abc import Callable
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from transformers import PreTrainedModel

from smallm_hf.base.errors import Interrupted
from smallm_hf.base.plain_json import write_json
from smallm_hf.data.selection.splitting import VALIDATION
from smallm_hf.data.token_files import TokenFiles
from smallm_hf.evaluation.scoring import Sums, score_token_stream, summarize

VALIDATION_FILE = "validation.json"


@dataclass(frozen=True)
class ValidationSet:
    """What a run scores, always by one rule.

    Attributes:
        tokens: of whole documents, each closed by eos.
        bytes: that they stand for, an eos counted as one.
        context_length: tokens per window.
        separator: the eos, where the run attends within documents; None where it does not.
        hidden: what their unknown tokens stand for; None where the tokenizer has none.
    """

    tokens: np.ndarray
    bytes: int
    context_length: int
    separator: int | None = None
    hidden: Sums | None = None

    @property
    def size(self) -> Sums:
        """What is known of the text before it is scored."""
        return Sums(bytes=self.bytes) + (self.hidden or Sums())

    @classmethod
    def choose(
        cls, files: TokenFiles, limit: int | None, context_length: int, within_documents: bool = False
    ) -> "ValidationSet":
        """The whole documents among the first `limit` validation tokens, and the first one in any case.

        Args:
            files: hold them.
            limit: tokens; None takes all.
            context_length: tokens per window.
            within_documents: whether the model is scored as `BatchingConfig.within_documents` trains it: across them it
                would meet what it has never seen, and seem worse than it is.
        """
        tokens, size = files.document_sizes(VALIDATION).T
        ends = tokens.cumsum()
        documents = len(ends) if limit is None else max(1, np.searchsorted(ends, limit, side="right"))
        separator = files.meta.eos_token_id if within_documents else None
        size_with_ends = int(size[:documents].sum() + documents)
        hidden = files.hidden(VALIDATION)
        if hidden is not None:
            number, nats = hidden[:documents].sum(axis=0).tolist()
            hidden = Sums(unknown=int(number), spelling=nats)
        return cls(files.validation[: ends[documents - 1]], size_with_ends, context_length, separator, hidden)

    def score(
        self, model: PreTrainedModel, batch_size: int, accelerator: Accelerator, interrupted: Callable[[], bool] = bool
    ) -> dict[str, float] | None:
        """Scores the set by the `packed` protocol, in the precision of the weights, shared over the processes.

        Where there is a `separator`, attention does not reach across it.

        Returns:
            The figures; None, on every process, where `interrupted` came true on one of them.
        """

        def look_up(tokens: int) -> None:
            if interrupted():
                raise Interrupted

        shard = (accelerator.process_index, accelerator.num_processes)
        options = {"context_length": self.context_length, "batch_size": batch_size, "separator": self.separator}
        options |= {"shard": shard, "advance": look_up}
        try:
            sums, stops = score_token_stream(model, self.tokens, **options), 0
        except Interrupted:
            sums, stops = Sums(), 1
        if accelerator.num_processes > 1:
            share = torch.tensor([(*astuple(sums), stops)], dtype=torch.float64, device=accelerator.device)
            nats, *counts = accelerator.gather(share).sum(dim=0).tolist()
            *counts, stops = (round(count) for count in counts)
            sums = Sums(nats, *counts)
        if stops:
            return None
        figures = summarize(sums + self.size, self.hidden is not None)
        return {f"validation_{name}": value for name, value in figures.items()}


def write_validation(folder: Path, validated: dict[str, float]) -> None:
    """Leaves the figures of a validation, and its step, beside the weights they belong to."""
    write_json(folder / VALIDATION_FILE, validated)


def figures_of_json(figures: dict[str, float | None]) -> dict[str, float]:
    """The figures of a validation that was read from JSON, where what overflowed is null."""
    return {name: math.inf if value is None else value for name, value in figures.items()}
