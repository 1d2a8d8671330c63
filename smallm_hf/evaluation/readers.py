"""Reads windows of tokens with a model of any family: the logits of each token that is scored.

- causal: left to right.
- seq2seq: the decoder left to right, teacher-forced, beside what the encoder has read: a source text, or nothing.
- masked: each token is masked in turn and seen from both sides (Salazar et al. 2020). The sum is a pseudo-likelihood:
  no probability of the text, and lower than one. It compares masked models with each other and with no other family.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from smallm_hf.base.errors import UserError
from smallm_hf.data.batches.packed import positions_in_documents
from smallm_hf.evaluation.windows import Window
from smallm_hf.families import Kind
from smallm_hf.generation.request import source_ids
from smallm_hf.inspection import position_limit, vocabulary_size
from smallm_hf.tokenizing.encoding import added_around, start_token_id

# Memory the float32 logits of one forward pass may take; a larger batch is read in several passes.
LOGITS_BYTES = 2**30
# Copies of a text, each with another token masked, in one pass.
MASKED_AT_A_TIME = 64


def _fill(rows: Sequence[Sequence[int] | np.ndarray], shape: tuple[int, int]) -> torch.Tensor:
    """Rows of different lengths as one tensor, zeros behind them."""
    filled = torch.zeros(shape, dtype=torch.long)
    for number, row in enumerate(rows):
        filled[number, : len(row)] = torch.as_tensor(row, dtype=torch.long)
    return filled


class CausalReader:
    """Reads from left to right; what fills a batch up stands behind the text, where nothing sees it.

    With a `separator`, the eos between documents, attention does not reach across it (`positions_in_documents`).
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None = None, separator: int | None = None
    ):
        self.model, self.tokenizer, self.separator = model, tokenizer, separator
        self.limit = position_limit(model)

    def before(self) -> list[int]:
        """The tokens that stand before a text."""
        return [start_token_id(self.tokenizer)]

    def source_ids(self, source: str) -> None:
        """A causal model reads no source."""

    def logits(self, windows: Sequence[Window], shape: tuple[int, int]) -> Iterator[torch.Tensor]:
        """Yields for each window the logits of its labels, (scored, V), from one forward pass of `shape`."""
        input_ids = _fill([window.token_ids[:-1] for window in windows], shape)
        inputs = {"input_ids": input_ids}
        if self.separator is not None:
            inputs["position_ids"] = positions_in_documents(input_ids, self.separator)
        inputs = {name: tensor.to(self.model.device) for name, tensor in inputs.items()}
        yield from _of_labels(self.model(**inputs, use_cache=False).logits, windows)


class Seq2SeqReader:
    """The decoder reads from left to right, beside what the encoder reads; of that nothing but its own text counts."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase):
        self.model, self.tokenizer = model, tokenizer
        self.limit = position_limit(model)

    def before(self) -> list[int]:
        """The decoder's start token, and what the tokenizer puts before a text."""
        start = self.model.config.decoder_start_token_id
        if start is None:
            raise UserError("the model's config names no decoder_start_token_id, which its decoder begins with; set it")
        return [start, *added_around(self.tokenizer)[0]]

    def source_ids(self, source: str) -> list[int]:
        """The source as the encoder was trained to read it; raises what the function of this name does."""
        return source_ids(self.model, self.tokenizer, source)

    def logits(self, windows: Sequence[Window], shape: tuple[int, int]) -> Iterator[torch.Tensor]:
        """Yields for each window the logits of its labels, (scored, V)."""
        sources, device = [window.source_ids for window in windows], self.model.device
        read = (shape[0], max(map(len, sources)))
        logits = self.model(
            input_ids=_fill(sources, read).to(device),
            attention_mask=_fill([[1] * len(source) for source in sources], read).to(device),
            decoder_input_ids=_fill([window.token_ids[:-1] for window in windows], shape).to(device),
            use_cache=False,
        ).logits
        yield from _of_labels(logits, windows)


class MaskedReader:
    """Reads each window as often as it has labels, each time with another one masked."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase):
        self.model, self.tokenizer = model, tokenizer
        if tokenizer.mask_token_id is None:
            raise UserError("a masked language model whose tokenizer has no mask token; set tokenizer.mask_token")
        self.around = added_around(tokenizer)
        # A RoBERTa counts its positions from 2, so the tokenizer knows better how many there are.
        self.limit = min(position_limit(model) or tokenizer.model_max_length, tokenizer.model_max_length)
        self.limit -= sum(map(len, self.around))

    def before(self) -> list[int]:
        """One token for the place before the text; it is not read."""
        return [self.tokenizer.mask_token_id]

    def source_ids(self, source: str) -> None:
        """A masked model reads no source."""

    def logits(self, windows: Sequence[Window], shape: tuple[int, int]) -> Iterator[torch.Tensor]:
        """Yields for each window the logits of its labels, (scored, V), from passes without any filling up."""
        for window in windows:
            first, last = self.around
            text = torch.tensor([*first, *window.token_ids[1:], *last])
            masks = torch.arange(window.scored) + len(text) - len(last) - window.scored
            rows = max(1, min(MASKED_AT_A_TIME, LOGITS_BYTES // (4 * vocabulary_size(self.model) * len(text))))
            parts = []
            for places in masks.split(rows):
                copies = text.repeat(len(places), 1)
                copies[torch.arange(len(places)), places] = self.tokenizer.mask_token_id
                logits = self.model(input_ids=copies.to(self.model.device)).logits
                parts.append(logits[torch.arange(len(places)), places.to(logits.device)])
            yield torch.cat(parts)


Reader = CausalReader | Seq2SeqReader | MaskedReader
READERS: dict[Kind, type[Reader]] = {"causal": CausalReader, "seq2seq": Seq2SeqReader, "masked": MaskedReader}


def _of_labels(logits: torch.Tensor, windows: Sequence[Window]) -> Iterator[torch.Tensor]:
    for row, window in enumerate(windows):
        read = len(window.token_ids) - 1
        yield logits[row, read - window.scored : read]
