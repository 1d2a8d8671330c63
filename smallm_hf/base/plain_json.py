"""JSON that every program can read: without the `Infinity` and `NaN` that Python would write."""

import json
import math
from pathlib import Path
from typing import Any


def json_text(content: Any, **layout: Any) -> str:
    """JSON in which a number that is infinite or NaN is null; `layout` is what `json.dumps` takes."""
    return json.dumps(without_infinities(content)[0], ensure_ascii=False, allow_nan=False, **layout)


def write_json(path: Path, content: Any) -> None:
    """Writes `json_text`, laid out for people."""
    path.write_text(json_text(content, indent=2) + "\n", encoding="utf-8")


def without_infinities(content: Any, place: str = "") -> tuple[Any, dict[str, str]]:
    """The content with null for every number that is infinite or NaN.

    Returns:
        The content, and what each of these numbers was, by its place, such as `models.0.loss`.
    """
    if isinstance(content, float) and not math.isfinite(content):
        return None, {place: str(content)}
    if not isinstance(content, dict | list | tuple):
        return content, {}
    parts = content.items() if isinstance(content, dict) else enumerate(content)
    found = {name: without_infinities(part, f"{place}.{name}" if place else str(name)) for name, part in parts}
    values = {name: value for name, (value, _) in found.items()}
    not_finite = {where: what for _, places in found.values() for where, what in places.items()}
    return values if isinstance(content, dict) else list(values.values()), not_finite
