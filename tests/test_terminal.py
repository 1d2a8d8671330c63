"""Output that breaks, or has not every character: the work goes on, and its files come first."""

import io
import os
import shlex
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from running import train, write_recipe, write_stories

from smallm_hf.base.command_line import exit_clearly
from smallm_hf.base.errors import UserError
from smallm_hf.base.terminal import lasting_output, print_piece
from smallm_hf.comparison.report import report_comparison
from smallm_hf.data.token_files import open_token_files
from smallm_hf.describing import describe_next, describe_results
from smallm_hf.evaluation.results_page import report_results

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"


@pytest.fixture
def recipe(tmp_path) -> Path:
    return write_recipe(tmp_path, write_stories(tmp_path), training={"log_every": 1})


@pytest.fixture
def output_to(monkeypatch):
    """Makes a descriptor the standard output and error of this process, in some encoding."""
    opened = []

    def lead(descriptor: int, encoding: str = "utf-8") -> None:
        for name in ("stdout", "stderr"):
            stream = os.fdopen(os.dup(descriptor), "w", encoding=encoding, errors="strict")
            opened.append(stream)
            monkeypatch.setattr(sys, name, stream)

    yield lead
    for stream in opened:
        try:
            stream.close()
        except OSError:  # its reader is gone
            stream.detach()


@pytest.fixture
def desert(output_to):
    """Leads both to a pipe whose reader is gone; called inside a test, for pytest sets its own before it."""

    def desert() -> None:
        reading, writing = os.pipe()
        os.close(reading)
        output_to(writing)
        os.close(writing)

    return desert


def test_characters_that_the_encoding_lacks_are_replaced_and_the_streams_given_back(output_to, tmp_path):
    with open(tmp_path / "out", "wb") as file:
        output_to(file.fileno(), "cp1252")
    before = sys.stdout, sys.stderr
    exit_clearly(lambda: print("bits per byte ↓ 1.5, café 日本"))
    assert (sys.stdout, sys.stderr) == before and sys.stdout.errors == "strict"
    assert (tmp_path / "out").read_bytes() == "bits per byte ? 1.5, café ??\n".encode("cp1252")


def test_a_reader_that_goes_away_does_not_end_the_work(desert, tmp_path):
    desert()

    def main():
        for number in range(10_000):
            print("line", number)
            print("line", number, file=sys.stderr)
        (tmp_path / "written").touch()

    exit_clearly(main)
    sys.stdout.flush()  # nothing is left that the end of Python could stumble over
    assert (tmp_path / "written").exists()


def test_what_only_writes_to_the_terminal_ends_quietly_with_its_reader(desert):
    desert()
    written = []

    def main():
        for number in range(100):
            print_piece(str(number))
            written.append(number)

    with pytest.raises(SystemExit) as end:
        exit_clearly(main)
    assert end.value.code == 0 and len(written) == 0


def test_a_run_needs_no_standard_output(monkeypatch, tmp_path, recipe):
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    exit_clearly(lambda: train(recipe, tmp_path / "run", "--training.max_steps", 2))
    assert (tmp_path / "run" / "results.json").exists()
    with pytest.raises(SystemExit) as end:
        exit_clearly(lambda: train(recipe, tmp_path / "run", "--training.max_steps", 2))  # a mistake
    assert end.value.code == 2


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no file that is full")
def test_a_full_disk_behind_the_output_is_reported_when_the_work_is_done(output_to, tmp_path, capfd, monkeypatch):
    with open("/dev/full", "wb") as full:
        output_to(full.fileno())
    monkeypatch.setattr(sys, "stderr", sys.__stderr__)

    def main():
        print("line", flush=True)
        (tmp_path / "written").touch()

    with pytest.raises(SystemExit) as end:
        exit_clearly(main)
    assert end.value.code == 2 and (tmp_path / "written").exists()
    assert capfd.readouterr().err == (
        "error: standard output could not all be written (No space left on device); free some space and run again\n"
    )


def test_training_goes_on_without_its_reader(output_to, recipe, tmp_path):
    reading, writing = os.pipe()
    output_to(writing)
    os.close(writing)

    def head():
        with open(reading, encoding="utf-8") as file:
            while "step 2/" not in file.readline():
                pass

    reader = threading.Thread(target=head)
    reader.start()
    exit_clearly(lambda: train(recipe, tmp_path / "run"))
    reader.join()
    assert (tmp_path / "run" / "results.json").exists()


def test_streams_that_are_not_files_stay_as_they_are(monkeypatch):
    monkeypatch.setattr(sys, "stdout", notebook := io.StringIO())
    with lasting_output():
        assert sys.stdout is notebook


@pytest.mark.parametrize("report", [report_results, report_comparison])
def test_files_are_written_whatever_the_terminal_does_and_the_other_way_round(report, monkeypatch):
    module, done = sys.modules[report.__module__], []

    def fail(*arguments):
        raise UserError("it fails")

    monkeypatch.setattr(module, "to_json", lambda content: "")
    for name, other in (("print", "write"), ("write", "print")):
        for kind in ("print", "write"):
            works = lambda *arguments, kind=kind: done.append(kind) or []  # noqa: E731
            for function in {"print": ("print_results", "print_report"), "write": ("_write", "write_report")}[kind]:
                monkeypatch.setattr(module, function, fail if kind == name else works, raising=False)
        with pytest.raises(UserError, match="it fails"):
            report({"models": [{}]}, "somewhere")
        assert done.pop() == other


def test_an_argument_is_read_as_utf8_and_what_is_not_is_refused_in_one_line(monkeypatch, capsys):
    typed = "日本".encode().decode("ascii", "surrogateescape")  # what Python makes of it where the locale is C
    monkeypatch.setattr(sys, "argv", ["generate.py", "--prompt", typed])
    exit_clearly(lambda: print(sys.argv[2]))
    assert capsys.readouterr().out == "日本\n"
    monkeypatch.setattr(sys, "argv", ["generate.py", "--prompt", "caf\udce9"])
    with pytest.raises(SystemExit) as end:
        exit_clearly(lambda: pytest.fail("it ran"))
    assert end.value.code == 2
    assert "error: 'caf\\udce9' on the command line is not UTF-8" in capsys.readouterr().err


def test_a_user_without_a_home_has_one_that_is_not_there(monkeypatch):
    monkeypatch.setenv("HOME", "")
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # the system does not know the user either
    exit_clearly(lambda: None)
    assert not os.path.exists(os.environ["HOME"])


RUN = 'my run\'s $HOME `date` "ü"'


def test_the_commands_that_are_printed_can_be_run_whatever_the_folder_is_called(recipe, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    results = train(recipe, RUN, "--training.max_steps", 2, "--training.sample_prompts", '["it\'s"]')
    lines = describe_results(results, Path(RUN)).partition("next:\n")[2].splitlines()
    best = f"{RUN}/best"
    generate, score, python = map(shlex.split, lines)
    assert generate == ["smallm", "generate", "--model", best, "--prompt", "it's"]
    assert score[:4] == ["smallm", "score", "--model", best]
    shown = subprocess.run(["sh", "-c", f"printf '%s' {shlex.join(python[2:])}"], capture_output=True, encoding="utf-8")
    called = []
    exec(shown.stdout.partition("; ")[2], {"pipeline": lambda *given: called.append(given) or fake_pipeline})
    assert called == [("text-generation", best)]
    Path("tokens").rename(RUN + " tokens")
    words = shlex.split(describe_next(open_token_files(RUN + " tokens")).partition("settings and ")[2])
    assert words == ["--data.folder", RUN + " tokens"]


def fake_pipeline(prompt: str) -> list[dict[str, str]]:
    return [{"generated_text": prompt}]
