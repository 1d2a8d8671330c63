"""The fixed set that every validation of a run scores."""

import math
from collections.abc import Callable, Mapping
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from accelerate import Accelerator
from transformers import PreTrainedModel

from smallm_hf.base.errors import Interrupted
from smallm_hf.base.plain_json import write_json
from smallm_hf.data.batches.documents import rows_of
from smallm_hf.data.batches.pairs import TokenPairs
from smallm_hf.data.selection.splitting import VALIDATION
from smallm_hf.data.token_files import TokenFiles
from smallm_hf.evaluation.readers import CausalReader, Seq2SeqReader
from smallm_hf.evaluation.scoring import ALONE, Sums, score_token_stream, score_windows, summarize
from smallm_hf.evaluation.windows import LONGEST_DEFAULT_CONTEXT, Window

VALIDATION_FILE = "validation.json"


class Scorable(Protocol):
    """What a run is validated on, always by one rule."""

    def score(
        self, model: PreTrainedModel, batch_size: int, accelerator: Accelerator, interrupted: Callable[[], bool] = bool
    ) -> dict[str, float] | None:
        """The figures of a model in the precision of its weights, shared over the processes.

        Returns:
            The figures; None, on every process, where `interrupted` came true on one of them.
        """


@dataclass(frozen=True)
class ValidationSet:
    """The text that a run scores by the `packed` protocol, see `Scorable`.

    Attributes:
        tokens: of whole documents, each closed by eos.
        bytes: that they stand for, an eos counted as one.
        context_length: tokens per window.
        separator: the eos, where the run attends within documents; None where it does not.
        hidden: what their unknown tokens stand for; None where the tokenizer has none.
        lengths: (D,) of each document, where each is scored by itself, its eos too; None where they are one stream.
    """

    tokens: np.ndarray
    bytes: int
    context_length: int
    separator: int | None = None
    hidden: Sums | None = None
    lengths: np.ndarray | None = None

    @property
    def size(self) -> Sums:
        """What is known of the text before it is scored."""
        return Sums(bytes=self.bytes) + (self.hidden or Sums())

    @classmethod
    def choose(
        cls,
        files: TokenFiles,
        limit: int | None,
        context_length: int,
        within_documents: bool = False,
        document_rows: bool = False,
    ) -> "ValidationSet":
        """The whole documents among the first `limit` validation tokens, and the first one in any case.

        Args:
            files: hold them.
            limit: tokens; None takes all.
            context_length: tokens per window.
            within_documents: whether the model is scored as `BatchingConfig.within_documents` trains it: across them it
                would meet what it has never seen, and seem worse than it is.
            document_rows: whether each document is scored by itself, as `BatchingConfig.document_rows` trains it.
        """
        tokens, size = files.document_sizes(VALIDATION).T
        ends = tokens.cumsum()
        documents = len(ends) if limit is None else max(1, np.searchsorted(ends, limit, side="right"))
        separator = files.meta.eos_token_id if within_documents else None
        size_with_ends = int(size[:documents].sum() + documents)
        hidden = hidden_in(files.hidden(VALIDATION), slice(documents))
        lengths = tokens[:documents] if document_rows else None
        return cls(files.validation[: ends[documents - 1]], size_with_ends, context_length, separator, hidden, lengths)

    @classmethod
    def of_run(cls, files: TokenFiles, training: Mapping[str, Any], batching: Mapping[str, Any]) -> "ValidationSet":
        """What a run scores, by these sections of its config; older ones lack keys of `batching`."""
        rules = {name: batching.get(name, False) for name in ("within_documents", "document_rows")}
        length = LONGEST_DEFAULT_CONTEXT if batching.get("carry_state") else training["context_length"]
        return cls.choose(files, training["validation_tokens"], length, **rules)

    def sums(self, model: PreTrainedModel, batch_size: int, **shared: Any) -> Sums:
        """The sums of its tokens; `shared` are the shard and what is called as it advances."""
        if self.lengths is None:
            options = {"context_length": self.context_length, "separator": self.separator, "batch_size": batch_size}
            return score_token_stream(model, self.tokens, **options, **shared)
        rank, processes = shared.pop("shard", ALONE)
        starts, lengths = (rows[rank::processes] for rows in rows_of(self.lengths, self.context_length))
        windows = (
            Window(self.tokens[np.arange(start - 1, start + length)].astype(np.int64), length)
            for start, length in zip(starts.tolist(), lengths.tolist(), strict=True)
        )
        options = {"batch_size": min(batch_size, len(starts)), "width": self.context_length}
        return sum(score_windows(CausalReader(model), windows, **options, **shared), Sums())

    def score(
        self, model: PreTrainedModel, batch_size: int, accelerator: Accelerator, interrupted: Callable[[], bool] = bool
    ) -> dict[str, float] | None:
        """See `Scorable`; where there is a `separator`, attention does not reach across it."""
        return _score_together(self, model, batch_size, accelerator, interrupted)


@dataclass(frozen=True)
class ValidationPairs:
    """The pairs of which a run scores the targets, teacher-forced, see `Scorable`.

    Attributes:
        pairs: all of them.
        bytes: of their targets, the end of each counted as one.
        start_token_id: what the decoder begins with.
    """

    pairs: TokenPairs
    bytes: int
    start_token_id: int

    @classmethod
    def choose(cls, pairs: TokenPairs, limit: int | None, start_token_id: int) -> "ValidationPairs":
        """The first pairs whose targets have at most `limit` tokens together, and the first one in any case.

        Args:
            pairs: of the validation text.
            limit: tokens; None takes all.
            start_token_id: what the decoder begins with.
        """
        ends = pairs.lengths[:, 1].cumsum()
        number = len(pairs) if limit is None else max(1, int(np.searchsorted(ends, limit, side="right")))
        chosen = pairs.chosen(slice(number))
        return cls(chosen, int(chosen.target_bytes.sum()) + number, start_token_id)

    @property
    def hidden(self) -> Sums | None:
        """What the unknown tokens of the targets stand for; None where the tokenizer has none."""
        return hidden_in(self.pairs.hidden)

    @property
    def size(self) -> Sums:
        """What is known of the targets before they are scored."""
        return Sums(bytes=self.bytes) + (self.hidden or Sums())

    def sums(self, model: PreTrainedModel, batch_size: int, shard: tuple[int, int] = ALONE, **how: Any) -> Sums:
        """The sums of the targets, the longest of which come first; `how` may hold what is called as they advance."""
        rank, processes = shard
        order = np.argsort(-self.pairs.lengths[:, 1], kind="stable")[rank::processes]
        windows = map(self._window, order.tolist())
        return sum(score_windows(Seq2SeqReader(model), windows, batch_size=batch_size, **how), Sums())

    def score(
        self, model: PreTrainedModel, batch_size: int, accelerator: Accelerator, interrupted: Callable[[], bool] = bool
    ) -> dict[str, float] | None:
        """See `Scorable`."""
        return _score_together(self, model, batch_size, accelerator, interrupted)

    def _window(self, pair: int) -> Window:
        source, target = self.pairs.rows(pair)
        return Window(np.array([self.start_token_id, *target]), scored=len(target), source_ids=source)


def hidden_in(documents: np.ndarray | None, which: slice = slice(None)) -> Sums | None:
    """What the unknown tokens of some documents stand for, see `TokenFiles.hidden`; None where there can be none."""
    if documents is None:
        return None
    number, nats = documents[which].sum(axis=0).tolist()
    return Sums(unknown=int(number), spelling=nats)


def _score_together(
    validation: ValidationSet | ValidationPairs,
    model: PreTrainedModel,
    batch_size: int,
    accelerator: Accelerator,
    interrupted: Callable[[], bool],
) -> dict[str, float] | None:
    """The figures of what is validated, which all processes share."""

    def look_up(tokens: int) -> None:
        if interrupted():
            raise Interrupted

    try:
        shard = (accelerator.process_index, accelerator.num_processes)
        mine, stops = validation.sums(model, batch_size, shard=shard, advance=look_up), 0
    except Interrupted:
        mine, stops = Sums(), 1
    if accelerator.num_processes > 1:
        share = torch.tensor([(*astuple(mine), stops)], dtype=torch.float64, device=accelerator.device)
        *sums, stops = accelerator.gather(share).sum(dim=0).tolist()
        mine = Sums.of_floats(sums)
    if stops:
        return None
    figures = summarize(mine + validation.size, validation.hidden is not None)
    return {f"validation_{name}": value for name, value in figures.items()}


def write_validation(folder: Path, validated: dict[str, float]) -> None:
    """Leaves the figures of a validation, and its step, beside the weights they belong to."""
    write_json(folder / VALIDATION_FILE, validated)


def figures_of_json(figures: dict[str, float | None]) -> dict[str, float]:
    """The figures of a validation that was read from JSON, where what overflowed is null."""
    return {name: math.inf if value is None else value for name, value in figures.items()}
