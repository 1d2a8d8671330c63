import json
import runpy
import subprocess
import sys
import warnings
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest

from smallm_hf.base.errors import UserError
from smallm_hf.plots import build_figures, draw_runs, read_curves, read_runs

SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "plot.py"
NAMES = [f"{name}.{suffix}" for name in ("loss", "bits_per_byte", "training") for suffix in ("png", "svg")]


def step(number: int, **values: float) -> dict[str, float]:
    record = {"step": number, "tokens": 1000 * number, "seconds": 30.0 * number, "loss": 8 / number}
    return record | {"learning_rate": 1e-3, "gradient_norm": 0.5, "tokens_per_second": 33.0} | values


def validation(number: int, bytes_per_token: int = 4, **values: float) -> dict[str, float]:
    record = {"step": number, "tokens": 1000 * number, "validation_loss": 9 / number}
    record |= {"validation_bits_per_byte": 3 / number, "validation_tokens": 100}
    return record | {"validation_bytes": 100 * bytes_per_token} | values


def write_run(folder: Path, records: list[dict[str, float]]) -> Path:
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


@pytest.fixture
def run(tmp_path) -> Path:
    return write_run(tmp_path / "run", [step(1), step(2), validation(2), step(4), step(6), validation(7)])


def lines(figure, kind: str, column: int, row: int = 0) -> list[np.ndarray]:
    """The (N, 2) points of the lines of a kind, in one panel."""
    axes = figure.axes[2 * row + column]
    return [line.get_xydata() for line in axes.lines if line.get_label() == kind]


def words(figure) -> list[str]:
    titles = [legend.get_title().get_text() for legend in figure.legends]
    return [figure.get_suptitle(), *titles, *(text.get_text() for legend in figure.legends for text in legend.texts)]


def test_what_is_drawn_is_what_was_recorded(run):
    figures = build_figures(read_runs([run]))
    (loss,), (validated,) = lines(figures["loss"], "training", 0), lines(figures["loss"], "validation", 0)
    assert loss.tolist() == [[1000, 8], [2000, 4], [4000, 2], [6000, 8 / 6]]
    assert validated.tolist() == [[2000, 4.5], [7000, 9 / 7]]
    (bits,) = lines(figures["bits_per_byte"], "validation", 0)
    assert bits.tolist() == [[2000, 1.5], [7000, 3 / 7]]
    for row, value in enumerate((1e-3, 0.5, 33.0)):
        (drawn,) = lines(figures["training"], "training", 0, row)
        assert drawn.tolist() == [[tokens, value] for tokens in (1000, 2000, 4000, 6000)]


def test_a_validation_has_the_time_of_the_step_before_it(run):
    figure = build_figures(read_runs([run]))["loss"]
    (loss,), (validated,) = lines(figure, "training", 1), lines(figure, "validation", 1)
    assert figure.axes[1].get_xlabel() == "training time (minutes)"
    assert loss[:, 0].tolist() == [0.5, 1, 2, 3]
    assert validated[:, 0].tolist() == [1, 3]


@pytest.mark.parametrize(
    ("longest", "unit", "last"), [(100, "seconds", 100), (600, "minutes", 10), (9000, "hours", 2.5)]
)
def test_time_is_drawn_in_the_unit_that_suits_it(tmp_path, longest, unit, last):
    run = write_run(tmp_path / "run", [step(1, seconds=1.0), step(2, seconds=longest)])
    axes = build_figures(read_runs([run]))["loss"].axes[1]
    assert axes.get_xlabel() == f"training time ({unit})"
    assert axes.lines[0].get_xdata()[-1] == last


def test_tokens_are_counted_in_readable_units(tmp_path):
    run = write_run(tmp_path / "run", [step(1), step(2, tokens=4_000_000)])
    figure = build_figures(read_runs([run]))["loss"]
    figure.draw_without_rendering()
    assert "1M" in [label.get_text() for label in figure.axes[0].get_xticklabels()]


def test_the_steep_beginning_does_not_rule_the_range_of_the_loss(tmp_path):
    losses = [10.0] * 4 + [3.0] * 90 + [2.0] * 6
    run = write_run(tmp_path / "run", [step(i, loss=loss) for i, loss in enumerate(losses, start=1)])
    low, high = build_figures(read_runs([run]))["loss"].axes[0].get_ylim()
    assert low < 2
    assert 3 < high < 3.2


def test_many_records_get_a_median_that_the_legend_names_and_no_spike_or_nan_moves(tmp_path):
    losses = [2.0] * 400
    losses[100], losses[200], losses[300] = 50.0, float("nan"), float("inf")
    run = write_run(tmp_path / "run", [step(i, loss=loss) for i, loss in enumerate(losses, start=1)])
    figure = build_figures(read_runs([run]))["loss"]
    name = "training, median of the nearest 2% of the records"
    (median,), (recorded,) = lines(figure, name, 0), lines(figure, "training", 0)
    assert median[:, 1].tolist() == [2.0] * 400
    np.testing.assert_array_equal(recorded[:, 1], losses)
    assert name in words(figure)


def test_runs_lie_over_each_other_in_a_colour_each(tmp_path):
    folders = [write_run(tmp_path / f"run{i}", [step(1), step(2), validation(2)]) for i in range(12)]
    for several in (folders[:3], folders):
        figure = build_figures(read_runs(several))["loss"]
        drawn = [line for line in figure.axes[0].lines if line.get_label() == "training"]
        assert len({str(line.get_color()) for line in drawn}) == len(drawn) == len(several)
        legend = figure.legends[0]
        for folder, line, text, handle in zip(several, drawn, legend.texts, legend.legend_handles, strict=True):
            assert text.get_text() == folder.name
            assert str(handle.get_color()) == str(line.get_color())


def test_runs_of_one_name_are_told_apart_by_their_folders(tmp_path):
    first, second = (write_run(tmp_path / parent / "run", [step(1)]) for parent in ("one", "two"))
    assert list(read_runs([first, second])) == ["one/run", "two/run"]
    assert list(read_runs([first, first / ".." / "run"])) == ["run"]


def test_runs_whose_tokens_differ_in_length_are_not_compared_in_nats_unwarned(tmp_path):
    sizes = {"one": 4, "same": 4, "other": 3}
    one, same, other = (write_run(tmp_path / name, [validation(1, size)]) for name, size in sizes.items())
    warning = "compare them in bits per byte"
    assert warning in " ".join(words(build_figures(read_runs([one, other]))["loss"]))
    assert warning not in " ".join(words(build_figures(read_runs([one, other]))["bits_per_byte"]))
    assert warning not in " ".join(words(build_figures(read_runs([one, same]))["loss"]))


def test_drawing_twice_gives_the_same_bytes_and_valid_xml(run, tmp_path):
    first, second = draw_runs([run], tmp_path / "first"), draw_runs([run], tmp_path / "second")
    assert [file.name for file in first] == NAMES
    for one, other in zip(first, second, strict=True):
        assert one.read_bytes() == other.read_bytes()
        if one.suffix == ".svg":
            root = ElementTree.parse(one).getroot()
            assert root.tag == "{http://www.w3.org/2000/svg}svg"
            ids = [element.get("id") for element in root.iter() if element.get("id")]
            assert len(ids) == len(set(ids))
        else:
            assert one.read_bytes().startswith(b"\x89PNG\r\n")


def test_figures_lie_in_the_run_or_for_several_in_the_current_folder(run, tmp_path, monkeypatch):
    other = write_run(tmp_path / "other", [step(1), validation(1)])
    monkeypatch.chdir(tmp_path)
    assert draw_runs([run])[0] == run / "figures" / "loss.png"
    assert draw_runs([run, other])[0] == Path("figures/loss.png")
    assert sorted(path.name for path in (tmp_path / "figures").iterdir()) == sorted(NAMES)


BAD = {"loss": float("nan"), "gradient_norm": float("inf"), "tokens_per_second": float("inf")}


@pytest.mark.parametrize(
    ("records", "names"),
    [
        ([step(1)], ["loss", "training"]),
        ([step(1), step(2)], ["loss", "training"]),
        ([validation(1)], ["loss", "bits_per_byte"]),
        ([step(1, **BAD)], ["loss", "training"]),
        ([step(1), step(2, **BAD), step(3)], ["loss", "training"]),
        ([step(1, gradient_norm=0.0, learning_rate=0.0)], ["loss", "training"]),
        ([step(1, gradient_norm=0.0), step(2)], ["loss", "training"]),
        ([step(1, loss=None, tokens_per_second=None), step(2)], ["loss", "training"]),
        ([step(1, loss=3e38, gradient_norm=3e38), step(2)], ["loss", "training"]),
        ([step(1, seconds=0.0, tokens=0)], ["loss", "training"]),
        ([{"step": 1, "tokens": 1, "seconds": 1.0, "loss": 2.0, "news": "unknown"}], ["loss"]),
    ],
)
def test_odd_but_valid_runs_are_drawn_without_a_word(tmp_path, records, names):
    run = write_run(tmp_path / "_a $5_$ & <more>", records)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        files = draw_runs([run])
    assert list(dict.fromkeys(file.stem for file in files)) == names


def test_an_unfinished_last_line_is_not_damage(run):
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"step": 8, "tok')
    assert read_curves(run)["loss"].shape == (3, 4)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"metrics\.jsonl has no metrics yet; plot the run once it has logged a step"),
        ('{"step": 1, "tokens": 5}\n', r"has no metrics yet"),
        (
            '{"tokens": 1, "loss": 2}\n{"tok\n{"tokens": 2, "loss": 1}\n',
            r"damaged: line 2 is not JSON; remove that line",
        ),
        ('{"tokens": 1, "loss": 2}\n7\n', r"damaged: line 2 is not a record of a run"),
        ('{"loss": 2}\n', r"damaged: line 1 is not a record of a run"),
        ('{"tokens": 1, "loss": "much"}\n', r"damaged: line 1 is not a record of a run"),
        ('{"tokens": 1, "loss": [1, 2]}\n', r"damaged: line 1 is not a record of a run"),
        (b'{"tokens": 1}\n\xff\n', r"damaged: line 2 is not JSON; remove that line"),
    ],
)
def test_damaged_or_empty_metrics_are_a_users_matter(tmp_path, text, message):
    path = write_run(tmp_path / "run", []) / "metrics.jsonl"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=message) as error:
        draw_runs([tmp_path / "run"])
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run" / "figures").exists()


def test_folders_that_cannot_be_drawn_or_written_are_a_users_matter(run, tmp_path):
    with pytest.raises(UserError, match="no run was given; name folders that smallm train wrote"):
        draw_runs([])
    (tmp_path / "empty").mkdir()
    for wrong in (tmp_path / "empty", tmp_path / "nowhere", run / "metrics.jsonl"):
        with pytest.raises(UserError, match=rf"{wrong.name} is not a run with metrics: it has no metrics.jsonl"):
            draw_runs([run, wrong])
    (tmp_path / "figures" / "loss.png").mkdir(parents=True)
    for wrong, held in ((run / "metrics.jsonl", "metrics.jsonl"), (tmp_path / "figures", "loss.png")):
        with pytest.raises(UserError, match=f"{held} cannot be written: .*; give another --output_dir"):
            draw_runs([run], wrong)


def test_the_script_draws_what_the_function_draws(run, tmp_path):
    command = [sys.executable, str(SCRIPT), str(run), "--output_dir", str(tmp_path / "drawn")]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (finished.returncode, finished.stderr) == (0, "")
    assert finished.stdout.splitlines() == [str(tmp_path / "drawn" / name) for name in NAMES]
    for file in draw_runs([run]):  # another process has another hash seed
        assert file.read_bytes() == (tmp_path / "drawn" / file.name).read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"), [([], "no run was given"), (["nowhere"], "nowhere is not a run with metrics")]
)
def test_a_mistake_on_the_line_is_one_line_and_status_2(arguments, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *arguments])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}")
    assert error.count("\n") == 1
