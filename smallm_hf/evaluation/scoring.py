"""Scores causal language models: nats per token, bits per byte and accuracy by a stated protocol.

Both protocols cut a sequence of tokens into disjoint windows of `context_length` tokens and score every token once. A
window is read together with the one token that stands before it, so that its first token has a context too; the model
therefore sees `context_length` positions, and nothing is truncated.

- `documents`: each text, stripped, is a sequence of its own, and bos (eos where there is none) stands before it. The
  end of the text is not scored. Bytes are the UTF-8 length of the stripped text.
- `packed`: the texts as they are, each closed by eos, form one stream, as in training; an eos stands before it. Each
  eos is scored and counts as one byte.

Sums are kept in float64 and divided once, at the end (`Sums`, `summarize`), so the numbers depend neither on the batch
size nor on how many processes share the work.
"""

import itertools
import json
import math
import operator
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn
from rich.table import Table
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from smallm_hf.errors import UserError
from smallm_hf.evaluation.perplexity.perplexity import Perplexity
from smallm_hf.tokenization import valid_unicode

Protocol = Literal["documents", "packed"]

# Memory the float32 logits of one forward pass may take; a larger batch is read in several passes.
LOGITS_BYTES = 2**30
# Contexts beyond this are used only when asked for: models of 128k positions would not fit beside their logits.
LONGEST_DEFAULT_CONTEXT = 2048
# Texts tokenised and sorted by length at a time, so that memory does not grow with the corpus.
TEXTS_PER_BLOCK = 1024


@dataclass(frozen=True)
class Sums:
    """What was counted so far; additive over windows, batches and processes.

    Attributes:
        nats: summed negative log-likelihood of the scored tokens.
        tokens: scored tokens.
        top1: tokens that were the model's first choice; of equal logits the lower id comes first.
        top3: tokens among its first three choices.
        bytes: UTF-8 bytes of the scored text; 0 where only tokens are known.
    """

    nats: float = 0.0
    tokens: int = 0
    top1: int = 0
    top3: int = 0
    bytes: int = 0

    def __add__(self, other: "Sums") -> "Sums":
        """The sums of both."""
        return Sums(*map(operator.add, astuple(self), astuple(other)))


def summarize(sums: Sums) -> dict[str, float | int]:
    """Divides once: loss in nats per token, perplexity (by our `evaluate` metric), bits per byte, accuracies, counts.

    Raises:
        UserError: nothing was scored, or the nats are not a number.
    """
    if not sums.tokens:
        raise UserError("there was no token to score; give text that is not empty")
    if math.isnan(sums.nats):
        raise UserError("the model's logits are not numbers (NaN); its weights are damaged, or its dtype overflows")
    metric = Perplexity(keep_in_memory=True)
    metric.add_batch(predictions=[{name: getattr(sums, name) for name in ("nats", "tokens", "bytes")}])
    figures = metric.compute()
    return {name: figures[name] for name in ("loss", "perplexity", "bits_per_byte")} | {
        "top1_accuracy": sums.top1 / sums.tokens,
        "top3_accuracy": sums.top3 / sums.tokens,
        "tokens": sums.tokens,
        "bytes": sums.bytes,
    }


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


def resolve_context_length(model: PreTrainedModel, requested: int | None) -> int:
    """The tokens per window: the number asked for, or the model's own up to `LONGEST_DEFAULT_CONTEXT`.

    Raises:
        UserError: more than the model has positions, or less than one.
    """
    limit = position_limit(model)
    if requested is None:
        return min(limit or LONGEST_DEFAULT_CONTEXT, LONGEST_DEFAULT_CONTEXT)
    if requested < 1:
        raise UserError(f"context_length={requested} is not a number of tokens; give 1 or more")
    if limit is not None and requested > limit:
        raise UserError(f"context_length={requested} exceeds the model's {limit} positions; give {limit} or less")
    return requested


def start_token_id(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The token before a text's first: bos, or eos, which is what stands there in packed training data."""
    return tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id


def encode_ordinary(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of the texts alone: nothing is added, and `<|endoftext|>` inside a text is text."""
    return tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]


def cut_window(token_ids: Sequence[int] | np.ndarray, index: int, context_length: int, start: int) -> np.ndarray:
    """Window `index` of a sequence: the token before it (`start` before the first) and up to `context_length` tokens.

    Returns:
        int64 of shape (1 + tokens,): the model reads all but the last and is scored on all but the first.
    """
    begin = index * context_length
    before = token_ids[begin - 1] if begin else start
    return np.concatenate(([before], token_ids[begin : begin + context_length])).astype(np.int64)


@torch.inference_mode()
def _score_batch(model: PreTrainedModel, windows: Sequence[np.ndarray], shape: tuple[int, int]) -> list[Sums]:
    """Scores windows in one forward pass of `shape`; what fills it up stands behind the text, where nothing sees it."""
    vocab_size = model.config.get_text_config().vocab_size
    if (largest := max(window.max() for window in windows)) >= vocab_size:
        raise UserError(
            f"token id {largest} is outside the model's vocabulary of {vocab_size}; take the tokenizer of this model"
        )
    input_ids = torch.zeros(shape, dtype=torch.long)
    for row, window in enumerate(windows):
        input_ids[row, : len(window) - 1] = torch.from_numpy(window[:-1])
    logits = model(input_ids=input_ids.to(model.device), use_cache=False).logits
    nats = torch.zeros(shape, device=logits.device)
    ranks = torch.zeros(shape, dtype=torch.long, device=logits.device)
    for row, window in enumerate(windows):  # one row at a time: the float32 copies stay small
        labels = torch.from_numpy(window[1:]).to(logits.device)
        row_logits = logits[row, : len(labels)].float()
        nats[row, : len(labels)] = F.cross_entropy(row_logits, labels, reduction="none")
        ranks[row, : len(labels)] = _ranks(row_logits, labels)
    nats, ranks = nats.cpu().double(), ranks.cpu()
    return [
        Sums(
            nats=nats[row, :tokens].sum().item(),
            tokens=tokens,
            top1=(ranks[row, :tokens] < 1).sum().item(),
            top3=(ranks[row, :tokens] < 3).sum().item(),
        )
        for row, tokens in enumerate(len(window) - 1 for window in windows)
    ]


def _ranks(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """How many tokens come before each label, 0 for the first choice; of equal logits the lower id comes first."""
    own = logits.gather(-1, labels[:, None])
    lower = torch.arange(logits.shape[-1], device=logits.device) < labels[:, None]
    return ((logits > own) | ((logits == own) & lower)).sum(-1)


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


def _blocks(texts: Iterable[str]) -> Iterator[list[str]]:
    texts = map(valid_unicode, texts)
    while block := list(itertools.islice(texts, TEXTS_PER_BLOCK)):
        yield block


def _pack(tokenizer: PreTrainedTokenizerBase, texts: Iterable[str]) -> tuple[np.ndarray, int]:
    """The texts as one stream, each closed by eos, and the bytes it stands for: UTF-8, and one for each eos."""
    pieces, num_bytes = [np.empty(0, dtype=np.int32)], 0
    for block in _blocks(texts):
        pieces += [np.array([*ids, tokenizer.eos_token_id], np.int32) for ids in encode_ordinary(tokenizer, block)]
        num_bytes += sum(len(text.encode()) + 1 for text in block)
    return np.concatenate(pieces), num_bytes


@contextmanager
def _progress(shown: bool) -> Iterator[Callable[[int], None]]:
    """Gives a function that counts scored tokens on a line of stderr, where that is a terminal."""
    console = Console(stderr=True)
    with Progress(
        SpinnerColumn(), TextColumn("{task.description}"), console=console, disable=not (shown and console.is_terminal)
    ) as progress:
        task, tokens, began = progress.add_task("scoring"), 0, time.perf_counter()

        def advance(scored: int) -> None:
            nonlocal tokens
            tokens += scored
            rate = tokens / (time.perf_counter() - began)
            progress.update(task, description=f"scoring | {tokens:,} tokens | {rate:,.0f} tokens/s")

        yield advance


def score_windows(
    model: PreTrainedModel, windows: Iterable[np.ndarray], *, batch_size: int, width: int | None = None
) -> Iterator[Sums]:
    """Scores windows as `cut_window` makes them; yields one `Sums` for each, in order.

    Args:
        model: any causal model; used with its device and dtype, in the caller's autocast if there is one.
        windows: the longest first, unless `width` is given.
        batch_size: windows per forward pass at most; fewer where their logits would exceed `LOGITS_BYTES`.
        width: tokens every batch is filled up to, its rows then to one number, so that a compiled model sees one
            shape. None takes the longest window of the batch.
    """
    windows = iter(windows)
    vocab_size = model.config.get_text_config().vocab_size
    for first in windows:
        columns = width or len(first) - 1
        rows = max(1, min(batch_size, LOGITS_BYTES // (4 * vocab_size * columns)))
        batch = [first, *itertools.islice(windows, rows - 1)]
        yield from _score_batch(model, batch, (rows if width else len(batch), columns))


def score_token_stream(
    model: PreTrainedModel,
    token_ids: np.ndarray,
    *,
    context_length: int,
    batch_size: int = 16,
    shard: tuple[int, int] = (0, 1),
    advance: Callable[[int], None] | None = None,
) -> Sums:
    """Scores a stream of documents, each closed by eos, by the `packed` protocol.

    Args:
        model: any causal model, as it stands: device, dtype, the caller's autocast if there is one.
        token_ids: one-dimensional, a memory-mapped token file for example. Its last token, an eos, also stands before
            its first.
        context_length: tokens per window.
        batch_size: windows per forward pass; every pass has the same shape.
        shard: (rank, processes): this process scores every `processes`-th window; the sums of all add up.
        advance: called with the number of tokens that were just scored.

    Raises:
        UserError: a context longer than the model's, or token ids outside its vocabulary.
    """
    context_length = resolve_context_length(model, context_length)
    rank, processes = shard
    mine = range(rank, math.ceil(len(token_ids) / context_length), processes)
    windows = (cut_window(token_ids, index, context_length, token_ids[-1]) for index in mine)
    total = Sums()
    with evaluation_mode(model):
        for sums in score_windows(model, windows, batch_size=min(batch_size, len(mine)), width=context_length):
            total += sums
            if advance:
                advance(sums.tokens)
    return total


def score_texts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Iterable[str],
    *,
    protocol: Protocol,
    context_length: int | None,
    batch_size: int,
    advance: Callable[[int], None] | None = None,
) -> Iterator[Sums]:
    """Yields one `Sums` per text under `documents`, a single one for the whole stream under `packed`.

    Arguments and errors are those of `score_documents`; `advance` is called with the number of tokens just scored.
    """
    if protocol not in get_args(Protocol):
        raise UserError(f"protocol {protocol!r} is unknown; choose from {', '.join(get_args(Protocol))}")
    if tokenizer.eos_token_id is None and (protocol == "packed" or tokenizer.bos_token_id is None):
        raise UserError(f"the tokenizer has no eos token, which protocol {protocol} needs; set tokenizer.eos_token")
    context_length = resolve_context_length(model, context_length)
    with evaluation_mode(model):
        refuse_lookahead(model)
    if protocol == "packed":
        stream, num_bytes = _pack(tokenizer, texts)
        options = {"context_length": context_length, "batch_size": batch_size, "advance": advance}
        yield score_token_stream(model, stream, **options) + Sums(bytes=num_bytes)
        return
    for block in _blocks(texts):
        block = [text.strip() for text in block]
        sums = [Sums(bytes=len(text.encode())) for text in block]
        windows = [
            (text, cut_window(ids, index, context_length, start_token_id(tokenizer)))
            for text, ids in enumerate(encode_ordinary(tokenizer, block))
            for index in range(math.ceil(len(ids) / context_length))
        ]
        windows.sort(key=lambda window: -len(window[1]))  # neighbours of one length waste the least padding
        with evaluation_mode(model):
            scores = score_windows(model, (window for _, window in windows), batch_size=batch_size)
            for (text, _), score in zip(windows, scores, strict=True):
                sums[text] += score
                if advance:
                    advance(score.tokens)
        yield from sums


def score_documents(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Iterable[str],
    *,
    protocol: Protocol = "documents",
    context_length: int | None = None,
    batch_size: int = 16,
    show_progress: bool = False,
) -> dict[str, Any]:
    """Scores a corpus and states how: the figures of `summarize` beside model, protocol, context, counts and dtype.

    Args:
        model: any causal model, as it stands: device, dtype, the caller's autocast if there is one.
        tokenizer: the model's own.
        texts: read a block at a time under `documents`; under `packed` their token ids are held in memory.
        protocol: `documents` scores each text on its own, `packed` all in one stream with eos between, as trained.
        context_length: tokens per window; by default the model's own, 2,048 at most. Longer texts go on in the next.
        batch_size: windows per forward pass at most; changes speed and memory, not the result.
        show_progress: whether a line on stderr counts tokens and tokens/s, where that is a terminal.

    Raises:
        UserError: an unknown protocol, a context longer than the model's, a tokenizer of another model or without eos,
            a model that is not causal or whose logits are not numbers, or texts without a single token.
    """
    began = time.perf_counter()
    documents, total = 0, Sums()

    def counted() -> Iterator[str]:
        nonlocal documents
        for text in texts:
            documents += 1
            yield text

    options = {"protocol": protocol, "context_length": context_length, "batch_size": batch_size}
    with _progress(show_progress) as advance:
        for sums in score_texts(model, tokenizer, counted(), **options, advance=advance):
            total += sums
    return {
        "model": model.config.name_or_path or type(model).__name__,
        "protocol": protocol,
        "context_length": resolve_context_length(model, context_length),
        **summarize(total),
        "documents": documents,
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": str(model.device),
        "batch_size": batch_size,
        "seconds": round(time.perf_counter() - began, 2),
    }


def report_scores(scores: dict[str, Any], output: str | None, **provenance: Any) -> None:
    """Prints what `score_documents` returned as a table; `output` names a JSON file for it and where it came from."""
    table = Table(show_header=False)
    for name, value in scores.items():
        style = {int: ",", float: ".4f"}.get(type(value), "")
        table.add_row(name, format(value, style))
    Console().print(table)
    if output:
        Path(output).parent.mkdir(parents=True, exist_ok=True)
        Path(output).write_text(json.dumps(scores | provenance, indent=2) + "\n")
