"""Draws the pictures of a model: those of `scripts/plot.py`, and the gallery on the page of `scripts/score.py`."""

import itertools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from smallm_hf.base.errors import UserError
from smallm_hf.evaluation.texts import read_scored_texts
from smallm_hf.families import kind_of
from smallm_hf.pictures.attention import attention_pictures, draw_attention
from smallm_hf.pictures.configuration import AttentionPictures, EmbeddingPictures, TokenPictures
from smallm_hf.pictures.embeddings import draw_embeddings, frequent_words, map_words, word_pictures
from smallm_hf.pictures.picture import Picture
from smallm_hf.pictures.reading import model_name
from smallm_hf.pictures.tokens import draw_tokens, token_pictures
from smallm_hf.pretrained import load_scorable

DRAW = {AttentionPictures: draw_attention, EmbeddingPictures: draw_embeddings, TokenPictures: draw_tokens}
COUNTED_DOCUMENTS = 10_000  # whose words are counted for the gallery
DRAWN_WORDS = 150


def draw_model(
    model: str, loading: Mapping[str, Any], wanted: AttentionPictures | EmbeddingPictures | TokenPictures
) -> list[Path]:
    """Draws one kind of pictures of a folder or Hub id, loaded by the fields of `Loading`; returns the files written.

    Raises:
        UserError: what loading and drawing raise.
    """
    return DRAW[type(wanted)](*load_scorable(model, **loading), wanted)


def gallery(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    data: str,
    text_column: str = "text",
    say: Callable[[str], None] = print,
) -> list[tuple[str, str | bytes]]:
    """Draws a causal model on the first document of a text: its tokens, attention, and where frequent words lie.

    Args:
        model: causal; there are no pictures of others.
        tokenizer: the model's own.
        data: the text, as `read_scored_texts` takes it.
        text_column: column of the data that holds the text.
        say: called with the reason why a picture could not be made.

    Returns:
        Title and picture of each, for `evaluate_models`; the pictures hold their captions.
    """
    if kind_of(model) != "causal":
        say(f"no pictures: {type(model).__name__} is {kind_of(model)}; only causal models are drawn")
        return []
    texts = list(itertools.islice(read_scored_texts(data, text_column=text_column), COUNTED_DOCUMENTS))
    text = next(text for text in texts if text.strip())
    kinds = (
        lambda: token_pictures(model, tokenizer, text),
        lambda: attention_pictures(model, tokenizer, text)[1:],  # the drawing of all heads is larger than the page
        lambda: word_pictures(map_words(frequent_words(model, tokenizer, texts, DRAWN_WORDS)), model_name(model)),
    )
    return [(picture.title, picture.shown) for kind in kinds for picture in _drawn(kind, say)]


def _drawn(kind: Callable[[], list[Picture]], say: Callable[[str], None]) -> Iterator[Picture]:
    try:
        yield from kind()
    except UserError as error:
        say(f"a picture is left out: {error}")
