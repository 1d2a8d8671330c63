"""Compares models: each is measured in a process of its own, so that none leaves memory or a state behind."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from smallm_hf.base.environment import environment
from smallm_hf.base.errors import UserError
from smallm_hf.comparison.configuration import SideBySide
from smallm_hf.comparison.measuring import CannotLoad, kind_to_compare, measure_model
from smallm_hf.evaluation.page import labels
from smallm_hf.evaluation.speed import in_own_process
from smallm_hf.evaluation.texts import require_texts
from smallm_hf.training.devices import hardware


def compare_models(
    models: Sequence[str],
    prompts: Sequence[str],
    data: str | None = None,
    questions: SideBySide | None = None,
    loading: Mapping[str, Any] | None = None,
    skip_missing: bool = False,
    *,
    tell: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Asks every model the same.

    Args:
        models: folders or Hub ids; one that is named twice counts once.
        prompts: to continue; of encoder-decoders the sources to answer.
        data: text, or pairs, to score, a file, folder, glob or Hub data set; None scores nothing.
        questions: what is asked.
        loading: arguments of `load_causal_lm` beside the model, such as `device`.
        skip_missing: whether a model that cannot be loaded is left out and named, instead of ending it all.
        tell: hears what is being done, in a line each.

    Returns:
        `models`, one row of `measure_model` each with a short `label`; `skipped`, those left out with the `reason`,
        which names them; what was asked; versions, commit, command and hardware.

    Raises:
        UserError: no model, no prompt, encoder-decoders beside others, or what `measure_model` refuses.
    """
    questions, loading = questions or SideBySide(), dict(loading or {})
    models, wanted, skipped = list(dict.fromkeys(models)), {}, {}
    if not models:
        raise UserError("no model was given; name folders such as runs/quickstart/best, or Hub ids")
    if not prompts:
        raise UserError("no prompt was given; give one or more")
    if data is not None:
        require_texts(data, questions.columns)
    missing = skipped if skip_missing else None
    for model in models:
        with _noting(missing, model):
            wanted[model] = kind_to_compare(model)
    _require_one_way_of_asking(wanted)
    rows = []
    for model in wanted:
        tell(f"measuring {model}")
        with _noting(missing, model):
            rows.append(in_own_process(measure_model, model, prompts, data, questions, loading))
    if not rows:
        raise UserError(f"none of the models can be loaded: {'; '.join(skipped.values())}")
    for row, label in zip(rows, labels([row["model"] for row in rows]), strict=True):
        row["label"] = f"{label} (masked)" if row["kind"] == "masked" else label
    return {
        "models": rows,
        "skipped": [{"model": model, "reason": reason} for model, reason in skipped.items()],
        "data": data,
        **asdict(questions),
        "loading": loading,
        "hardware": hardware(),
        **environment(),
    }


def _require_one_way_of_asking(kinds: Mapping[str, str]) -> None:
    """Refuses models that answer beside models that go on with a prompt: the texts of both mean different things."""
    answering = [model for model, kind in kinds.items() if kind == "seq2seq"]
    others = [model for model in kinds if model not in answering]
    if answering and others:
        raise UserError(
            f"{answering[0]} is an encoder-decoder and answers prompts, {others[0]} goes on with them; compare them "
            "separately"
        )


@contextmanager
def _noting(missing: dict[str, str] | None, model: str) -> Iterator[None]:
    """Leaves the block where a model cannot be loaded, and notes why; with nowhere to note it, that ends it all."""
    try:
        yield
    except CannotLoad as error:
        if missing is None:
            raise UserError(f"{error}; or leave it out with --skip_missing") from error
        missing[model] = str(error) if model in str(error) else f"{model}: {error}"
