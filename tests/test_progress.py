import io

import pytest
from rich.console import Console

from smallm_hf.training.progress import Reporter, RunLog, count, duration, read_records


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
    record = {"loss": 3.9123, "learning_rate": 1e-4, "gradient_norm": 0.84, "tokens_per_second": 41_200}
    with Reporter(enabled=True) as reporter:
        reporter.advance(0.02)
        reporter.step(400, 20_000, record, 4320)
    line = "step 400/20000 | loss 3.912 | lr 1.00e-04 | grad 0.84 | 41.2k tok/s | eta 1h12m\n"
    assert capsys.readouterr().out == line


def test_other_ranks_are_silent(capsys):
    with Reporter(enabled=False) as reporter:
        reporter.say("hello")
    assert capsys.readouterr().out == ""


def test_an_unfinished_last_record_is_left_out(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n{"ste')
    assert [record["step"] for record in read_records(tmp_path, "metrics")] == [1, 2]


def test_a_resumed_log_goes_on_behind_the_step_it_resumes(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n{"ste')
    RunLog(tmp_path, enabled=True, first_step=1).write("metrics", {"step": 2, "loss": 0.5})
    assert read_records(tmp_path, "metrics") == [{"step": 1}, {"step": 2, "loss": 0.5}]


def test_text_beyond_ascii_is_readable_in_the_record(tmp_path):
    RunLog(tmp_path, enabled=True, first_step=0).write("samples", {"step": 1, "text": "Zoë\u2028\n"})
    assert "Zoë" in (tmp_path / "samples.jsonl").read_text(encoding="utf-8")
    assert read_records(tmp_path, "samples") == [{"step": 1, "text": "Zoë\u2028\n"}]


def test_eighty_columns_hold_the_bar_the_loss_the_speed_and_the_eta(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    reporter = Reporter(enabled=True, console=Console(force_terminal=True, width=80, file=io.StringIO()))
    record = {"loss": 3.9123, "learning_rate": 1e-4, "gradient_norm": 0.84, "tokens_per_second": 41_200}
    with reporter:
        reporter.advance(0.5)
        reporter.step(12_400, 20_000, record, 4320)
        reporter.bar.refresh()
    shown = reporter.console.file.getvalue()
    for part in ("━━", "50%", "step 12400/20000", "loss 3.912", "41.2k tok/s", "eta 1h12m"):
        assert part in shown, part
