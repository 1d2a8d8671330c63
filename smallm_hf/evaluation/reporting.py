"""Shows what was found of models: on the terminal, as JSON and as one HTML page that needs nothing else."""

import base64
import itertools
import json
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from smallm_hf.base.errors import UserError
from smallm_hf.base.plain_json import without_infinities
from smallm_hf.evaluation.page import fill_template
from smallm_hf.evaluation.texts import source_name

NONE = "–"
LONGEST = 1e9  # larger numbers are written by their power of ten
# The first of Petroff's ten (2021), which the colour-blind tell apart; with more models they begin again.
COLOURS = ("#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6", "#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd")
# What a page that quotes the validation text of a run has in its head, with the sha256 of its tokens.
SCORED_TEXT = "validation-sha256"
# Folders of a run that do not tell which run it was.
WEIGHTS_OF_A_RUN = ("best", "final")
# The plot of a chart inside its 340 by 230 picture: left, right, top, bottom.
PLOT = (40, 324, 12, 184)
# The charts of the loss, by the table they show: title, note, what goes across, and the edge of a bin that is its name.
LOSS_CHARTS = {
    "by_position": (
        "Loss by position",
        "nats per token, by its place in the window",
        "tokens before it, up to",
        1,
    ),
    "by_frequency": ("Loss by token frequency", "nats per token, by how often it occurs", "occurrences, at least", 0),
    "by_word_frequency": (
        "Loss by word frequency",
        "nats of its tokens together, by how often it occurs",
        "occurrences, at least",
        0,
    ),
}

Row = dict[str, Any]
# Title, and the picture: a fragment of HTML, or the bytes of a PNG that holds its title. Either holds its caption.
Picture = tuple[str, str | bytes]


# --- words for numbers -----------------------------------------------------------------------------------------------


def percent(share: float | None) -> str:
    """A share as per cent, with one digit behind the point."""
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


def on_one_line(text: str) -> str:
    """A text whose line breaks are signs, several in a row counted."""

    def sign(breaks: re.Match) -> str:
        lines = breaks[0].count("\n")
        return " ¶ " if lines == 1 else f" ¶×{lines} "

    return re.sub(r"(?:\r?\n)+", sign, text)


def labels(models: Sequence[str]) -> list[str]:
    """The ends of the names, as short as tells them apart; `best` alone says nothing."""
    paths = [Path(model).parts for model in models]
    least = [2 if path[-1] in WEIGHTS_OF_A_RUN else 1 for path in paths]
    for more in itertools.count():
        shortened = ["/".join(path[-length - more :]) for path, length in zip(paths, least, strict=True)]
        if len(set(shortened)) == len(set(paths)):
            return shortened


def figure(number: float, style: str) -> str:
    """A number in a style; one too long to read by its power of ten."""
    return format(number, style if abs(number) < LONGEST else ".3g")


def _number(name: str, style: str) -> Callable[[Row], str]:
    return lambda row: NONE if row.get(name) is None else figure(row[name], style)


def _name(name: str) -> Callable[[Row], str]:
    return lambda row: row.get(name, NONE)


def _spread(name: str, style: str, scale: float = 1) -> Callable[[Row], str]:
    def write(row: Row) -> str:
        if "speed" not in row:
            return NONE
        median, low, high = (format(scale * row["speed"][name][key], style) for key in ("median", "low", "high"))
        return f"{median} ({low} to {high})"

    return write


def window(row: Row) -> str:
    """The tokens a model was scored with at once, and those it was trained with where that is known."""
    trained = row.get("trained_context_length")
    return f"{row['context_length']:,}" + (f" (trained at {trained:,})" if trained else "")


def _written(name: str, style: str) -> Callable[[Row], str]:
    return lambda row: NONE if row.get("generated", {}).get(name) is None else format(row["generated"][name], style)


def _varied(name: str) -> Callable[[Row], str]:
    def write(row: Row) -> str:
        sides = (row.get("generated", {}).get(side, {}).get(name) for side in ("variety", "reference_variety"))
        return "{} ({})".format(*map(percent, sides)) if "generated" in row else NONE

    return write


def _against(row: Row) -> str:
    if "against" not in row:
        return NONE
    found = row["against"]
    return "{difference:+.4f} ({low:+.4f} to {high:+.4f}), better in {probability_better:.1%}".format(**found)


# What the tables say of a model, from top to bottom; an arrow points to where better is.
SCORES: dict[str, Callable[[Row], str]] = {
    "bits per byte ↓": _number("bits_per_byte", ".4f"),
    "bits per character ↓": _number("bits_per_character", ".4f"),
    "word perplexity ↓": _number("word_perplexity", ",.2f"),
    "loss (nats per token)": _number("loss", ".4f"),
    "perplexity (tokens)": _number("perplexity", ",.2f"),
    "mean entropy (nats per token)": _number("mean_entropy_nats", ".4f"),
    "calibration error ↓": _number("calibration_error", ".4f"),
    "parameters": _number("parameters", ","),
    "family": _name("kind"),
    "protocol": _name("protocol"),
    "attention": lambda row: "within documents" if row["within_documents"] else NONE,
    "stride (tokens)": _number("stride", ","),
    "window (tokens)": window,
    "dtype": _name("dtype"),
    "device": _name("device"),
    "processes": _number("processes", ""),
    "documents": _number("documents", ","),
    "tokens": _number("tokens", ","),
    "words": _number("words", ","),
    "characters": _number("characters", ","),
    "bytes": _number("bytes", ","),
}
AGAINST: dict[str, Callable[[Row], str]] = {"bits per byte, less the other's ↓": _against}
SPEED: dict[str, Callable[[Row], str]] = {
    "time to first token (ms) ↓": _spread("seconds_to_first_token", ",.1f", 1000),
    "prefill tokens/s ↑": _spread("prefill_tokens_per_second", ",.0f"),
    "decode tokens/s ↑": _spread("decode_tokens_per_second", ",.0f"),
    "peak memory ↓": lambda row: size(row.get("speed", {}).get("peak_memory_bytes")),
    "load time (s) ↓": lambda row: f"{row['speed']['load_seconds']:.2f}" if "speed" in row else NONE,
}
WRITTEN: dict[str, Callable[[Row], str]] = {
    "BLEU (0 to 100) ↑": _written("bleu", ".2f"),
    "chrF (0 to 100) ↑": _written("chrf", ".2f"),
    "ROUGE-1 (0 to 1) ↑": _written("rouge1", ".3f"),
    "ROUGE-2 ↑": _written("rouge2", ".3f"),
    "ROUGE-L ↑": _written("rougeL", ".3f"),
    "distinct words (references)": _varied("distinct_1"),
    "distinct pairs (references)": _varied("distinct_2"),
    "repetition (references)": _varied("repetition"),
    "words per text": _written("words_per_text", ".1f"),
    "words per reference": _written("words_per_reference", ".1f"),
    "copied from the training text": _written("copy_rate", ".1%"),
    "the same of the references": _written("reference_copy_rate", ".1%"),
}


def _accuracies(rows: Sequence[Row]) -> dict[str, Callable[[Row], str]]:
    names = sorted({name for row in rows for name in row if re.fullmatch(r"top\d+_accuracy", name)}, key=_first_number)
    return {f"top-{_first_number(name)} accuracy ↑": _number(name, ".2%") for name in names}


def _first_number(text: str) -> int:
    return int(re.search(r"\d+", text)[0])


def tabulate(rows: Sequence[Row], figures: dict[str, Callable[[Row], str]]) -> dict[str, list[str]]:
    """Name of the figure to its value for each model; figures that none has are left out."""
    table = {name: [show(row) for row in rows] for name, show in figures.items()}
    return {name: values for name, values in table.items() if set(values) != {NONE}}


def tables(rows: Sequence[Row]) -> dict[str, dict[str, list[str]]]:
    """The tables `scores`, `written` and `speed`; empty where nothing of the kind was asked for."""
    return {
        "scores": tabulate(rows, {**dict(itertools.islice(SCORES.items(), 3)), **_accuracies(rows), **SCORES}),
        "written": tabulate(rows, WRITTEN),
        "speed": tabulate(rows, SPEED) if any("speed" in row for row in rows) else {},
    }


def left_out_of(rows: Sequence[Row]) -> list[str]:
    """What was asked for and is not there, a line each, behind the model's name where there are several."""
    names = [f"{label}: " if len(rows) > 1 else "" for label in labels([row["model"] for row in rows])]
    return [name + line for name, row in zip(names, rows, strict=True) for line in row.get("left_out", ())]


def by_word(rows: Sequence[Row]) -> dict[str, list[str]]:
    """How often words occur, to the nats per word of such words and their number, for each model."""
    bins = [{(bin["from"], bin["to"]): bin for bin in row["tables"]["by_word_frequency"]} for row in rows]
    return {
        f"{low:,} to {high:,} times" if high else "never": [
            "{loss:,.2f} ({words:,})".format(**of_model[low, high]) if (low, high) in of_model else NONE
            for of_model in bins
        ]
        for low, high in sorted(set().union(*bins))
    }


# --- terminal and JSON -----------------------------------------------------------------------------------------------


def report_results(results: dict[str, Any], output: str | None = None, page: str | None = None) -> None:
    """Writes all as JSON and as a page where a file is named for it; prints the tables.

    Args:
        results: of `evaluate_models`, with versions and what else is known of their origin.
        output: a JSON file, without pictures; of a single model it holds its row at the top.
        page: an HTML file.
    """
    try:  # what fails of the two takes nothing of the other along
        if output:
            whole = {name: value for name, value in results.items() if name != "pictures" and value is not None}
            if len(results["models"]) == 1:
                whole = whole.pop("models")[0] | whole
            _write(output, to_json(whole))
        if page:
            _write(page, render(results))
    finally:
        print_results(results)


def to_json(content: dict[str, Any]) -> str:
    """JSON that every program reads: a number that is infinite or none becomes null, and `not_finite` says where."""
    content, not_finite = without_infinities(content)
    content |= {"not_finite": not_finite} if not_finite else {}
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False, default=str) + "\n"


def _write(path: str, text: str) -> None:
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(text, encoding="utf-8")
    except (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError, PermissionError) as error:
        raise UserError(f"{path} cannot be written: {error.strerror}; give another file") from error


def print_results(results: dict[str, Any], console: Console | None = None) -> None:
    """Prints the figures of each model, and of all together where they differ in their seed."""
    console, rows = console or Console(), results["models"]
    columns = [Column(Text(label), overflow="fold") for label in labels([row["model"] for row in rows])]
    table = Table("", *map(Column.copy, columns))
    for part in tables(rows).values():
        for name, values in part.items():
            table.add_row(name, *map(Text, values))
        table.add_section()
    for name, values in tabulate(rows, AGAINST).items():
        table.add_row(name, *map(Text, values))
    console.print(table)
    for left_out in left_out_of(rows):
        console.print(left_out, markup=False, highlight=False, soft_wrap=True)
    if words := by_word(rows):
        title = f"words by how often they occur in {results['frequencies_of']}"
        table = Table("nats per word (words)", *map(Column.copy, columns), title=title)
        for name, values in words.items():
            table.add_row(name, *values)
        console.print(table)
    if results["over_seeds"]:
        table = Table(f"over {len(rows)} runs", "mean", "std", "95 % interval")
        for name, found in results["over_seeds"].items():
            mean, std, low, high = (figure(found[key], ".4f") for key in ("mean", "std", "low", "high"))
            table.add_row(name, mean, std, f"{low} to {high}")
        console.print(table)


# --- the page --------------------------------------------------------------------------------------------------------


def render(results: dict[str, Any]) -> str:
    """One page with everything; what comes from models and texts is escaped, pictures are taken as they are."""
    rows = results["models"]
    return fill_template(
        "report.html",
        __package__,
        {"on_one_line": on_one_line, "figure": figure, "window": window},
        **{name: value for name, value in results.items() if name not in ("models", "pictures", "data")},
        data=source_name(results["data"]),
        scored_text=SCORED_TEXT,
        rows=rows,
        other=labels([results["against"]])[0] if results["against"] else None,
        labels=labels([row["model"] for row in rows]),
        colours=[COLOURS[number % len(COLOURS)] for number in range(len(rows))],
        tables=tables(rows),
        left_out=left_out_of(rows),
        charts=charts(rows),
        pictures=[
            {"title": title if isinstance(shown, str) else "", "shown": _shown(title, shown)}
            for title, shown in results["pictures"]
        ],
    )


def scored_validation(page: str) -> str | None:
    """The sha256 of the validation tokens that a page of `render` is about; None where that is another text."""
    found = re.search(rf'<meta name="{SCORED_TEXT}" content="([0-9a-f]{{64}})">', page.partition("</head>")[0])
    return found[1] if found else None


def _shown(title: str, picture: str | bytes) -> Markup:
    """A picture as HTML; a PNG as an image."""
    if isinstance(picture, str):
        return Markup(picture)
    return Markup('<img alt="{}" src="data:image/png;base64,{}">').format(title, base64.b64encode(picture).decode())


def charts(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The reliability diagram and those of the loss: titles, ticks, and for each model the points of its line."""
    known = [name for name in LOSS_CHARTS if any(row["tables"][name] for row in rows)]
    return [_placed(chart) for chart in (_reliability(rows), *(_losses(rows, name) for name in known))]


def _reliability(rows: Sequence[Row]) -> dict[str, Any]:
    """How sure each model is and how right; places in the plot are shares of it."""
    quarters = [(tick / 4, f"{tick / 4:.0%}") for tick in range(5)]
    return {
        "title": "Reliability",
        "note": "how often the first choice is right, by its probability; on the dashed line a model is as good as "
        "it thinks, below it overconfident",
        "across": "probability of the first choice",
        "diagonal": True,
        "x_ticks": quarters,
        "y_ticks": quarters,
        "lines": [[(bin["confidence"], bin["accuracy"]) for bin in row["tables"]["by_confidence"]] for row in rows],
    }


def _losses(rows: Sequence[Row], name: str) -> dict[str, Any]:
    """The loss of each model in the bins of one of its tables; places in the plot are shares of it."""
    title, note, across, edge = LOSS_CHARTS[name]
    tables = [row["tables"][name] for row in rows]
    bins = sorted({(bin["from"], bin["to"]) for table in tables for bin in table})
    places = {bin: (number + 0.5) / len(bins) for number, bin in enumerate(bins)}
    drawn = [[bin for bin in table if math.isfinite(bin["loss"])] for table in tables]
    highest = max((bin["loss"] for table in drawn for bin in table), default=0)
    steps = (first * 10**power for power in itertools.count() for first in (0.5, 1, 2))
    step = next(step for step in steps if highest / step <= 5)
    ticks = [step * tick for tick in range(int(highest / step) + 2)]
    top = ticks[-1]
    return {
        "title": title,
        "note": note,
        "across": across,
        "diagonal": False,
        "x_ticks": [(place, _short(bin[edge])) for bin, place in places.items()],
        "y_ticks": [(tick / top, f"{tick:g}") for tick in ticks],
        "lines": [[(places[bin["from"], bin["to"]], bin["loss"] / top) for bin in table] for table in drawn],
    }


def _placed(chart: dict[str, Any]) -> dict[str, Any]:
    """A chart with its places in pixels of the picture."""
    left, right, top, bottom = PLOT

    def x(share: float) -> float:
        return round(left + share * (right - left), 1)

    def y(share: float) -> float:
        return round(bottom - share * (bottom - top), 1)

    return chart | {
        "plot": {"left": left, "right": right, "top": top, "bottom": bottom},
        "x_ticks": [(x(place), text) for place, text in chart["x_ticks"]],
        "y_ticks": [(y(place), text) for place, text in chart["y_ticks"]],
        "lines": [[(x(across), y(up)) for across, up in line] for line in chart["lines"]],
    }


def _short(number: int) -> str:
    for unit, letter in ((10**6, "M"), (10**3, "k")):
        if number >= 10 * unit or (number >= unit and number % unit == 0):
            return f"{number / unit:.3g}{letter}"
    return str(number)
