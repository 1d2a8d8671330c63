"""The README's table of cost: every computed figure follows from the recipes, every other one is marked measured.

A cell holds a figure and its mark, `(m)` measured or `(c)` computed. Where something has been measured, its `(m)` takes
the place of the computed one.
"""

import dataclasses
import re
from pathlib import Path

import pytest

from smallm_hf.config import model_config, parse_command_line
from smallm_hf.training.configuration import plan_steps
from smallm_hf.training.devices import PEAK_TFLOPS
from smallm_hf.training.plan import make_plan
from smallm_hf.training.progress import count, duration

REPOSITORY = Path(__file__).resolve().parent.parent
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
# What a rung of the ladder costs is measured in docs/ladder.md; finetune takes the model it is given.
APART = ("finetune", "ladder", "names_", "shakespeare_", "word_lstm")
RECIPES = [path.stem for path in sorted((REPOSITORY / "configs").glob("*.yaml")) if not path.stem.startswith(APART)]
COLUMNS = ("recipe", "parameters", "tokens", "FLOPs", "memory", "2 CPU cores", "T4", "H100, H200")
# What the README assumes: operations per second that devices reach, and the tokens of one pass over the books.
REACHED = {"2 CPU cores": 0.3e12, "T4": 0.20 * PEAK_TFLOPS["T4"] * 1e12, "H200": 0.30 * PEAK_TFLOPS["H200"] * 1e12}
EPOCH_TOKENS = 4.7e9


def row(name: str) -> str:
    """The line of a recipe, all of it computed."""
    config = parse_command_line("test", ["--config", str(REPOSITORY / "configs" / f"{name}.yaml")], training=True)[0]
    training = dataclasses.replace(config.training, compile=True)
    plan = make_plan(model_config(config.model), training, "bf16", plan_steps(training, None))
    timed = {device: reached * (training.max_seconds or 0) for device, reached in REACHED.items()}
    per_epoch = plan.tokens is None and training.epochs
    tokens = plan.tokens or (EPOCH_TOKENS if per_epoch else timed["2 CPU cores"] / plan.flops_per_token)
    flops = tokens * plan.flops_per_token
    seconds = {device: training.max_seconds or flops / reached for device, reached in REACHED.items()}
    cells = [
        f"`{name}.yaml`",
        f"{plan.parameters:,} (c)",
        f"{count(tokens)}{' an epoch' if per_epoch else ''} (c)",
        f"{flops:.2e} (c)",
        f"{plan.memory_bytes / 2**30:.2f} GiB (c)",
        *(f"{duration(seconds[device])} (c)" for device in REACHED),
    ]
    return f"| {' | '.join(cells)} |"


def section() -> str:
    return README.partition("\n## What it costs\n")[2].partition("\n## ")[0]


def test_the_table_has_a_row_for_every_recipe_trained_from_scratch():
    assert f"| {' | '.join(COLUMNS)} |" in section()
    assert sorted(re.findall(r"^\| `(\w+)\.yaml`", section(), flags=re.MULTILINE)) == RECIPES


@pytest.mark.parametrize("name", RECIPES)
def test_computed_costs_follow_from_the_recipe(name):
    stated = re.search(rf"^\| `{name}\.yaml` .*\|$", section(), flags=re.MULTILINE)[0]
    for found, computed in zip(stated.split(" | "), row(name).split(" | "), strict=True):
        assert found == computed or found.endswith("(m)")


def test_the_assumptions_stand_below_the_table():
    text = " ".join(section().split())
    assert f"2 CPU cores at {REACHED['2 CPU cores'] / 1e12:.2g} TFLOP/s" in text
    assert f"a T4 at 20% of {PEAK_TFLOPS['T4']:.0f} TFLOP/s" in text
    assert f"an H100 or H200 at 30% of {PEAK_TFLOPS['H200']:.0f} TFLOP/s" in text
    assert PEAK_TFLOPS["H100"] == PEAK_TFLOPS["H200"]
    assert f"{EPOCH_TOKENS / 1e9:g} billion tokens" in text
