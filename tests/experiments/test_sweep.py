"""Sweeps: the grid and what is refused, the tables by hand, resumption, and runs that fail."""

import json
import math
import re
import runpy
import sys
from pathlib import Path

import pytest
from running import write_recipe, write_stories

from smallm_hf import plots
from smallm_hf.base.errors import Interrupted, UserError
from smallm_hf.config import RunConfig
from smallm_hf.experiments import running, sweep
from smallm_hf.experiments.configuration import MOST_RUNS, SweepOptions, parse_sweep
from smallm_hf.experiments.page import Chart, Line, merged, ticks
from smallm_hf.experiments.running import results_of, train_here
from smallm_hf.experiments.sweep import run_sweep

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "sweep.py"
TWO_BY_TWO = ["--vary", "model.hidden_act=silu,relu", "--vary", "training.seed=1,2"]
# Bits per byte of a run by its seed, and what relu has less of.
BITS, RELU_LESS = {1: 2.0, 2: 2.5, 3: 3.5}, {1: 0.25, 2: 0.5, 3: 0.75}


@pytest.fixture
def recipe(tmp_path) -> str:
    return str(write_recipe(tmp_path, write_stories(tmp_path)))


class Trainer:
    """Leaves the files of a run without training it."""

    def __init__(self, **changed):
        self.trained, self.failing, self.changed = [], set(), changed

    def __call__(self, name: str, config: RunConfig, folder: Path) -> str | None:
        self.trained.append(name)
        if name in self.failing:
            return "out of luck"
        seed = config.training.seed
        bits = BITS[seed] - (RELU_LESS[seed] if config.model.get("hidden_act") == "relu" else 0)
        best = {"validation_loss": bits * math.log(2), "validation_bits_per_byte": bits, "validation_bytes": 100}
        results = {
            "best": best | {"step": 4} | self.changed,
            "config": {"training": {"seed": seed}},
            "data": {"tokenizer_sha256": config.tokenizer.source},
            **{"steps": 6, "tokens": 600, "training_seconds": 1.0, "parameters": 1000},
        }
        folder.mkdir(parents=True)
        records = [{"tokens": tokens, "seconds": 1, "validation_bits_per_byte": bits + 1 / tokens} for tokens in (1, 2)]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        (folder / "results.json").write_text(json.dumps(results))


def swept(recipe: str, folder: Path, words: list[str], train=None, **options) -> dict:
    grid, _ = parse_sweep(["--config", recipe, *words])
    return run_sweep(grid, SweepOptions(folder, **options), train or Trainer(), lambda line: None)


# --- the grid --------------------------------------------------------------------------------------------------------


def test_every_combination_is_a_run_of_its_own_name(recipe):
    grid, options = parse_sweep(["--config", recipe, *TWO_BY_TWO, "--training.max_steps", "3"])
    assert list(grid.configs) == [f"hidden_act={act},seed={seed}" for act in ("silu", "relu") for seed in (1, 2)]
    assert [config.model["hidden_act"] for config in grid.configs.values()] == ["silu", "silu", "relu", "relu"]
    assert [config.training.seed for config in grid.configs.values()] == [1, 2, 1, 2]
    assert {config.training.max_steps for config in grid.configs.values()} == {3}
    assert options.output_dir == Path("runs/sweep-recipe")


def test_a_value_may_be_a_list_or_a_path(recipe):
    grid, _ = parse_sweep(["--config", recipe, "--vary", "training.length_warmup=[],[8,16]"])
    assert [config.training.length_warmup for config in grid.configs.values()] == [[], [8, 16]]
    grid, _ = parse_sweep(["--config", recipe, "--vary", "data.source=a/b.txt,a_b.txt"])
    assert list(grid.configs) == ["source=a%2Fb.txt", "source=a_b.txt"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "--vary is missing; name a key"),
        (["--vary", "training.sed=1,2"], "unknown option --training.sed; did you mean --training.seed"),
        (["--vary", "model.hiden_act=silu"], "hiden_act=silu: unknown key model.hiden_act .* model.hidden_act"),
        (["--vary", "seed=1,2"], "--vary seed=1,2: write a section.key and its values"),
        (["--vary", "training.seed"], "--vary training.seed: write a section.key and its values"),
        (["--vary", "training.seed=1,,2", "--training.max_steps", "many"], "max_steps=many is not of type"),
        (["--vary", "training.seed=1,2,1"], "1 stands twice; leave one out"),
        (["--vary", "training.seed=1", "--vary", "training.seed=2"], "training.seed is given twice"),
        (["--vary", "training.seed=1,2", "--training.seed", "3"], "training.seed is given twice"),
        (["--vary", "training.learning_rate=1e-3,0.001"], "learning_rate=1e-3 and learning_rate=0.001 are the same"),
        (["--vary", "training.seed=1,-2"], "seed=-2: training.seed=-2 is out of range"),
        (
            ["--vary", "training.seed=" + ",".join(map(str, range(MOST_RUNS + 1)))],
            "1001 values are 1,001 runs; give at",
        ),
        ([*TWO_BY_TWO, "--jobs", "0"], "jobs"),
    ],
)
def test_what_is_not_a_grid_is_refused_in_one_line(recipe, words, message):
    with pytest.raises(Exception, match=message) as refused:
        parse_sweep(["--config", recipe, *words])
    assert isinstance(refused.value, UserError) or "jobs" in message


def test_a_dry_run_states_what_each_run_costs_and_writes_nothing(recipe, tmp_path):
    grid, _ = parse_sweep(["--config", recipe, *TWO_BY_TWO])
    said = []
    run_sweep(grid, SweepOptions(tmp_path / "sweep", dry_run=True), Trainer(), said.append)
    assert len(re.findall(r"^\| hidden_act=\w+,seed=\d \| 39,904 \| 768 \|", said[0], flags=re.MULTILINE)) == 4
    assert "4 runs, " in said[0]
    assert not (tmp_path / "sweep").exists()


# --- tables ----------------------------------------------------------------------------------------------------------


def test_settings_have_the_mean_and_spread_of_their_seeds_and_are_tested_in_pairs(recipe, tmp_path):
    words = ["--vary", "model.hidden_act=silu,relu", "--vary", "training.seed=1,2,3"]
    found = swept(recipe, tmp_path / "sweep", words)
    silu, relu = found["settings"]
    bits = silu["bits_per_byte"]
    assert (bits["runs"], bits["mean"]) == (3, pytest.approx(8 / 3))
    assert bits["std"] == pytest.approx(0.7638, abs=1e-4)
    assert relu["seeds"] == {1: 1.75, 2: 2.0, 3: 2.75}
    (pair,) = found["pairs"]
    assert (pair["setting"], pair["against"]) == ("hidden_act=relu", "hidden_act=silu")
    assert (pair["difference"], pair["won"], pair["p_exact"]) == (-0.5, 3, 0.25)
    assert silu["curve"] == [(1, 8 / 3 + 1, 3, 4.5), (2, 8 / 3 + 0.5, 2.5, 4)]
    written = (tmp_path / "sweep" / "sweep.md").read_text()
    assert "| hidden_act=silu | 3 | 2.6667 | 0.7638 | 1.8484 | 0.5294 | 0.7694 to 4.5640 |" in written
    assert "| hidden_act=relu | -0.5000 | -1.1210 to +0.1210 | 3 of 3 | 0.074 | 0.250 (≥ 0.250) |" in written
    page = (tmp_path / "sweep" / "sweep.html").read_text()
    assert page.count("<polyline") == 2 and page.count("<polygon") == 2
    assert (tmp_path / "sweep" / "sweep.svg").read_text().startswith("<svg xmlns=")
    assert json.loads((tmp_path / "sweep" / "sweep.json").read_text())["pairs"] == [pair]


def test_where_tokenizers_differ_only_bits_per_byte_are_shown(recipe, tmp_path):
    found = swept(recipe, tmp_path / "sweep", ["--vary", "tokenizer.source=bpe,char", "--vary", "training.seed=1,2"])
    written = (tmp_path / "sweep" / "sweep.md").read_text()
    assert not found["one_tokenizer"] and found["pairs"]
    assert "nats per token" not in written and "a loss per token would mean nothing" in written


def test_runs_on_other_bytes_are_not_tested_and_one_seed_has_no_spread(recipe, tmp_path, monkeypatch):
    class Longer(Trainer):
        def __call__(self, name, config, folder):
            self.changed = {"validation_bytes": 100 + 50 * ("relu" in name)}
            return super().__call__(name, config, folder)

    found = swept(recipe, tmp_path / "sweep", TWO_BY_TWO, Longer())
    assert not found["one_text"] and found["pairs"] == []
    assert "not validated on the same bytes" in (tmp_path / "sweep" / "sweep.md").read_text()
    swept(recipe, tmp_path / "one", ["--vary", "model.hidden_act=silu,relu", "--training.seed", "1"])
    written = (tmp_path / "one" / "sweep.md").read_text()
    assert "| hidden_act=relu | 1 | 1.7500 | – |" in written and "vary training.seed" in written


def test_a_run_that_diverged_is_named_and_left_out_of_the_mean(recipe, tmp_path):
    class Diverging(Trainer):
        def __call__(self, name, config, folder):
            self.changed = {"validation_bits_per_byte": None} if name == "hidden_act=relu,seed=2" else {}
            return super().__call__(name, config, folder)

    found = swept(recipe, tmp_path / "sweep", TWO_BY_TWO, Diverging())
    assert found["settings"][1]["bits_per_byte"] == {"runs": 1, "mean": 1.75}
    assert "hidden_act=relu,seed=2 has no finite validation loss" in (tmp_path / "sweep" / "sweep.md").read_text()


# --- running ---------------------------------------------------------------------------------------------------------


def test_a_run_that_fails_is_reported_and_does_not_end_the_others(recipe, tmp_path, monkeypatch):
    train = Trainer()
    train.failing = {"hidden_act=silu,seed=2"}
    found = swept(recipe, tmp_path / "sweep", TWO_BY_TWO, train)
    assert found["failed"] == {"hidden_act=silu,seed=2": "out of luck"}
    assert len(train.trained) == 4 and len(found["runs"]) == 3
    assert "hidden_act=silu,seed=2 failed: out of luck" in (tmp_path / "sweep" / "sweep.md").read_text()

    monkeypatch.setattr(sweep, "run_sweep", lambda grid, options: found)
    monkeypatch.setattr(sys, "argv", ["sweep.py", "--config", recipe, *TWO_BY_TWO])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    assert ended.value.code == 2


def test_a_resumed_sweep_keeps_what_has_ended_and_may_have_more_values(recipe, tmp_path):
    train = Trainer()
    train.failing = {"hidden_act=silu,seed=2"}
    swept(recipe, tmp_path / "sweep", TWO_BY_TWO, train)
    again = Trainer()
    more = ["--vary", "model.hidden_act=silu,relu", "--vary", "training.seed=1,2,3"]
    found = swept(recipe, tmp_path / "sweep", more, again, resume=True)
    assert sorted(again.trained) == ["hidden_act=relu,seed=3", "hidden_act=silu,seed=2", "hidden_act=silu,seed=3"]
    assert len(found["runs"]) == 6 and not found["failed"]


@pytest.mark.parametrize(
    ("words", "resume", "message"),
    [
        (TWO_BY_TWO, False, "holds a sweep over model.hidden_act, training.seed; add --resume to continue it"),
        ([*TWO_BY_TWO, "--training.max_steps", "5"], True, "with training.max_steps=6, and now it has 5; give another"),
        (
            TWO_BY_TWO[:2],
            True,
            "sweep over model.hidden_act, training.seed and this is a sweep over model.hidden_act; give",
        ),
    ],
)
def test_a_folder_of_another_sweep_is_left_alone(recipe, tmp_path, words, resume, message):
    swept(recipe, tmp_path / "sweep", TWO_BY_TWO)
    train = Trainer()
    with pytest.raises(UserError, match=message):
        swept(recipe, tmp_path / "sweep", words, train, resume=resume)
    assert train.trained == []


def test_a_folder_of_other_files_is_left_alone(recipe, tmp_path):
    with pytest.raises(UserError, match="holds other files; give another --output_dir"):
        swept(recipe, tmp_path, TWO_BY_TWO)


def test_real_runs_go_through_the_same_door_as_train_py(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(plots, "draw_runs", lambda folders: [])
    words = ["--vary", "training.seed=1,2", "--training.max_steps", "2", "--training.sample_prompts"]
    found = swept(recipe, tmp_path / "sweep", [*words, "[a]"], train_here)
    assert [row["seed"] for row in found["runs"]] == [1, 2]
    (setting,) = found["settings"]
    assert setting["setting"] == "recipe" and setting["bits_per_byte"]["std"] > 0
    assert results_of(tmp_path / "sweep" / "runs" / "seed=2")["config"]["training"]["seed"] == 2
    assert "validation loss" in (tmp_path / "sweep" / "runs" / "seed=1.log").read_text()

    far = " ".join(["word"] * 99)
    found = swept(recipe, tmp_path / "bad", [*words, f"['{far}']"], train_here)
    assert all("tokens" in reason and "\n" not in reason for reason in found["failed"].values())
    assert len(found["failed"]) == 2 and found["settings"] == []


def test_an_interrupted_sweep_begins_no_further_run_and_can_be_resumed(recipe, tmp_path):
    class Interrupting(Trainer):
        def __call__(self, name, config, folder):
            if len(self.trained) == 1:
                raise KeyboardInterrupt
            return super().__call__(name, config, folder)

    train = Interrupting()
    with pytest.raises(Interrupted, match="add --resume to go on"):
        swept(recipe, tmp_path / "sweep", TWO_BY_TWO, train)
    again = Trainer()
    assert len(swept(recipe, tmp_path / "sweep", TWO_BY_TWO, again, resume=True)["runs"]) == 4
    assert len(again.trained) == 3


def test_a_process_that_is_killed_is_a_run_that_failed(monkeypatch, recipe, tmp_path):
    def killed(*given):
        raise UserError("seed=1: its process was ended from outside")

    monkeypatch.setattr(running, "in_own_process", killed)
    assert running.train_apart("seed=1", None, tmp_path) == "seed=1: its process was ended from outside"


def test_runs_at_a_time_share_the_cores_unless_their_threads_are_stated(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(running.os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    threads = []

    class Counting(Trainer):
        def __call__(self, name, config, folder):
            threads.append(config.training.cpu_threads)
            return super().__call__(name, config, folder)

    swept(recipe, tmp_path / "three", ["--vary", "training.seed=1,2"], Counting(), jobs=3)
    swept(recipe, tmp_path / "one", ["--vary", "training.seed=1,2"], Counting())
    swept(recipe, tmp_path / "own", ["--vary", "training.seed=1,2", "--training.cpu_threads", "5"], Counting(), jobs=3)
    assert threads == [2, 2, None, None, 5, 5]


# --- curves ----------------------------------------------------------------------------------------------------------


def test_curves_of_several_seeds_are_merged_where_all_of_them_reach():
    one, other = [[0.0, 2.0, 4.0], [4.0, 2.0, 1.0]], [[1.0, 2.0, math.nan, 3.0], [5.0, 4.0, 1.0, 3.0]]
    import numpy as np

    assert merged([np.array(one), np.array(other)]) == [(1, 4, 3, 5), (2, 3, 2, 4), (3, 2.25, 1.5, 3)]
    assert merged([np.array([[1.0], [math.inf]])]) == []


def test_a_chart_lies_inside_its_frame_and_leaves_out_the_steep_beginning():
    points = [(float(x), 10.0 if x == 1 else 2 - x / 100, 0, 0) for x in range(1, 21)]
    points = [(x, y, y, y) for x, y, _, _ in points]
    drawn = Chart("Loss", "bits", "tokens", [Line("a", "#000000", points)]).drawn()
    (line,) = drawn["lines"]
    assert line["band"] == []
    assert line["curve"][0][1] < drawn["plot"]["top"]  # clipped
    assert all(drawn["plot"]["top"] <= y <= drawn["plot"]["bottom"] for _, y in line["curve"][1:])
    assert [label for _, label in drawn["x_ticks"]] == ["0", "5", "10", "15", "20"]


def test_ticks_are_round():
    assert ticks(1.93, 2.41) == [2.0, 2.1, 2.2, 2.3, 2.4]
    assert ticks(0, 768) == [0, 200, 400, 600]
    assert ticks(3, 3) == [3]
