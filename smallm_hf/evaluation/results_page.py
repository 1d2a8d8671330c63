"""Shows the results of scoring: on the terminal, as JSON and as one HTML page that needs no other file."""

import base64
import itertools
import json
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from string import Formatter
from typing import Any

from markupsafe import Markup
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from smallm_hf.base.errors import UserError
from smallm_hf.base.folders import require_writable
from smallm_hf.base.plain_json import without_infinities
from smallm_hf.evaluation.page import COLOURS, NONE, figure, fill_template, labels, on_one_line, percent, size, window
from smallm_hf.evaluation.texts import source_name

# In the head of a page that quotes the validation text of a run, with the sha256 of its tokens.
SCORED_TEXT = "validation-sha256"
Row = dict[str, Any]
Templates = dict[str, str | Callable[[Row], str]]


# --- tables ----------------------------------------------------------------------------------------------------------

# What the tables say of a model, from top to bottom, as templates that `_Formatter` fills; an arrow points to where
# better is. The accuracies are put after the first three.
SCORES: Templates = {
    "bits per byte ↓": "{bits_per_byte:.4f}",
    "bits per character ↓": "{bits_per_character:.4f}",
    "word perplexity ↓": "{word_perplexity:,.2f}",
    "loss (nats per token)": "{loss:.4f}",
    "perplexity (tokens)": "{perplexity:,.2f}",
    "mean entropy (nats per token)": "{mean_entropy_nats:.4f}",
    "calibration error ↓": "{calibration_error:.4f}",
    "unknown tokens": "{unknown_rate:.2%}, {spelling_bits_per_byte:.4f} of the bits spell what they hide",
    "scored text": lambda row: "lower-cased" if row["lowered"] else NONE,
    "parameters": "{parameters:,}",
    "n-grams": "{ngrams:,}",
    "family": "{kind}",
    "protocol": "{protocol}",
    "attention": lambda row: "within documents" if row["within_documents"] else NONE,
    "stride (tokens)": "{stride:,}",
    "window (tokens)": window,
    "dtype": "{dtype}",
    "device": "{device}",
    "processes": "{processes}",
    "documents": "{documents:,}",
    "tokens": "{tokens:,}",
    "words": "{words:,}",
    "characters": "{characters:,}",
    "bytes": "{bytes:,}",
}
OTHER_TOKENS = (
    "loss, perplexity, entropy, calibration and accuracies are of tokens, and these models have different ones: "
    "compare bits per byte or word perplexity (--output has the other figures of each model)"
)
# What is said of tokens, and so is not to be compared between models that cut the text into other ones.
PER_TOKEN = ("loss (nats per token)", "perplexity (tokens)", "mean entropy (nats per token)", "calibration error ↓")
WRITTEN: Templates = {
    "BLEU (0 to 100) ↑": "{generated[bleu]:.2f}",
    "chrF (0 to 100) ↑": "{generated[chrf]:.2f}",
    "exact match (0 to 100) ↑": "{generated[exact_match]:.2f}",
    "F1 of words (0 to 100) ↑": "{generated[f1]:.2f}",
    "ROUGE-1 (0 to 1) ↑": "{generated[rouge1]:.3f}",
    "ROUGE-2 ↑": "{generated[rouge2]:.3f}",
    "ROUGE-L ↑": "{generated[rougeL]:.3f}",
    **{
        f"{label} (references)": f"{{generated[variety][{key}]:share}} ({{generated[reference_variety][{key}]:share}})"
        for label, key in (
            ("distinct words", "distinct_1"),
            ("distinct pairs", "distinct_2"),
            ("repetition", "repetition"),
        )
    },
    "BLEU by": "{generated[signatures][0]}",
    "words per text": "{generated[words_per_text]:.1f}",
    "words per reference": "{generated[words_per_reference]:.1f}",
    "copied from the training text": "{generated[copy_rate]:.1%}",
    "the same of the references": "{generated[reference_copy_rate]:.1%}",
}
SPEED: Templates = {
    "time to first token (ms) ↓": "{speed[seconds_to_first_token]:milliseconds}",
    "prefill tokens/s ↑": "{speed[prefill_tokens_per_second]:rate}",
    "decode tokens/s ↑": "{speed[decode_tokens_per_second]:rate}",
    "peak memory ↓": "{speed[peak_memory_bytes]:size}",
    "load time (s) ↓": "{speed[load_seconds]:.2f}",
}
AGAINST: Templates = {
    "bits per byte, less the other's ↓": (
        "{against[difference]:+.4f} ({against[low]:+.4f} to {against[high]:+.4f}), "
        "better in {against[probability_better]:.1%}"
    )
}


def _milliseconds(measured: dict[str, float]) -> str:
    scaled = {name: 1000 * seconds for name, seconds in measured.items()}
    return "{median:,.1f} ({low:,.1f} to {high:,.1f})".format(**scaled)


# The styles of templates beside those of `format`.
STYLES: dict[str, Callable[[Any], str]] = {
    "share": percent,
    "size": size,
    "rate": "{0[median]:,.0f} ({0[low]:,.0f} to {0[high]:,.0f})".format,
    "milliseconds": _milliseconds,
}


class _Formatter(Formatter):
    """Fills templates like `str.format`, also in `STYLES`; raises KeyError for a value that is missing or None."""

    def format_field(self, value: Any, style: str) -> str:
        if style in STYLES:
            return STYLES[style](value)
        if value is None:
            raise KeyError
        return format(value, style) if isinstance(value, str) else figure(value, style)


def _show(row: Row, template: str | Callable[[Row], str]) -> str:
    if not isinstance(template, str):
        return template(row)
    try:
        return _Formatter().format(template, **row)
    except KeyError:
        return NONE


def tabulate(rows: Sequence[Row], templates: Templates) -> dict[str, list[str]]:
    """Name of the figure to its value for each model; figures that no model has are left out."""
    table = {name: [_show(row, template) for row in rows] for name, template in templates.items()}
    return {name: values for name, values in table.items() if set(values) != {NONE}}


def tables(rows: Sequence[Row]) -> dict[str, dict[str, list[str]]]:
    """The tables `scores`, `written`, `speed` and `against`; empty where nothing of the kind was asked for."""
    found = {int(match[1]) for row in rows for name in row if (match := re.fullmatch(r"top(\d+)_accuracy", name))}
    accuracies = {f"top-{k} accuracy ↑": f"{{top{k}_accuracy:.2%}}" for k in sorted(found)}
    scores = {**dict(itertools.islice(SCORES.items(), 3)), **accuracies, **SCORES}
    if not alike_cut(rows):
        scores = {name: shown for name, shown in scores.items() if name not in (*PER_TOKEN, *accuracies)}
    templates = {"scores": scores, "written": WRITTEN, "speed": SPEED, "against": AGAINST}
    return {name: tabulate(rows, figures) for name, figures in templates.items()}


def alike_cut(rows: Sequence[Row]) -> bool:
    """Whether all models read the text as the same tokens."""
    return len({row["tokenizer_sha256"] for row in rows}) == 1


def left_out_of(rows: Sequence[Row]) -> list[str]:
    """What is missing, a line each: figures of other tokens, and behind the model's name what was asked for."""
    other_tokens = [] if alike_cut(rows) else [OTHER_TOKENS]
    names = [f"{label}: " if len(rows) > 1 else "" for label in labels([row["model"] for row in rows])]
    return other_tokens + [
        name + line for name, row in zip(names, rows, strict=True) for line in row.get("left_out", ())
    ]


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


def require_reportable(output: str | None, page: str | None) -> None:
    """Refuses files that `report_results` could not write, before any work.

    Raises:
        UserError: naming the option.
    """
    for option, file in (("--output", output), ("--report", page)):
        if file:
            require_writable(Path(file), option, folder=False)


def report_results(
    results: dict[str, Any],
    output: str | None = None,
    page: str | None = None,
    *,
    page_of: Callable[[dict[str, Any]], str] | None = None,
    show: Callable[[dict[str, Any]], None] | None = None,
) -> None:
    """Prints the tables, and writes all as JSON and as a page where a file is named for it.

    Args:
        results: of `evaluate_models`, with versions and what else is known of their origin.
        output: a JSON file, without pictures; the row of a single model is at its top level.
        page: an HTML file.
        page_of: makes the page; by default the one of scored texts.
        show: prints the tables; by default those of scored texts.
    """
    try:  # the tables are printed even if a file cannot be written
        if output:
            whole = {name: value for name, value in results.items() if name != "pictures" and value is not None}
            if len(results["models"]) == 1:
                whole = whole.pop("models")[0] | whole
            _write(output, to_json(whole))
        if page:
            _write(page, (page_of or render)(results))
    finally:
        (show or print_results)(results)
    for file in filter(None, (output, page)):
        print(f"written to {file}")


def to_json(content: dict[str, Any]) -> str:
    """JSON that every program reads: an infinite number or NaN becomes null, and `not_finite` says where."""
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
    """Prints the figures of each model, and of all together where they are runs of several seeds."""
    console, rows = console or Console(), results["models"]
    columns = [Column(Text(label), overflow="fold") for label in labels([row["model"] for row in rows])]
    table = Table("", *map(Column.copy, columns))
    for part in tables(rows).values():
        for name, values in part.items():
            table.add_row(name, *map(Text, values))
        table.add_section()
    console.print(table)
    for note in _notes_on(results):
        console.print(note, markup=False, highlight=False, soft_wrap=True)
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


def _notes_on(results: dict[str, Any]) -> list[str]:
    """What the table of figures leaves out."""
    return [*left_out_of(results["models"]), *filter(None, [results.get("no_spread")])]


# --- the page --------------------------------------------------------------------------------------------------------


def render(results: dict[str, Any]) -> str:
    """One page with everything; what comes from models and texts is escaped, pictures are inserted as they are."""
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
        left_out=_notes_on(results),
        charts=charts(rows),
        pictures=[
            {"title": title if isinstance(shown, str) else "", "shown": _shown(title, shown)}
            for title, shown in results["pictures"]
        ],
    )


def scored_validation(page: str) -> str | None:
    """The sha256 of the validation tokens that a page of `render` is about; None if it is about another text."""
    found = re.search(rf'<meta name="{SCORED_TEXT}" content="([0-9a-f]{{64}})">', page.partition("</head>")[0])
    return found[1] if found else None


def _shown(title: str, picture: str | bytes) -> Markup:
    """A picture as HTML; a PNG as an image."""
    if isinstance(picture, str):
        return Markup(picture)
    return Markup('<img alt="{}" src="data:image/png;base64,{}">').format(title, base64.b64encode(picture).decode())


# --- the charts of the page ------------------------------------------------------------------------------------------

# The plot inside a chart of 340 by 222 pixels.
PLOT = {"left": 40, "right": 324, "top": 12, "bottom": 184}
# The charts of the loss, by the table they show: title, note, what goes across, and the edge of a bin that is its name.
LOSS_CHARTS = {
    "by_position": ("Loss by position", "nats per token, by its place in the window", "tokens before it, up to", 1),
    "by_frequency": (
        "Loss by token frequency",
        "nats per token, by how often it occurs",
        "occurrences, at least",
        0,
    ),
    "by_word_frequency": (
        "Loss by word frequency",
        "nats of its tokens together, by how often it occurs",
        "occurrences, at least",
        0,
    ),
}


def charts(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The reliability diagram and those of the loss: titles, ticks, and for each model the points of its line."""
    known = [name for name in LOSS_CHARTS if any(row["tables"][name] for row in rows)]
    return [_reliability(rows), *(_losses(rows, name) for name in known)]


def _reliability(rows: Sequence[Row]) -> dict[str, Any]:
    """How sure each model is and how often it is right."""
    quarters = [tick / 4 for tick in range(5)]
    bins = [row["tables"]["by_confidence"] for row in rows]
    return {
        "title": "Reliability",
        "note": "how often the first choice is right, by its probability; on the dashed line a model is as good as "
        "it thinks, below it overconfident",
        "across": "probability of the first choice",
        "diagonal": True,
        "plot": PLOT,
        "x_ticks": [(_x(share), f"{share:.0%}") for share in quarters],
        "y_ticks": [(_y(share), f"{share:.0%}") for share in quarters],
        "lines": [[(_x(bin["confidence"]), _y(bin["accuracy"])) for bin in of_model] for of_model in bins],
    }


def _losses(rows: Sequence[Row], name: str) -> dict[str, Any]:
    """The loss of each model in the bins of one of its tables."""
    title, note, across, edge = LOSS_CHARTS[name]
    tables = [row["tables"][name] for row in rows]
    bins = sorted({(bin["from"], bin["to"]) for table in tables for bin in table})
    places = {bin: _x((number + 0.5) / len(bins)) for number, bin in enumerate(bins)}
    drawn = [[bin for bin in table if math.isfinite(bin["loss"])] for table in tables]
    highest = max((bin["loss"] for table in drawn for bin in table), default=0)
    steps = (first * 10**power for power in itertools.count() for first in (0.5, 1, 2))
    step = next(step for step in steps if highest / step <= 5)
    ticks = [step * tick for tick in range(int(highest / step) + 2)]
    return {
        "title": title,
        "note": note,
        "across": across,
        "diagonal": False,
        "plot": PLOT,
        "x_ticks": [(x, _short(bin[edge])) for bin, x in places.items()],
        "y_ticks": [(_y(tick / ticks[-1]), f"{tick:g}") for tick in ticks],
        "lines": [[(places[bin["from"], bin["to"]], _y(bin["loss"] / ticks[-1])) for bin in of] for of in drawn],
    }


def _x(share: float) -> float:
    """The pixel at a share of the plot's width, from the left."""
    return round(PLOT["left"] + share * (PLOT["right"] - PLOT["left"]), 1)


def _y(share: float) -> float:
    """The pixel at a share of the plot's height, from the bottom."""
    return round(PLOT["bottom"] - share * (PLOT["bottom"] - PLOT["top"]), 1)


def _short(number: int) -> str:
    for unit, letter in ((10**6, "M"), (10**3, "k")):
        if number >= 10 * unit or (number >= unit and number % unit == 0):
            return f"{number / unit:.3g}{letter}"
    return str(number)
