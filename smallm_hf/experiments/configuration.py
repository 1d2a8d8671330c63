"""What experiments are asked for: the grid of a sweep and the rungs of a ladder, checked before anything starts."""

import dataclasses
import itertools
import math
import re
from argparse import ArgumentError
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jsonargparse import ArgumentParser
from jsonargparse.typing import PositiveFloat, PositiveInt

from smallm_hf.base.errors import UserError, one_line
from smallm_hf.base.parser import CommandParser
from smallm_hf.base.recipes import read_recipe
from smallm_hf.config import SECTIONS, TYPES, RunConfig, keys_of, model_config, read_config, split_line

SEED = "training.seed"  # the axis along which runs are repetitions of one setting
MOST_RUNS = 1000
# One value of --vary: up to a comma that stands in no list or mapping.
VALUE = re.compile(r"(?:\[[^\]]*\]|\{[^}]*\}|[^,\[{])+")

SWEEPS = (
    "sweep --config quickstart --vary training.seed=1,2,3",
    "sweep --config my_recipe.yaml --vary model.hidden_act=relu,gelu --vary training.seed=1,2 --jobs 2",
    "sweep --config quickstart --vary training.seed=1,2,3 --dry_run",
)
LADDERS = (
    "ladder --config ladder --dry_run",
    "ladder --config ladder --data.source my_text.txt --max_seconds 60",
    "ladder --config ladder --rungs lstm,gpt --resume",
)
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
    parser = CommandParser(
        "Trains every combination of the given values, each in a process of its own, and compares them. Keys of a "
        "recipe, as `train --help` lists them, hold for all runs.",
        SWEEPS,
        usage="--config RECIPE --vary KEY=A,B [--vary KEY=A,B ...] [--section.key VALUE ...] [OPTIONS]",
    )
    vary = f"a key and its values, such as model.hidden_act=relu,gelu; the runs along {SEED} are repetitions"
    parser.add_argument("--vary", action="append", default=[], metavar="KEY=A,B", help=vary)
    parser.add_argument("--output_dir", type=Path, help="for runs and report; left out, runs/sweep-RECIPE")
    parser.add_argument("--jobs", type=PositiveInt, default=1, help="runs at a time, which share the cores")
    parser.add_argument("--resume", action="store_true", help="keep finished runs of --output_dir, continue the others")
    parser.add_argument("--dry_run", action="store_true", help="print the grid and what it costs; needs no data")
    recipes, stated, others = split_line(arguments, parser.options)
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


# --- the ladder ------------------------------------------------------------------------------------------------------

# What ends a run, which on a ladder the budget does.
LIMITS = ("training.max_steps", "training.max_seconds", "training.epochs")


@dataclass(frozen=True)
class LadderConfig:
    """What a ladder compares, in a file of which the sections of a recipe hold for all rungs.

    Args:
        rungs: by its name, what each rung has of its own: the sections `model`, `tokenizer`, `training` ...
        budget_seconds: training time of every run, as `training.max_seconds`.
        parameters: every rung is trained a second time at a width that gives it about so many; null leaves that out.
        sizes_in_words: every rung is trained on so many words of the training text too.
        models: folders or Hub ids of pretrained causal models, which are scored on the same text.
        minimal_pairs: BLiMP.zip, or a folder or file of such pairs, to be judged by every model.
        max_pairs: of each paradigm; null judges all.
        prompts: what the samples continue; an empty one begins a text.
        word_positions: how many words of the validation text are predicted for the word accuracy.
    """

    rungs: dict[str, dict[str, Any]]
    budget_seconds: float = 180.0
    parameters: int | None = None
    sizes_in_words: list[int] = field(default_factory=list)
    models: list[str] = field(default_factory=list)
    minimal_pairs: str | None = None
    max_pairs: int | None = None
    prompts: list[str] = field(default_factory=lambda: ["", "The", "She said"])
    word_positions: int = 200

    def __post_init__(self) -> None:
        if not self.rungs:
            raise UserError("rungs is empty; name at least one, with its section model")
        least = {"budget_seconds": self.budget_seconds, "parameters": self.parameters, "prompts": len(self.prompts)}
        least |= {"word_positions": self.word_positions, "max_pairs": self.max_pairs}
        least |= {f"sizes_in_words={n}": n for n in self.sizes_in_words}
        for name, number in least.items():
            if number is not None and number <= 0:
                raise UserError(f"{name}: {number} is out of range; give more than 0")


@dataclass(frozen=True)
class Ladder:
    """A ladder that can be trained: its config, the recipe of each rung, and where it goes."""

    config: LadderConfig
    rungs: dict[str, RunConfig]
    output_dir: Path
    resume: bool = False
    dry_run: bool = False


def parse_ladder(arguments: Sequence[str]) -> Ladder:
    """Reads `--config FILE [--rungs A,B] [--max_seconds N] [--section.key VALUE ...]` and the options of a ladder.

    Raises:
        UserError: what `read_ladder` refuses.
        SystemExit: after `--help`.
    """
    parser = CommandParser(
        "Trains every rung of a ladder on one text, each in a process of its own, and compares them. Keys of a recipe, "
        "as `train --help` lists them, hold for all rungs.",
        LADDERS,
        usage="--config LADDER [--section.key VALUE ...] [OPTIONS]",
    )
    parser.add_argument("--rungs", help="of these only, with commas between")
    parser.add_argument("--max_seconds", type=PositiveFloat, help="in place of budget_seconds of the file")
    parser.add_argument("--output_dir", type=Path, help="for runs and report; left out, runs/NAME_OF_THE_FILE")
    parser.add_argument("--resume", action="store_true", help="keep finished runs of --output_dir, continue the others")
    parser.add_argument("--dry_run", action="store_true", help="print the runs and what they cost; needs no data")
    recipes, stated, others = split_line(arguments, parser.options)
    given = parser.parse_args(others).as_dict()
    if len(recipes) != 1:
        raise UserError(f"--config names {len(recipes)} files; give one, for example ladder")
    only, seconds, folder = (given.pop(name) for name in ("rungs", "max_seconds", "output_dir"))
    config, rungs = read_ladder(recipes[0], stated, only.split(",") if only else None, seconds and float(seconds))
    return Ladder(config, rungs, folder or Path("runs", Path(recipes[0]).stem), **given)


def read_ladder(
    path: str | Path,
    stated: Sequence[tuple[str, Any]] = (),
    only: Sequence[str] | None = None,
    budget_seconds: float | None = None,
) -> tuple[LadderConfig, dict[str, RunConfig]]:
    """Reads a ladder and the recipe of each of its rungs.

    Args:
        path: of its file.
        stated: keys and values that hold for all rungs and win over the file.
        only: rungs to read; None reads all.
        budget_seconds: in place of the file's.

    Raises:
        UserError: a key or rung that does not exist, a value of the wrong type, or a rung that cannot be trained.
    """
    content = read_recipe(path, TYPES)
    names = [one.name for one in dataclasses.fields(LadderConfig)]
    shared = {name: content.pop(name) for name in [*content] if name.partition(".")[0] in (*SECTIONS, "model")}
    if unknown := next((name for name in content if name not in names), None):
        raise UserError(f"--config {path}: unknown key {unknown}; a ladder has sections and {', '.join(names)}")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(LadderConfig, as_group=False)
    try:
        given = parser.parse_object(content | ({"budget_seconds": budget_seconds} if budget_seconds else {}))
        config = LadderConfig(**given.as_dict())
    except (ArgumentError, UserError) as error:
        raise UserError(f"--config {path}: {one_line(error)}") from error
    if unknown := next((name for name in only or () if name not in config.rungs), None):
        raise UserError(f"--rungs {unknown}: no such rung; {path} has {', '.join(config.rungs)}")
    rungs = {name: config.rungs[name] for name in only or config.rungs}
    return config, {name: _read_rung(name, sections, shared, stated, config) for name, sections in rungs.items()}


def _read_rung(
    name: str,
    sections: Mapping[str, Any],
    shared: Mapping[str, Any],
    stated: Sequence[tuple[str, Any]],
    config: LadderConfig,
) -> RunConfig:
    """The recipe of a rung: its sections over those of all, with the budget as its only limit."""
    where = f"rung {name}"
    if not re.fullmatch(r"[\w. +-]+", name):
        raise UserError(f"{where}: its name is also a folder's; take letters, digits, spaces and any of ._+-")
    own = {"training": {"max_seconds": config.budget_seconds, "validation_tokens": None}}
    try:
        keys = {key for part in (shared, sections) for key, _ in keys_of(part)}
        if limit := next((key for key in LIMITS if key in keys), None):
            raise UserError(
                f"{limit} stands beside budget_seconds={config.budget_seconds:g} of all rungs; leave it out"
            )
        from smallm_hf.families import family_of  # torch

        architecture = model_config(sections.get("model", shared.get("model", {})))
        if (kind := family_of(architecture).kind) != "causal":
            raise UserError(
                f"its {architecture.model_type} is {kind}, and a ladder compares causal models; leave it out"
            )
        return read_config([part for part in (shared, sections, own) if part], stated)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
