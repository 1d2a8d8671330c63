"""All kinds of pictures by name: what `scripts/plot.py` draws."""

from pathlib import Path
from typing import Any

from smallm_hf.evaluation.families import load_scorable
from smallm_hf.pictures.attention import draw_attention
from smallm_hf.pictures.embeddings import draw_embeddings
from smallm_hf.pictures.tokens import draw_tokens
from smallm_hf.plots import draw_runs

OF_MODELS = {"attention": draw_attention, "embeddings": draw_embeddings, "tokens": draw_tokens}
KINDS = {"runs": draw_runs, **OF_MODELS}


def draw(kind: str, **asked: Any) -> list[Path]:
    """Draws one of `KINDS`; for those `OF_MODELS` the arguments of `load_scorable` are among what is asked.

    Returns:
        The files written.

    Raises:
        UserError: what loading and drawing refuse.
    """
    if kind not in OF_MODELS:
        return KINDS[kind](**asked)
    loading = {name: asked.pop(name) for name in ("model", "dtype", "device", "trust_remote_code")}
    return KINDS[kind](*load_scorable(**loading), **asked)
