"""How each kind of model reads windows of tokens: the logits of each token that is scored.

- causal: from left to right.
- seq2seq: the decoder from left to right, teacher-forced, beside what the encoder read: a source text, or nothing.
- masked: each token is masked in turn and predicted from both sides (Salazar et al. 2020). The sum is a
  pseudo-likelihood, which is not a probability of the text: it compares masked models with each other only.
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
    """Rows of different lengths as one tensor, padded with zeros."""
    filled = torch.zeros(shape, dtype=torch.long)
    for number, row in enumerate(rows):
        filled[number, : len(row)] = torch.as_tensor(row, dtype=torch.long)
    return filled


class Reader:
    """Reads windows of tokens with one model; the subclasses say how.

    Attributes:
        limit: the most tokens of a window beyond the first; None where the model has no limit.
        separator: the eos that attention does not reach across (`positions_in_documents`); causal models only.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None = None, separator: int | None = None
    ):
        self.model, self.tokenizer, self.separator = model, tokenizer, separator
        self.limit = position_limit(model)

    def before(self) -> list[int]:
        """The tokens before a text, one or more."""
        return [start_token_id(self.tokenizer)]

    def source_ids(self, source: str) -> list[int] | None:
        """What an encoder reads of a source; None where there is no encoder."""
        return None

    def logits(self, windows: Sequence[Window], shape: tuple[int, int]) -> Iterator[torch.Tensor]:
        """Yields for each window the logits of its labels, (scored, V).

        `shape` is what a batch is filled up to: rows, and tokens beyond the last.
        """
        raise NotImplementedError


class CausalReader(Reader):
    """Reads from left to right; the padding of a batch follows the text, where nothing attends to it."""

    def logits(self, windows: Sequence[Window], shape: tuple[int, int]) -> Iterator[torch.Tensor]:
        """See `Reader`; one forward pass."""
        input_ids = _fill([window.token_ids[:-1] for window in windows], shape)
        inputs = {"input_ids": input_ids}
        if self.separator is not None:
            inputs["position_ids"] = positions_in_documents(input_ids, self.separator)
        inputs = {name: tensor.to(self.model.device) for name, tensor in inputs.items()}
        yield from _of_labels(self.model(**inputs, use_cache=False).logits, windows)


class Seq2SeqReader(Reader):
    """The decoder reads from left to right, beside what the encoder reads; only the decoder's own text is scored."""

    def before(self) -> list[int]:
        """The decoder's start token, and what the tokenizer puts before a text."""
        start = self.model.config.decoder_start_token_id
        if start is None:
            raise UserError("the model's config has no decoder_start_token_id, which its decoder begins with; set it")
        return [start, *added_around(self.tokenizer)[0]]

    def source_ids(self, source: str) -> list[int]:
        """The source as the encoder was trained to read it; raises what the function of this name does."""
        return source_ids(self.model, self.tokenizer, source)

    def logits(self, windows: Sequence[Window], shape: tuple[int, int]) -> Iterator[torch.Tensor]:
        """See `Reader`; one forward pass, teacher-forced."""
        sources, device = [window.source_ids for window in windows], self.model.device
        read = (shape[0], max(map(len, sources)))
        logits = self.model(
            input_ids=_fill(sources, read).to(device),
            attention_mask=_fill([[1] * len(source) for source in sources], read).to(device),
            decoder_input_ids=_fill([window.token_ids[:-1] for window in windows], shape).to(device),
            use_cache=False,
        ).logits
        yield from _of_labels(logits, windows)


class MaskedReader(Reader):
    """Reads each window once for each of its labels, with that one masked."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase):
        super().__init__(model, tokenizer)
        if tokenizer.mask_token_id is None:
            raise UserError("a masked language model whose tokenizer has no mask token; set tokenizer.mask_token")
        self.around = added_around(tokenizer)
        # A RoBERTa counts its positions from 2, so the tokenizer knows better how many there are.
        self.limit = min(self.limit or tokenizer.model_max_length, tokenizer.model_max_length)
        self.limit -= sum(map(len, self.around))

    def before(self) -> list[int]:
        """One token to hold the place before the text; the model does not read it."""
        return [self.tokenizer.mask_token_id]

    def logits(self, windows: Sequence[Window], shape: tuple[int, int]) -> Iterator[torch.Tensor]:
        """See `Reader`; several passes for each window, without padding."""
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


READERS: dict[Kind, type[Reader]] = {"causal": CausalReader, "seq2seq": Seq2SeqReader, "masked": MaskedReader}


def _of_labels(logits: torch.Tensor, windows: Sequence[Window]) -> Iterator[torch.Tensor]:
    for row, window in enumerate(windows):
        read = len(window.token_ids) - 1
        yield logits[row, read - window.scored : read]
