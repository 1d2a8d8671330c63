"""What a newcomer does wrong or reads first: each is answered by what was probably meant."""

import io
import json
import sys
from pathlib import Path

import pytest
from running import RECIPE, train, write_recipe, write_stories

import smallm_hf
from smallm_hf.base.errors import UserError
from smallm_hf.base.settings import is_model_folder
from smallm_hf.base.wording import counted
from smallm_hf.config import parse_command_line
from smallm_hf.data.reading.documents import read_texts
from smallm_hf.data.token_files import open_token_files
from smallm_hf.describing import describe_data, describe_results
from smallm_hf.evaluation.scoring import show_scoring
from smallm_hf.hub.configuration import asked_for
from smallm_hf.pretrained import load_causal_lm

PUBLISHING = {"repo": None, "space": None, "verify_card": False}


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run on one short text, resumed once, and all that it printed, in `said.txt` beside it."""
    folder = tmp_path_factory.mktemp("first")
    (folder / "fox.txt").write_text("The quick brown fox jumps over the lazy dog, and then some.\n\n" * 60)
    sections = {"model": RECIPE["model"] | {"vocab_size": 262}, "training": {"batch_size": 128}}
    recipe = write_recipe(folder, folder / "fox.txt", **sections)
    with pytest.MonkeyPatch.context() as patch, (folder / "said.txt").open("w") as said:
        patch.setattr(sys, "stdout", said)
        train(recipe, folder / "run", "--training.max_steps", 2)
        train(recipe, folder / "run", "--training.max_steps", 4, "--resume")
    return folder / "run"


@pytest.fixture
def said(run) -> str:
    return (run.parent / "said.txt").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--output_dir", "runs/none"],
            r"nothing to resume: runs/none holds no run \(no config.yaml\); give --output_dir",
        ),
        ([], r"nothing to resume: --output_dir names no run; give --output_dir RUN, or --config"),
    ],
)
def test_resuming_nothing_says_so(tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        parse_command_line("", ["--resume", *words], training=True)


def test_a_run_in_place_of_its_model_is_answered_with_the_model(run):
    with pytest.raises(UserError, match=rf"{run} is a run, which holds several models; did you mean {run}/best\?"):
        is_model_folder(str(run))
    assert is_model_folder(str(run / "best"))


def test_a_model_in_place_of_its_run_is_answered_with_the_run_before_a_missing_repository(run):
    with pytest.raises(UserError, match=rf"best is not a run folder \(no config.yaml\); did you mean {run}\?"):
        asked_for(PUBLISHING | {"run": run / "best"}, {})
    with pytest.raises(UserError, match="--repo names no repository"):
        asked_for(PUBLISHING | {"run": run}, {})


def test_a_text_shorter_than_one_update_is_a_warning(said):
    assert "one update reads 128: it reads the same ones again; give more text, or lower training.batch_size" in said
    assert said.count("warning: the training text makes ") == 2


def test_a_text_of_several_updates_is_none(tmp_path, capsys):
    train(write_recipe(tmp_path, write_stories(tmp_path)), tmp_path / "run", "--training.max_steps", 1)
    assert "warning" not in capsys.readouterr().out


def test_one_file_that_is_cut_is_not_said_to_be_several_documents(run, said):
    files = open_token_files(run.parent / "tokens")
    lines = describe_data(files).splitlines()
    assert f"training text     {files.meta.train.documents} pieces, " in said
    assert lines[-1].strip() == "few documents: they are cut into pieces, some of which validate"
    (files.folder / "report.json").unlink()
    assert "documents, " in describe_data(files)
    assert "1 document of 720 words was read." in (files.folder / "report.md").read_text()


def test_a_number_stands_before_the_form_of_the_noun_that_fits_it():
    assert [counted(number, "document") for number in (0, 1, 2000)] == ["0 documents", "1 document", "2,000 documents"]


def test_a_resumed_run_says_which_time_is_only_the_last_part_of_it(run, said):
    assert said.count("s in all\n") == 1 and said.count("s in all since it was resumed at step 2\n") == 1
    results = json.loads((run / "results.json").read_text())
    assert "in all since it was resumed at step 7" in describe_results(results, run, resumed_at=7)


def test_the_plan_says_how_much_memory_is_the_training_s_own(said):
    line = next(line for line in said.splitlines() if line.startswith("memory "))
    words = line.split()
    assert 0 < float(words[7].rstrip(",")) < float(words[2]) and line.endswith("the rest for Python and libraries")


def test_models_are_loaded_without_a_bar_each(run, capfd):
    load_causal_lm(str(run / "best"), device="cpu")
    assert "Loading weights" not in capfd.readouterr().err


def test_the_line_that_counts_scored_tokens_leaves_the_terminal_when_it_ends(monkeypatch):
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", terminal)
    for name, value in (("TERM", "xterm"), ("COLUMNS", "80")):
        monkeypatch.setenv(name, value)
    with show_scoring(True) as advance:
        advance(10)
    assert "scoring" in terminal.getvalue()
    assert terminal.getvalue().endswith("\x1b[1A\x1b[2K")  # one line up, and erased


def test_one_stop_string_is_one(run):
    text = smallm_hf.generate(str(run / "best"), "The quick", max_new_tokens=40, stop="zz")
    assert text == smallm_hf.generate(str(run / "best"), "The quick", max_new_tokens=40, stop=["zz"])


def test_a_table_without_a_header_is_answered_with_the_number_of_its_column(tmp_path):
    (tmp_path / "a.csv").write_text("Once upon a time,1\nA dog ran,2\n")
    with pytest.raises(UserError, match="set text_column to one of these, or to the number of a column"):
        list(read_texts(str(tmp_path / "a.csv")))
    assert list(read_texts(str(tmp_path / "a.csv"), text_column="1")) == ["Once upon a time", "A dog ran"]
    (tmp_path / "a.jsonl").write_text('{"story": "a"}\n')
    with pytest.raises(UserError, match="set text_column to one of these$"):
        list(read_texts(str(tmp_path / "a.jsonl")))
