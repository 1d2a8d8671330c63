"""A sweep: every combination of some settings, trained, laid into one table, and compared over the same seeds."""

import itertools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from smallm_hf.base.environment import environment
from smallm_hf.base.errors import UserError
from smallm_hf.evaluation.certainty import CONFIDENCE, over_seeds, paired_seeds
from smallm_hf.evaluation.page import COLOURS, NONE, figure
from smallm_hf.experiments.configuration import SEED, Grid, SweepOptions, name_of
from smallm_hf.experiments.page import Chart, Line, Page, Table, merged, report
from smallm_hf.experiments.running import Train, claim, having, results_of, run_all, train_apart
from smallm_hf.plots import read_curves
from smallm_hf.runs import plan_run
from smallm_hf.training.devices import hardware
from smallm_hf.training.progress import count, duration

# What is compared, by its key in a validation record.
FIGURES = {"bits_per_byte": "bits per byte", "loss": "loss (nats per token)"}
Row = dict[str, Any]


def run_sweep(
    grid: Grid, options: SweepOptions, train: Train = train_apart, say: Callable[[str], None] = print
) -> dict[str, Any]:
    """Trains a grid and writes `sweep.json`, `.md`, `.html` and `.svg`; with `--dry_run` only says what it costs.

    Args:
        grid: the runs.
        options: where they go, and how many train at a time.
        train: trains one.
        say: hears of the ends of runs, and the tables.

    Returns:
        What `sweep.json` holds: `runs`, `settings` with their figures over seeds, `pairs`, and `failed`, by the names
        of runs that failed the reason; empty after a dry run.

    Raises:
        UserError: a combination that cannot be trained, or a folder that holds something else.
        Interrupted: it was asked to stop, and its runs have saved their state.
    """
    planned = planned_costs(grid, options.jobs)  # which refuses what cannot be built before anything starts
    if options.dry_run:
        say(planned.markdown)
        return {}
    folder = options.output_dir
    with having(folder):
        claim(folder, f"sweep over {', '.join(grid.axes)}", grid.configs, options.resume)
        failed = run_all(grid.configs, folder / "runs", options.jobs, train, say)
        results = summarize(grid, folder / "runs", failed)
        report(page_of(results), results, folder / "sweep", say)
    return results


def planned_costs(grid: Grid, jobs: int) -> Table:
    """What each run of a grid is planned to take; only text that has not been read leaves something open."""
    rows, flops, seconds = [], 0, 0.0
    for name, config in grid.configs.items():
        try:
            config, plan, _ = plan_run(config, lambda line: None)
        except UserError as error:
            raise UserError(f"{name}: {error}") from error
        flops, seconds = flops + (plan.flops or 0), seconds + (config.training.max_seconds or 0)
        memory = f"{plan.memory_bytes / 2**30:.2f} GiB"
        cells = f"{plan.parameters:,}", count(plan.tokens) if plan.tokens else NONE, config.training.limits, memory
        rows.append([name, *cells])
    total = [f"{len(rows)} runs"]
    total += [f"{flops:.2e} FLOPs"] * bool(flops)
    total += [f"at most {duration(seconds / jobs)} of training"] * bool(seconds)
    return Table("Planned", ["run", "parameters", "tokens", "limits", "memory"], rows, f"{', '.join(total)}.")


# --- figures ---------------------------------------------------------------------------------------------------------


def summarize(grid: Grid, folder: Path, failed: dict[str, str]) -> dict[str, Any]:
    """The figures of all runs that have ended, by setting and over seeds."""
    rows = [_row(grid, name, folder / name) for name in grid.configs if results_of(folder / name)]
    finite = [row for row in rows if row["bits_per_byte"] is not None]
    one_text = len({row["validation_bytes"] for row in finite}) <= 1
    settings = [
        _setting(label, [row for row in finite if row["setting"] == label], folder)
        for label in dict.fromkeys(_label(grid, name) for name in grid.configs)
    ]
    settings = [setting for setting in settings if setting["seeds"]]
    return {
        "title": grid.title,
        "axes": grid.axes,
        "runs": rows,
        "settings": settings,
        "pairs": _pairs(settings) if one_text else [],
        "one_text": one_text,
        "one_tokenizer": len({row["tokenizer_sha256"] for row in finite}) <= 1,
        "failed": failed,
        "hardware": hardware(),
        **environment(),
    }


def _label(grid: Grid, name: str) -> str:
    """The setting of a run: what it has of all axes but the seed."""
    choice = {key: word for key, word in grid.choices[name].items() if key != SEED}
    return name_of(choice, grid.axes) if choice else grid.title


def _row(grid: Grid, name: str, run: Path) -> Row:
    """One run, as its best validation has it."""
    results = results_of(run)
    best = results["best"]
    bits = best["validation_bits_per_byte"]
    return {
        "run": name,
        "setting": _label(grid, name),
        "seed": results["config"]["training"]["seed"],
        "bits_per_byte": bits if bits is not None and math.isfinite(bits) else None,
        "loss": best["validation_loss"],
        "best_step": best["step"],
        "validation_bytes": best["validation_bytes"],
        "tokenizer_sha256": results["data"]["tokenizer_sha256"],
        **{key: results[key] for key in ("steps", "tokens", "training_seconds", "parameters")},
    }


def _setting(label: str, rows: Sequence[Row], folder: Path) -> dict[str, Any]:
    """A setting over its seeds: each figure with its spread, and the curve of the validation loss."""
    over = {}
    for name in FIGURES if rows else ():
        values = [row[name] for row in rows]
        over[name] = over_seeds(values) if len(values) > 1 else {"runs": 1, "mean": values[0]}
    curves = (read_curves(folder / row["run"]).get("validation_bits_per_byte") for row in rows)
    return {
        "setting": label,
        "seeds": {row["seed"]: row["bits_per_byte"] for row in rows},
        **over,
        "curve": merged([curve[[0, 2]] for curve in curves if curve is not None]),
    }


def _pairs(settings: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each setting against the first one, over the seeds that both have."""
    pairs = []
    for first, other in itertools.product(settings[:1], settings[1:]):
        seeds = [seed for seed in first["seeds"] if seed in other["seeds"]]
        if len(seeds) > 1:
            ours, theirs = ([one["seeds"][seed] for seed in seeds] for one in (other, first))
            pairs.append({"setting": other["setting"], "against": first["setting"], **paired_seeds(ours, theirs)})
    return pairs


# --- page ------------------------------------------------------------------------------------------------------------


def page_of(results: dict[str, Any]) -> Page:
    """The tables, the figure and the notes that show the results of `run_sweep`."""
    settings = results["settings"]
    lines = [
        Line(setting["setting"], COLOURS[number % len(COLOURS)], setting["curve"])
        for number, setting in enumerate(settings)
    ]
    up = "bits per byte ↓, mean over the seeds, and from the lowest to the highest"
    charts = [Chart("Validation loss", up, "training tokens", lines)] if any(line.points for line in lines) else []
    notes = [f"{name} failed: {reason}" for name, reason in results["failed"].items()]
    notes += [
        f"{row['run']} has no finite validation loss and is left out of mean and test"
        for row in results["runs"]
        if row["bits_per_byte"] is None
    ]
    if not results["one_text"]:
        notes.append(
            "the runs were not validated on the same bytes, so nothing is tested; set training.validation_tokens=null "
            "and the same data for all"
        )
    if not results["one_tokenizer"]:
        notes.append("their tokens differ: compared in bits per byte, a loss per token would mean nothing")
    if len(settings) > 1 and not results["pairs"] and results["one_text"]:
        notes.append(f"no two settings share two seeds, so nothing is tested; vary {SEED}")
    tables = [_settings_table(results), *([_pairs_table(results["pairs"])] if results["pairs"] else [])]
    tables.append(_runs_table(results))
    return Page(f"Sweep of {results['title']}", _lead(results), tables, charts, notes, results)


def _lead(results: dict[str, Any]) -> str:
    axes = "; ".join(f"{key}: {', '.join(words)}" for key, words in results["axes"].items())
    return f"{len(results['runs'])} runs over {axes}. Each at its best validation, on {results['hardware']['cpu']}."


def _settings_table(results: dict[str, Any]) -> Table:
    shown = [name for name in FIGURES if name == "bits_per_byte" or results["one_tokenizer"]]
    rows = []
    for setting in results["settings"]:
        cells = []
        for name in shown:
            cells.append(f"{setting[name]['mean']:.4f}")
            cells.append(f"{setting[name]['std']:.4f}" if "std" in setting[name] else NONE)
        over = setting["bits_per_byte"]
        interval = f"{over['low']:.4f} to {over['high']:.4f}" if "low" in over else NONE
        rows.append([setting["setting"], str(len(setting["seeds"])), *cells, interval])
    columns = itertools.chain(*((f"{FIGURES[name]} ↓", "±") for name in shown))
    note = (
        "± is the standard deviation over the seeds (n - 1); the interval, by Student's t, holds the mean of all seeds "
        f"with {CONFIDENCE:.0%} confidence if they are normally distributed. A best validation is the lowest of "
        "several, and so a little too good."
    )
    return Table("Settings", ["setting", "seeds", *columns, f"{CONFIDENCE:.0%} interval (bits per byte)"], rows, note)


def _pairs_table(pairs: Sequence[dict[str, Any]]) -> Table:
    rows = [
        [
            pair["setting"],
            f"{pair['difference']:+.4f}",
            NONE if pair["low"] is None else f"{pair['low']:+.4f} to {pair['high']:+.4f}",
            f"{pair['won']} of {pair['runs']}",
            NONE if pair["p_t"] is None else figure(pair["p_t"], ".3f"),
            f"{pair['p_exact']:.3f} (≥ {pair['p_least']:.3f})",
        ]
        for pair in pairs
    ]
    first = pairs[0]["against"]
    columns = [f"against {first}", "bits per byte, less its ↓", f"{CONFIDENCE:.0%} interval", "seeds better"]
    corrections = f"The {len(pairs)} comparisons are not corrected for their number. " if len(pairs) > 1 else ""
    note = (
        f"{corrections}Paired t-test, and exact test over all sign flips of the differences, both two-sided. "
        "Behind ≥ stands the least p that so many seeds can reach: with 3 seeds it is 0.25, so that no exact test of "
        "them can be below 0.05; from 6 seeds on it can."
    )
    return Table("The same seeds in pairs", [*columns, "p (t-test)", "p (exact)"], rows, note)


def _runs_table(results: dict[str, Any]) -> Table:
    rows = [
        [
            row["run"],
            NONE if row["bits_per_byte"] is None else f"{row['bits_per_byte']:.4f}",
            f"{row['parameters']:,}",
            f"{row['best_step']:,} of {row['steps']:,}",
            count(row["tokens"]),
            duration(row["training_seconds"]),
        ]
        for row in results["runs"]
    ]
    return Table("Runs", ["run", "bits per byte ↓", "parameters", "best step", "tokens", "training time"], rows)
