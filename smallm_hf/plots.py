"""Plots what runs recorded, over tokens and over training time, several runs in one figure."""

import itertools
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import matplotlib
import numpy as np
import pandas
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullLocator

from smallm_hf.base.errors import UserError
from smallm_hf.training.progress import count, read_records


@dataclass(frozen=True)
class Panel:
    """One row of a figure.

    Args:
        label: of the vertical axis, with its unit.
        keys: of the records; those that begin with `validation_` are drawn as markers.
        scale: `focus` leaves the steep first steps out of the range, `zero` starts at zero, `log` fits spikes too.
    """

    label: str
    keys: tuple[str, ...]
    scale: Literal["focus", "zero", "log"]


# File name: title, and panels from top to bottom.
PLOTS = {
    "loss": (
        "training and validation loss",
        (Panel("loss (nats per token)", ("loss", "validation_loss"), "focus"),),
    ),
    "bits_per_byte": (
        "validation loss in bits per byte",
        (Panel("bits per byte", ("validation_bits_per_byte",), "focus"),),
    ),
    "training": (
        "learning rate, gradient norm and throughput",
        (
            Panel("learning rate (AdamW)", ("learning_rate",), "zero"),
            Panel("gradient norm (unclipped)", ("gradient_norm",), "log"),
            Panel("throughput (tokens/s)", ("tokens_per_second",), "zero"),
        ),
    ),
}
DRAWN = {key for _, panels in PLOTS.values() for panel in panels for key in panel.keys}
READ = DRAWN | {"validation_bytes", "validation_tokens"}

# These get a running median over this share of a run's records, if that is enough of them to smooth anything.
NOISY, MEDIAN_SHARE, MEDIAN_RECORDS = {"loss", "gradient_norm", "tokens_per_second"}, 0.02, 7
# A `focus` range reaches up to this percentile of a line's values; higher ones leave it at the top.
FOCUS_PERCENTILE = 95
TIME_UNITS = ((7200, 3600, "hours"), (180, 60, "minutes"), (0, 1, "seconds"))  # used from, seconds in one, name

STYLE = {
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "legend.title_fontsize": "large",
    "svg.hashsalt": "smallm_hf",  # without it the ids in an SVG are random
    "text.parse_math": False,  # a "$" in a name is a dollar
}
WIDTH_INCHES, PANEL_INCHES, LINE_INCHES, LETTERS_PER_LINE, DOTS_PER_INCH = 10, 2.8, 0.22, 110, 150
PLAIN, UNDER_MEDIAN, MEDIAN = {"linewidth": 1.1}, {"linewidth": 0.7, "alpha": 0.4}, {"linewidth": 1.5}
MARKERS = {"linewidth": 0.8, "linestyle": "--", "marker": "o", "markeredgecolor": "white", "markeredgewidth": 0.6}
LONE = {"linestyle": "none", "marker": "s", "markersize": 4}

Curves = dict[str, np.ndarray]


def draw_runs(runs: Sequence[Path], output_dir: Path | None = None) -> list[Path]:
    """Plots loss, bits per byte, rate, gradient norm and throughput of runs; equal records give equal files.

    Args:
        runs: run folders.
        output_dir: where the figures go; None is `figures/` in the folder of a single run, else in the current one.

    Returns:
        The PNG and SVG files: `loss`, `bits_per_byte` and `training`, each if a run has values for it.

    Raises:
        UserError: no run, a folder without metrics, damaged metrics, or figures that cannot be written.
    """
    curves = read_runs(runs)
    folder = output_dir or (runs[0] if len(curves) == 1 else Path()) / "figures"
    files = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, figure in build_figures(curves).items():
            for suffix, metadata in (("png", None), ("svg", {"Date": None})):
                files.append(folder / f"{name}.{suffix}")
                with matplotlib.rc_context(STYLE):
                    figure.savefig(files[-1], dpi=DOTS_PER_INCH, metadata=metadata)
    except (FileExistsError, IsADirectoryError, NotADirectoryError, PermissionError) as error:
        raise UserError(f"{error.filename} cannot be written: {error.strerror}; give another --output_dir") from error
    return files


def read_runs(runs: Sequence[Path]) -> dict[str, Curves]:
    """The curves of each run, by its folder's name with as many parents as are needed; repeated runs count once."""
    if not runs:
        raise UserError("no run was given; name folders that smallm train wrote, such as runs/quickstart")
    paths = {run.resolve(): run for run in runs}
    for depth in itertools.count(1):
        named = {"/".join(path.parts[-depth:]): run for path, run in paths.items()}
        if len(named) == len(paths):
            return {name: read_curves(run) for name, run in named.items()}


def read_curves(run: Path) -> Curves:
    """What one run recorded.

    Returns:
        For each key that occurs, (3, N): tokens, seconds of training and value of its N records. A record without a
        time, as of a validation, has the time of the record before it.
    """
    path = run / "metrics.jsonl"
    if not path.is_file():
        raise UserError(f"{run} is not a run with metrics: it has no metrics.jsonl; give one that smallm train wrote")
    points, seconds = defaultdict(list), 0.0
    for number, record in enumerate(read_records(run, "metrics"), start=1):
        try:
            seconds = record.get("seconds", seconds)
            for key in READ & record.keys():
                points[key].append(np.array((record["tokens"], seconds, record[key]), dtype=float))
        except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
            raise UserError(f"{path} is damaged: line {number} is not a record of a run; remove that line") from error
    if not DRAWN & points.keys():
        raise UserError(f"{path} has no metrics yet; plot the run once it has logged a step")
    return {key: np.stack(values, axis=1) for key, values in points.items()}


def build_figures(runs: dict[str, Curves]) -> dict[str, Figure]:
    """The figures of `read_runs`, by file name, without those that no run has values for."""
    figures = {}
    for name, (title, panels) in PLOTS.items():
        if any(key in curves for curves in runs.values() for panel in panels for key in panel.keys):
            whose = next(iter(runs)) if len(runs) == 1 else f"{len(runs)} runs"
            title = f"{whose}: {title}"
            if name == "loss" and len({_bytes_per_token(curves) for curves in runs.values()} - {None}) > 1:
                title += "\ntheir tokens differ in length: compare them in bits per byte"
            with matplotlib.rc_context(STYLE):
                figures[name] = _figure(title, panels, runs)
    return figures


def _figure(title: str, panels: Sequence[Panel], runs: dict[str, Curves]) -> Figure:
    """One row per panel, the left column over tokens and the right one over training time."""
    columns = max(1, min(len(runs), LETTERS_PER_LINE // max(len(name) + 8 for name in runs)))
    height = PANEL_INCHES * len(panels) + LINE_INCHES * (4 + len(runs) / columns)
    figure = Figure(figsize=(WIDTH_INCHES, height), layout="constrained")
    rows = figure.subplots(len(panels), 2, squeeze=False, sharex="col", sharey="row")
    times = np.concatenate([curve[1] for curves in runs.values() for curve in curves.values()])
    longest = max(times[np.isfinite(times)], default=0)
    unit_seconds, unit = next((size, name) for least, size, name in TIME_UNITS if longest >= least)
    colours = matplotlib.color_sequences["petroff10"]  # distinct for the colour-blind too (Petroff 2021)
    if len(runs) > len(colours):
        colours = matplotlib.colormaps["turbo"](np.linspace(0.05, 0.95, len(runs)))
    styles = {}
    for row, panel in zip(rows, panels, strict=True):
        for curves, colour in zip(runs.values(), colours, strict=False):
            for key in (key for key in panel.keys if key in curves):
                tokens, seconds, values = curves[key]
                for kind, y, style in _lines(key, values):
                    styles[kind] = style
                    row[0].plot(tokens, y, color=colour, label=kind, **style)
                    row[1].plot(seconds / unit_seconds, y, color=colour, label=kind, **style)
        row[0].set_ylabel(panel.label)
        _set_range(row[0], panel.scale)
    for axes, label in zip(rows[-1], ("training tokens", f"training time ({unit})"), strict=True):
        axes.set_xlabel(label)
        axes.set_xlim(left=0)
    rows[-1, 0].xaxis.set_major_formatter(lambda tokens, _: count(tokens))
    if len(runs) > 1:
        names = zip(runs, colours, strict=False)
        handles = [Line2D([], [], color=colour, linewidth=3, label=name) for name, colour in names]
        legend = figure.legend(handles=handles, loc="outside upper center", ncols=columns, title=title)
        legend.get_title().set_multialignment("center")
    else:
        figure.suptitle(title)
    if len(styles) > 1:
        colour = colours[0] if len(runs) == 1 else "0.3"
        handles = [Line2D([], [], color=colour, label=kind, **style) for kind, style in styles.items()]
        figure.legend(handles=handles, loc="outside lower center", ncols=3)
    return figure


def _lines(key: str, values: np.ndarray) -> list[tuple[str, np.ndarray, dict]]:
    """The lines of one key: name in the legend, values and style."""
    if key.startswith("validation_"):
        return [("validation", values, MARKERS | {"markersize": 5 if len(values) <= 30 else 3})]
    records = round(MEDIAN_SHARE * len(values)) | 1  # odd, so that a record is in the middle
    if key not in NOISY or records < MEDIAN_RECORDS:
        return [("training", values, PLAIN if len(values) > 1 else LONE)]
    median = pandas.Series(values).rolling(records, center=True, min_periods=1).median().to_numpy()
    return [
        ("training", values, UNDER_MEDIAN),
        (f"training, median of the nearest {MEDIAN_SHARE:.0%} of the records", median, MEDIAN),
    ]


def _set_range(axes: Axes, scale: str) -> None:
    """Sets the vertical range of a `Panel.scale`, and readable ticks."""
    if scale == "focus":
        finite = [values[np.isfinite(values)] for values in (line.get_ydata() for line in axes.lines)]
        finite = [values for values in finite if len(values)] or [np.array((0.0, 1.0))]
        low = min(values.min() for values in finite)
        high = max(np.percentile(values, FOCUS_PERCENTILE, method="higher") for values in finite)
        margin = 0.05 * (high - low) or 0.05
        axes.set_ylim(low - margin, high + margin)
        return
    if scale == "zero":
        axes.set_ylim(bottom=0)
    elif np.isfinite(axes.dataLim.minposy):  # some value is above zero
        axes.set_yscale("log", nonpositive="mask")
        low, high = axes.get_ylim()
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5, 7) if high < 30 * low else (1,)))
        axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(lambda value, _: count(value))


def _bytes_per_token(curves: Curves) -> float | None:
    """Tells tokenizers apart: losses per token cannot be compared where tokens differ in length."""
    if {"validation_bytes", "validation_tokens"} <= curves.keys():
        return curves["validation_bytes"][2, -1] / curves["validation_tokens"][2, -1]
