"""What a model expects along a text: the probability of each token, and of those it expected in its place.

A text is read as by the `documents` protocol of scripts/score.py: without the white space around it, behind bos (eos
where there is none), and in several windows if it exceeds the context. So the nats add up to what that script says of
the text, if it is not longer than `MOST_TOKENS`.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from smallm_hf.base.errors import UserError
from smallm_hf.comparison.words import entropy_bits, to_probabilities
from smallm_hf.evaluation.configuration import Rules
from smallm_hf.evaluation.page import COLOURS, fill_template, percent, shorten
from smallm_hf.evaluation.scoring import ScoringPlan
from smallm_hf.evaluation.texts import read_scored_texts
from smallm_hf.evaluation.windows import cut_text
from smallm_hf.families import kind_of
from smallm_hf.inspection import evaluation_mode, vocabulary_size
from smallm_hf.pictures.configuration import TokenPictures
from smallm_hf.pictures.picture import STYLE, Picture, legible, signs, write_around, write_pictures
from smallm_hf.pictures.reading import model_name, read_tokens, token_labels

POSITIONS_AT_A_TIME = 64  # float64 probabilities of more would take too much memory
HOTTEST_BITS = 10  # the heat map is saturated from here on: a probability of 0.1 %
MOST_TOKENS = 4096  # of a text; a page of more would be slow to open
DRAWN_TOKENS = 40  # rows of the drawing; more could not be read
ROW_INCHES, HEAD_INCHES, WIDTH_INCHES = 0.27, 2.0, 11
CHOICES_INCHES, LETTER_INCHES = 4.9, 0.064  # of the panel of the choices, and of a letter in it
CAME, OTHER, ENTROPY = COLOURS[0], "#d9dde2", COLOURS[1]


@dataclass(frozen=True)
class Expected:
    """One token of a text, and what the model expected in its place.

    Attributes:
        piece: what the token adds to the text.
        label: how it is written in a picture.
        probability: by the model.
        rank: 1 for the model's first choice; of equal ones the lower id comes first.
        entropy_bits: of the whole distribution.
        choices: the most probable tokens, as labels with their probabilities.
    """

    piece: str
    label: str
    probability: float
    rank: int
    entropy_bits: float
    choices: list[tuple[str, float]]

    @property
    def bits(self) -> float:
        """The surprise: -log2 of the probability."""
        return -math.log2(self.probability) if self.probability else math.inf


@dataclass(frozen=True)
class Reading:
    """A text as a model read it.

    Attributes:
        tokens: of the text, `MOST_TOKENS` at most.
        left_out: number of tokens beyond them.
        context_length: tokens of a window.
        model: its name in captions.
    """

    tokens: list[Expected]
    left_out: int
    context_length: int
    model: str


@torch.inference_mode()
def read_along(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str, *, top_k: int = 5) -> Reading:
    """What a causal model expected at each token of a text, with its `top_k` first choices.

    Each window of the model's context is read on its own, with one token before it; what exceeds `MOST_TOKENS` is left
    out.

    Raises:
        UserError: an empty text, a model that is not causal, a tokenizer of another model, one with neither bos nor
            eos, logits that are NaN, or more choices than tokens in the vocabulary.
    """
    vocab_size = vocabulary_size(model)
    if not 1 <= top_k <= vocab_size:
        raise UserError(f"top_k={top_k} does not fit the vocabulary of {vocab_size} tokens; give 1 to {vocab_size}")
    if kind_of(model) != "causal":
        raise UserError(
            f"{type(model).__name__} is {kind_of(model)} and does not read along a text; give a causal model"
        )
    plan = ScoringPlan.make(model, tokenizer, Rules())
    tokens, labels = read_tokens(model, tokenizer, text), token_labels(model, tokenizer)
    expected = []
    with evaluation_mode(model):
        for window in cut_text(plan.reader.before(), tokens.ids[:MOST_TOKENS], plan.rules.context_length):
            (logits,) = plan.reader.logits([window], (1, len(window.token_ids) - 1))
            rows = (row for some in logits.split(POSITIONS_AT_A_TIME) for row in to_probabilities(some))
            for row, token in zip(rows, window.labels.tolist(), strict=True):
                expected.append(_expected(tokens.pieces[len(expected)], row, token, labels, top_k))
    return Reading(expected, len(tokens.ids) - len(expected), plan.rules.context_length, model_name(model))


def _expected(piece: str, row: np.ndarray, token: int, labels: Sequence[str], top_k: int) -> Expected:
    """One token, from the probabilities of all that could have stood there, (V,)."""
    likely = np.flatnonzero(row >= np.partition(row, -top_k)[-top_k])
    first = likely[(-row[likely]).argsort(kind="stable")][:top_k]  # of equal ones the lower id
    return Expected(
        piece=piece,
        label=labels[token],
        probability=float(row[token]),
        rank=1 + int((row > row[token]).sum() + (row[:token] == row[token]).sum()),
        entropy_bits=entropy_bits(row),
        choices=[(labels[choice], float(row[choice])) for choice in first],
    )


def heat_map(reading: Reading) -> str:
    """The text with the loss of each token as heat behind it, as HTML that fits in any page and needs nothing else.

    A token under the pointer or finger shows its probability and what was expected.
    """
    heats = [round(min(token.bits / HOTTEST_BITS, 1), 3) for token in reading.tokens]
    return fill_template(
        "heat_map.html",
        __package__,
        caption=caption_of(reading),
        tokens=list(zip(reading.tokens, heats, strict=True)),
        rows=[
            [
                signs(token.piece) or token.label,
                token.probability,
                token.rank,
                token.bits if math.isfinite(token.bits) else None,
                token.entropy_bits,
                token.choices,
            ]
            for token in reading.tokens
        ],
        hottest=HOTTEST_BITS,
    )


def caption_of(reading: Reading) -> str:
    """What was read, and how well the model predicted it."""
    tokens = reading.tokens
    bits = sum(token.bits for token in tokens)
    num_bytes = sum(len(token.piece.encode()) for token in tokens)
    first = sum(token.rank == 1 for token in tokens)
    caption = (
        f"{reading.model} on {len(tokens):,} tokens, {num_bytes:,} bytes: {bits / num_bytes:.3f} bits per byte, "
        f"{math.log(2) * bits / len(tokens):.3f} nats per token; {first / len(tokens):.0%} of the tokens were its "
        "first choice."
    )
    if reading.left_out:
        caption += f" {reading.left_out:,} more tokens of the text are left out."
    if len(tokens) > reading.context_length:
        caption += f" Read in windows of {reading.context_length:,} tokens, which see one token of the window before."
    return caption


def probability_figure(reading: Reading, title: str) -> Figure:
    """A row for each of the first `DRAWN_TOKENS`: its probability, the model's first choices, and the entropy."""
    drawn, number = reading.tokens[:DRAWN_TOKENS], len(reading.tokens)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH_INCHES, HEAD_INCHES + ROW_INCHES * len(drawn)), layout="constrained")
        came, choices, entropy = figure.subplots(1, 3, sharey=True, width_ratios=(2.2, CHOICES_INCHES, 1.6))
        rows = range(len(drawn))
        came.barh(rows, [token.probability for token in drawn], color=CAME, height=0.7)
        for row, token in zip(rows, drawn, strict=True):
            came.text(token.probability + 0.02, row, percent(token.probability), va="center", fontsize=8)
            _draw_choices(choices, row, token)
        came.set(xlim=(0, 1.22), xticks=(0, 0.5, 1), title="the token that came", ylim=(len(drawn) - 0.4, -0.6))
        came.set_yticks(rows, [legible(shorten(token.label, 18)) for token in drawn], fontsize=9)
        choices.set(xlim=(0, 1), title=f"the model's {len(drawn[0].choices)} first choices")
        entropy.barh(rows, [token.entropy_bits for token in drawn], color=ENTROPY, height=0.7)
        entropy.set(xlim=(0, None), title="entropy (bits)")
        for axes in (came, choices):
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        for axes in (came, choices, entropy):
            axes.title.set_fontsize(10)
            axes.tick_params(axis="x", labelsize=8)
            axes.tick_params(axis="y", length=0)
        cut = f" The first {len(drawn)} of them are drawn." if len(drawn) < number else ""
        write_around(
            figure,
            title,
            f"{caption_of(reading)}{cut} From top to bottom the tokens of the text, ␣ a space, ↵ a line break. Left: "
            "the probability the model gave each before seeing it. Middle: what it held to be most probable, in blue "
            "the token that came, × if it is not among them. Right: how open the choice was, 0 for a certain one.",
        )
    return figure


def _draw_choices(axes: matplotlib.axes.Axes, row: int, token: Expected) -> None:
    """The choices side by side, each as wide as it is probable and named where the name has room."""
    edge = 0.0
    for label, probability in token.choices:
        hit = label == token.label
        axes.barh(row, probability, left=edge, height=0.7, color=CAME if hit else OTHER, edgecolor="white")
        letters = int((probability * CHOICES_INCHES - 0.06) / LETTER_INCHES)
        if letters >= min(len(label), 3):
            text = legible(shorten(label, letters))
            axes.text(edge + probability / 2, row, text, ha="center", va="center", fontsize=7.5, color="black")
        edge += probability
    if token.rank > len(token.choices):
        axes.text(min(edge + 0.01, 0.985), row, "×", va="center", fontsize=9, color=COLOURS[2])


def token_pictures(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str, *, top_k: int = 5, name: str = "tokens"
) -> list[Picture]:
    """The drawing and the heat map of one text; arguments and errors are those of `read_along`."""
    reading = read_along(model, tokenizer, text, top_k=top_k)
    caption, title = caption_of(reading), f"“{shorten(' '.join(text.split()), 60)}”"
    drawn = probability_figure(reading, f"What came, and what was expected: {title}")
    return [
        Picture(name, f"Next-token probabilities along {title}", caption, figure=drawn),
        Picture(f"{name}_heat", f"Loss per token of {title}", caption, html=heat_map(reading)),
    ]


def draw_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, wanted: TokenPictures) -> list[Path]:
    """Draws what a causal model expects along texts, and the texts as heat maps; returns the files written.

    Raises:
        UserError: data without text, what `read_along` raises, or files that cannot be written.
    """
    texts = [wanted.text]
    if wanted.data is not None:
        documents = read_scored_texts(wanted.data, text_column=wanted.text_column)
        if not (texts := list(itertools.islice(documents, wanted.max_documents))):
            raise UserError(f"--data {wanted.data}: holds no text; give one that does")
    names = [f"tokens_{number}" for number in range(1, len(texts) + 1)] if texts[1:] else ["tokens"]
    pictures = [
        picture
        for name, text in zip(names, texts, strict=True)
        for picture in token_pictures(model, tokenizer, text, top_k=wanted.top_k, name=name)
    ]
    return write_pictures(pictures, wanted.output_dir, "tokens")
