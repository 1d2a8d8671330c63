"""The runs below a folder, in one table: where their configs differ, how long they trained, how well they predict."""

import csv
import io
import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from smallm_hf.base.errors import UserError, one_line
from smallm_hf.base.plain_json import json_text
from smallm_hf.config import SECTIONS
from smallm_hf.evaluation.certainty import CONFIDENCE, over_seeds
from smallm_hf.training.progress import count, duration, read_records

SEED = "training.seed"  # runs that differ in nothing else are repetitions of one setting
# Keys that change how a run is watched and kept, or how fast it is, and not what comes of it.
WITHOUT_EFFECT = re.compile(
    r"data\.(folder|workers|license|language)|training\.(cpu_threads|peak_tflops|on_full_disk|keep_.*|sample_.*"
    r"|checkpoint_every|log_every)|(logging|hub|comparison)\..*"
)
MOST_COLUMNS, MOST_NAMED = 6, 8  # keys that differ: shown as columns, and only named below
FIRST = ("model", "training", "tokenizer", "batching", "data")  # sections, by how much they tell of a run
NONE = "–"
Row = dict[str, Any]


def find_runs(folder: Path) -> list[Path]:
    """The run folders at or below a folder, by name.

    Raises:
        UserError: there is none.
    """
    found = sorted(path.parent for path in folder.rglob("config.yaml") if (path.parent / "metrics.jsonl").is_file())
    if not found:
        what = "holds no run" if folder.is_dir() else "is not a folder"
        raise UserError(f"{folder} {what}; give one that train has written to, such as runs")
    return found


def tabulate(folder: Path) -> dict[str, Any]:
    """What the runs at or below a folder are and have reached.

    Returns:
        `runs`, a row for each: `run`, `seed`, `steps`, `tokens`, `seconds` of training, `loss` and `bits_per_byte` of
        the best validation, `parameters`, `ended`, `validation_sha256`, and its value of each key in `differing`; and
        `settings`, the same over runs that differ in their seed alone, with mean and interval where there are several.

    Raises:
        UserError: there is no run, or a damaged one.
    """
    runs = find_runs(folder)
    configs = [_config_of(run) for run in runs]
    keys = dict.fromkeys(key for config in configs for key in config if not WITHOUT_EFFECT.fullmatch(key))
    values = {key: {json_text(config.get(key)) for config in configs} for key in keys if key != SEED}
    differing = [key for key, found in values.items() if len(found) > 1]
    rows = [
        {"run": str(run.relative_to(folder)) if run != folder else run.name, "seed": config.get(SEED)}
        | _reached(run)
        | {key: config.get(key) for key in differing}
        for run, config in zip(runs, configs, strict=True)
    ]
    settings: dict[str, list[Row]] = {}
    for row in rows:
        settings.setdefault(json_text([row[key] for key in differing]), []).append(row)
    over = [_over_seeds(alike, differing) for alike in settings.values()]
    return {"differing": differing, "runs": rows, "settings": sorted(over, key=_order)}


def _config_of(run: Path) -> dict[str, Any]:
    """Each `section.key` of a run; of keys that are younger than it, the default."""
    try:
        written = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
        sections = {name: asdict(section()) | written.get(name, {}) for name, section in SECTIONS.items()}
    except (OSError, yaml.YAMLError, AttributeError, TypeError) as error:
        raise UserError(f"{run / 'config.yaml'} is damaged ({one_line(error)}); move this run away") from error
    sections["model"] = written.get("model", {})
    return {f"{name}.{key}": value for name, keys in sections.items() for key, value in keys.items()}


def _reached(run: Path) -> Row:
    """How far a run has come: by its results, or by its records where it has not ended."""
    path = run / "results.json"
    if path.is_file():
        results = json.loads(path.read_text(encoding="utf-8"))
        best, steps, ended = results["best"], results["steps"], True
        tokens, seconds = results["tokens"], results["training_seconds"]
    else:
        results, records, ended = {}, read_records(run, "metrics"), False
        last = records[-1] if records else {}
        steps, tokens = last.get("step", 0), last.get("tokens", 0)
        seconds = max((record.get("seconds", 0.0) for record in records), default=0.0)
        validated = [record for record in records if _finite(record.get("validation_loss"))]
        best = min(validated, key=lambda record: record["validation_loss"], default={})
    return {
        "ended": ended,
        "steps": steps,
        "tokens": tokens,
        "seconds": seconds,
        "parameters": results.get("parameters"),
        "loss": best.get("validation_loss"),
        "bits_per_byte": best.get("validation_bits_per_byte"),
        "validation_sha256": results.get("data", {}).get("validation", {}).get("sha256"),
    }


def _finite(number: float | None) -> bool:
    return number is not None and math.isfinite(number)


def _over_seeds(alike: Sequence[Row], differing: Iterable[str]) -> Row:
    """Runs of one setting as a row; the interval is of those that have ended."""
    bits = [row["bits_per_byte"] for row in alike if row["ended"] and _finite(row["bits_per_byte"])]
    over = over_seeds(bits) if len(bits) > 1 else {"runs": len(bits), "mean": bits[0] if bits else None}
    means = {name: sum(row[name] for row in alike) / len(alike) for name in ("tokens", "seconds")}
    kept = {name: alike[0][name] for name in differing}
    return {
        "runs": [row["run"] for row in alike],
        "seeds": [row["seed"] for row in alike],
        **means,
        "bits_per_byte": over,
    } | kept


def _order(setting: Row) -> tuple[float, list[str]]:
    mean = setting["bits_per_byte"]["mean"]
    return (math.inf if mean is None else mean, setting["runs"])


def as_csv(found: dict[str, Any]) -> str:
    """The runs of `tabulate`, a line for each."""
    text = io.StringIO()
    writer = csv.DictWriter(text, found["runs"][0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(found["runs"])
    return text.getvalue()


def as_text(found: dict[str, Any]) -> str:
    """The settings of `tabulate` as columns, the lowest bits per byte first, and what is to be known of them."""
    ranked = sorted(found["differing"], key=lambda key: _rank(key, found["settings"]))
    shown, left = ranked[:MOST_COLUMNS], ranked[MOST_COLUMNS:]
    short = [key.rpartition(".")[2] for key in shown]
    names = [key if short.count(name) > 1 else name for key, name in zip(shown, short, strict=True)]
    rows = [["run", *names, "tokens", "seconds", "bits per byte", f"{CONFIDENCE:.0%} interval"]]
    states = {row["run"]: row for row in found["runs"]}
    for setting in found["settings"]:
        over, more = setting["bits_per_byte"], len(setting["runs"]) - 1
        unfinished = [states[run] for run in setting["runs"] if not states[run]["ended"]]
        name = setting["runs"][0] + (f" and {more} more" if more else "")
        interval = f"{over['low']:.4f} to {over['high']:.4f}" if "low" in over else NONE
        if unfinished:
            interval = f"at step {unfinished[0]['steps']:,}" if not more else f"{len(unfinished)} not finished"
        mean = NONE if over["mean"] is None else f"{over['mean']:.4f}"
        values = [_shown(setting[key]) for key in shown]
        rows.append([name, *values, count(setting["tokens"]), duration(setting["seconds"]), mean, interval])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    if left:
        named = ", ".join(left[:MOST_NAMED]) + ", ..." * (len(left) > MOST_NAMED)
        lines += ["", f"{len(left)} more keys differ ({named}); --format csv or json shows them"]
    if len({row["validation_sha256"] for row in found["runs"] if row["validation_sha256"]}) > 1:
        lines += ["", "not all were validated on the same text: compare bits per byte only where they were"]
    return "\n".join(lines)


def _rank(key: str, settings: Sequence[Row]) -> tuple[bool, int]:
    """What has a value in most settings comes first, of that the sections in their order."""
    section = key.partition(".")[0]
    missing = sum(setting[key] is None for setting in settings)
    return 2 * missing > len(settings), FIRST.index(section) if section in FIRST else len(FIRST)


def _shown(value: Any) -> str:
    text = NONE if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 24 else f"…{text[-23:]}"  # of a path, the end tells most
