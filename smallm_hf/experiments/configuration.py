"""What experiments are asked for: the grid of a sweep, read from a command line and checked before anything starts."""

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jsonargparse import ArgumentParser
from jsonargparse.typing import PositiveInt

from smallm_hf.base.errors import UserError
from smallm_hf.config import RunConfig, read_config, split_line

SEED = "training.seed"  # the axis along which runs are repetitions of one setting
MOST_RUNS = 1000
# One value of --vary: up to a comma that stands in no list or mapping.
VALUE = re.compile(r"(?:\[[^\]]*\]|\{[^}]*\}|[^,\[{])+")

Choice = dict[str, str]  # a value, as written, of each key that varies


@dataclass(frozen=True)
class Grid:
    """The runs of a sweep.

    Attributes:
        title: the name of the last recipe.
        axes: the keys that vary, with their values as written.
        choices: by the name of each run, what it has of every axis.
        configs: by the name of each run.
    """

    title: str
    axes: dict[str, list[str]]
    choices: dict[str, Choice]
    configs: dict[str, RunConfig]


@dataclass(frozen=True)
class SweepOptions:
    """What is asked for beside the grid: where it goes, how many runs at a time, and what to do."""

    output_dir: Path
    jobs: int = 1
    resume: bool = False
    dry_run: bool = False


def parse_sweep(arguments: Sequence[str]) -> tuple[Grid, SweepOptions]:
    """Reads `--config FILE --vary KEY=A,B [--section.key VALUE ...]` and the options of a sweep.

    Raises:
        UserError: what `read_grid` refuses, or an unknown key (the nearest valid one is named).
        SystemExit: after `--help`.
    """
    parser = ArgumentParser(
        exit_on_error=False,
        allow_abbrev=False,
        print_config=None,
        description="Trains every combination of the given values, each in a process of its own, and compares them.",
        usage="%(prog)s --config FILE --vary KEY=A,B [--vary KEY=A,B ...] [--section.key VALUE ...] "
        "[--output_dir DIR] [--jobs N] [--resume] [--dry_run]",
    )
    vary = f"a key and its values, such as model.hidden_act=relu,gelu; the runs along {SEED} are repetitions"
    parser.add_argument("--vary", action="append", default=[], metavar="KEY=A,B", help=vary)
    parser.add_argument("--output_dir", type=Path, help="for runs and report (default: runs/sweep-NAME_OF_THE_RECIPE)")
    parser.add_argument(
        "--jobs", type=PositiveInt, default=1, help="runs at a time, which share the cores (default: 1)"
    )
    parser.add_argument("--resume", action="store_true", help="keep finished runs of --output_dir, continue the others")
    parser.add_argument("--dry_run", action="store_true", help="print the grid and what it costs; needs no data")
    recipes, stated, others = split_line(arguments, {"vary", "output_dir", "jobs", "resume", "dry_run", "help"})
    given = parser.parse_args(others).as_dict()
    grid = read_grid(recipes, stated, given.pop("vary"))
    folder = given.pop("output_dir") or Path("runs", f"sweep-{grid.title}")
    return grid, SweepOptions(folder, **given)


def read_grid(
    recipes: Sequence[str | Path | Mapping[str, Any]], stated: Sequence[tuple[str, Any]], vary: Sequence[str]
) -> Grid:
    """The config of every combination, each read as a run of its own would be.

    Args:
        recipes: as for `read_config`.
        stated: keys and values of all runs.
        vary: `section.key=value,value`, an axis each.

    Raises:
        UserError: no axis, an axis that is not one, too many runs, two runs that would be the same, or a combination
            that no run could have.
    """
    axes, pairs = _read_axes(vary, {key for key, _ in stated})
    if (runs := math.prod(map(len, pairs))) > MOST_RUNS:
        sizes = " x ".join(str(len(values)) for values in axes.values())
        raise UserError(f"--vary: {sizes} values are {runs:,} runs; give at most {MOST_RUNS:,}")
    choices, configs = {}, {}
    for words, values in zip(itertools.product(*axes.values()), itertools.product(*pairs), strict=True):
        choice = dict(zip(axes, words, strict=True))
        name = name_of(choice, axes)
        try:
            config = read_config(recipes, [*stated, *values])
        except UserError as error:
            raise UserError(f"{name}: {error}") from error
        if twin := next((other for other, known in configs.items() if known == config), None):
            raise UserError(f"--vary: {twin} and {name} are the same run; leave one out")
        choices[name], configs[name] = choice, config
    title = next((Path(recipe).stem for recipe in reversed(recipes) if not isinstance(recipe, Mapping)), "recipe")
    return Grid(title, axes, choices, configs)


def name_of(choice: Choice, axes: Mapping[str, Any]) -> str:
    """The name of a run, also of its folder: `hidden_act=relu,seed=1`, with sections where keys are alike."""
    short = [key.rpartition(".")[2] for key in axes]
    names = {key: key if short.count(key.rpartition(".")[2]) > 1 else key.rpartition(".")[2] for key in axes}
    return ",".join(f"{names[key]}={quote(word, safe=' []')}" for key, word in choice.items())


def _read_axes(vary: Sequence[str], stated: set[str]) -> tuple[dict[str, list[str]], list[list[tuple[str, Any]]]]:
    """The axes as written, and each value as a pair of key and value that a config is read from."""
    if not vary:
        raise UserError(f"--vary is missing; name a key and its values, such as --vary {SEED}=1,2,3")
    axes, pairs = {}, []
    for axis in vary:
        key, equals, text = axis.partition("=")
        words = [word.strip() for word in VALUE.findall(text)]
        if not equals or not all(words) or not words or "." not in key:
            raise UserError(f"--vary {axis}: write a section.key and its values, such as {SEED}=1,2,3")
        if key in axes or key in stated:
            raise UserError(f"--vary {axis}: {key} is given twice; leave one out")
        if twice := next((word for word in words if words.count(word) > 1), None):
            raise UserError(f"--vary {axis}: {twice} stands twice; leave one out")
        axes[key] = words
        pairs.append([pair for word in words for pair in split_line([f"--{key}={word}"], ())[1]])
    return axes, pairs
