"""How an experiment is shown: tables, curves and samples, as Markdown, JSON and one page that needs nothing else."""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from smallm_hf.base.errors import UserError
from smallm_hf.base.folders import write_whole
from smallm_hf.base.plain_json import json_text
from smallm_hf.evaluation.page import fill_template, in_markdown, on_one_line
from smallm_hf.training.progress import count

# The plot inside a chart of 340 pixels in width, and below it a line of the key for each curve.
PLOT = {"left": 40, "right": 330, "top": 10, "bottom": 190}
KEY_TOP, KEY_LINE = 232, 15
FOCUS_PERCENTILE = 90  # higher values of a curve leave the chart at its top: its steep beginning would flatten the rest
MOST_TICKS = 7

# (x, y, low, high) of each point of a curve.
Points = list[tuple[float, float, float, float]]


@dataclass(frozen=True)
class Table:
    """A table of text.

    Args:
        title: above it.
        columns: their heads, the first one over the names of the rows.
        rows: cells, the first one the name.
        note: below it.
    """

    title: str
    columns: list[str]
    rows: list[list[str]]
    note: str = ""

    @property
    def markdown(self) -> str:
        """The table as Markdown, under its title."""
        lines = [self.columns, ["---"] * len(self.columns), *self.rows]
        lines = [f"| {' | '.join(map(in_markdown, line))} |" for line in lines]
        return "\n".join([f"## {self.title}", "", *lines, *(["", in_markdown(self.note)] if self.note else [])])


@dataclass(frozen=True)
class Line:
    """One curve of a chart."""

    label: str
    colour: str
    points: Points


@dataclass(frozen=True)
class Chart:
    """Curves over one axis.

    Args:
        title: above it.
        up: what the vertical axis shows.
        across: what the horizontal axis shows.
        lines: the curves.
        log: whether the horizontal axis is logarithmic.
    """

    title: str
    up: str
    across: str
    lines: Sequence[Line]
    log: bool = False

    @property
    def id(self) -> str:
        """Its name inside a page."""
        return re.sub(r"\W+", "-", self.title)

    def drawn(self) -> dict[str, Any]:
        """Where everything lies, in pixels."""
        points = np.array([point for line in self.lines for point in line.points])
        scale = np.log10 if self.log else np.asarray
        left, right = (0.0, points[:, 0].max()) if not self.log else (points[:, 0].min(), points[:, 0].max())
        low = points[:, 2].min()
        high = max(
            np.percentile([point[3] for point in line.points], FOCUS_PERCENTILE, method="higher")
            for line in self.lines
            if line.points
        )
        margin = 0.05 * (high - low) or 0.05
        place_x = partial(_place, ends=(scale(left), scale(right)), pixels=(PLOT["left"], PLOT["right"]))
        place_y = partial(_place, ends=(low - margin, high + margin), pixels=(PLOT["bottom"], PLOT["top"]))
        decades = [10.0**power for power in range(math.ceil(np.log10(left or 1)), math.floor(np.log10(right or 1)) + 1)]
        x_ticks = decades if self.log and len(decades) > 1 else ticks(left, right)
        lines = []
        for line in self.lines:
            x = [place_x(scale(point[0])) for point in line.points]
            upper = [(at, place_y(point[3])) for at, point in zip(x, line.points, strict=True)]
            lower = [(at, place_y(point[2])) for at, point in zip(x, line.points, strict=True)]
            curve = [(at, place_y(point[1])) for at, point in zip(x, line.points, strict=True)]
            has_band = any(low < high for _, _, low, high in line.points)
            band = upper + lower[::-1] if has_band else []
            lines.append({"label": line.label, "colour": line.colour, "curve": curve, "band": band})
        return {
            "lines": lines,
            "plot": PLOT,
            "height": KEY_TOP + KEY_LINE * len(lines),
            "x_ticks": [
                (place_x(scale(tick)), count(tick) if tick else "0") for tick in x_ticks if tick or not self.log
            ],
            "y_ticks": [(place_y(tick), f"{tick:.4g}") for tick in ticks(low - margin, high + margin)],
        }


@dataclass(frozen=True)
class Page:
    """All that is shown of an experiment.

    Args:
        title: of the page.
        lead: what was done, in a sentence or two.
        tables: in their order.
        charts: of curves.
        notes: what is missing or cannot be compared.
        origin: with `versions`, `commit` and `hardware`.
        samples: by prompt, what each model wrote: label, colour and text.
    """

    title: str
    lead: str
    tables: Sequence[Table]
    charts: Sequence[Chart]
    notes: Sequence[str]
    origin: dict[str, Any]
    samples: dict[str, list[dict[str, str]]] = field(default_factory=dict)

    def render(self, template: str) -> str:
        """The page by one of the templates beside this file."""
        filters = {"md": in_markdown, "on_one_line": on_one_line}
        charts = [(chart, chart.drawn()) for chart in self.charts]
        return fill_template(
            template, __package__, filters, page=self, charts=charts, key_line=KEY_LINE, key_top=KEY_TOP
        )


def report(page: Page, results: dict[str, Any], path: Path, say: Callable[[str], None]) -> None:
    """Writes `.json`, `.md`, `.html` and, of the first chart, `.svg`, and says the tables and where the files are.

    Raises:
        UserError: they cannot be written there.
    """
    contents = {"json": json_text(results, indent=2) + "\n"}
    contents |= {kind: page.render(f"experiment.{kind}") for kind in ("md", "html", *(["svg"] if page.charts else []))}
    files = [path.with_name(f"{path.name}.{kind}") for kind in contents]
    try:
        for file, content in zip(files, contents.values(), strict=True):
            write_whole(file, content)
    except OSError as error:
        raise UserError(f"{error.filename} cannot be written: {error.strerror}; give another --output_dir") from error
    finally:
        say("\n\n".join(table.markdown for table in page.tables))
    say("\n".join(map(str, files)))


def merged(curves: Sequence[np.ndarray]) -> Points:
    """One curve of several: at every x of any of them that lies within all, mean, lowest and highest.

    Args:
        curves: (2, N) each, x in rising order and y; points that are not finite are left out, and between its points a
            curve is straight.
    """
    finite = [curve[:, np.isfinite(curve).all(axis=0)] for curve in curves]
    finite = [curve for curve in finite if curve.shape[1]]
    if not finite:
        return []
    first, last = max(curve[0, 0] for curve in finite), min(curve[0, -1] for curve in finite)
    x = np.unique(np.concatenate([curve[0] for curve in finite]))
    x = x[(x >= first) & (x <= last)]
    y = np.stack([np.interp(x, *curve) for curve in finite])
    return [tuple(point) for point in np.stack([x, y.mean(0), y.min(0), y.max(0)], axis=1).tolist()]


def ticks(low: float, high: float) -> list[float]:
    """Round numbers from `low` to `high`, at most `MOST_TICKS` of them."""
    if not high > low:
        return [low]
    size = 10.0 ** math.floor(math.log10(high - low))
    steps = (size * part for part in (0.1, 0.2, 0.5, 1, 2, 5, 10))
    step = next(step for step in steps if (high - low) / step <= MOST_TICKS - 1)
    return [round(number * step, 12) for number in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _place(value: float, ends: tuple[float, float], pixels: tuple[float, float]) -> float:
    """The pixel of a value between two ends."""
    share = (value - ends[0]) / (ends[1] - ends[0]) if ends[1] > ends[0] else 0.5
    return round(float(pixels[0] + share * (pixels[1] - pixels[0])), 1)
