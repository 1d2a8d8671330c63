import io
import json

import pytest
from rich.console import Console

from smallm_hf.base.errors import UserError
from smallm_hf.data.cleaning.cleaning import CleaningConfig
from smallm_hf.data.configuration import DataConfig, Source, TokenizerConfig
from smallm_hf.data.preview import show_preview
from smallm_hf.data.request import DataRequest

DEFAULT = CleaningConfig()


def shown(number, cleaning=DEFAULT, **data):
    console = Console(file=io.StringIO(), width=200)
    show_preview(DataRequest(DataConfig(**data), TokenizerConfig("bpe"), 300, cleaning), number, console)
    return console.file.getvalue()


def test_what_each_rule_removes_is_marked_beneath_its_name(tmp_path):
    book = "*** START OF THE PROJECT GUTENBERG EBOOK A ***\n\nIt was _so_ &amp; not\x07 so."
    (tmp_path / "a.txt").write_text(book)
    output = shown(1, source=str(tmp_path))
    assert "a book of Project Gutenberg" in output
    for line in (
        "header_and_footer: 1 change",
        "[-*** START OF THE PROJECT GUTENBERG EBOOK A ***-]",
        "html_remains: 1 change",
        "_so_ [-&amp;-]{+&+} not so.",
        "emphasis: 2 changes",
        "was [-_-]so_",
    ):
        assert line in " ".join(output.split()), line
    assert "It was so & not so." in output


def test_the_documents_are_from_all_over_a_folder(tmp_path):
    for number in range(30):
        (tmp_path / f"{number:02}.txt").write_text(f"text {number}" if number != 10 else "")
    output = shown(3, source=str(tmp_path))
    assert [name for name in ("00.txt", "10.txt", "11.txt", "20.txt") if name in output] == [
        "00.txt",
        "11.txt",
        "20.txt",
    ]


def test_the_documents_are_from_all_over_a_file(tmp_path):
    rows = "".join(json.dumps({"text": f"text {number}"}) + "\n" for number in range(500))
    (tmp_path / "a.jsonl").write_text(rows)
    output = shown(5, source=str(tmp_path / "a.jsonl"))
    numbers = [int(word.removeprefix("a.jsonl#")) for word in output.split() if word.startswith("a.jsonl#")]
    assert len(numbers) == 5
    assert numbers == sorted(numbers)
    assert numbers[-1] > 250


def test_every_source_of_a_mixture_has_its_share(tmp_path):
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text(f"{name} says so")
    output = shown(2, sources=[Source(str(tmp_path / name), 1) for name in ("a.txt", "b.txt")])
    assert "a.txt says so" in output
    assert "b.txt says so" in output


def test_a_document_that_would_be_dropped_says_why(tmp_path):
    (tmp_path / "a.txt").write_text("too short")
    output = shown(1, CleaningConfig(min_words=3), source=str(tmp_path / "a.txt"))
    assert "dropped: too short (2 words, min_words=3)" in output
    assert "stays as it is" in shown(1, CleaningConfig(enabled=False), source=str(tmp_path / "a.txt"))


def test_a_source_without_text_is_named(tmp_path):
    (tmp_path / "a.txt").touch()
    with pytest.raises(UserError, match=r"a.txt is empty: there is no text in it"):
        shown(1, source=str(tmp_path / "a.txt"))
