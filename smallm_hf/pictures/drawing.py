"""The pictures of a model by name: what `scripts/plot.py` draws."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from smallm_hf.pictures.attention import draw_attention
from smallm_hf.pictures.embeddings import draw_embeddings
from smallm_hf.pictures.tokens import draw_tokens
from smallm_hf.pretrained import load_scorable

KINDS = {"attention": draw_attention, "embeddings": draw_embeddings, "tokens": draw_tokens}


def draw_model(kind: str, model: str, loading: Mapping[str, Any], asked: Mapping[str, Any]) -> list[Path]:
    """Draws one of `KINDS`.

    Args:
        kind: its name.
        model: a folder or a Hub id.
        loading: fields of `Loading`.
        asked: fields of what `pictures.configuration` has under this name.

    Returns:
        The files written.

    Raises:
        UserError: what loading and drawing refuse.
    """
    return KINDS[kind](*load_scorable(model, **loading), **asked)
