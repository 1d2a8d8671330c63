"""smallm runs: which runs there are, what differs, and what they have reached."""

import csv
import io
import json
import sys

import pytest
import yaml

from smallm_hf.__main__ import main
from smallm_hf.base.errors import UserError
from smallm_hf.evaluation.certainty import over_seeds
from smallm_hf.run_table import as_csv, as_text, find_runs, tabulate


def write_run(folder, *, bits=None, sections=None, tokens=2000, seconds=65.0, text="a"):
    """A run with its config and records; with its results where it has ended with so many bits per byte."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(sections or {}))
    records = [
        {"step": 5, "tokens": 500, "seconds": 9.0, "loss": 2.0},
        {"step": 5, "tokens": 500, "validation_loss": 3.0, "validation_bits_per_byte": 2.5},
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    if bits is not None:
        results = {
            **{"steps": 20, "tokens": tokens, "training_seconds": seconds, "parameters": 64},
            "best": {"step": 20, "validation_loss": 1.0, "validation_bits_per_byte": bits},
            "data": {"validation": {"sha256": text}},
        }
        (folder / "results.json").write_text(json.dumps(results))


@pytest.fixture
def runs(tmp_path):
    """Three seeds of one setting, another setting, and a run that has not ended."""
    for seed, bits in ((1, 2.0), (2, 2.1), (3, 2.2)):
        write_run(tmp_path / "runs" / f"s{seed}", bits=bits, sections={"training": {"seed": seed, "max_steps": 20}})
    wide = {"training": {"max_steps": 20, "log_every": 7}, "model": {"hidden_size": 64}}
    write_run(tmp_path / "runs" / "more" / "wide", bits=1.9, sections=wide)
    write_run(tmp_path / "runs" / "young", sections={"training": {"max_steps": 20, "learning_rate": 0.1}})
    return tmp_path / "runs"


def test_runs_that_differ_in_their_seed_alone_are_one_setting_with_mean_and_interval(runs):
    found = tabulate(runs)
    assert found["differing"] == ["training.learning_rate", "model.hidden_size"]  # log_every changes nothing
    assert [setting["runs"] for setting in found["settings"]] == [["more/wide"], ["s1", "s2", "s3"], ["young"]]
    seeds = found["settings"][1]
    assert seeds["seeds"] == [1, 2, 3]
    assert seeds["bits_per_byte"] == over_seeds([2.0, 2.1, 2.2])
    assert (seeds["tokens"], seeds["seconds"], seeds["training.learning_rate"]) == (2000, 65.0, 0.003)


def test_a_run_that_has_not_ended_tells_how_far_it_is_and_enters_no_mean(runs):
    young = next(row for row in tabulate(runs)["runs"] if row["run"] == "young")
    assert (young["ended"], young["steps"], young["tokens"], young["seconds"]) == (False, 5, 500, 9.0)
    assert young["bits_per_byte"] == 2.5
    assert tabulate(runs)["settings"][-1]["bits_per_byte"] == {"runs": 0, "mean": None}


def test_the_table_shows_what_differs_and_the_best_first(runs):
    lines = as_text(tabulate(runs)).splitlines()
    assert lines[0].split("  ")[0] == "run" and "hidden_size" in lines[0] and "learning_rate" in lines[0]
    assert lines[1].split()[:3] == ["more/wide", "0.003", "64"]
    assert lines[2].startswith("s1 and 2 more") and "2.1000" in lines[2] and "1m05s" in lines[2]
    low, high = (over_seeds([2.0, 2.1, 2.2])[name] for name in ("low", "high"))
    assert lines[2].endswith(f"{low:.4f} to {high:.4f}")
    assert lines[3].startswith("young") and lines[3].endswith("at step 5")


def test_other_texts_are_named_because_their_figures_cannot_be_compared(runs):
    assert "same text" not in as_text(tabulate(runs))
    write_run(runs / "other", bits=1.0, text="b")
    assert as_text(tabulate(runs)).endswith("compare bits per byte only where they were")


def test_keys_beyond_what_fits_are_named_below(tmp_path):
    fields = {f"field{number}": 1 for number in range(9)}
    write_run(tmp_path / "a", bits=1.0, sections={"model": fields})
    write_run(tmp_path / "b", bits=1.0, sections={"model": dict.fromkeys(fields, 2)})
    text = as_text(tabulate(tmp_path))
    assert "field5 " in text and "3 more keys differ (model.field6, model.field7, model.field8);" in text


def test_csv_has_a_line_for_each_run_and_all_that_differs(runs):
    rows = list(csv.DictReader(io.StringIO(as_csv(tabulate(runs)))))
    assert [row["run"] for row in rows] == ["more/wide", "s1", "s2", "s3", "young"]
    assert (rows[0]["model.hidden_size"], rows[1]["bits_per_byte"], rows[2]["seed"]) == ("64", "2.0", "2")


def test_the_command_prints_each_format(runs, monkeypatch, capsys):
    for words, begins in (([], "run"), (["--format", "json"], "{"), (["--format", "csv"], "run,seed,ended")):
        monkeypatch.setattr(sys, "argv", ["smallm", "runs", str(runs), *words])
        main()
        assert capsys.readouterr().out.startswith(begins)


def test_a_run_alone_is_listed_and_a_folder_without_one_refused(runs, tmp_path):
    assert tabulate(runs / "s1")["runs"][0]["run"] == "s1"
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty holds no run; give one that train has written to, such as runs"):
        find_runs(tmp_path / "empty")
    with pytest.raises(UserError, match="nowhere is not a folder"):
        find_runs(tmp_path / "nowhere")


def test_a_damaged_config_is_named(runs):
    (runs / "s1" / "config.yaml").write_text("- a\n")
    with pytest.raises(UserError, match=r"s1/config.yaml is damaged \(.*\); move this run away"):
        tabulate(runs)
