"""What a model writes, against what a person wrote: likeness to references, variety, length, and copies."""

import re
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from smallm_hf.base.errors import TooLong, UserError
from smallm_hf.evaluation.answers import agreement
from smallm_hf.evaluation.texts import Example
from smallm_hf.evaluation.variety import variety
from smallm_hf.families import kind_of, require_writer
from smallm_hf.generation.engine import Engine
from smallm_hf.generation.request import Request, prompt_ids, seed_of, source_ids
from smallm_hf.generation.search import beam_search
from smallm_hf.tokenizing.encoding import encode_ordinary

COPIED = 8  # tokens in a row that count as copied
ROUGE = ("rouge1", "rouge2", "rougeL")
# Of the hash of a run of tokens: a sum of products modulo 2^64, which unequal runs share by a chance of about 2^-60.
FACTORS = np.random.PCG64(0).random_raw(COPIED) | np.uint64(1)
TOKENS_AT_A_TIME = 2**20  # of the training text; all that is held of it at once


@dataclass(frozen=True)
class Continuation:
    """The beginning of a document, how it goes on, and how a model went on; or a source, its target, and an answer.

    Attributes:
        targets: all that answer the source, the reference first; none of a document.
    """

    prompt: str
    reference: str
    text: str
    targets: Sequence[str] = ()


def continue_documents(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    documents: Iterable[Example],
    *,
    max_new_tokens: int,
    temperature: float,
    seed: int,
    beams: int | None = None,
) -> tuple[list[Continuation], list[str]]:
    """Lets a model go on with the first half of the words of each document; a seq2seq model answers its source.

    Documents of less than two words and without a source are passed over, and those whose half, or source, the context
    of the model does not hold.

    Args:
        model: causal or seq2seq.
        tokenizer: the model's own.
        documents: texts, or pairs.
        max_new_tokens: of each continuation at most; an end of text ends it earlier.
        temperature: 0 for the most probable token always.
        seed: what the seed of each draw is made of, beside the prompt.
        beams: width of a search for the likeliest answer of a seq2seq model, in place of drawing.

    Returns:
        The continuations, and in a line for each reason how many documents have none.

    Raises:
        UserError: a masked model, or beams for a causal one.
    """
    require_writer(model)
    answers = kind_of(model) == "seq2seq"
    if beams and not answers:
        raise UserError(f"{type(model).__name__} is causal, and --beams is for encoder-decoders; leave it out")
    fits = source_ids if answers else prompt_ids
    begun, short, too_long, asked = [], 0, [], 0
    for asked, document in enumerate(documents, start=1):
        prompt, reference = (document.source, document.text) if document.source else _halves(document.text)
        if not prompt or not reference:
            short += 1
            continue
        try:
            fits(model, tokenizer, prompt)
        except TooLong as error:
            too_long.append(f"the first of them number {asked}: {error}")
            continue
        begun.append((prompt, reference, document.targets))
    prompts = [prompt for prompt, _, _ in begun]
    if beams:
        texts = beam_search(model, tokenizer, prompts, beams=beams, max_new_tokens=max_new_tokens)
    else:
        engine, settings = Engine(model, tokenizer), {"max_new_tokens": max_new_tokens, "temperature": temperature}
        drawn = ({"source" if answers else "prompt": prompt, "seed": seed_of(seed, prompt)} for prompt in prompts)
        texts = [engine.write([Request(**asked, **settings)])[0].text for asked in drawn]
    continued = [
        Continuation(prompt, reference, text, targets)
        for (prompt, reference, targets), text in zip(begun, texts, strict=True)
    ]
    left_out = []
    if short or not asked:
        left_out.append(f"not continued: {short} of {asked} documents, which lack two words, one for each half")
    if too_long:
        left_out.append(f"not continued: {len(too_long)} of {asked} documents, {too_long[0]}")
    return continued, left_out


def _halves(text: str) -> tuple[str, str]:
    """The first half of the words of a text, and the rest with the white space before it."""
    ends = [word.end() for word in re.finditer(r"\S+", text.strip())]
    middle = ends[len(ends) // 2 - 1] if len(ends) > 1 else 0
    return text.strip()[:middle], text.strip()[middle:]


def likeness(texts: Sequence[str], references: Sequence[str]) -> dict[str, Any]:
    """How like texts are to one reference each.

    Returns:
        `bleu` and `chrf` of the corpus from 0 to 100, by sacrebleu, with the signatures that say how; the mean F1 of
        `rouge1`, `rouge2` and `rougeL` from 0 to 1, by rouge_score, which sees letters from a to z and digits only.

    Raises:
        UserError: not as many references as texts, or none.
    """
    from rouge_score.rouge_scorer import RougeScorer
    from sacrebleu.metrics import BLEU, CHRF

    if len(texts) != len(references) or not texts:
        raise UserError(f"{len(texts)} texts cannot be compared with {len(references)} references; give one for each")
    texts, references = ([" ".join(text.split()) for text in side] for side in (texts, references))
    bleu, chrf, rouge = BLEU(), CHRF(), RougeScorer(ROUGE)
    pairs = [rouge.score(reference, text) for text, reference in zip(texts, references, strict=True)]
    return {
        "bleu": bleu.corpus_score(texts, [references]).score,
        "chrf": chrf.corpus_score(texts, [references]).score,
        **{name: statistics.fmean(pair[name].fmeasure for pair in pairs) for name in ROUGE},
        "signatures": [f"BLEU {bleu.get_signature()}", f"chrF {chrf.get_signature()}"],
    }


def copy_rate(written: Sequence[Sequence[int]], training: np.ndarray) -> float | None:
    """The share of runs of 8 tokens that stand in the training text too; None where no text has so many.

    Args:
        written: token ids of each text.
        training: token ids of the training text, memory-mapped for example; read once, a part at a time.
    """
    runs = np.concatenate([np.zeros(0, np.uint64), *map(_hash_runs, map(np.asarray, written))])
    if not len(runs):
        return None
    wanted, times = np.unique(runs, return_counts=True)
    found = np.zeros(len(wanted), dtype=bool)
    for begin in range(0, len(training), TOKENS_AT_A_TIME):
        hashes = _hash_runs(np.asarray(training[begin : begin + TOKENS_AT_A_TIME + COPIED - 1]))
        places = np.searchsorted(wanted, hashes) % len(wanted)
        found[places[wanted[places] == hashes]] = True
    return float(times[found].sum() / len(runs))


def _hash_runs(token_ids: np.ndarray) -> np.ndarray:
    """A number for each run of `COPIED` tokens, uint64."""
    runs = max(0, len(token_ids) - COPIED + 1)
    hashes = np.zeros(runs, np.uint64)
    for place, factor in enumerate(FACTORS):
        hashes += token_ids[place : place + runs].astype(np.uint64) * factor
    return hashes


def judge(
    continued: Sequence[Continuation], tokenizer: PreTrainedTokenizerBase, training: np.ndarray | None = None
) -> dict[str, Any]:
    """All measures of continuations; those of the references beside them say what a person does.

    Args:
        continued: texts with their references.
        tokenizer: of the model that wrote them.
        training: the token ids it was trained on, of the same tokenizer; None asks for no copies.

    Returns:
        `likeness`; of answers also `agreement`; `variety` of the texts and `reference_variety`; mean words of a text
        and of a reference; `copy_rate` and `reference_copy_rate`; the `continuations`.
    """
    texts, references = [part.text for part in continued], [part.reference for part in continued]
    figures = likeness(texts, references) | {
        "documents": len(continued),
        "words_per_text": statistics.fmean(len(text.split()) for text in texts),
        "words_per_reference": statistics.fmean(len(text.split()) for text in references),
        "variety": variety(texts),
        "reference_variety": variety(references),
    }
    if all(part.targets for part in continued):
        figures |= agreement(texts, [part.targets for part in continued])
    if training is not None:
        figures["copy_rate"] = copy_rate(encode_ordinary(tokenizer, texts), training)
        figures["reference_copy_rate"] = copy_rate(encode_ordinary(tokenizer, references), training)
    return figures | {"continuations": [asdict(part) for part in continued]}
