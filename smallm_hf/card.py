"""The model card of a trained folder, filled from the run's own record; nobody types a number into it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

TEMPLATE = Path(__file__).resolve().parent.parent / "model_card.md"


def write_card(
    folder: Path, name: str, results: dict[str, Any], scored: dict[str, Any], samples: Sequence[dict[str, str]]
) -> None:
    """Writes `README.md` of a model folder.

    Args:
        folder: the model folder.
        name: what the model is called.
        results: what `results.json` of the run holds.
        scored: the validation of the weights that lie there, one of `results`' own.
        samples: records of `samples.jsonl` that these weights wrote: `prompt` and `text`; there may be none.
    """
    data = ModelCardData(library_name="transformers", pipeline_tag="text-generation", tags=["smallm"])
    card = ModelCard.from_template(
        data, template_path=str(TEMPLATE), folder=folder, name=name, scored=scored, samples=samples, **results
    )
    card.save(folder / "README.md")
