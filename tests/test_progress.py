import builtins
import io
import sys
import types

import pytest
from rich.console import Console

from smallm_hf.training.progress import Reporter, RunLog, count, duration, read_records

RECORD = {"loss": 3.9123, "learning_rate": 1e-4, "gradient_norm": 0.84, "tokens_per_second": 41_200}


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0s"),
        (59, "59s"),
        (60, "1m00s"),
        (425, "7m05s"),
        (3600, "1h00m"),
        (4320, "1h12m"),
        (86400 * 3 + 4 * 3600, "3d04h"),
    ],
)
def test_durations_have_two_units_at_most(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("number", "text"), [(873, "873"), (41_234, "41.2k"), (2_621_440_000, "2.62B"), (1_000_000, "1M")]
)
def test_counts_have_three_figures(number, text):
    assert count(number) == text


def test_a_log_gets_one_plain_line_for_a_step(capsys):
    with Reporter(enabled=True) as reporter:
        reporter.advance(0.02)
        reporter.step(400, 20_000, RECORD, 4320)
    line = "step 400/20000 | loss 3.912 | lr 1.00e-04 | grad 0.84 | 41.2k tok/s | eta 1h12m\n"
    assert capsys.readouterr().out == line


@pytest.mark.parametrize(
    ("known", "text"),
    [
        ({"mfu": 0.31, "memory_bytes": 1.25 * 2**30}, "tok/s | mfu 31% | 1.2 GiB | eta"),
        ({"mfu": 0.00416}, "tok/s | mfu 0.416% | eta"),
        ({"memory_bytes": 140 * 2**30}, "tok/s | 140.0 GiB | eta"),
    ],
)
def test_a_log_shows_use_of_the_hardware_where_it_is_known(capsys, known, text):
    Reporter(enabled=True).step(400, 20_000, RECORD | known, 4320)
    assert text in capsys.readouterr().out


def test_a_log_stays_plain_where_colour_is_forced(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    with Reporter(enabled=True) as reporter:
        reporter.advance(0.02)
        reporter.step(400, None, RECORD, 4320)
    assert capsys.readouterr().out == "step 400 | loss 3.912 | lr 1.00e-04 | grad 0.84 | 41.2k tok/s | eta 1h12m\n"


def test_a_terminal_that_cannot_move_its_cursor_gets_plain_lines(monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    console = Console(force_terminal=True, width=120, file=io.StringIO())
    with Reporter(enabled=True, console=console) as reporter:
        reporter.advance(0.02)
        reporter.step(400, 20_000, RECORD, 4320)
    assert console.file.getvalue().count("step 400/20000") == 1


@pytest.fixture
def notebook(monkeypatch) -> list[tuple[str, object]]:
    """A stand-in for a Jupyter kernel: what it had to display and to replace."""
    received = []

    class ZMQInteractiveShell: ...

    class Output:
        def update(self, shown):
            received.append(("update", shown._repr_mimebundle_([], [])["text/plain"]))

    def display(shown, display_id):
        assert display_id is True
        received.append(("display", shown._repr_mimebundle_([], [])["text/plain"]))
        return Output()

    monkeypatch.setattr(builtins, "get_ipython", ZMQInteractiveShell, raising=False)
    module = types.ModuleType("IPython.display")
    module.display = display
    monkeypatch.setitem(sys.modules, "IPython", types.ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", module)
    return received


def test_a_notebook_shows_one_bar_and_redraws_it_in_place_a_few_times_a_second(notebook, capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("smallm_hf.training.progress.time.monotonic", lambda: now[0])
    with Reporter(enabled=True) as reporter:
        for step in range(1, 1001):
            now[0] += 0.001
            reporter.advance(step / 1000)
            reporter.step(step, 1000, RECORD, 1000 - step)
        reporter.say("[bold]literally")
    assert [kind for kind, _ in notebook] == ["display"] + ["update"] * 5
    assert "0%" in notebook[0][1] and "100%" in notebook[-1][1]
    assert "step 1000/1000 | loss 3.912 | 41.2k tok/s | eta 0s" in notebook[-1][1]
    assert capsys.readouterr().out == "[bold]literally\n"


def test_other_ranks_are_silent_in_a_notebook(notebook, capsys):
    with Reporter(enabled=False) as reporter:
        reporter.advance(0.5)
        reporter.say("hello")
    assert notebook == [] and capsys.readouterr().out == ""


def test_a_real_kernel_keeps_one_bar_and_the_lines_around_it():
    nbformat = pytest.importorskip("nbformat", reason="nbclient is not installed")
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed")
    pytest.importorskip("ipykernel", reason="ipykernel is not installed")
    cell = nbformat.v4.new_code_cell(
        "from smallm_hf.training.progress import Reporter\n"
        f"record = {RECORD}\n"
        "with Reporter(True) as reporter:\n"
        "    for step in range(1, 101):\n"
        "        reporter.advance(step / 100)\n"
        "        reporter.step(step, 100, record, 0)\n"
        "    reporter.say('a line')\n"
    )
    nbclient.NotebookClient(nbformat.v4.new_notebook(cells=[cell]), timeout=120, kernel_name="python3").execute()
    bars = [output.data["text/plain"] for output in cell.outputs if output.output_type == "display_data"]
    lines = [output.text for output in cell.outputs if output.output_type == "stream" and output.name == "stdout"]
    assert len(bars) == 1 and "100%" in bars[0] and "step 100/100" in bars[0]
    assert lines == ["a line\n"]


def test_other_ranks_are_silent(capsys):
    with Reporter(enabled=False) as reporter:
        reporter.say("hello")
    assert capsys.readouterr().out == ""


def test_an_unfinished_last_record_is_left_out(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n{"ste')
    assert [record["step"] for record in read_records(tmp_path, "metrics")] == [1, 2]


def test_a_resumed_log_continues_after_the_step_it_resumes(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n{"ste')
    RunLog(tmp_path, enabled=True, first_step=1).write("metrics", {"step": 2, "loss": 0.5})
    assert read_records(tmp_path, "metrics") == [{"step": 1}, {"step": 2, "loss": 0.5}]


@pytest.mark.parametrize("enabled", [True, False])
def test_a_mirror_receives_what_the_record_holds(tmp_path, enabled):
    received = []
    log = RunLog(tmp_path, enabled, mirror=lambda name, record: received.append((name, record)))
    log.write("metrics", {"step": 1})
    log.write("samples", {"step": 1, "text": "a"})
    assert received == ([("metrics", {"step": 1}), ("samples", {"step": 1, "text": "a"})] if enabled else [])
    assert (tmp_path / "metrics.jsonl").exists() == enabled


def test_text_beyond_ascii_is_readable_in_the_record(tmp_path):
    RunLog(tmp_path, enabled=True, first_step=0).write("samples", {"step": 1, "text": "Zoë\u2028\n"})
    assert "Zoë" in (tmp_path / "samples.jsonl").read_text(encoding="utf-8")
    assert read_records(tmp_path, "samples") == [{"step": 1, "text": "Zoë\u2028\n"}]


def test_eighty_columns_hold_the_bar_the_loss_the_speed_and_the_eta(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    reporter = Reporter(enabled=True, console=Console(force_terminal=True, width=80, file=io.StringIO()))
    with reporter:
        reporter.advance(0.5)
        reporter.step(12_400, 20_000, RECORD, 4320)
        reporter.bar.refresh()
    shown = reporter.console.file.getvalue()
    for part in ("━━", "50%", "step 12400/20000", "loss 3.912", "41.2k tok/s", "eta 1h12m"):
        assert part in shown, part


def test_a_record_that_finds_no_space_leaves_no_half_line(tmp_path, monkeypatch):
    resource = pytest.importorskip("resource")
    log = RunLog(tmp_path, True)
    log.write("metrics", {"step": 1})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, ((tmp_path / "metrics.jsonl").stat().st_size + 5, hard))
    try:
        with pytest.raises(OSError):
            log.write("metrics", {"step": 2, "loss": 1.0})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    log.write("metrics", {"step": 3})
    assert [record["step"] for record in read_records(tmp_path, "metrics")] == [1, 3]
