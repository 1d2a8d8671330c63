"""What is measured of every model of a ladder: the validation text, its words, minimal pairs, and what it writes.

A token of one tokenizer is not one of another, so accuracy is counted in *words* as `comparison/words.py` defines them:
the probability of a next word is summed over all token paths that spell it and end there. A prediction is right if the
word that follows in the text is the most probable one, or among the three most probable. Every model predicts the same
words behind the same text, of which it reads as much as it was trained to. Capitals count.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from smallm_hf.comparison.words import ends_in_a_word, next_words, predictor, read_vocabulary
from smallm_hf.evaluation.minimal_pairs import judge_pairs
from smallm_hf.evaluation.page import shorten
from smallm_hf.evaluation.pair_files import read_paradigms
from smallm_hf.evaluation.scoring import score_documents
from smallm_hf.evaluation.variety import WORD_OR_MARK
from smallm_hf.experiments.texts import read_documents
from smallm_hf.generation.engine import Engine
from smallm_hf.generation.request import Request, seed_of
from smallm_hf.inspection import evaluation_mode, position_limit, trained_length, vocabulary_size
from smallm_hf.pretrained import load_causal_lm
from smallm_hf.tokenizing.encoding import encode_ordinary, start_token_id
from smallm_hf.training.loop import SAMPLING

# Text before a word that is predicted, and the tokens kept free to spell it.
CONTEXT_CHARACTERS, SPELLING_TOKENS = 200, 24
# The search: few paths at a time, the most probable first, so that a word of many letters is spelled to its end.
SEARCH = {"max_paths": 96, "at_a_time": 4}
TOP = (1, 3)  # how many of the most probable words may hold the right one
SAMPLE_TOKENS, SAMPLE_CHARACTERS = 200, 240


@dataclass(frozen=True)
class Asked:
    """What every model is asked.

    Args:
        validation: the file of the validation documents.
        word_positions: words to predict; 0 predicts none.
        prompts: to continue.
        minimal_pairs: to judge, as `read_paradigms` takes them; None judges nothing.
        max_pairs: the first so many of each paradigm; None judges all.
        seed: of the choice of words, and of the samples.
    """

    validation: str
    word_positions: int = 0
    prompts: tuple[str, ...] = ()
    minimal_pairs: str | None = None
    max_pairs: int | None = None
    seed: int = 42


def measure_rung(model: str, asked: Asked) -> dict[str, Any]:
    """Asks one causal model all of it.

    Args:
        model: a folder or a Hub id.
        asked: the questions.

    Returns:
        The figures of `score_documents`, in float32, `parameters`, and where it was asked for `word_accuracy`,
        `minimal_pairs`, the figures of `judge_pairs`, and `samples`, a text by prompt.

    Raises:
        UserError: a model that cannot be loaded, or what scoring raises.
    """
    loaded, tokenizer = load_causal_lm(model, dtype="float32")
    figures = score_documents(loaded, tokenizer, read_documents(Path(asked.validation)))
    figures["parameters"] = loaded.num_parameters()
    if asked.word_positions:
        words = choose_words(list(read_documents(Path(asked.validation))), asked.word_positions, asked.seed)
        figures["word_accuracy"] = word_accuracy(loaded, tokenizer, words)
    if asked.minimal_pairs:
        paradigms = read_paradigms(asked.minimal_pairs, asked.max_pairs)
        figures["minimal_pairs"] = judge_pairs(loaded, tokenizer, paradigms).figures
    if asked.prompts:
        figures["samples"] = continue_prompts(loaded, tokenizer, asked.prompts, asked.seed)
    return figures


def choose_words(documents: Sequence[str], number: int, seed: int) -> list[tuple[str, str]]:
    """Draws words of a text, none of them the first of a document.

    Returns:
        For each the text before it, `CONTEXT_CHARACTERS` at most, and the word; fewer where the text has fewer.
    """
    places = [
        (document, found.start(), found["word"])
        for document, text in enumerate(documents)
        for found in WORD_OR_MARK.finditer(text)
        if found["word"] and found.start()
    ]
    drawn = sorted(random.Random(seed).sample(places, min(number, len(places))))
    return [(documents[number][max(0, at - CONTEXT_CHARACTERS) : at], word) for number, at, word in drawn]


def word_accuracy(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, words: Sequence[tuple[str, str]]
) -> dict[str, float | int]:
    """How often the word that follows is the most probable one, and among the three most probable.

    Args:
        model: causal.
        tokenizer: its own.
        words: the text before each word, and the word.

    Returns:
        `top1` and `top3`, shares of the `words`.
    """
    vocabulary = read_vocabulary(tokenizer, vocabulary_size(model))
    longest = min(length for length in (trained_length(model), position_limit(model), 1 << 30) if length)
    room = max(longest - SPELLING_TOKENS, longest // 2)
    start, ranks = start_token_id(tokenizer), []
    with evaluation_mode(model):
        for before, word in words:
            ids = ([start] + encode_ordinary(tokenizer, [before])[0])[-room:]
            predict, left = predictor(model, ids)
            found = next_words(predict, vocabulary, inside=ends_in_a_word(before), longest=left, **SEARCH)
            ranked = [one.text if one.kind == "word" else None for one in found.probabilities]
            ranks.append(ranked.index(word) if word in ranked else len(ranked) + TOP[-1])
    return {f"top{k}": sum(rank < k for rank in ranks) / len(ranks) for k in TOP} | {"words": len(ranks)}


def continue_prompts(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], seed: int
) -> dict[str, str]:
    """What a model writes behind each prompt, `SAMPLE_CHARACTERS` at most."""
    requests = [
        Request(prompt, max_new_tokens=SAMPLE_TOKENS, seed=seed_of(seed, prompt), **SAMPLING) for prompt in prompts
    ]
    written = Engine(model, tokenizer).write(requests)
    return {prompt: shorten(one.text, SAMPLE_CHARACTERS) for prompt, one in zip(prompts, written, strict=True)}
