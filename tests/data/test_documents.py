import csv
import gzip
import json
import random
import shutil
import socket
import sys
import time

import pyarrow
import pytest
from huggingface_hub import constants
from pyarrow import parquet

import smallm_hf.data.documents as documents_module
from smallm_hf.data.documents import (
    Document,
    cut_pieces,
    fingerprint_source,
    local_files,
    python_docs,
    read_documents,
    read_texts,
    split_documents,
)
from smallm_hf.errors import UserError
from smallm_hf.tokenization import load_tokenizer, make_encoder

TEXTS = ["one, two", 'three "four"\nfive', "sechs — süß"]


def texts(source, **options):
    return [document.text for document in read_documents(str(source), **options)]


def write_rows(path, rows, column="text"):
    """Writes rows of text in the format that the suffix names."""
    name = path.name.removesuffix(".gz")
    if name.endswith(".jsonl"):
        content = "".join(json.dumps({"id": i, column: text}) + "\n" for i, text in enumerate(rows))
    elif name.endswith(".json"):
        content = json.dumps([{"id": i, column: text} for i, text in enumerate(rows)], indent=1)
    elif name.endswith(".csv"):
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([("id", column), *enumerate(rows)])
        content = path.read_text()
    elif name.endswith(".parquet"):
        parquet.write_table(pyarrow.table({"id": range(len(rows)), column: rows}), path)
        content = path.read_bytes()
    else:
        content = "\n<|endoftext|>\n".join(rows)
    content = content if isinstance(content, bytes) else content.encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


# --- what is read ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gz", ["", ".gz"])
@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".json", ".csv", ".parquet"])
def test_every_format_gives_the_same_documents(tmp_path, suffix, gz):
    write_rows(tmp_path / f"data{suffix}{gz}", TEXTS)
    found = list(read_documents(str(tmp_path / f"data{suffix}{gz}")))
    assert [document.text for document in found] == TEXTS
    assert [document.id for document in found] == [f"data{suffix}{gz}#{number}" for number in (1, 2, 3)]


def test_only_lines_that_are_exactly_the_separator_separate(tmp_path):
    text = "<|endoftext|>\none<|endoftext|>\n <|endoftext|>\n<|endoftext|>\n\ntwo\n<|endoftext|>\n"
    (tmp_path / "a.txt").write_text(text)
    assert texts(tmp_path / "a.txt") == ["one<|endoftext|>\n <|endoftext|>", "two"]


def test_separators_are_seen_behind_any_line_end(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"one\r\n<|endoftext|>\r\ntwo\r\nthree")
    assert texts(tmp_path / "a.txt") == ["one", "two\nthree"]


def test_a_file_without_separators_is_one_document(tmp_path):
    (tmp_path / "notes").write_text("\n\n one\n\ntwo \n")  # a suffix we do not know is text
    assert texts(tmp_path / "notes") == ["one\n\ntwo"]


def test_split_documents_goes_by_lines():
    lines = ["a\n", "b\n", "<|endoftext|>\n", "c\n", "<|endoftext|>"]
    assert [list(document) for document in split_documents(lines)] == [["a\n", "b\n"], ["c\n"]]


def test_a_byte_order_mark_is_no_text(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone")
    assert texts(tmp_path / "a.txt") == ["one"]


def test_json_rows_may_stand_in_lines_or_an_array_or_span_lines(tmp_path):
    rows = [{"text": "[1], {2}"}, {"text": '\\"'}]
    printed = "\n".join(json.dumps(row, indent=2) for row in rows)
    for content in ("\n\n".join(map(json.dumps, rows)), json.dumps(rows), printed):
        (tmp_path / "a.json").write_text(content)
        assert texts(tmp_path / "a.json") == ["[1], {2}", '\\"']


def test_json_rows_longer_than_what_is_read_at_a_time_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(documents_module, "PIECE_CHARACTERS", 7)
    write_rows(tmp_path / "a.json", TEXTS * 3)
    assert list(read_texts(str(tmp_path / "a.json"))) == TEXTS * 3


def test_lone_surrogates_from_json_become_the_replacement_character(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a\\ud800b"}')
    assert texts(tmp_path / "a.jsonl") == ["a\ufffdb"]


def test_empty_documents_are_handed_on_empty_and_read_texts_leaves_them_out(tmp_path):
    write_rows(tmp_path / "a.jsonl", ["one", " \n", "two"])
    assert texts(tmp_path / "a.jsonl") == ["one", "", "two"]
    assert list(read_texts(str(tmp_path / "a.jsonl"))) == ["one", "two"]


def test_folders_are_read_below_in_order_without_hidden_or_unknown_files(tmp_path):
    for name in ("b.txt", "a/z.txt", "a/b.jsonl.gz", ".hidden/c.txt", "picture.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_rows(tmp_path / name, [name])
    found = list(read_documents(str(tmp_path)))
    assert [document.text for document in found] == ["a/b.jsonl.gz", "a/z.txt", "b.txt"]
    assert [document.id for document in found] == ["a/b.jsonl.gz#1", "a/z.txt#1", "b.txt#1"]


def test_globs_give_the_files_that_match(tmp_path):
    for name in ("a1.txt", "a2.txt", "b.txt"):
        write_rows(tmp_path / name, [name])
    assert texts(tmp_path / "a*.txt") == ["a1.txt", "a2.txt"]
    (tmp_path / "deep").mkdir()
    write_rows(tmp_path / "deep" / "a3.txt", ["a3.txt"])
    assert texts(tmp_path / "**" / "a*.txt") == ["a1.txt", "a2.txt", "a3.txt"]


def test_ids_are_unique_and_equal_on_every_run_and_wherever_the_folder_lies(tmp_path):
    (tmp_path / "one").mkdir()
    for name in ("a.txt", "b.csv", "c.parquet"):
        write_rows(tmp_path / "one" / name, TEXTS)
    first = [(document.id, document.text) for document in read_documents(str(tmp_path / "one"))]
    shutil.move(tmp_path / "one", tmp_path / "two")
    assert [(document.id, document.text) for document in read_documents(str(tmp_path / "two"))] == first
    assert len({id for id, _ in first}) == len(first) == 9


def test_reading_is_lazy(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n' * 10 + "broken")
    assert next(read_documents(str(tmp_path / "a.jsonl"))).text == "one"


# --- pieces ----------------------------------------------------------------------------------------------------------


def pieces(text, monkeypatch, characters, parts=None):
    monkeypatch.setattr(documents_module, "PIECE_CHARACTERS", characters)
    return list(cut_pieces("id", {}, parts or text.splitlines(keepends=True)))


def test_short_texts_are_one_stripped_piece():
    assert list(cut_pieces("id", {}, [" \n a", "b \n"])) == [Document("ab", "id")]
    assert list(cut_pieces("id", {}, [])) == [Document("", "id")]


def test_long_texts_come_in_numbered_pieces_that_join_to_the_stripped_text(monkeypatch):
    text = " \n " + "word and\n\n another  \n" * 50 + "\n  "
    found = pieces(text, monkeypatch, 40)
    assert "".join(piece.text for piece in found) == text.strip()
    assert [piece.piece for piece in found] == list(range(len(found)))
    assert [piece.is_last for piece in found] == [False] * (len(found) - 1) + [True]
    assert all(0 < len(piece.text) < 80 for piece in found)


def test_text_without_whitespace_is_cut_all_the_same(monkeypatch):
    found = pieces("", monkeypatch, 10, parts=["x" * 7] * 30)
    assert "".join(piece.text for piece in found) == "x" * 210
    assert max(len(piece.text) for piece in found) < 20


@pytest.mark.parametrize("name", ["gpt2", "tiktoken"])
def test_ids_of_the_pieces_are_those_of_the_whole_text(gpt2_folder, monkeypatch, name):
    tokenizer = load_tokenizer(str(gpt2_folder))
    encode = make_encoder(tokenizer)
    if name == "gpt2":
        encode = lambda texts: tokenizer(texts, add_special_tokens=False)["input_ids"]  # noqa: E731
    pick = random.Random(1)
    for _ in range(200):
        letters = ["\n", " ", " ", "\t", "\u3000", "a", "the", "'s", "7", "é", "!", "\x1c"]
        text = "".join(pick.choices(letters, k=900)).strip()
        found = pieces(text, monkeypatch, 150)
        assert len(found) > 3
        ids = [id for piece in encode([piece.text for piece in found]) for id in piece]
        assert ids == list(encode([text])[0])


def test_long_blank_stretches_do_not_slow_it_down(monkeypatch):
    found = pieces("", monkeypatch, 10, parts=[" "] * 30_000 + ["a"] + ["\n"] * 30_000 + ["b"] + ["\t"] * 30_000)
    assert "".join(piece.text for piece in found) == "a" + "\n" * 30_000 + "b"


def test_a_large_file_is_never_held_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(documents_module, "PIECE_CHARACTERS", 100)
    (tmp_path / "a.txt").write_text("x" * 5000 + "\n" + "a line\n" * 1000)
    found = list(read_documents(str(tmp_path / "a.txt")))
    assert max(len(document.text) for document in found) <= 200
    assert {document.id for document in found} == {"a.txt#1"}
    assert list(read_texts(str(tmp_path / "a.txt"))) == [(tmp_path / "a.txt").read_text().strip()]


# --- Python's documentation ------------------------------------------------------------------------------------------


def test_python_docs_hold_megabytes_of_real_text():
    found = {document.id: document.text for document in read_documents("python-docs")}
    assert 1_500_000 < sum(len(text.encode()) for text in found.values()) < 5_000_000
    assert len(found) > 300
    assert "json.dumps(obj, *, skipkeys=False" in found["json/__init__.py"]
    assert "Serialize ``obj`` to a JSON formatted ``str``." in found["json/__init__.py"]
    assert found["topics/if"].startswith('The "if" statement')
    assert not any(id.startswith(("test/", "idlelib/", "site-packages/")) for id in found)
    assert "turtle" not in sys.modules  # read, not imported


def test_python_without_library_sources_is_told_to_bring_text(monkeypatch, tmp_path):
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    python_docs.cache_clear()
    with pytest.raises(UserError, match=r"python-docs: this Python has no library sources.*--data.source PATH"):
        next(read_documents("python-docs"))
    python_docs.cache_clear()


# --- fingerprints ----------------------------------------------------------------------------------------------------


def test_the_quick_fingerprint_sees_sizes_and_times_and_the_thorough_one_bytes(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("one")
    quick, thorough = (fingerprint_source(str(path), contents=contents) for contents in (False, True))
    path.touch()
    time.sleep(0.01)
    path.write_text("one")
    assert fingerprint_source(str(path)) != quick
    assert fingerprint_source(str(path), contents=True) == thorough
    path.write_text("two")
    assert fingerprint_source(str(path), contents=True) != thorough


def test_python_docs_and_data_sets_have_one_fingerprint():
    assert fingerprint_source("python-docs") == fingerprint_source("python-docs", contents=True)
    assert fingerprint_source("a/b") == fingerprint_source("a/b", contents=True) != fingerprint_source("a/b", split="x")


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["missing.txt", "./missing", "a/b/c", "missing.jsonl.gz"])
def test_a_missing_file_is_named(source):
    with pytest.raises(UserError, match=f"data source {source}: no such file or folder"):
        local_files(source)


def test_a_folder_without_text_is_named(tmp_path):
    with pytest.raises(UserError, match=r"has no files; expected some of \*.txt"):
        local_files(str(tmp_path))
    with pytest.raises(UserError, match=r"\*.txt has no files"):
        local_files(str(tmp_path / "*.txt"))


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_a_wrong_column_is_named_with_those_there_are(tmp_path, suffix):
    write_rows(tmp_path / f"a{suffix}", TEXTS, column="story")
    with pytest.raises(UserError, match=rf"a{suffix} row 1 has no column 'text', only 'id', 'story'; set data."):
        texts(tmp_path / f"a{suffix}")


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_values_that_are_no_text_are_refused(tmp_path, suffix):
    write_rows(tmp_path / f"a{suffix}", TEXTS)
    with pytest.raises(UserError, match=r"row 1 holds int in column 'id', not text"):
        texts(tmp_path / f"a{suffix}", text_column="id")
    write_rows(tmp_path / f"a{suffix}", ["one", None])  # a missing value is an empty document, which is counted
    assert [document.text for document in read_documents(str(tmp_path / f"a{suffix}"))] == ["one", ""]


def test_broken_json_is_named_by_its_row(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n{"text": two}\n' + '{"text": "three"}\n' * 9)
    with pytest.raises(UserError, match=r"a.jsonl row 2 is not JSON \(Expecting value\)"):
        texts(tmp_path / "a.jsonl")
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n{"text": "tw')
    with pytest.raises(UserError, match=r"a.jsonl row 2 is not JSON \(Unterminated string"):
        texts(tmp_path / "a.jsonl")
    (tmp_path / "a.jsonl").write_text('["one"]')
    with pytest.raises(UserError, match=r"a.jsonl row 1 is str, not an object"):
        texts(tmp_path / "a.jsonl")


def test_csv_rows_with_unquoted_commas_are_refused_not_cut(tmp_path):
    (tmp_path / "a.csv").write_text("id,text\n1,Hello, world\n")
    with pytest.raises(UserError, match=r"a.csv line 2 has 3 fields, the header 2; put fields that hold commas in"):
        texts(tmp_path / "a.csv")


@pytest.mark.parametrize("content", [b"text\0more", bytes(range(1, 32)) * 9, "UTF-16".encode("utf-16")])
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv", "a"])
def test_a_binary_file_is_no_text(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=rf"{name} looks like a binary file"):
        texts(tmp_path / name)


@pytest.mark.parametrize("offset", [3, 70_000, 2_000_000])
def test_undecodable_bytes_are_named_with_their_place(tmp_path, offset):
    (tmp_path / "a.txt").write_bytes(("é" * (offset // 2) + "x" * (offset % 2)).encode() + b"\xe9 latin")
    with pytest.raises(UserError, match=rf"a.txt is not UTF-8: byte {offset} is 0xe9; re-encode"):
        texts(tmp_path / "a.txt")


def test_damaged_gzip_and_parquet_files_are_named(tmp_path):
    write_rows(tmp_path / "a.txt.gz", [str(number) for number in range(1000)])
    whole = (tmp_path / "a.txt.gz").read_bytes()
    for content in (whole[: len(whole) // 2], b"no gzip"):
        (tmp_path / "a.txt.gz").write_bytes(content)
        with pytest.raises(UserError, match=r"a.txt.gz is a damaged gzip file"):
            texts(tmp_path / "a.txt.gz")
    (tmp_path / "a.parquet").write_bytes(b"no parquet")
    with pytest.raises(UserError, match=r"a.parquet is not a readable parquet file"):
        texts(tmp_path / "a.parquet")


# --- the Hub ---------------------------------------------------------------------------------------------------------


def test_an_unreachable_hub_names_both_readings_and_the_local_way(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{unused.getsockname()[1]}")
    began = time.monotonic()
    with pytest.raises(UserError, match=r"a/b is no file.*; as a Hub data set.*--data.source PATH") as info:
        next(read_documents("a/b"))
    assert time.monotonic() - began < 10
    assert "\n" not in str(info.value)


def test_a_cached_data_set_loads_without_the_hub(cached_data_set):
    found = list(read_documents(cached_data_set, configuration="small", split="validation", text_column="story"))
    assert [document.text for document in found] == TEXTS
    assert found[0].id == f"{cached_data_set}/validation#1"


def test_a_wrong_column_of_a_data_set_is_named(cached_data_set):
    with pytest.raises(UserError, match=r"row 1 has no column 'text', only 'story', 'n'"):
        next(read_documents(cached_data_set, configuration="small", split="validation"))


def test_what_the_hub_has_not_got_is_told_in_one_line(monkeypatch):
    monkeypatch.setattr(documents_module, "require_hub", lambda *_: None)
    with pytest.raises(UserError, match=r"a/b is no file.*, and as a Hub data set.*split train.*cannot be") as info:
        next(read_documents("a/b"))
    assert "\n" not in str(info.value)


@pytest.fixture
def cached_data_set(tmp_path, monkeypatch):
    """A Hub data set as an earlier run left it in the local data sets cache."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "posing").mkdir()
    write_rows(tmp_path / "posing" / "rows.jsonl", [])
    rows = [{"story": text, "n": number} for number, text in enumerate(TEXTS)]
    (tmp_path / "posing" / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    datasets.load_dataset(
        "json", "small", data_files={"validation": str(tmp_path / "posing" / "rows.jsonl")}, cache_dir=tmp_path / "made"
    )
    (made,) = (path.parent for path in (tmp_path / "made").rglob("dataset_info.json"))
    cached = tmp_path / "cache" / "someone___stories" / "small" / "0.0.0" / ("a" * 40)
    shutil.copytree(made, cached)
    (cached / "json-validation.arrow").rename(cached / "stories-validation.arrow")
    info = json.loads((cached / "dataset_info.json").read_text())
    info.update(config_name="small", dataset_name="stories")
    (cached / "dataset_info.json").write_text(json.dumps(info))
    return "someone/stories"


def test_a_fault_far_behind_the_beginning_of_a_file_is_told_like_one_at_its_front(tmp_path):
    text = b"many words in one line. " * 20_000
    (tmp_path / "late.txt").write_bytes(text + b"caf\xe9 au lait")
    with pytest.raises(UserError, match=rf"late.txt is not UTF-8: byte {len(text) + 3} is 0xe9"):
        list(read_documents(str(tmp_path / "late.txt")))
    (tmp_path / "cut.txt.gz").write_bytes(gzip.compress(random.Random(0).randbytes(200_000).hex().encode())[:100_000])
    with pytest.raises(UserError, match=r"cut.txt.gz is a damaged gzip file"):
        list(read_documents(str(tmp_path / "cut.txt.gz")))
