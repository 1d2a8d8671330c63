"""Asks one model all questions: what comes next, what it writes, its speed and memory, how well it knows a text."""

import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from smallm_hf.base.errors import UserError
from smallm_hf.comparison.configuration import SideBySide
from smallm_hf.comparison.words import (
    NextWords,
    ends_in_a_word,
    entropy_bits,
    next_words,
    predictor,
    read_vocabulary,
    to_probabilities,
)
from smallm_hf.evaluation.scoring import score_documents
from smallm_hf.evaluation.speed import median_and_range, peak_memory
from smallm_hf.evaluation.texts import Example, require_texts
from smallm_hf.evaluation.variety import variety
from smallm_hf.families import Kind
from smallm_hf.generation.engine import Engine
from smallm_hf.generation.request import Request, prompt_ids, seed_of, source_ids
from smallm_hf.inspection import ngram_count, position_limit, refuse_lookahead, require_known, vocabulary_size
from smallm_hf.pretrained import find_kind, load_scorable

Peak = Callable[[], int]  # the bytes that were taken at most so far


class CannotLoad(UserError):
    """A model is missing, out of reach or damaged."""


def kind_to_compare(model: str) -> Kind:
    """How a model can be asked: a causal one goes on with a prompt, a masked one fills in, a seq2seq one answers.

    Raises:
        CannotLoad: it cannot be found.
    """
    try:
        return find_kind(model)
    except UserError as error:
        raise CannotLoad(str(error)) from error


def measure_model(
    model: str, prompts: Sequence[str], data: str | None, questions: SideBySide, loading: Mapping[str, Any]
) -> dict[str, Any]:
    """All that is compared of one model; memory is only right in a process of its own.

    Args:
        model: a folder or a Hub id.
        prompts: to continue, or to answer.
        data: the text, or the pairs, to score, as `require_texts` takes it; None scores nothing.
        questions: what is asked.
        loading: arguments of `load_causal_lm` beside the model.

    Raises:
        CannotLoad: it cannot be loaded.
        UserError: a question that it cannot answer; the message begins with the model's name.
    """
    kind = kind_to_compare(model)
    measure = {"causal": _measure_causal, "masked": _measure_masked, "seq2seq": _measure_seq2seq}[kind]
    with peak_memory() as peak_memory_bytes:
        began = time.perf_counter()
        try:
            loaded = load_scorable(model, **loading)
        except UserError as error:
            raise CannotLoad(str(error)) from error
        load_seconds = time.perf_counter() - began
        try:
            vocab_size = vocabulary_size(loaded[0])
            if questions.top_k > vocab_size:
                most = f"the vocabulary of {vocab_size} tokens; give {vocab_size} or less"
                raise UserError(f"top_k={questions.top_k} exceeds {most}")
            measured = measure(*loaded, prompts, questions, peak_memory_bytes)
            scores = None
            if data is not None and kind != "masked":  # a pseudo-likelihood would stand beside probabilities
                scores = _score(*loaded, data, questions)
        except UserError as error:
            raise UserError(f"{model}: {error}") from error
    network, tokenizer = loaded
    return {
        "model": model,
        "kind": kind,
        "class": type(network).__name__,
        "parameters": network.num_parameters(),
        "ngrams": ngram_count(network),
        "weights_bytes": network.get_memory_footprint(return_buffers=ngram_count(network) is not None),
        "dtype": str(network.dtype).removeprefix("torch."),
        "device": str(network.device),
        "tokenizer_entries": len(tokenizer),
        "positions": position_limit(network),
        "load_seconds": load_seconds,
        "scores": scores,
        **measured,
    }


def _measure_causal(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], asked: SideBySide, peak: Peak
) -> dict[str, Any]:
    """What comes next, what it writes, and how fast."""
    vocab_size = vocabulary_size(model)
    refuse_lookahead(model)
    windows = [prompt_ids(model, tokenizer, prompt) for prompt in prompts]
    require_known(max(map(max, windows)), vocab_size)
    predictors = [predictor(model, window) for window in windows]
    answers = [{"prompt": prompt} for prompt in prompts]
    for answer, (predict, _) in zip(answers, predictors, strict=True):
        answer |= _certainty(predict([()])[0])  # refuses NaN before anything is drawn
    engine = Engine(model, tokenizer)
    for answer in answers:
        answer |= _write(engine, asked, prompt=answer["prompt"])
    speed = _writing_speed(engine, asked, prompt=prompts[0])
    memory = peak()  # of loading and writing; what follows is our way of looking, not its need
    vocabulary = read_vocabulary(tokenizer, vocab_size)
    for answer, (predict, longest) in zip(answers, predictors, strict=True):
        inside = ends_in_a_word(answer["prompt"])
        answer |= _top(next_words(predict, vocabulary, inside=inside, longest=longest), asked.top_k)
    return {
        **speed,
        "peak_memory_bytes": memory,
        **_varieties(answers),
        "prompts": answers,
    }


def _measure_seq2seq(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], asked: SideBySide, peak: Peak
) -> dict[str, Any]:
    """What it answers to each prompt, which its encoder reads, and how fast."""
    refuse_lookahead(model)
    require_known(max(id for prompt in prompts for id in source_ids(model, tokenizer, prompt)), vocabulary_size(model))
    engine = Engine(model, tokenizer)
    answers = [{"prompt": prompt, **_write(engine, asked, source=prompt)} for prompt in prompts]
    speed = _writing_speed(engine, asked, source=prompts[0])
    return {**speed, "peak_memory_bytes": peak(), **_varieties(answers), "prompts": answers}


def _measure_masked(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], asked: SideBySide, peak: Peak
) -> dict[str, Any]:
    """What stands in a mask at the end of each prompt; it is one token, and nothing else can be asked."""
    if tokenizer.mask_token is None:
        raise UserError("a masked language model whose tokenizer has no mask token; set tokenizer.mask_token")
    probabilities = [_fill_in(model, tokenizer, prompt) for prompt in prompts]
    memory = peak()
    vocabulary = read_vocabulary(tokenizer, vocabulary_size(model))
    whole_tokens = replace(vocabulary, closes=np.ones_like(vocabulary.closes))
    answers = []
    for prompt, filled in zip(prompts, probabilities, strict=True):
        one_token = {"longest": 0, "enough": 1.0, "negligible": 0.0}
        words = next_words(lambda _, p=filled: p[None], whole_tokens, inside=ends_in_a_word(prompt), **one_token)
        answers.append({"prompt": prompt} | _certainty(filled) | _top(words, asked.top_k))
    return {"peak_memory_bytes": memory, "prompts": answers}


@torch.inference_mode()
def _fill_in(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str) -> np.ndarray:
    """The probabilities of a mask that stands behind the prompt, float64 of shape (V,)."""
    inputs = tokenizer(f"{prompt} {tokenizer.mask_token}", return_tensors="pt", verbose=False)
    tokens, limit = inputs["input_ids"].shape[1], position_limit(model)
    if limit is not None and tokens > limit:
        raise UserError(f"the prompt takes {tokens} tokens with its mask and the model reads {limit}; shorten it")
    require_known(inputs["input_ids"].max().item(), vocabulary_size(model))
    masks = (inputs["input_ids"][0] == tokenizer.mask_token_id).nonzero().flatten()
    return to_probabilities(model(**inputs.to(model.device)).logits[0, masks[-1]])


def _certainty(probabilities: np.ndarray) -> dict[str, float]:
    """Of the next token; the vocabularies differ, so this says how a model feels and not which one knows more."""
    return {"entropy_bits": entropy_bits(probabilities), "confidence": float(probabilities.max())}


def _top(words: NextWords, top_k: int) -> dict[str, Any]:
    ranked = itertools.islice(words.probabilities.items(), top_k)
    return {
        "next_words": [{"text": word.text, "kind": word.kind, "probability": p} for word, p in ranked],
        "left_out": words.left_out,
    }


def _score(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, data: str, questions: SideBySide
) -> dict[str, Any]:
    """The figures of the text, or of the targets of the pairs."""
    texts = require_texts(data, questions.columns)
    if model.config.is_encoder_decoder and not texts.is_pairs:
        raise UserError(f"it reads a source for each text, and --data {data} has none; name --source_column")

    def read() -> Iterator[Example]:
        return itertools.islice(texts.read_examples(text_column=questions.text_column), questions.max_documents)

    targets, sources = (example.text for example in read()), (example.source for example in read())
    rules = {"sources": sources if texts.is_pairs else None, **questions.rules}
    return score_documents(model, tokenizer, targets, show_progress=True, **rules)


def _write(engine: Engine, asked: SideBySide, **begun: str) -> dict[str, Any]:
    """The greedy text and the drawn ones that go on with a `prompt`, or answer a `source`; the seed of the first."""
    seed = seed_of(asked.seed, *begun.values())
    greedy = Request(**begun, max_new_tokens=asked.max_new_tokens, temperature=0)
    seeds = range(seed, seed + asked.num_samples)
    drawn = [replace(greedy, temperature=asked.temperature, seed=number) for number in seeds]
    texts = [engine.write([request])[0].text for request in (greedy, *drawn)]
    return {"seed": seed, "greedy": texts[0], "samples": texts[1:]}


def _varieties(answers: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {
        "variety": variety([text for answer in answers for text in answer["samples"]]),
        "greedy_variety": variety([answer["greedy"] for answer in answers]),
    }


def _writing_speed(engine: Engine, questions: SideBySide, **begun: str) -> dict[str, Any]:
    """Times the writing of `speed_tokens` tokens behind a `prompt`, or for a `source`, one text at a time.

    Reading the prompt or source is part of it.

    Returns:
        Median, slowest and fastest of `tokens_per_second` and of `bytes_per_second`, UTF-8 bytes of the text, which can
        be compared where tokens differ in length.
    """
    tokens = questions.speed_tokens
    request = Request(**begun, max_new_tokens=tokens, min_new_tokens=tokens, temperature=0)
    seconds = []
    for _ in range(1 + questions.repetitions):
        began = time.perf_counter()
        (written,) = engine.write([request])
        seconds.append(time.perf_counter() - began)
    warm = seconds[1:]
    return {
        name: median_and_range([count / spent for spent in warm])
        for name, count in (("tokens_per_second", tokens), ("bytes_per_second", len(written.text.encode())))
    }
