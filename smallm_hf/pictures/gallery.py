"""The pictures of a model on a page of its scores: one text with its loss, attention, and where its words lie."""

import itertools
from collections.abc import Callable, Iterator

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from smallm_hf.base.errors import UserError
from smallm_hf.evaluation.texts import read_scored_texts
from smallm_hf.families import kind_of
from smallm_hf.pictures.attention import attention_pictures
from smallm_hf.pictures.embeddings import frequent_words, map_words, word_pictures
from smallm_hf.pictures.picture import Picture
from smallm_hf.pictures.reading import model_name
from smallm_hf.pictures.tokens import token_pictures

COUNTED_DOCUMENTS = 10_000  # whose words are counted
DRAWN_WORDS = 150


def gallery(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    data: str,
    text_column: str = "text",
    say: Callable[[str], None] = print,
) -> list[tuple[str, str | bytes]]:
    """Draws a causal model on the first document of a text.

    Args:
        model: causal; of others there are no pictures.
        tokenizer: the model's own.
        data: the text, as `read_scored_texts` takes it.
        text_column: column of the data that holds the text.
        say: told which picture could not be made of this model and text, and why.

    Returns:
        Title and picture of each, for `evaluate_models`; the captions stand in the pictures.
    """
    if kind_of(model) != "causal":
        say(f"no pictures: {type(model).__name__} is {kind_of(model)}; they are of causal models")
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
