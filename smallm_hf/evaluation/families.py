"""Reads windows of tokens with a model of any family: the logits of each token that is scored.

- causal: left to right.
- seq2seq: the decoder left to right, teacher-forced, beside what the encoder has read: a source text, or nothing.
- masked: each token is masked in turn and seen from both sides (Salazar et al. 2020). The sum is a pseudo-likelihood:
  no probability of the text, and lower than one. It compares masked models with each other and with no other family.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import torch
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from smallm_hf.data.batching import positions_in_documents
from smallm_hf.errors import TooLong, UserError
from smallm_hf.evaluation.windows import Window
from smallm_hf.pretrained import existing_device, find_model, load_causal_lm, load_for_use
from smallm_hf.settings import Loading

Kind = Literal["causal", "seq2seq", "masked"]
Loaded = tuple[PreTrainedModel, PreTrainedTokenizerBase]

# Memory the float32 logits of one forward pass may take; a larger batch is read in several passes.
LOGITS_BYTES = 2**30
# Copies of a text, each with another token masked, in one pass.
MASKED_AT_A_TIME = 64
MASKED_CLASS = "ForMaskedLM"


# --- finding and loading ---------------------------------------------------------------------------------------------


def find_kind(model: str) -> Kind:
    """The family of a folder or Hub id, by its config.

    Raises:
        UserError: it cannot be found.
    """
    written = find_model(model, lambda **options: PreTrainedConfig.get_config_dict(model, **options)[0])
    if written.get("is_encoder_decoder"):
        return "seq2seq"
    return "masked" if any(name.endswith(MASKED_CLASS) for name in written.get("architectures") or ()) else "causal"


def kind_of(model: PreTrainedModel) -> Kind:
    """The family of a loaded model."""
    if model.config.is_encoder_decoder:
        return "seq2seq"
    return "masked" if type(model).__name__.endswith(MASKED_CLASS) else "causal"


def require_writer(model: PreTrainedModel) -> None:
    """Refuses a model that cannot write a text.

    Raises:
        UserError: it is masked.
    """
    if kind_of(model) == "masked":
        raise UserError(f"{type(model).__name__} fills in masks and writes no text; leave out --generate and --speed")


def load_scorable(model: str, **loading: Any) -> Loaded:
    """Loads a model of any family and its tokenizer; arguments and errors are those of `load_causal_lm`."""
    kind = find_kind(model)
    if kind == "causal":
        return load_causal_lm(model, **loading)
    asked = Loading(**loading)
    found_device = existing_device(asked.device)
    model_class = {"masked": AutoModelForMaskedLM, "seq2seq": AutoModelForSeq2SeqLM}[kind]

    def load(**options: bool) -> Loaded:
        options["trust_remote_code"] = asked.trust_remote_code
        tokenizer = AutoTokenizer.from_pretrained(model, **options)
        return load_for_use(model_class, model, asked.dtype, found_device, **options), tokenizer

    return find_model(model, load)


# --- facts about a model and its tokenizer ---------------------------------------------------------------------------


@contextmanager
def evaluation_mode(model: torch.nn.Module) -> Iterator[None]:
    """Switches dropout and its like off inside the block; every module gets its own mode back."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def position_limit(model: PreTrainedModel) -> int | None:
    """The longest input the model was built for, in tokens; None where it names none."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None)


def trained_length(model: PreTrainedModel) -> int | None:
    """Tokens of the windows a model was trained on; None where its config does not say, as only ours do.

    What it makes of later positions was never trained, even where it has them.
    """
    return getattr(model.config, "trained_context_length", None)


def vocabulary_size(model: PreTrainedModel) -> int:
    """The number of logits for each token."""
    return model.config.get_text_config().vocab_size


def start_token_id(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The token before a text's first: bos, or eos, which is what stands there in packed training data."""
    return tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id


def require_known(largest_id: int, vocab_size: int) -> None:
    """Makes sure that a model has an embedding for what a tokenizer gives.

    Raises:
        UserError: it has not.
    """
    if largest_id >= vocab_size:
        raise UserError(
            f"token id {largest_id} is outside the model's vocabulary of {vocab_size}; take the tokenizer of this model"
        )


def encode_ordinary(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of the texts alone: nothing is added, and `<|endoftext|>` inside a text is text."""
    return tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]


def encode_placed(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> Iterator[tuple[list[int], list[int]]]:
    """`encode_ordinary` of each text, and where each token begins in it, in characters; for fast tokenizers."""
    options = {"add_special_tokens": False, "split_special_tokens": True, "return_offsets_mapping": True}
    encoded = tokenizer(list(texts), verbose=False, **options)
    for ids, offsets in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True):
        yield ids, [start for start, _ in offsets]


def added_around(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """The special tokens that the tokenizer puts before and behind a text."""
    encoded = tokenizer("a", return_special_tokens_mask=True)
    ids, special = encoded["input_ids"], encoded["special_tokens_mask"]
    ordinary = [place for place, added in enumerate(special) if not added] or [len(ids)]
    return ids[: ordinary[0]], ids[ordinary[-1] + 1 :]


# --- reading ---------------------------------------------------------------------------------------------------------


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
        """The source as the encoder was trained to read it.

        Raises:
            UserError: it has more tokens than the encoder has positions.
        """
        first, last = added_around(self.tokenizer)
        ids = [*first, *encode_ordinary(self.tokenizer, [source])[0], *last] or [self.tokenizer.eos_token_id]
        if self.limit is not None and len(ids) > self.limit:
            raise TooLong(f"a source text takes {len(ids)} tokens and the encoder reads {self.limit}; shorten it")
        return ids

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


@torch.inference_mode()
def refuse_lookahead(model: PreTrainedModel) -> None:
    """Makes sure that no later token changes an earlier prediction, by one small forward pass.

    A model that sees the token it is scored on, BERT for example, would get a splendid and meaningless score.

    Raises:
        UserError: one does.
    """
    input_ids = torch.zeros((2, 4), dtype=torch.long, device=model.device)
    input_ids[1, -1] = 1
    logits = model(input_ids=input_ids, use_cache=False).logits[:, :-1]
    tolerance = 16 * torch.finfo(logits.dtype).eps * logits.abs().max()
    if (logits[0] - logits[1]).abs().max() > tolerance:
        raise UserError(
            f"{type(model).__name__} is not causal: a later token changes its earlier predictions; "
            "give a model that was trained to predict the next token"
        )
