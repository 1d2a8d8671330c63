"""Shows verdicts on minimal pairs, on the terminal and as a page, beside what others measured on BLiMP."""

import csv
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from statistics import fmean
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from smallm_hf.evaluation.page import COLOURS, NONE, fill_template, labels, percent

# The accuracies of models are those of raw_results/summary/models_summary.jsonl in github.com/alexwarstadt/blimp at
# commit 3e56b06, those of people the total_mean of human_validation_summary.csv there.
PUBLISHED = "blimp_published.csv"
MEAN, OTHER = "mean over paradigms", "other"
Row = dict[str, Any]
# By name of a field or paradigm: the accuracy of each model and of each published column, where it has one.
Figures = dict[str, list[float | None]]


@cache
def published() -> dict[str, dict[str, float]]:
    """What was measured on each paradigm of BLiMP by its authors (Warstadt et al. 2020): accuracy by column and UID."""
    with files(__package__).joinpath(PUBLISHED).open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return {name: {row["UID"]: float(row[name]) for row in rows} for name in rows[0] if name != "UID"}


def tables(rows: Sequence[Row]) -> dict[str, Figures]:
    """The table `fields`, with the mean over all paradigms, and a table of paradigms for each field.

    A published mean is over the same paradigms as ours; it is missing where one of them is not of BLiMP.
    """
    columns = [{uid: found["accuracy"] for uid, found in row["paradigms"].items()} for row in rows]
    columns += published().values()

    def mean(uids: Sequence[str]) -> list[float | None]:
        return [fmean(map(column.get, uids)) if column.keys() >= set(uids) else None for column in columns]

    members: dict[str, list[str]] = {}
    for uid, found in rows[0]["paradigms"].items():
        members.setdefault(found["field"] or OTHER, []).append(uid)
    fields = {MEAN: mean(list(rows[0]["paradigms"]))} | {_spaced(field): mean(uids) for field, uids in members.items()}
    by_paradigm = {field: {_spaced(uid): mean([uid]) for uid in uids} for field, uids in members.items()}
    return {"fields": fields} | {_spaced(field): figures for field, figures in by_paradigm.items()}


def _spaced(name: str) -> str:
    """A name that can be broken into lines."""
    return name.replace("_", " ")


def heading(rows: Sequence[Row]) -> list[str]:
    """The names of the columns: those of the models, as short as tells them apart, and the published ones."""
    return [*labels([row["model"] for row in rows]), *published()]


def notes(results: Mapping[str, Any]) -> list[str]:
    """What has to be known beside the accuracies, a line each."""
    rows, lines = results["models"], []
    if results["max_pairs"]:
        lines.append(f"a quick look: only the first {results['max_pairs']:,} pairs of each paradigm were judged")
    if results["sentence_prefix"]:
        lines.append(f"{results['sentence_prefix']!r} was put before each sentence")
    for name, row in zip(labels([row["model"] for row in rows]), rows, strict=True):
        lines.append(f"{name}: {row['pairs']:,} pairs, of which {row['ties']:,} are ties, which count half")
        if pairs := row["pairs_with_unknown_tokens"]:
            lines.append(f"{name}: pairs with words or signs that its tokenizer lacks, and reads as unknown: {pairs:,}")
        if longer := row["longer_than_context"]:
            limit = f"{row['context_length']:,} tokens"
            lines.append(f"{name}: sentences of more than {limit}, read in windows that overlap by half: {longer:,}")
    if spread := results["over_seeds"]:
        found = spread["accuracy"]
        lines.append(f"over {found['runs']} runs: mean {found['mean']:.2%}, standard deviation {found['std']:.2%}")
    return lines


def print_pairs(results: Mapping[str, Any], console: Console | None = None) -> None:
    """Prints the accuracies by field and by paradigm, and the notes."""
    console, rows = console or Console(), results["models"]
    columns = [Column(Text(name), overflow="fold", justify="right", width=6) for name in heading(rows)]
    table = Table(
        Column("accuracy", overflow="fold", min_width=18), *columns, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0)
    )
    for figures in tables(rows).values():
        for name, cells in figures.items():
            table.add_row(Text(name), *map(percent, cells))
        table.add_section()
    console.print(table)
    for line in notes(results):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def render_pairs(results: Mapping[str, Any]) -> str:
    """One page with the accuracies by field and by paradigm; what comes from models is escaped."""
    rows = results["models"]
    return fill_template(
        "minimal_pairs.html",
        __package__,
        {"percent": percent},
        rows=rows,
        labels=labels([row["model"] for row in rows]),
        heading=heading(rows),
        colours=[COLOURS[number % len(COLOURS)] for number in range(len(rows))],
        tables=tables(rows),
        notes=notes(results),
        none=NONE,
        **{name: results[name] for name in ("versions", "commit") if name in results},
    )
