"""What the page says of a model, in words for somebody who has never used one: from its card and its config."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData, hf_hub_download
from yaml import YAMLError

from smallm_hf.base.errors import UserError
from smallm_hf.base.settings import is_model_folder
from smallm_hf.inspection import ngram_count, trained_length, vocabulary_size
from smallm_hf.pretrained import find_model
from smallm_hf.serving.served import Served

CARD = "README.md"
MOST_EXAMPLES = 6


@dataclass(frozen=True)
class Fact:
    """One thing that is known of a model.

    Attributes:
        help: what it means.
    """

    name: str
    value: str
    help: str


def read_card(source: str) -> ModelCardData | None:
    """What the card of a folder or Hub id says to programs; None where it has none that can be read."""

    def load(local_files_only: bool) -> ModelCardData:
        if is_model_folder(source):
            return ModelCard.load(Path(source).expanduser() / CARD).data
        return ModelCard.load(hf_hub_download(source, CARD, local_files_only=local_files_only)).data

    try:
        return find_model(source, load)
    except (UserError, YAMLError):
        return None


def examples_of(card: ModelCardData | None) -> list[str]:
    """The prompts that a card proposes, which are those that the model wrote behind while it was trained."""
    proposed = [example.get("text") for example in (getattr(card, "widget", None) or ()) if isinstance(example, dict)]
    return [text for text in proposed if isinstance(text, str) and text.strip()][:MOST_EXAMPLES]


def facts_of(served: Served, card: ModelCardData | None) -> list[Fact]:
    """All that is known of a model; what is not is left out."""
    model, ngrams, trained = served.engine.model, ngram_count(served.engine.model), trained_length(served.engine.model)
    count = ("Parameters", model.num_parameters(), "numbers that were learned in training")
    if ngrams is not None:
        count = ("N-grams", sum(ngrams), "runs of tokens that were counted")
    found = [
        ("Kind", type(model).__name__, "the architecture"),
        count,
        ("Vocabulary", vocabulary_size(model), "tokens that it knows: words, pieces of words or single letters"),
        ("Context", served.engine.limit, "tokens that it can look back on"),
        ("Trained at", trained, "tokens at once; what it writes far beyond may get worse"),
        ("Trained on", _trained_on(card), "the text that it learned from"),
        ("Bits per byte", _bits_per_byte(card), "how well it predicts text that it has not seen; lower is better"),
        ("Licence", _license(card), "what you may do with it"),
    ]
    return [
        Fact(name, f"{value:,}" if isinstance(value, int) else str(value), help)
        for name, value, help in found
        if value is not None
    ]


def _trained_on(card: ModelCardData | None) -> str | None:
    named: Sequence[str] | str | None = getattr(card, "datasets", None)
    if not named:
        named = [result.dataset_name.removesuffix(" (held out)") for result in _results(card)[:1]]
    return ", ".join([named] if isinstance(named, str) else named) or None


def _bits_per_byte(card: ModelCardData | None) -> str | None:
    scored = [result.metric_value for result in _results(card) if result.metric_type == "bits_per_byte"]
    return f"{scored[0]:.3f}" if scored and isinstance(scored[0], int | float) else None


def _license(card: ModelCardData | None) -> str | None:
    name = getattr(card, "license", None)
    return getattr(card, "license_name", None) or name if name == "other" else name


def _results(card: ModelCardData | None) -> list:
    return getattr(card, "eval_results", None) or []
