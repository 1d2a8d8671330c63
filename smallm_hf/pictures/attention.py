"""What each head of a model attends to while it reads a text: one map per layer and head.

A row of a map is a token that looks, a column one that is looked at; a row adds up to 1. A causal model reads its start
token before the text, as in training, a masked one what it was trained with around it. Layers and heads are counted
from 0, as in the names of the weights.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from smallm_hf.base.errors import UserError, one_line
from smallm_hf.evaluation.page import fill_template, shorten
from smallm_hf.families import kind_of
from smallm_hf.inspection import evaluation_mode, position_limit
from smallm_hf.pictures.configuration import AttentionPictures
from smallm_hf.pictures.picture import STYLE, Picture, legible, write_around, write_pictures
from smallm_hf.pictures.reading import model_name, read_tokens, token_labels
from smallm_hf.tokenizing.encoding import added_around, start_token_id

SHOWN_TOKENS = 24  # more could not be read on the axes
NUMBERED_TOKENS = 20  # up to here a map that is drawn alone shows its numbers
HABIT = 0.5  # a head that gives one place more than this share on average is named after it
LETTERS = 14  # of a token on an axis
GRID_POINTS, LONE_POINTS = 7, 10  # size of the letters on the axes
LEAST_INCHES, AROUND_INCHES = 1.3, 1.6
PAGE_CAPTION = (
    "Each card is a head, named layer·head from 0, and shows where it looks from the framed token: the bluer a token, "
    "the larger its share of the attention, on a square-root scale; a card adds up to 100 %. → is where it looks most. "
    "A head that gives more than half to one place bears its name: the first, the previous or its own token, on "
    "average from the third token on."
)
SHARES = (0, 0.01, 0.05, 0.1, 0.25, 0.5, 1)  # on the scale of colours


@dataclass(frozen=True)
class Attention:
    """Where the heads look.

    Attributes:
        tokens: T labels, with the special tokens around the text.
        maps: float64 of shape (layers, heads, T, T), rows look at columns.
        left_out: number of further tokens of the text.
    """

    tokens: list[str]
    maps: np.ndarray
    left_out: int


@contextmanager
def _eager(model: PreTrainedModel) -> Iterator[None]:
    """Switches to the attention that returns its weights, inside the block."""
    before = model.config._attn_implementation
    try:
        model.set_attn_implementation("eager")
        yield
    finally:
        model.set_attn_implementation(before)


@torch.inference_mode()
def read_attention(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str) -> Attention:
    """The attention of all heads over the first `SHOWN_TOKENS` tokens of a text, or as many as the context holds.

    The cut changes nothing in the maps of a causal model.

    Raises:
        UserError: an empty text, a tokenizer of another model, a seq2seq model, one that returns no attention maps, or
            maps that are NaN.
    """
    if kind_of(model) == "seq2seq":
        raise UserError(f"{type(model).__name__} is seq2seq; attention is drawn for causal and masked models")
    tokens, (before, behind) = read_tokens(model, tokenizer, text).ids, _around(model, tokenizer)
    room = min(SHOWN_TOKENS, position_limit(model) or SHOWN_TOKENS) - len(before) - len(behind)
    read = [*before, *tokens[:room], *behind]
    labels = token_labels(model, tokenizer)
    name, maps = type(model).__name__, None
    try:
        with evaluation_mode(model), _eager(model):
            outputs = model(torch.tensor([read], device=model.device), output_attentions=True, use_cache=False)
            maps = getattr(outputs, "attentions", None)
    except (TypeError, ValueError) as error:
        raise UserError(f"{name} returns no attention maps ({one_line(error)}); give a transformer") from error
    if not maps or any(layer is None for layer in maps):
        raise UserError(f"{name} returns no attention maps; give a transformer")
    stacked = torch.cat(maps).double().cpu().numpy()
    if not np.isfinite(stacked).all():
        raise UserError("the model's attention is NaN; its weights are damaged, or its dtype overflows")
    return Attention([labels[id] for id in read], stacked, max(0, len(tokens) - room))


def _around(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """The tokens before and behind a text: the start token of a causal model, what a masked one was trained with."""
    if kind_of(model) == "masked":
        return added_around(tokenizer)
    start = start_token_id(tokenizer)
    return [] if start is None else [start], []


def habit(attention: np.ndarray) -> str:
    """The place that gets more than half of a head's attention, with its share; empty if there is none.

    Args:
        attention: (T, T), the map of one head. Rows whose first, previous and own token are not three do not count.
    """
    rows = np.arange(2, len(attention))
    if not len(rows):
        return ""
    shares = {
        "first": attention[rows, 0].mean(),
        "previous": attention[rows, rows - 1].mean(),
        "own": attention[rows, rows].mean(),
    }
    place, share = max(shares.items(), key=lambda item: item[1])
    return f"{place} {share:.0%}" if share > HABIT else ""


def attention_figure(
    attention: Attention, title: str, caption: str, layers: Sequence[int], heads: Sequence[int]
) -> Figure:
    """The maps of some layers, from top to bottom, and some heads, from left to right."""
    tokens = [legible(shorten(token, LETTERS)) for token in attention.tokens]
    lone = len(layers) == len(heads) == 1
    points = LONE_POINTS if lone else GRID_POINTS
    side = max(5.0 if lone else LEAST_INCHES, len(tokens) * points * 1.35 / 72 * (2.2 if lone else 1))
    longest = max(map(len, tokens)) * points * 0.65 / 72
    size = (max(7.0, len(heads) * (side + 0.12) + longest + AROUND_INCHES), len(layers) * (side + 0.3) + longest + 1.4)
    with matplotlib.rc_context(STYLE | {"axes.spines.right": True, "axes.spines.top": True}):
        figure = Figure(figsize=size, layout="constrained")
        grid = figure.subplots(len(layers), len(heads), squeeze=False, sharex=True, sharey=True)
        for row, layer in zip(grid, layers, strict=True):
            for axes, head in zip(row, heads, strict=True):
                shares = attention.maps[layer, head]
                image = axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, 0, 1))
                does = habit(shares)
                name = f"layer {layer}, head {head}" if lone else f"{layer}·{head}"
                axes.set_title(f"{name}  {does}".strip(), fontsize=points + 3, pad=3)
                axes.tick_params(length=0, pad=2)
                if lone and len(tokens) <= NUMBERED_TOKENS:
                    _write_numbers(axes, shares)
        ticks = range(len(tokens))
        for axes in grid[:, 0]:
            axes.set_yticks(ticks, tokens, fontsize=points)
        for axes in grid[-1]:
            axes.set_xticks(ticks, tokens, fontsize=points, rotation=90)
        bar = figure.colorbar(image, ax=grid, shrink=min(0.8, 4 / size[1]), aspect=25, pad=0.01, ticks=SHARES)
        bar.ax.yaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
        bar.ax.tick_params(labelsize=8)
        write_around(figure, title, caption)
    return figure


def _write_numbers(axes: matplotlib.axes.Axes, shares: np.ndarray) -> None:
    """The per cent in each cell that has one or more."""
    for (row, column), share in np.ndenumerate(shares):
        if share >= 0.005:
            colour = "white" if share > 0.35 else "black"
            axes.text(column, row, f"{100 * share:.0f}", ha="center", va="center", fontsize=8, color=colour)


def attention_pictures(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    *,
    layer: int | None = None,
    head: int | None = None,
) -> list[Picture]:
    """The maps of all layers and heads, of one layer, of one head in all layers, or one map alone and larger.

    Returns:
        The drawing, and an interactive page.

    Raises:
        UserError: no such layer or head, or what `read_attention` raises.
    """
    attention = read_attention(model, tokenizer, text)
    layers, heads = (
        _chosen(wanted, number, name)
        for wanted, number, name in zip((layer, head), attention.maps.shape, ("layer", "head"), strict=False)
    )
    name = _file_name(layer, head)
    title = f"Attention of {model_name(model)}"
    before, behind = _around(model, tokenizer)
    around = (" The first token precedes the text." if before else "") + (" The last one follows it." if behind else "")
    cut = f" {attention.left_out:,} more tokens of the text are not shown." if attention.left_out else ""
    caption = (
        "Each map is a head, named layer·head from 0. A row is a token that looks, a column one that is looked at: the "
        "darker, the larger the share of its attention, on a square-root scale; each row adds up to 100 %."
        f"{around} A head that gives more than half to one place bears its name: the first, the previous or its own "
        f"token, on average from the third row on.{cut}"
    )
    drawn = attention_figure(attention, title, caption, layers, heads)
    page = attention_html(attention, f"{PAGE_CAPTION}{around}{cut}", layers, heads)
    return [Picture(name, title, caption, figure=drawn), Picture(name, title, caption, html=page)]


def attention_html(attention: Attention, caption: str, layers: Sequence[int], heads: Sequence[int]) -> str:
    """The maps as a fragment of a page: a token under the pointer or finger shows where each head looks from it."""
    chosen = attention.maps[np.ix_(layers, heads)]
    cards = [("mean of all" if len(layers) * len(heads) > 1 else "", chosen.mean(axis=(0, 1)))]
    cards += [(f"{layer}·{head}", attention.maps[layer, head]) for layer in layers for head in heads]
    return fill_template(
        "attention.html",
        __package__,
        caption=caption,
        data={
            "tokens": [token.replace("␣", " ") for token in attention.tokens],
            "heads": [
                {"name": name, "does": habit(shares), "shares": (1000 * shares).round().astype(int).tolist()}
                for name, shares in cards
                if name
            ],
        },
    )


def _file_name(layer: int | None, head: int | None) -> str:
    chosen = [f"_{name}{number}" for name, number in (("layer", layer), ("head", head)) if number is not None]
    return "".join(["attention", *chosen])


def _chosen(wanted: int | None, number: int, name: str) -> Sequence[int]:
    if wanted is None:
        return range(number)
    if not 0 <= wanted < number:
        raise UserError(f"{name} {wanted} is not there; the model has {name}s 0 to {number - 1}")
    return [wanted]


def draw_attention(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, wanted: AttentionPictures) -> list[Path]:
    """Draws what each head attends to while the model reads a text; returns the files written.

    Raises:
        UserError: what `attention_pictures` raises, or files that cannot be written.
    """
    pictures = attention_pictures(model, tokenizer, wanted.text, layer=wanted.layer, head=wanted.head)
    return write_pictures(pictures, wanted.output_dir, _file_name(wanted.layer, wanted.head))
