"""scripts/prepare.py and the keys of the data section, as a user writes them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from smallm_hf.base.errors import UserError
from smallm_hf.config import parse_command_line
from smallm_hf.data.configuration import Source

SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "prepare.py"
MIXTURE = [{"source": "books", "weight": 2}, {"source": "a.jsonl", "weight": 1, "text_column": "story"}]


def parse(*words):
    return parse_command_line("test", ["--training.max_steps", "1", *map(str, words)], training=False)[0]


def recipe(path, **data):
    path.write_text(yaml.safe_dump({"data": data}))
    return path


def test_a_mixture_is_given_in_a_file_or_on_the_line(tmp_path):
    expected = [Source("books", 2), Source("a.jsonl", 1, text_column="story")]
    assert parse("--config", recipe(tmp_path / "a.yaml", sources=MIXTURE)).data.sources == expected
    config = parse("--data.sources", json.dumps(MIXTURE))
    assert config.data.sources == expected
    assert [source.split for source in config.data.mixture] == ["train", "train"]
    assert [source.text_column for source in config.data.mixture] == ["text", "story"]
    config.save(tmp_path / "config.yaml")
    assert parse("--config", tmp_path / "config.yaml") == config


def test_what_the_line_says_of_the_source_takes_the_place_of_the_recipe(tmp_path):
    one, several = recipe(tmp_path / "a.yaml", source="stories"), recipe(tmp_path / "b.yaml", sources=MIXTURE)
    assert parse("--config", one, "--data.sources", json.dumps(MIXTURE)).data.source is None
    assert parse("--config", several, "--data.source", "mine").data.mixture[0].source == "mine"
    with pytest.raises(UserError, match=r"data.source=mine and data.sources with 2 entries are both given"):
        parse("--data.source", "mine", "--data.sources", json.dumps(MIXTURE))


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ('[{"source": "x", "wieght": 2}]', r"unknown key wieght in data.sources; did you mean weight\?"),
        ('[{"source": "x", "weight": "y"}]', r"data.sources.weight=y is not of type float \| null"),
        ('["books", "a.jsonl"]', r"data.sources: books is not a source with its name; write them as '\[\{\"source\""),
        ('[{"weight": 2}]', r"data.sources: {'weight': 2} is not a source with its name"),
        ("books", r"data.sources: books is not a source with its name"),
    ],
)
def test_a_wrong_mixture_is_one_line_that_names_the_fix(sources, message):
    with pytest.raises(UserError, match=message) as error:
        parse("--data.sources", sources)
    assert "\n" not in str(error.value)


def run(tmp_path, *words):
    arguments = [sys.executable, str(SCRIPT), "--training.max_steps", "1", "--model.vocab_size", "270", *words]
    return subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True)


def test_a_preview_shows_documents_and_writes_nothing(tmp_path):
    (tmp_path / "a.txt").write_text("one &amp; two")
    shown = run(tmp_path, "--data.source", "a.txt", "--cleaning.html", "true", "--preview", "1")
    assert shown.returncode == 0, shown.stderr
    assert "one [-&amp;-]{+&+} two" in shown.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
