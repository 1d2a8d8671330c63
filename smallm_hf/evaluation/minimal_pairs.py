"""Minimal pairs: how often a model finds the acceptable one of two sentences more probable (Warstadt et al. 2020).

The probability of a sentence is that of all its tokens after the start token, bos or eos, as in lm_eval. Where both are
as probable, the pair is a tie and counts half.

Rounding depends on how many sentences are read at once, so a difference below `CLOSE` may be rounding: both sentences
are then read again, each alone. So the verdicts do not depend on the batch size, nor on how many processes share the
work.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from smallm_hf.base.command_line import is_main_process
from smallm_hf.base.environment import environment
from smallm_hf.base.errors import UserError
from smallm_hf.base.settings import expand_models
from smallm_hf.evaluation.certainty import over_models
from smallm_hf.evaluation.configuration import MinimalPairs, Rules
from smallm_hf.evaluation.minimal_pairs_page import print_pairs, render_pairs
from smallm_hf.evaluation.pair_files import Paradigm
from smallm_hf.evaluation.results_page import report_results, require_reportable
from smallm_hf.evaluation.scoring import ALONE, ScoringPlan, score_windows, show_scoring
from smallm_hf.evaluation.sharing import gather, join_launch, own_device
from smallm_hf.evaluation.windows import cut_text
from smallm_hf.families import kind_of
from smallm_hf.inspection import ngram_count
from smallm_hf.pretrained import find_kind, load_causal_lm
from smallm_hf.tokenizing.encoding import encode_ordinary, valid_unicode

# Nats. Differences below the first are judged again without rounding by the batch, which is smaller by orders; those
# below the second are ties: float32 tells sums of this size apart no better.
CLOSE, TIE = 1e-2, 1e-5
Row = dict[str, Any]


@dataclass(frozen=True)
class Judged:
    """The verdicts of a model.

    Attributes:
        figures: `accuracy`, the mean over the paradigms; `paradigms`, the accuracy, pairs and ties of each by its UID;
            `fields`, the mean over the paradigms of each; counts, and how it was scored.
        margins: of each paradigm, by how many nats the acceptable sentence is more probable, pair by pair.
    """

    figures: Row
    margins: dict[str, np.ndarray]


def judge_and_report(
    paradigms: Sequence[Paradigm],
    asked: MinimalPairs,
    rules: Rules,
    loading: Mapping[str, Any],
    hardware: Callable[[], dict[str, Any]],
    *,
    model: Sequence[str],
    output: str | None = None,
    report: str | None = None,
) -> None:
    """Judges with every model, prints a table, and writes JSON and a page where they are named.

    Args:
        paradigms: of `read_paradigms`.
        asked: where they are from, and how they are read.
        rules: of these the context length and the batch size.
        loading: arguments of `load_causal_lm` beside the model and its dtype.
        hardware: describes this machine, for the result.
        model: folders or Hub ids; folders also as patterns.
        output: a JSON file; like `report` it is an error before any work if it cannot be written.
        report: an HTML page.

    Raises:
        UserError: a model that is not causal, or what loading and scoring raise.
    """
    require_reportable(output, report)
    shard = join_launch()
    loading = {**loading, "device": loading.get("device") or own_device()}
    reading = {"context_length": rules.context_length, "batch_size": rules.batch_size}
    reading |= {"sentence_prefix": asked.sentence_prefix, "shard": shard, "show_progress": True}
    rows = judge_models(paradigms, expand_models(model), loading, **reading)
    if is_main_process():
        spread = over_models(rows, ["accuracy"])
        results = {"models": rows, "over_seeds": spread, **asdict(asked), "hardware": hardware(), **environment()}
        report_results(results, output, report, page_of=render_pairs, show=print_pairs)


def judge_models(
    paradigms: Sequence[Paradigm], models: Sequence[str], loading: Mapping[str, Any], **reading: Any
) -> list[Row]:
    """The figures of several models.

    Args:
        paradigms: of `read_paradigms`.
        models: folders or Hub ids.
        loading: arguments of `load_causal_lm` beside the model and its dtype, which is float32.
        reading: arguments of `judge_pairs`.

    Raises:
        UserError: a model that is not causal, before any is loaded, or what loading and scoring raise.
    """
    for model in models:
        _require_causal(model, find_kind(model))
    loading = {**loading, "dtype": "float32"}
    return [judge_pairs(*load_causal_lm(model, **loading), paradigms, **reading).figures for model in models]


def _require_causal(name: str, kind: str) -> None:
    if kind != "causal":
        raise UserError(
            f"{name} is {kind}, and minimal pairs compare the probabilities of whole sentences, which only causal "
            "models give; leave it out"
        )


def judge_pairs(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    paradigms: Sequence[Paradigm],
    *,
    context_length: int | None = None,
    batch_size: int = 16,
    sentence_prefix: str = "",
    shard: tuple[int, int] = ALONE,
    show_progress: bool = False,
) -> Judged:
    """Judges minimal pairs with one model.

    A sentence longer than the context is read in windows that overlap by half, and counted in `longer_than_context`.

    Args:
        model: any causal model; float32, or its rounding decides close pairs.
        tokenizer: the model's own.
        paradigms: of `read_paradigms`.
        context_length: as in `Rules`.
        batch_size: sentences per forward pass at most; changes speed and memory, not the result.
        sentence_prefix: text before each sentence; the task `blimp` of lm_eval puts a space there.
        shard: (rank, processes): all processes of a launch call this with the same pairs and get the same result.
        show_progress: whether a line on stderr counts tokens and tokens/s, where that is a terminal.

    Raises:
        UserError: a model that is not causal, a context that does not fit, a tokenizer of another model or without eos,
            a sentence without tokens, or logits that are NaN.
    """
    began = time.perf_counter()
    _require_causal(type(model).__name__, kind_of(model))
    plan = ScoringPlan.make(model, tokenizer, Rules("sliding", context_length=context_length))
    encoded = _encode(tokenizer, paradigms, sentence_prefix)
    # By default cuDNN multiplies the float32 of recurrent layers as TF32.
    exactly = torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
    with exactly, show_scoring(show_progress and shard[0] == 0) as advance:
        nats = _score(plan, dict.fromkeys(encoded), batch_size, shard, advance)
        pairs = list(zip(encoded[::2], encoded[1::2], strict=True))
        close = [pair for pair in pairs if abs(nats[pair[0]] - nats[pair[1]]) < CLOSE and pair[0] != pair[1]]
        nats |= _score(plan, dict.fromkeys(ids for pair in close for ids in pair), 1, shard, advance)
    margins = np.array([0.0 if nats[good] == nats[bad] else nats[bad] - nats[good] for good, bad in pairs])
    by_paradigm = np.split(margins, np.cumsum([len(paradigm.pairs) for paradigm in paradigms])[:-1])
    unknown = tokenizer.unk_token_id if tokenizer.unk_token_id != tokenizer.eos_token_id else None
    figures = {
        "model": model.config.name_or_path or type(model).__name__,
        **_verdicts(paradigms, by_paradigm),
        "pairs": len(pairs),
        "sentences": len(set(encoded)),
        "unknown_tokens": sum(ids.count(unknown) for ids in encoded),
        "pairs_with_unknown_tokens": sum(unknown in (*good, *bad) for good, bad in pairs),
        "context_length": plan.rules.context_length,
        "longer_than_context": sum(len(ids) > plan.rules.context_length for ids in set(encoded)),
        "parameters": model.num_parameters(),
        "ngrams": ngram_count(model),
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": str(model.device),
        "processes": shard[1],
        "seconds": round(time.perf_counter() - began, 2),
    }
    return Judged(figures, {paradigm.uid: found for paradigm, found in zip(paradigms, by_paradigm, strict=True)})


def _encode(tokenizer: PreTrainedTokenizerBase, paradigms: Sequence[Paradigm], prefix: str) -> list[tuple[int, ...]]:
    """The token ids of each sentence, good and bad in turn."""
    sentences = [sentence for paradigm in paradigms for pair in paradigm.pairs for sentence in pair]
    texts = [valid_unicode(prefix + sentence) for sentence in sentences]
    encoded = list(map(tuple, encode_ordinary(tokenizer, texts)))
    if () in encoded:
        raise UserError(f"{sentences[encoded.index(())]!r} has no tokens in {tokenizer.name_or_path}; remove the pair")
    return encoded


def _verdicts(paradigms: Sequence[Paradigm], margins: Sequence[np.ndarray]) -> Row:
    """The accuracy over all, by field and by paradigm; a tie counts half."""
    by_uid, by_field = {}, {}
    for paradigm, of_pairs in zip(paradigms, margins, strict=True):
        ties = int((abs(of_pairs) <= TIE).sum())
        accuracy = (int((of_pairs > TIE).sum()) + ties / 2) / len(of_pairs)
        counts = {"accuracy": accuracy, "pairs": len(of_pairs), "ties": ties}
        by_uid[paradigm.uid] = {"field": paradigm.field, "linguistics_term": paradigm.term, **counts}
        if paradigm.field:
            by_field.setdefault(paradigm.field, []).append(accuracy)
    return {
        "accuracy": fmean(found["accuracy"] for found in by_uid.values()),
        "ties": sum(found["ties"] for found in by_uid.values()),
        "fields": {name: {"accuracy": fmean(of), "paradigms": len(of)} for name, of in by_field.items()},
        "paradigms": by_uid,
    }


def _score(
    plan: ScoringPlan,
    sentences: Iterable[tuple[int, ...]],
    batch_size: int,
    shard: tuple[int, int],
    advance: Callable[[int], None],
) -> dict[tuple[int, ...], float]:
    """The nats of each sentence: minus the logarithm of its probability."""
    context, stride, (rank, processes) = plan.rules.context_length, plan.rules.stride, shard
    own = list(sentences)[rank::processes]
    windows = [(ids, window) for ids in own for window in cut_text(plan.reader.before(), ids, context, stride)]
    windows.sort(key=lambda window: -len(window[1].token_ids))
    scored = score_windows(plan.reader, (window for _, window in windows), batch_size=batch_size, advance=advance)
    nats = dict.fromkeys(own, 0.0)
    for (ids, _), sums in zip(windows, scored, strict=True):
        nats[ids] += sums.nats
    if any(map(np.isnan, nats.values())):
        raise UserError("the model's logits are NaN; its weights are damaged")
    return {ids: value for part in gather(nats, processes) for ids, value in part.items()}
