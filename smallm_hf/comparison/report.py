"""Shows a comparison: on the terminal, as Markdown, as JSON and as one HTML page that needs nothing else."""

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from smallm_hf.base.errors import UserError
from smallm_hf.evaluation.page import COLOURS, NONE, fill_template, in_markdown, on_one_line, percent, size, window
from smallm_hf.evaluation.results_page import tabulate, to_json
from smallm_hf.evaluation.texts import source_name

TEMPLATES = ("comparison.md", "comparison.html")
JSON_FILE = "comparison.json"

MASKED = (
    "a masked language model. It cannot continue a text from left to right; its words are the tokens it puts into one "
    "mask at the end of the prompt, knowing that the text ends there. No text is scored by it here: what "
    "smallm score finds of it is a pseudo-likelihood, which compares masked models only"
)

Row = dict[str, Any]


def rate(measured: dict[str, float] | None) -> str:
    """A median, and from where to where it was measured."""
    return NONE if measured is None else "{median:,.0f} ({low:,.0f} to {high:,.0f})".format(**measured)


def _scored(name: str, style: str) -> Callable[[Row], str]:
    return lambda row: format(row["scores"][name], style) if name in (row["scores"] or ()) else NONE


def _mean(name: str, style: str) -> Callable[[Row], str]:
    def show(row: Row) -> str:
        values = [answer[name] for answer in row["prompts"] if name in answer]
        return format(statistics.fmean(values), style) if values else NONE

    return show


def _variety(of: str, name: str) -> Callable[[Row], str]:
    return lambda row: percent(row[of][name]) if of in row else NONE


# What the table says of a model, from top to bottom; an arrow points to where better is.
FIGURES: dict[str, Callable[[Row], str]] = {
    "class": lambda row: row["class"],
    "parameters": lambda row: f"{row['parameters']:,}",
    "n-grams": lambda row: f"{row['ngrams']:,}" if row["ngrams"] else NONE,
    "weights": lambda row: f"{size(row['weights_bytes'])}, {row['dtype']}",
    "vocabulary": lambda row: f"{row['tokenizer_entries']:,}",
    "positions": lambda row: f"{row['positions']:,}" if row["positions"] else NONE,
    "bits per byte ↓": _scored("bits_per_byte", ".4f"),
    "unknown tokens": _scored("unknown_rate", ".2%"),
    "loss (nats per token)": _scored("loss", ".4f"),
    "top-1 accuracy (tokens)": _scored("top1_accuracy", ".1%"),
    "top-3 accuracy (tokens)": _scored("top3_accuracy", ".1%"),
    "bytes per token": lambda row: f"{row['scores']['bytes'] / row['scores']['tokens']:.2f}" if row["scores"] else NONE,
    "protocol": _scored("protocol", ""),
    "attention": lambda row: "within documents" if row["scores"] and row["scores"]["within_documents"] else NONE,
    "scored window (tokens)": lambda row: window(row["scores"]) if row["scores"] else NONE,
    "scored documents": _scored("documents", ","),
    "scored bytes": _scored("bytes", ","),
    "tokens/s": lambda row: rate(row.get("tokens_per_second")),
    "text bytes/s ↑": lambda row: rate(row.get("bytes_per_second")),
    "peak memory ↓": lambda row: size(row["peak_memory_bytes"]),
    "load time": lambda row: f"{row['load_seconds']:.1f} s",
    "next token: confidence": _mean("confidence", ".1%"),
    "next token: entropy (bits)": _mean("entropy_bits", ".2f"),
    "distinct words, drawn": _variety("variety", "distinct_1"),
    "distinct pairs, drawn": _variety("variety", "distinct_2"),
    "repetition, drawn ↓": _variety("variety", "repetition"),
    "repetition, greedy ↓": _variety("greedy_variety", "repetition"),
    "words drawn": lambda row: f"{row['variety']['words']:,}" if "variety" in row else NONE,
}
# The charts of the page: title, what the bar is as long as, and how it is written.
CHARTS: tuple[tuple[str, Callable[[Row], float | None], Callable[[float], str]], ...] = (
    ("bits per byte, lower is better", lambda row: (row["scores"] or {}).get("bits_per_byte"), "{:.3f}".format),
    ("text bytes per second", lambda row: row.get("bytes_per_second", {}).get("median"), "{:,.0f}".format),
    ("peak memory", lambda row: row["peak_memory_bytes"], size),
    ("parameters", lambda row: row["parameters"], "{:,}".format),
)


def charts(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The bars of each chart: label, colour, length from 0 to 1, and what is written beside it."""
    drawn = []
    for title, value_of, write in CHARTS:
        values = [(number, row["label"], value_of(row)) for number, row in enumerate(rows)]
        values = [(number, label, value) for number, label, value in values if value is not None]
        longest = max((value for _, _, value in values), default=0) or 1
        bars = [
            {"label": label, "colour": COLOURS[number % len(COLOURS)], "length": value / longest, "text": write(value)}
            for number, label, value in values
        ]
        drawn += [{"title": title, "bars": bars}] if bars else []
    return drawn


def shown(word: dict[str, Any]) -> str:
    """A next word as the reports write it: an ending behind dots, for it goes on inside the prompt's last word."""
    return f"…{word['text']}" if word["kind"] == "ending" else word["text"]


def report_comparison(results: dict[str, Any], folder: Path) -> None:
    """Writes the three files, and prints the tables and where the files are.

    Raises:
        UserError: they cannot be written there.
    """
    try:  # what fails of the two takes nothing of the other along
        files = write_report(results, folder)
    finally:
        print_report(results)
    print(*files, sep="\n")


def print_report(results: dict[str, Any], console: Console | None = None) -> None:
    """Prints the figures, and of each prompt the most probable words, or the answers, as tables."""
    console, rows = console or Console(), results["models"]
    labels = [Column(Text(row["label"]), overflow="fold") for row in rows]
    table = Table("", *map(Column.copy, labels))
    for name, values in tabulate(rows, FIGURES).items():
        table.add_row(name, *map(Text, values))
    console.print(table)
    words = Table("answers, greedy" if answering(rows) else "next words", *map(Column.copy, labels), show_lines=True)
    for answers in zip(*(row["prompts"] for row in rows), strict=True):
        words.add_row(Text(answers[0]["prompt"]), *map(Text, map(_first_words, answers)))
    console.print(words)
    for row in results["models"]:
        if row["kind"] == "masked":
            console.print(f"{row['label']}: {MASKED}", markup=False)
    for left_out in results["skipped"]:
        console.print(f"left out: {left_out['reason']}", markup=False)


def answering(rows: Sequence[Row]) -> bool:
    """Whether these are encoder-decoders, which answer prompts; else they go on with them."""
    return rows[0]["kind"] == "seq2seq"


def _first_words(answer: Row) -> str:
    """What the terminal shows of a prompt: the most probable words behind it, or a whole answer."""
    if "next_words" not in answer:
        return answer["greedy"]
    words = ", ".join(f"{shown(word)} {percent(word['probability'])}" for word in answer["next_words"])
    return f"{words}; not assigned {percent(answer['left_out'])}"


def write_report(results: dict[str, Any], folder: Path) -> list[Path]:
    """Writes `comparison.json`, `comparison.md` and `comparison.html`, and returns their paths.

    Raises:
        UserError: they cannot be written there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / JSON_FILE).write_text(to_json(results), encoding="utf-8")
        for name in TEMPLATES:
            (folder / name).write_text(render(results, name), encoding="utf-8")
    except (FileExistsError, IsADirectoryError, NotADirectoryError, PermissionError) as error:
        raise UserError(f"{error.filename} cannot be written: {error.strerror}; give another --output_dir") from error
    return [folder / name for name in (JSON_FILE, *TEMPLATES)]


def render(results: dict[str, Any], template: str) -> str:
    """One of the `TEMPLATES`, filled."""
    rows = results["models"]
    return fill_template(
        template,
        __package__,
        {"percent": percent, "shown": shown, "on_one_line": on_one_line, "cell": in_markdown},
        **results | {"data": results["data"] and source_name(results["data"])},
        figures=tabulate(rows, FIGURES),
        charts=charts(rows),
        colours=[COLOURS[number % len(COLOURS)] for number in range(len(rows))],
        prompts=list(zip(*(row["prompts"] for row in rows), strict=True)),
        scored=next((row["scores"] for row in rows if row["scores"]), None),
        masked=MASKED,
        answering=answering(rows),
    )
