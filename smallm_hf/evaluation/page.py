"""What all pages share: templates, colours, and how numbers, models and texts are written."""

import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from smallm_hf.base.settings import RUN_MODELS

# The package that holds `page.html`, which all pages extend, and its style.
FRAME = "smallm_hf.evaluation"
# Petroff's ten (2021), which the colour-blind can tell apart; with more models they begin again.
COLOURS = ("#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6", "#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd")
NONE = "–"
LONGEST = 1e9  # larger numbers are written with an exponent


def fill_template(template: str, room: str, filters: Mapping[str, Callable] | None = None, **values: Any) -> str:
    """Fills a template; in HTML and SVG values are escaped, except through the filter `html`.

    Args:
        template: name of its file.
        room: package that holds the file.
        filters: beside `html`.
        values: what it shows; a missing one is an error.
    """
    environment = Environment(
        loader=ChoiceLoader([PackageLoader(room, "."), PackageLoader(FRAME, ".")]),
        autoescape=template.endswith((".html", ".svg")),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"html": Markup, **(filters or {})}
    return environment.get_template(template).render(**values)


def figure(number: float, style: str) -> str:
    """A number in a style of `format`; one too long to read with an exponent."""
    return format(number, style if abs(number) < LONGEST else ".3g")


def percent(share: float | None) -> str:
    """A share in per cent, with one decimal."""
    return NONE if share is None else f"{share:.1%}" if share >= 0.0005 or share == 0 else "<0.1%"


def size(number: float | None) -> str:
    """Bytes in units of 1,000."""
    if number is None:
        return NONE
    for unit in ("B", "kB", "MB"):
        if number < 1000:
            return f"{number:,.0f} {unit}" if unit == "B" else f"{number:,.1f} {unit}"
        number /= 1000
    return f"{number:,.1f} GB"


def window(row: Mapping[str, Any]) -> str:
    """The tokens that a model was scored with at a time, and those it was trained with where that is known."""
    trained = row.get("trained_context_length")
    return f"{row['context_length']:,}" + (f" (trained at {trained:,})" if trained else "")


def labels(models: Sequence[str]) -> list[str]:
    """The ends of the models' names, as short as tells them apart; `best` alone would not name a run."""
    paths = [Path(model).parts for model in models]
    least = [2 if path[-1] in RUN_MODELS else 1 for path in paths]
    for more in itertools.count():
        shortened = ["/".join(path[-length - more :]) for path, length in zip(paths, least, strict=True)]
        if len(set(shortened)) == len(set(paths)):
            return shortened


def on_one_line(text: str) -> str:
    """A text with ¶ for its line breaks; several in a row are counted."""

    def sign(breaks: re.Match) -> str:
        lines = breaks[0].count("\n")
        return " ¶ " if lines == 1 else f" ¶×{lines} "

    return re.sub(r"(?:\r?\n)+", sign, text)


def shorten(text: str, characters: int) -> str:
    """A text of at most so many characters, with an ellipsis where it was cut."""
    return text if len(text) <= characters else f"{text[: characters - 1]}…"


def in_markdown(text: str) -> str:
    """A text on one line that Markdown shows as it is, also in a table; between letters `_` means nothing there."""
    return re.sub(r"([\\`*{}\[\]<>|#~$&]|(?<![^\W_])_|_(?![^\W_]))", r"\\\1", on_one_line(text))
