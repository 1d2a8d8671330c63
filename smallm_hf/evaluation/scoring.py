"""Scores language models: nats per token, bits per byte, accuracy and certainty by a stated protocol.

Every protocol cuts a sequence of tokens into windows and scores every token once; nothing is truncated. A window has
`context_length` tokens and is read together with the token before it, so that its first token has a context too and a
causal model sees `context_length` positions.

- `documents`: each text, stripped, is a sequence of its own that begins with bos (eos where there is none). Its
  windows are disjoint. The end of the text is not scored, but with `ends`: then the eos behind it is, and counts as
  one byte and one character. Bytes are the UTF-8 length of the stripped text.
- `sliding`: the same, but each window begins `stride` tokens after the last one, so that a token has at least
  `context_length - stride` tokens before it where the text has them; the last window ends with the text. With a stride
  of `context_length` these are the windows of lm_eval's rolling log-likelihood.
- `packed`: the texts as they are, each closed by eos, form one stream, as in training, which is read after an eos.
  Each eos of the stream is scored and counts as one byte and one character, and as no word. Windows are disjoint. With
  `within_documents` attention does not reach across the eos, for a model that was trained that way.

What unknown tokens hide is spelled (`tokenizing.spelling`), and counts in what is said of the text, bits per byte and
character and word perplexity, not in what is said of its tokens.

Models that are not causal are read as `readers.py` says. Sums are kept in float64 and divided once, at the end
(`Sums`, `summarize`), so the numbers depend neither on the batch size nor on how many processes share the work.
"""

import functools
import itertools
import math
import operator
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from smallm_hf.base.errors import UserError
from smallm_hf.data.batches.packed import refuse_mixing
from smallm_hf.evaluation.configuration import Rules
from smallm_hf.evaluation.profile import Profile, TokenScores
from smallm_hf.evaluation.readers import LOGITS_BYTES, READERS, CausalReader, Reader
from smallm_hf.evaluation.sharing import gather
from smallm_hf.evaluation.sums import Sums, summarize
from smallm_hf.evaluation.texts import warn_once
from smallm_hf.evaluation.windows import Window, cut_stream, cut_text, resolve_context_length, resolve_stride
from smallm_hf.families import kind_of
from smallm_hf.inspection import (
    evaluation_mode,
    position_limit,
    refuse_lookahead,
    require_known,
    trained_length,
    vocabulary_size,
)
from smallm_hf.tokenizing.encoding import encode_ordinary, encode_placed, start_token_id, valid_unicode
from smallm_hf.tokenizing.loading import lowers, tokenizer_fingerprint
from smallm_hf.tokenizing.spelling import Speller

# Texts tokenized and sorted by length at a time, so that memory does not grow with the corpus.
TEXTS_PER_BLOCK = 1024
# (rank, processes) of a process that works alone.
ALONE = (0, 1)
NOTHING_HIDDEN = np.zeros(0)
Advance = Callable[[int], None]


# --- a corpus --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scored:
    """A scored corpus: the figures of `score_corpus`, and what they were made of.

    Attributes:
        figures: those of `summarize` and `Profile.figures`, with model, kind, protocol, context, counts and dtype.
        documents: the sums of each text, in order; empty under `packed`, which scores one stream.
        profile: where the loss lies.
    """

    figures: dict[str, Any]
    documents: list[Sums]
    profile: Profile


def score_corpus(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Iterable[str],
    *,
    top_k: Sequence[int] = (1, 3),
    sources: Iterable[str] | None = None,
    shard: tuple[int, int] = ALONE,
    show_progress: bool = False,
    **rules: Any,
) -> Scored:
    """Scores a corpus and states how.

    Args:
        model: any causal, seq2seq or masked model, with its device and dtype, in the caller's autocast if there is one.
        tokenizer: the model's own.
        texts: read a block at a time; under `packed` all their token ids are held in memory.
        top_k: how many first choices count as right, for each accuracy; 1 and 3 are always among the figures.
        sources: what the encoder of a seq2seq model reads, one for each text; by default nothing.
        shard: (rank, processes): all processes of a launch call this with the same texts and get the same result.
        show_progress: whether a line on stderr counts tokens and tokens/s, where that is a terminal.
        rules: the fields of `Rules`.

    Raises:
        UserError: an unknown protocol, a stride or a context that does not fit, a tokenizer of another model or without
            eos, a k beyond the vocabulary, a causal model that sees later tokens, one whose documents cannot be kept
            apart where they should be, logits that are NaN, or texts without a single token.
    """
    began = time.perf_counter()
    vocab_size = vocabulary_size(model)
    for k in top_k:
        if not 1 <= k <= vocab_size:
            raise UserError(f"top_k={k} is out of range; give 1 to {vocab_size}, the size of the vocabulary")
    plan = ScoringPlan.make(model, tokenizer, Rules(**rules), with_sources=sources is not None)
    profile, documents = Profile.empty(top_k, vocab_size), itertools.count()
    texts = (text for text, _ in zip(texts, documents, strict=False))
    with show_scoring(show_progress) as advance:
        own = list(plan.score(texts, sources, shard=shard, advance=advance, profile=profile))
    profiles, parts = zip(*gather((profile, own), shard[1]), strict=True)
    profile = functools.reduce(operator.iadd, profiles, Profile.empty(top_k, vocab_size))
    figures = {
        "model": model.config.name_or_path or type(model).__name__,
        "kind": kind_of(model),
        **asdict(plan.rules),
        "trained_context_length": trained_length(model),
        **summarize(sum(itertools.chain(*parts), Sums()), Speller.of(tokenizer) is not None),
        "lowered": lowers(tokenizer),
        "tokenizer_sha256": tokenizer_fingerprint(tokenizer) if tokenizer.is_fast else None,
        **profile.figures(),
        "documents": next(documents),
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": str(model.device),
        "processes": shard[1],
        "seconds": round(time.perf_counter() - began, 2),
    }
    in_order = [sums for turn in itertools.zip_longest(*parts) for sums in turn if sums is not None]
    return Scored(figures, [] if plan.rules.protocol == "packed" else in_order, profile)


def score_documents(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Iterable[str], **options: Any
) -> dict[str, Any]:
    """The figures of `score_corpus`, whose arguments and errors these are."""
    return score_corpus(model, tokenizer, texts, **options).figures


@contextmanager
def show_scoring(shown: bool) -> Iterator[Advance]:
    """Yields a function that counts scored tokens on a line of stderr, where that is a terminal."""
    console = Console(stderr=True)
    with Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        console=console,
        transient=True,
        disable=not (shown and console.is_terminal),
    ) as progress:
        task, tokens, began = progress.add_task("scoring"), 0, time.perf_counter()

        def advance(scored: int) -> None:
            nonlocal tokens
            tokens += scored
            rate = tokens / (time.perf_counter() - began)
            progress.update(task, description=f"scoring | {tokens:,} tokens | {rate:,.0f} tokens/s")

        yield advance


# --- texts and streams -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ScoringPlan:
    """Rules that are known to fit a model: its reader, and what they leave open decided."""

    reader: Reader
    rules: Rules

    @classmethod
    def make(
        cls, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rules: Rules, with_sources: bool = False
    ) -> "ScoringPlan":
        """Decides what the rules leave open; raises what `score_corpus` does."""
        protocol, kind = rules.protocol, kind_of(model)
        if protocol == "packed" and kind != "causal":
            raise UserError(f"protocol packed is for causal models, {type(model).__name__} is {kind}; take documents")
        if with_sources and kind != "seq2seq":
            raise UserError(
                f"{type(model).__name__} is {kind} and reads no source text, and these are pairs; leave out "
                "--source_column, or give a text"
            )
        no_start = kind == "causal" and start_token_id(tokenizer) is None
        if no_start or ((protocol == "packed" or rules.ends) and tokenizer.eos_token_id is None):
            raise UserError(f"the tokenizer has no eos token, which protocol {protocol} needs; set tokenizer.eos_token")
        reader = READERS[kind](model, tokenizer)
        context_length = resolve_context_length(reader.limit, rules.context_length, trained_length(model))
        stride = resolve_stride(protocol, rules.stride, context_length)
        with evaluation_mode(model):
            if kind == "causal":
                refuse_lookahead(model)
            if rules.within_documents:
                refuse_mixing(model, tokenizer.eos_token_id)
                reader.separator = tokenizer.eos_token_id
        return cls(reader, replace(rules, context_length=context_length, stride=stride))

    def score(
        self,
        texts: Iterable[str],
        sources: Iterable[str] | None = None,
        *,
        shard: tuple[int, int] = ALONE,
        advance: Advance | None = None,
        profile: Profile | None = None,
    ) -> Iterator[Sums]:
        """Yields the sums of each text, in order; under `packed` one for the whole stream.

        Args:
            texts: all of them; this process scores every `processes`-th one, or window, from its rank on.
            sources: of `score_corpus`.
            shard: (rank, processes).
            advance: called with the number of tokens that were just scored.
            profile: every token is added to it.
        """
        seen = {"advance": advance, "profile": profile}
        rank, processes = shard
        if self.rules.protocol == "packed":
            # Every process packs all texts; the first one alone counts them.
            stream, words, size = _pack(self.reader.tokenizer, texts, profile, counted=rank == 0)
            options = {"context_length": self.rules.context_length, "batch_size": self.rules.batch_size}
            options |= {"separator": self.reader.separator, "shard": shard, "words": words}
            sums = score_token_stream(self.reader.model, stream, **options, **seen)
            yield sums if rank else sums + size
            return
        for block in _blocks(itertools.islice(_pair(texts, sources), rank, None, processes)):
            yield from self._score_block([(text.strip(), source) for text, source in block], **seen)

    def _score_block(
        self, block: list[tuple[str, str]], *, advance: Advance | None, profile: Profile | None
    ) -> list[Sums]:
        """The sums of each text of a block, on its own."""
        reader, rules = self.reader, self.rules
        sums, windows = [Sums.of_text(text) for text, _ in block], []
        encoded = _encode(reader.tokenizer, [text for text, _ in block], profile)
        for number, (ids, words, hidden) in enumerate(encoded):
            sums[number] += hidden
            if rules.ends:
                ids, words = [*ids, reader.tokenizer.eos_token_id], None if words is None else np.append(words, None)
                sums[number] += Sums(bytes=1, characters=1)
            beside = {"source_ids": reader.source_ids(block[number][1]), "words": words}
            cut = cut_text(reader.before(), ids, rules.context_length, rules.stride, **beside)
            windows += [(number, window) for window in cut]
        windows.sort(key=lambda window: -len(window[1].token_ids))  # neighbours of one length waste the least padding
        options = {"batch_size": rules.batch_size, "advance": advance, "profile": profile}
        scored = score_windows(reader, (window for _, window in windows), **options)
        for (number, _), of_window in zip(windows, scored, strict=True):
            sums[number] += of_window
        return sums


def score_token_stream(
    model: PreTrainedModel,
    token_ids: np.ndarray,
    *,
    context_length: int,
    batch_size: int = 16,
    shard: tuple[int, int] = ALONE,
    separator: int | None = None,
    advance: Advance | None = None,
    profile: Profile | None = None,
    words: np.ndarray | None = None,
) -> Sums:
    """Scores a stream of documents, each closed by eos, by the `packed` protocol.

    Args:
        model: any causal model, with its device and dtype, in the caller's autocast if there is one.
        token_ids: one-dimensional, a memory-mapped token file for example. Its last token, an eos, also precedes
            its first.
        context_length: tokens per window.
        batch_size: windows per forward pass; every pass has the same shape.
        shard: (rank, processes): this process scores every `processes`-th window; the sums of all add up.
        separator: the eos, for a model that was trained to attend within documents; None lets it reach across them.
        advance: called with the number of tokens that were just scored.
        profile: every token is added to it.
        words: the word of each token, for the profile.

    Raises:
        UserError: a context longer than the model's, or token ids outside its vocabulary.
    """
    context_length = resolve_context_length(position_limit(model), context_length)
    rank, processes = shard
    mine = range(rank, math.ceil(len(token_ids) / context_length), processes)
    windows = (cut_stream(token_ids, index, context_length, words) for index in mine)
    options = {"batch_size": min(batch_size, len(mine)), "width": context_length}
    reader = CausalReader(model, separator=separator)
    return sum(score_windows(reader, windows, **options, advance=advance, profile=profile), Sums())


def _pair(texts: Iterable[str], sources: Iterable[str] | None) -> Iterator[tuple[str, str]]:
    if sources is None:
        yield from ((text, "") for text in texts)
        return
    for text, source in itertools.zip_longest(texts, sources):
        if text is None or source is None:
            raise UserError("there are not as many source texts as texts; give one for each")
        yield text, source


def _blocks(pairs: Iterable[tuple[str, str]]) -> Iterator[list[tuple[str, str]]]:
    pairs = ((valid_unicode(text), valid_unicode(source)) for text, source in pairs)
    while block := list(itertools.islice(pairs, TEXTS_PER_BLOCK)):
        yield block


def _encode(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], profile: Profile | None, counted: bool = True
) -> Iterator[tuple[list[int], np.ndarray | None, Sums]]:
    """Token ids of each text, the word of each token, where a profile wants it and it is known, and what is hidden.

    Where a slow tokenizer cannot tell what its unknown tokens stand for, that is said on stderr.
    """
    speller = Speller.of(tokenizer)
    unknown = None if tokenizer.is_fast or tokenizer.unk_token_id == tokenizer.eos_token_id else tokenizer.unk_token_id
    if profile is None or not tokenizer.is_fast:
        encoded = ((ids, None) for ids in encode_ordinary(tokenizer, texts))
    else:
        placed = zip(texts, encode_placed(tokenizer, texts), strict=True)
        encoded = ((ids, profile.by_word.find(text, starts, counted)) for text, (ids, starts) in placed)
    for text, (ids, words) in zip(texts, encoded, strict=True):
        if unknown in ids:
            name = tokenizer.name_or_path or "the tokenizer"
            warn_once(f"{name} has no entry for some of the text, whose bits per byte are too low by that")
        costs = speller.costs(text, ids) if speller else NOTHING_HIDDEN
        if words is not None and counted and len(costs):
            profile.by_word.add(words[np.equal(ids, tokenizer.unk_token_id)], costs)
        yield ids, words, Sums.of_hidden(costs)


def _pack(
    tokenizer: PreTrainedTokenizerBase, texts: Iterable[str], profile: Profile | None, counted: bool
) -> tuple[np.ndarray, np.ndarray | None, Sums]:
    """The texts as one stream, each closed by eos, its words, and its size: an eos is one byte and one character."""
    pieces, words, size = [np.empty(0, dtype=np.int32)], [np.empty(0, dtype=object)], Sums()
    for block in _blocks((text, "") for text in texts):
        block = [text for text, _ in block]
        for ids, of_tokens, hidden in _encode(tokenizer, block, profile, counted):
            size += hidden
            pieces.append(np.array([*ids, tokenizer.eos_token_id], np.int32))
            if of_tokens is not None:
                words.append(np.append(of_tokens, None))
        size = sum((Sums.of_text(text) for text in block), size + Sums(bytes=len(block), characters=len(block)))
    return np.concatenate(pieces), np.concatenate(words) if words[1:] else None, size


# --- windows ---------------------------------------------------------------------------------------------------------


def score_windows(
    reader: Reader,
    windows: Iterable[Window],
    *,
    batch_size: int,
    width: int | None = None,
    advance: Advance | None = None,
    profile: Profile | None = None,
) -> Iterator[Sums]:
    """Yields the sums of each window, in order.

    Args:
        reader: of any model, which is in evaluation mode meanwhile.
        windows: the longest first, unless `width` is given.
        batch_size: windows per forward pass at most; fewer where their logits would exceed `LOGITS_BYTES`.
        width: tokens that every batch is filled up to, with rows up to one number, so that a compiled model sees one
            shape. None takes the longest window of the batch.
        advance: called with the number of tokens that were just scored.
        profile: every token is added to it, with entropy and confidence.
    """
    windows = iter(windows)
    vocab_size = vocabulary_size(reader.model)
    with evaluation_mode(reader.model):
        for first in windows:
            columns = width or len(first.token_ids) - 1
            rows = max(1, min(batch_size, LOGITS_BYTES // (4 * vocab_size * columns)))
            batch = [first, *itertools.islice(windows, rows - 1)]
            shape = (rows if width else len(batch), columns)
            for scores in _score_batch(reader, batch, shape, detailed=profile is not None):
                if profile:
                    profile.add(scores)
                if advance:
                    advance(len(scores.nats))
                yield Sums.of_tokens(scores)


@torch.inference_mode()
def _score_batch(
    reader: Reader, windows: Sequence[Window], shape: tuple[int, int], detailed: bool
) -> list[TokenScores]:
    require_known(max(window.token_ids.max() for window in windows), vocabulary_size(reader.model))
    parts = []
    for window, logits in zip(windows, reader.logits(windows, shape), strict=True):
        labels = torch.from_numpy(window.labels).to(logits.device)
        parts.append(_measure(logits.float(), labels, detailed))  # one window at a time: float32 copies stay small
    ends = np.cumsum([window.scored for window in windows])[:-1]
    facts = [np.split(torch.cat(fact).cpu().numpy(), ends) for fact in zip(*parts, strict=True)]
    return [
        TokenScores(
            window.labels,
            np.arange(len(window.token_ids) - window.scored, len(window.token_ids)),
            nats.astype(np.float64),
            ranks,
            *(fact.astype(np.float64) for fact in details),
            words=window.words,
        )
        for window, nats, ranks, *details in zip(windows, *facts, strict=True)
    ]


def _measure(logits: torch.Tensor, labels: torch.Tensor, detailed: bool) -> tuple[torch.Tensor, ...]:
    """Nats and rank of each label; with details also entropy and confidence of each distribution."""
    if not detailed:
        return F.cross_entropy(logits, labels, reduction="none"), _ranks(logits, labels)
    log_probabilities = logits.log_softmax(-1)
    nats = -log_probabilities.gather(-1, labels[:, None])[:, 0]
    probabilities = log_probabilities.exp_()
    return nats, _ranks(logits, labels), torch.special.entr(probabilities).sum(-1), probabilities.amax(-1)


def _ranks(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """How many tokens come before each label, 0 for the first choice; of equal logits the lower id comes first."""
    own = logits.gather(-1, labels[:, None])
    lower = torch.arange(logits.shape[-1], device=logits.device) < labels[:, None]
    return ((logits > own) | ((logits == own) & lower)).sum(-1)
