"""The pictures of a model on a page of its scores: one text with its loss, attention, and where its words lie."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

from smallm_hf.data.documents import read_texts
from smallm_hf.errors import UserError
from smallm_hf.pictures.attention import attention_pictures
from smallm_hf.pictures.embeddings import frequent_words, map_words, word_pictures
from smallm_hf.pictures.picture import Picture
from smallm_hf.pictures.tokens import token_pictures
from smallm_hf.pretrained import load_causal_lm

COUNTED_DOCUMENTS = 10_000  # whose words are counted
DRAWN_WORDS = 150


def gallery(
    model: str, data: str, loading: dict[str, Any], *, text_column: str = "text", say: Callable[[str], None] = print
) -> list[tuple[str, str, str | bytes]]:
    """Draws a causal model on the first document of a text.

    Args:
        model: folder or Hub id.
        data: the text, as `read_texts` takes it.
        loading: options of `load_causal_lm`.
        text_column: column of the data that holds the text.
        say: told which picture could not be made of this model and text, and why.

    Returns:
        Title, caption and picture of each, for `report_results`; the captions stand in the pictures.
    """
    try:
        loaded = load_causal_lm(model, **loading)
    except UserError as error:
        say(f"no pictures: {error}")
        return []
    texts = list(itertools.islice(read_texts(data, text_column=text_column), COUNTED_DOCUMENTS))
    text = next(text for text in texts if text.strip())
    kinds = (
        lambda: token_pictures(*loaded, text),
        lambda: attention_pictures(*loaded, text),
        lambda: word_pictures(map_words(frequent_words(*loaded, texts, DRAWN_WORDS)), model),
    )
    return [(picture.title, "", picture.shown) for kind in kinds for picture in _drawn(kind, say)]


def _drawn(kind: Callable[[], list[Picture]], say: Callable[[str], None]) -> Iterator[Picture]:
    try:
        yield from kind()
    except UserError as error:
        say(f"a picture is left out: {error}")
