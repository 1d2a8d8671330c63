import csv
import errno
import gzip
import json
import os
import random
import re
import shutil
import socket
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import pyarrow
import pytest
from huggingface_hub import constants
from pyarrow import parquet

import smallm_hf.data.reading.documents as documents_module
from smallm_hf.base.errors import UserError
from smallm_hf.data.reading import files, formats, hub, rows
from smallm_hf.data.reading.documents import (
    Document,
    cut_pieces,
    fingerprint_source,
    has_splits,
    read_documents,
    read_texts,
)
from smallm_hf.data.reading.files import ReadingReport, local_files
from smallm_hf.data.reading.formats import split_documents
from smallm_hf.data.reading.python_docs import python_docs
from smallm_hf.tokenizing.encoding import make_encoder
from smallm_hf.tokenizing.loading import load_tokenizer

COMPRESS = {".gz": gzip.compress, ".zst": lambda content: pyarrow.compress(content, "zstd", asbytes=True)}
TEXTS = ["one, two", 'three "four"\nfive', "sechs — süß"]


def texts(source, **options):
    return [document.text for document in read_documents(str(source), **options)]


def write_rows(path, rows, column="text"):
    """Writes rows of text in the format that the suffix names."""
    name = path.name.removesuffix(".gz").removesuffix(".zst")
    if name.endswith(".jsonl"):
        content = "".join(json.dumps({"id": i, column: text}) + "\n" for i, text in enumerate(rows))
    elif name.endswith(".json"):
        content = json.dumps([{"id": i, column: text} for i, text in enumerate(rows)], indent=1)
    elif name.endswith((".csv", ".tsv")):
        with path.open("w", newline="") as file:
            csv.writer(file, delimiter="," if ".csv" in name else "\t").writerows([("id", column), *enumerate(rows)])
        content = path.read_text()
    elif name.endswith(".arrow"):
        table = pyarrow.table({"id": range(len(rows)), column: rows})
        with pyarrow.ipc.new_stream(path, table.schema) as writer:
            writer.write_table(table)
        content = path.read_bytes()
    elif name.endswith(".parquet"):
        parquet.write_table(pyarrow.table({"id": range(len(rows)), column: rows}), path)
        content = path.read_bytes()
    else:
        content = "\n<|endoftext|>\n".join(rows)
    content = content if isinstance(content, bytes) else content.encode()
    path.write_bytes(COMPRESS.get(path.suffix, bytes)(content))


# --- what is read ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gz", ["", ".gz", ".zst"])
@pytest.mark.parametrize("suffix", [".txt", ".md", ".jsonl", ".json", ".csv", ".tsv", ".parquet", ".arrow"])
def test_every_format_gives_the_same_documents(tmp_path, suffix, gz):
    if gz == ".zst" and suffix in (".parquet", ".arrow"):
        pytest.skip("compressed inside, and not to be read from a stream")
    write_rows(tmp_path / f"data{suffix}{gz}", TEXTS)
    found = list(read_documents(str(tmp_path / f"data{suffix}{gz}")))
    assert [document.text for document in found] == TEXTS
    assert [document.id for document in found] == [f"data{suffix}{gz}#{number}" for number in (1, 2, 3)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<|endoftext|>\none<|endoftext|>\n <|endoftext|>\n<|endoftext|>\n\ntwo\n<|endoftext|>\n", ["one", "two"]),
        ("<|startoftext|>one<|endoftext|>\n<|startoftext|>two\nand<|endoftext|>\n", ["one", "two\nand"]),
        ("<|startoftext|>\none\n<|endoftext|>\n<|startoftext|>\ntwo\n<|endoftext|>", ["one", "two"]),
        ("one\n<|endoftext|>two<|endoftext|>  \r\nthree", ["one", "two", "three"]),
    ],
)
def test_marks_at_the_edges_of_lines_separate_documents(tmp_path, text, expected):
    (tmp_path / "a.txt").write_bytes(text.encode())
    report = ReadingReport()
    assert texts(tmp_path / "a.txt", report=report) == expected
    assert report.lines == []


def test_a_mark_inside_a_line_or_a_row_is_text_and_told(tmp_path):
    (tmp_path / "a.txt").write_text("one\nGPT-2 has <|endoftext|> for that\n<|endoftext|>\ntwo\n")
    write_rows(tmp_path / "b.jsonl", ["one", "two<|endoftext|>"])
    report = ReadingReport()
    assert texts(tmp_path, report=report) == [
        "one\nGPT-2 has <|endoftext|> for that",
        "two",
        "one",
        "two<|endoftext|>",
    ]
    (line,) = report.lines
    assert "<|endoftext|> that separates no documents" in line
    assert report.inner_marks == [
        "a.txt: 1 of them, the first is number 2",
        "b.jsonl: 1 of them, the first is number 2",
    ]


def test_a_mark_is_seen_wherever_a_long_line_is_cut(tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "PIECE_CHARACTERS", 50)
    for length in range(30, 60):
        (tmp_path / "a.txt").write_text("x" * length + "<|endoftext|>\n" + "y" * length + "<|endoftext|>")
        assert texts(tmp_path / "a.txt") == ["x" * length, "y" * length]


def test_separators_are_seen_behind_any_line_end(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"one\r\n<|endoftext|>\r\ntwo\r\nthree")
    assert texts(tmp_path / "a.txt") == ["one", "two\nthree"]


def test_a_file_without_separators_is_one_document(tmp_path):
    (tmp_path / "notes").write_text("\n\n one\n\ntwo \n")  # a suffix we do not know is text
    assert texts(tmp_path / "notes") == ["one\n\ntwo"]


@pytest.mark.parametrize(
    ("unit", "expected"),
    [
        ("line", ["anna", "anna", "bob", "a  long\tline", "last"]),
        ("paragraph", ["anna\nanna\n  bob", "a  long\tline", "last"]),
    ],
)
@pytest.mark.parametrize("held", [1000, 3])
def test_lines_or_paragraphs_may_be_documents(tmp_path, monkeypatch, unit, expected, held):
    (tmp_path / "names.txt").write_bytes(b"\n\nanna\nanna\r\n  bob\n \t\n\na  long\tline \n<|endoftext|>\nlast")
    monkeypatch.setattr(formats, "PIECE_CHARACTERS", held)  # lines come in parts
    found = list(read_documents(str(tmp_path), documents=unit))
    assert [document.text for document in found] == expected
    assert [document.id for document in found] == [f"names.txt#{number + 1}" for number in range(len(expected))]
    assert texts(tmp_path) == ["anna\nanna\n  bob\n \t\n\na  long\tline", "last"]


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
    monkeypatch.setattr(rows, "PIECE_CHARACTERS", 7)
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
    for module in (documents_module, formats):
        monkeypatch.setattr(module, "PIECE_CHARACTERS", 100)
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


# --- pages, books and chats ------------------------------------------------------------------------------------------

PAGE = """<html><head><title>No text</title><style>p {color: red}</style></head>
<body><nav><a href="/">Home</a></nav><h1>Héading</h1><p>One <i>two</i> three.</p><script>x()</script>
<p><span class="pagenum">[12]</span>Four</p><div class="pageno">13</div><footer>Imprint</footer></body></html>"""


@pytest.mark.parametrize("name", ["a.html", "a.htm.gz", "a.xhtml.zst"])
def test_of_a_page_the_text_that_is_seen_is_read(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(COMPRESS.get(path.suffix, bytes)(PAGE.encode()))
    assert texts(path) == ["Héading\n\nOne two three.\n\nFour"]


@pytest.mark.parametrize("before", ["", "\n ", "\ufeff", '<?xml version="1.0"?>\n<!DOCTYPE html PUBLIC "x">\n'])
def test_a_page_that_is_named_a_text_is_read_as_a_page(tmp_path, before):
    (tmp_path / "a.txt").write_text(before + PAGE)
    (tmp_path / "b.txt").write_text("A text about <html>\n" + before + PAGE)
    page, text = texts(tmp_path)
    assert page == "Héading\n\nOne two three.\n\nFour"
    assert text.startswith("A text about <html>")


def write_epub(path, chapters, extra_items="", spine=None, encoding="utf-8"):
    """Writes an EPUB whose manifest is in another order than its spine."""
    items = "".join(
        f'<item id="c{n}" href="text/c{n}%20x.xhtml" media-type="application/xhtml+xml"/>'
        for n in range(len(chapters))[::-1]
    )
    spine = spine or "".join(f'<itemref idref="c{n}"/>' for n in range(len(chapters)))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("mimetype", "application/epub+zip")
        archive.writestr(
            "META-INF/container.xml",
            '<container xmlns="urn:oasis:names:tc:opendocument:xmlns:container"><rootfiles>'
            '<rootfile full-path="OEBPS/book.opf"/></rootfiles></container>',
        )
        archive.writestr(
            "OEBPS/book.opf",
            f'<package xmlns="http://www.idpf.org/2007/opf"><manifest>{items}{extra_items}</manifest>'
            f"<spine>{spine}</spine></package>",
        )
        for number, chapter in enumerate(chapters):
            markup = f'<?xml version="1.0" encoding="{encoding}"?><html><body><p>{chapter}</p></body></html>'
            archive.writestr(f"OEBPS/text/c{number} x.xhtml", markup.encode(encoding))
        archive.writestr("OEBPS/nav.xhtml", "<html><body><nav>Contents</nav><p>Chapter One</p></body></html>")
    return path


def test_an_epub_is_read_in_the_order_of_its_spine_without_navigation(tmp_path):
    extra = (
        '<item id="nav" href="nav.xhtml" properties="nav" media-type="application/xhtml+xml"/>'
        '<item id="cover" href="cover.jpg" media-type="image/jpeg"/>'
    )
    refs = "".join(f'<itemref idref="{id}"/>' for id in ("nav", "c1", "c0", "cover"))
    refs += '<itemref idref="c2" linear="no"/>'
    path = write_epub(tmp_path / "b.epub", ["first", "sécond", "aside"], extra, refs, "iso-8859-1")
    (document,) = read_documents(str(path))
    assert document.text == "sécond\n\nfirst"
    assert document.id == "b.epub#1"


def test_an_epub_may_keep_its_chapters_anywhere_and_name_no_namespace(tmp_path):
    package = (
        '<package><manifest><item id="a" href="../text/a.xhtml#top" media-type="application/xhtml+xml"/></manifest>'
        '<spine><itemref idref="a"/></spine></package>'
    )
    with zipfile.ZipFile(tmp_path / "b.epub", "w") as archive:
        archive.writestr(
            "META-INF/container.xml", '<container><rootfiles><rootfile full-path="OPS/b.opf"/></rootfiles></container>'
        )
        archive.writestr("OPS/b.opf", package)
        archive.writestr("text/a.xhtml", "<html><body><p>first</p></body></html>")
    assert texts(tmp_path / "b.epub") == ["first"]
    with zipfile.ZipFile(tmp_path / "c.epub", "w") as archive:
        archive.writestr("META-INF/container.xml", '<container><rootfile full-path="b.opf"/></container>')
        archive.writestr("b.opf", "<package/>")
    with pytest.raises(UserError, match=r"c.epub is a broken EPUB \('no chapters in its spine'\)"):
        texts(tmp_path / "c.epub")


def test_a_broken_epub_is_named(tmp_path):
    path = write_epub(tmp_path / "b.epub", ["first"])
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"b.epub is a broken EPUB \(File is not a zip file\)"):
        texts(path)
    damaged = whole.replace(b"<p>first", b"<p>fi\0st")
    path.write_bytes(damaged)
    with pytest.raises(UserError, match=r"b.epub is a broken EPUB \(Bad CRC-32 for file"):
        texts(path)
    write_epub(path, ["first"], spine='<itemref idref="missing"/>')
    with pytest.raises(UserError, match=r"b.epub is a broken EPUB \('missing'\)"):
        texts(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("META-INF/container.xml", "<container")
    with pytest.raises(UserError, match=r"b.epub is a broken EPUB \(unclosed token"):
        texts(path)


def test_chats_are_read_as_conversations(tmp_path):
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": [{"type": "text", "text": "Hello"}]}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"messages": turns, "n": n}) + "\n" for n in range(2)))
    assert texts(tmp_path / "a.jsonl") == ["user: Hi\n\nassistant: Hello"] * 2
    (tmp_path / "b.json").write_text(json.dumps(turns))
    assert texts(tmp_path / "b.json") == ["user: Hi\n\nassistant: Hello"]
    (tmp_path / "c.json").write_text(json.dumps([{"text": "plain", "messages": turns}]))
    assert texts(tmp_path / "c.json") == ["plain"]
    sent = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": None}]
    (tmp_path / "s.json").write_text(json.dumps([{"conversations": sent}]))
    assert texts(tmp_path / "s.json") == ["human: Hi\n\ngpt:"]
    (tmp_path / "p.json").write_text(json.dumps([{"role": "user", "content": [{"image": 1}, {"text": "See"}]}]))
    assert texts(tmp_path / "p.json") == ["user: See"]
    (tmp_path / "o.json").write_text(json.dumps([{"role": "user", "content": {"text": "Hi"}}]))
    with pytest.raises(UserError, match=r"o.json row 1 has dict as the content of a message, not text"):
        texts(tmp_path / "o.json")
    (tmp_path / "d.json").write_text(json.dumps([{"messages": [{"from": "me"}]}]))
    with pytest.raises(UserError, match=r"d.json row 1 has a message without role and content"):
        texts(tmp_path / "d.json")


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.parquet", "a.arrow"])
@pytest.mark.parametrize("nothing", [None, [], [{"role": "user", "content": None}]])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_an_empty_or_null_conversation_is_an_empty_document(tmp_path, name, nothing, place):
    chats = [[{"role": "user", "content": word}] for word in ("one", "two")]
    chats.insert(place, nothing)
    table = pyarrow.table({"id": [1, 2, 3], "messages": chats})
    if name == "a.parquet":
        parquet.write_table(table, tmp_path / name)
    elif name == "a.arrow":
        with pyarrow.ipc.new_stream(tmp_path / name, table.schema) as writer:
            writer.write_table(table)
    else:
        rows = table.to_pylist()
        (tmp_path / name).write_text(json.dumps(rows) if name == "a.json" else "\n".join(map(json.dumps, rows)))
    expected = ["user: one", "user: two"]
    expected.insert(place, "")
    assert texts(tmp_path / name) == expected


def test_nulls_among_rows_messages_and_parts_are_empty(tmp_path):
    rows = [None, {"messages": None, "conversations": [{"from": None, "value": "one"}, None]}]
    rows.append({"messages": [{"role": "user", "content": [None, {"text": None}, {"image": 1}, "two"]}]})
    (tmp_path / "a.json").write_text(json.dumps(rows))
    assert texts(tmp_path / "a.json") == ["", "one", "user: two"]
    (tmp_path / "b.json").write_text(json.dumps([{"text": None}, {"text": None}, {"text": "three"}]))
    assert texts(tmp_path / "b.json") == ["", "", "three"]


def test_a_table_without_a_header_is_read_by_the_number_of_the_column(tmp_path):
    (tmp_path / "a.tsv").write_text("Hi.\tSalut !\nGo.\tVa !\n")
    assert texts(tmp_path / "a.tsv", text_column="2") == ["Salut !", "Va !"]
    (tmp_path / "a.csv").write_text("2,one\n1,two\n")  # the first cell is no name
    assert texts(tmp_path / "a.csv", text_column="2") == ["one", "two"]
    (tmp_path / "b.csv").write_text("2,1\none,two\n")
    assert texts(tmp_path / "b.csv", text_column="2") == ["one"]


def test_an_arrow_file_with_an_index_is_read_like_a_stream(tmp_path):
    table = pyarrow.table({"text": TEXTS * 200})
    with pyarrow.ipc.new_file(tmp_path / "a.arrow", table.schema) as writer:
        writer.write_table(table)
    assert texts(tmp_path / "a.arrow") == TEXTS * 200


# --- encodings -------------------------------------------------------------------------------------------------------

SENTENCE = "“It’s a café,” said Zoë – naïvely."


@pytest.mark.parametrize(
    ("content", "encoding"),
    [
        (SENTENCE.encode(), "utf-8"),
        (SENTENCE.encode("utf-8-sig"), "utf-8 with byte order mark"),
        (SENTENCE.encode("utf-16"), "utf-16"),
        (b"\xfe\xff" + SENTENCE.encode("utf-16-be"), "utf-16"),
        (SENTENCE.encode("utf-32"), "utf-32"),
        (SENTENCE.encode("cp1252"), "windows-1252"),
        (b"plain", "ascii"),
    ],
)
@pytest.mark.parametrize("form", ["{}", "first\r\n{}\rlast"])
def test_every_encoding_is_read_and_reported(tmp_path, content, encoding, form):
    codec = {"utf-8 with byte order mark": "utf-8-sig", "windows-1252": "cp1252"}.get(encoding, encoding)
    sentence = content.decode(codec)
    (tmp_path / "a.txt").write_bytes(form.format(sentence).encode(codec))
    report = ReadingReport()
    assert texts(tmp_path / "a.txt", report=report) == [form.format(sentence).replace("\r\n", "\n").replace("\r", "\n")]
    assert dict(report.encodings) == {encoding: 1}
    assert report.files == 1


@pytest.mark.parametrize("before", [0, 70_000, 1_048_570, 2_500_000])
def test_windows_1252_is_found_wherever_it_begins_also_across_blocks(tmp_path, before):
    text = "x" * before + " é" * 20 + SENTENCE + "\n" + "plain words " * 50
    (tmp_path / "a.txt").write_bytes(text.encode("cp1252"))
    report = ReadingReport()
    assert list(read_texts(str(tmp_path / "a.txt"), report=report)) == [text.strip()]
    assert report.foreign_bytes == sum(not character.isascii() for character in text)


@pytest.mark.parametrize("before", range(1_048_570, 1_048_580))
def test_letters_of_several_bytes_across_blocks_are_whole(tmp_path, before):
    text = "x" * before + "é😀" * 20 + "y" * 70_000 + "😀"
    (tmp_path / "a.txt").write_bytes(text.encode())
    assert list(read_texts(str(tmp_path / "a.txt"))) == [text]


def test_a_stray_byte_in_utf_8_is_read_as_what_it_is_likely_to_be(tmp_path):
    (tmp_path / "a.txt").write_bytes("né et ".encode() + b"n\xe9e, caf\xe9")
    report = ReadingReport()
    assert texts(tmp_path / "a.txt", report=report) == ["né et née, café"]
    assert report.foreign_bytes == 2


@pytest.mark.parametrize(
    ("declared", "codec", "wrong"),
    [
        ("UTF-8", "utf-8", []),
        ("ISO-8859-1", "cp1252", []),
        ("ISO-8859-1", "utf-8", ["a.txt: says iso8859-1, is utf-8"]),
        ("UTF-8", "cp1252", ["a.txt: says utf-8, is windows-1252"]),
        ("ISO Latin-1", "cp1252", []),
        ("KOI8-R", "koi8-r", []),
        ("no-such-thing", "utf-8", []),
    ],
)
def test_declarations_are_compared_with_what_is_there(tmp_path, declared, codec, wrong):
    text = "Character set encoding: {}\n\n{}".format(declared, "Привет" if codec == "koi8-r" else "café")
    (tmp_path / "a.txt").write_bytes(text.encode(codec))
    report = ReadingReport()
    assert texts(tmp_path / "a.txt", report=report) == [text]
    assert report.wrongly_declared == wrong


@pytest.mark.parametrize("said", ["declared", "stated"])
@pytest.mark.parametrize("text", ["Die Ü\xa0bung, die ist da.\n", "Ü\xa0bung für Jäger", "Au CAFÉ» dit-il\n" * 9])
def test_latin_1_that_says_so_is_not_taken_for_utf_8_whatever_its_bytes_look_like(tmp_path, said, text):
    text = text.strip() if said == "stated" else f"Character set encoding: ISO-8859-1\n\n{text.strip()}"
    (tmp_path / "a.txt").write_bytes(text.encode("iso8859-1"))
    report = ReadingReport()
    assert texts(tmp_path / "a.txt", encoding="iso8859-1" if said == "stated" else None, report=report) == [text]
    assert report.lines == []


def test_utf_8_that_says_latin_1_stays_utf_8_in_any_script(tmp_path):
    for text in ("Привет, мир", "naïve", "Żółć i gęś"):
        text = f"Character set encoding: ISO-8859-1\n\n{text}"
        (tmp_path / "a.txt").write_text(text, encoding="utf-8")
        report = ReadingReport()
        assert texts(tmp_path / "a.txt", report=report) == [text]
        assert report.wrongly_declared == ["a.txt: says iso8859-1, is utf-8"]


@pytest.mark.parametrize(
    "text",
    [
        "Über die Brücke gehen täglich Bären, weil die Straße schön ist.",
        "L’élève a étudié le théâtre à l’école — c’est ça.",
        "El niño comió una piña. ¿Cómo está? ¡Qué día!",
        "“Hello,” she said — it’s café time…",
    ],
)
def test_mac_roman_is_told_from_windows_1252_by_where_its_letters_stand(tmp_path, text):
    for codec in ("mac-roman", "cp1252"):
        (tmp_path / "a.txt").write_bytes(text.encode(codec))
        report = ReadingReport()
        assert texts(tmp_path / "a.txt", report=report) == [text]
        assert f"read as {codec.replace('cp', 'windows-')}" in report.lines[0]
    (tmp_path / "a.txt").write_bytes("One café only.".encode("mac-roman"))
    report = ReadingReport()
    assert texts(tmp_path / "a.txt", report=report) == ["One cafŽ only."]
    assert "windows-1252, could be mac-roman" in report.lines[0]


@pytest.mark.parametrize("declared", ["base64", "quoted-printable", "undefined"])
def test_a_declaration_that_names_no_encoding_of_text_is_none(tmp_path, declared):
    text = f"Content-Transfer-Encoding: {declared}\n\nOn mange au café, même à Noël."
    (tmp_path / "a.txt").write_bytes(text.encode("cp1252"))
    report = ReadingReport()
    assert texts(tmp_path / "a.txt", report=report) == [text]
    assert (report.encodings, report.wrongly_declared) == ({"windows-1252": 1}, [])


def test_the_encodings_of_the_shared_books_are_those_of_their_index(shared_data):
    report = ReadingReport()
    for _ in read_documents(str(shared_data / "books" / "*.txt"), report=report):
        pass
    with (shared_data / "books" / "INDEX.tsv").open() as file:
        index = [row["encoding"] for row in csv.DictReader(file, delimiter="\t")]
    names = {"ascii": "ascii", "utf-8": "utf-8", "utf-8-bom": "utf-8 with byte order mark", "latin-1": "windows-1252"}
    expected = {names[encoding]: index.count(encoding) for encoding in set(index)}
    assert dict(report.encodings) == expected


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
    with pytest.raises(
        UserError, match=rf"a{suffix} row 1 has no column 'text', only 'id', 'story'; set text_column to one of these"
    ):
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
    with pytest.raises(UserError, match=r"a.jsonl row 2 is not JSON \(Expecting value in line 2\)"):
        texts(tmp_path / "a.jsonl")
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n{"text": "tw')
    with pytest.raises(UserError, match=r"a.jsonl row 2 is not JSON \(Unterminated string"):
        texts(tmp_path / "a.jsonl")
    (tmp_path / "a.jsonl").write_text("[1]")
    with pytest.raises(UserError, match=r"a.jsonl row 1 is int, not an object"):
        texts(tmp_path / "a.jsonl")


@pytest.mark.parametrize("separator", [",", ";", "\t", "|", ", "])
def test_a_csv_file_may_have_another_separator_and_blanks_in_its_header(tmp_path, separator):
    (tmp_path / "a.csv").write_text(f"id{separator}text\n1{separator[0]}one two\n")
    report = ReadingReport()
    assert texts(tmp_path / "a.csv", report=report) == ["one two"]
    assert bool(report.lines) == (separator[0] != ",")


@pytest.mark.parametrize(
    ("content", "column", "expected", "told"),
    [
        ("id;notes, cleaned;text\n7;x;one, two\n8;y;three\n", "text", ["one, two", "three"], "';'"),
        ('"text, cleaned";"label"\n"one, two";"x"\n', "text, cleaned", ["one, two"], "';'"),
        ("label;text\n1;a, b, c\n2;d, e, f\n", "text", ["a, b, c", "d, e, f"], "';'"),
        ("1;Hi, you\n2;Ho, he\n3;x\n", "2", ["Hi, you", "Ho, he", "x"], "';'"),
        ('text;label\n"one, two;\n' + "three, four;\n" * 9999 + '";1\n', "label", ["1"], "';'"),
        ("text\nHello, world\nBye; you, and me\n", "text", ["Hello, world", "Bye; you, and me"], "none, it has one"),
        ('text\n"Hello, ""world"",\nand moon"\n', "text", ['Hello, "world",\nand moon'], "none, it has one"),
        ('text,label\n"one; two",1\n"three; four",2\n', "text", ["one; two", "three; four"], None),
        ("id^text\n1^one, two\n2^x\n", "text", ["one, two", "x"], "'^'"),
        ("1~one, two\n2~three; four\n", "2", ["one, two", "three; four"], "'~'"),
        ("sep=|\r\nid|text\r\n1|a,b\r\n", "text", ["a,b"], None),
    ],
)
def test_what_separates_the_columns_of_a_table_is_told_by_its_header_and_rows(
    tmp_path, content, column, expected, told
):
    (tmp_path / "a.csv").write_text(content, newline="")
    report = ReadingReport()
    assert texts(tmp_path / "a.csv", text_column=column, report=report) == expected
    assert [note.removeprefix("a.csv: ")[: len(told or "")] for note in report.guessed_separators] == [told] * bool(
        told
    )


def test_a_separator_may_be_stated(tmp_path):
    (tmp_path / "a.csv").write_text("id.text\n1.one, two; three\n")
    with pytest.raises(UserError, match=r"a.csv has one column, 'id.text', and none 'text'; .*or data.separator"):
        texts(tmp_path / "a.csv")
    (tmp_path / "a.csv").write_text("id:text\n1:one, two; three\n")
    report = ReadingReport()
    assert texts(tmp_path / "a.csv", separator=":", report=report) == ["one, two; three"]
    assert report.lines == []
    (tmp_path / "a.tsv").write_text("id\ttext\n1\tone, two\n")
    for separator in (None, r"\t", "tab", "\t"):
        assert texts(tmp_path / "a.tsv", separator=separator) == ["one, two"]
    with pytest.raises(UserError, match="data.separator='::' is not one character"):
        texts(tmp_path / "a.csv", separator="::")


def test_a_tsv_file_whose_header_is_cut_by_commas_is_read_and_told(tmp_path):
    (tmp_path / "a.tsv").write_text("id,text\n1,one\n")
    report = ReadingReport()
    assert texts(tmp_path / "a.tsv", report=report) == ["one"]
    assert report.guessed_separators == ["a.tsv: ','"]


def test_a_csv_file_without_a_header_is_told_to_number_its_columns(tmp_path):
    (tmp_path / "a.csv").write_text("1,one\n2,two\n")
    with pytest.raises(UserError, match=r"no column 'text', only '1', 'one'; .*or to the number of a column, from 1"):
        texts(tmp_path / "a.csv")
    (tmp_path / "a.csv").write_text("one\ntwo\n")
    with pytest.raises(
        UserError, match=r"one column, 'one', and none 'text'; set data.text_column \(to 1 if that is no"
    ):
        texts(tmp_path / "a.csv")


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.parquet"])
def test_a_nul_in_a_row_is_told(tmp_path, name):
    write_rows(tmp_path / name, ["one", "tw\0o"])
    report = ReadingReport()
    assert texts(tmp_path / name, report=report) == ["one", "tw\0o"]
    assert report.nul_bytes == [f"{name}: in 1 rows, the first is number 2"]


@pytest.mark.parametrize(
    "content",
    [
        ["one", "two"],
        {"rows": [{"text": "one"}, {"text": "two"}]},
        {"features": [], "rows": [{"row_idx": 0, "row": {"text": "one"}}, {"row_idx": 1, "row": {"text": "two"}}]},
        {"data": ["one", "two"]},
    ],
)
def test_json_may_be_a_list_of_strings_or_hold_its_rows_in_an_object(tmp_path, content):
    (tmp_path / "a.json").write_text(json.dumps(content))
    assert texts(tmp_path / "a.json") == ["one", "two"]


def test_what_a_folder_holds_beside_texts_is_counted_by_kind(tmp_path):
    for name in ("a.txt", "b.py", "c.log", "d.log", "e.html~", "Makefile", "f.yaml", ".git/g.log", "h/i.doc"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x = 1")
    report = ReadingReport()
    found = list(read_documents(str(tmp_path), report=report))
    assert [(document.id, document.kind) for document in found] == [("a.txt#1", "text"), ("b.py#1", "code")]
    counted = ["2 .log such as c.log", "1 without a suffix such as Makefile", "1 .html~ such as e.html~"]
    counted += ["1 .yaml such as f.yaml", "1 .doc such as i.doc"]
    assert report.passed_over == counted
    assert report.lines[0] == f"files of the folder passed over, by kind: {', '.join(counted)}"
    assert report.lines[1] == "files of source code, read as they are, by kind: 1 .py such as b.py"


def test_a_file_whose_library_is_missing_is_counted_or_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "OFFICE_LIBRARIES", {".docx": "no_such_library"})
    for name in ("a.txt", "b.docx"):
        (tmp_path / name).write_text("one")
    report = ReadingReport()
    assert texts(tmp_path, report=report) == ["one"]
    assert report.passed_over == ['1 .docx such as b.docx (pip install "smallm_hf[documents]" reads them)']
    with pytest.raises(UserError, match=r"b.docx needs no_such_library to be read; pip install"):
        texts(tmp_path / "b.docx")


RTF = rb"{\rtf1\ansi\ansicpg1252 Caf\'e9 {\b bold}\par Two}"


def test_files_of_word_processors_and_pdf_are_read_by_their_libraries(tmp_path):
    docx, odfdo, pypdf = map(pytest.importorskip, ("docx", "odfdo", "pypdf"))
    pytest.importorskip("striprtf")
    from docx.oxml import parse_xml

    names = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'
    document = docx.Document()
    document.add_heading("Title")
    changed = document.add_paragraph("Text ")._p
    changed.append(parse_xml(f"<w:ins {names}><w:r><w:t>put in</w:t></w:r></w:ins>"))
    changed.append(parse_xml(f"<w:del {names}><w:r><w:delText>gone</w:delText></w:r></w:del>"))
    for number, cell in enumerate(document.add_table(1, 2).rows[0].cells):
        cell.text = str(number)
    document.save(tmp_path / "a.docx")
    document = odfdo.Document("text")
    document.body.clear()
    document.body.append(odfdo.Header(1, "Title"))
    paragraph = odfdo.Paragraph("Text.")
    paragraph.insert_note(after="Text", note_id="1", citation="1", body="Note.")
    document.body.append(paragraph)
    document.save(tmp_path / "b.odt")
    (tmp_path / "c.rtf").write_bytes(RTF)
    assert texts(tmp_path) == ["Title\n\nText put in\n\n0\t1", "Title\n\nText[1].\n\nNote.", "Café bold\nTwo"]
    writer = pypdf.PdfWriter()
    writer.add_blank_page(100, 100)
    writer.write(tmp_path / "d.pdf")
    with pytest.raises(UserError, match=r"d.pdf has no text in it, as a scan has none"):
        texts(tmp_path / "d.pdf")


def test_a_damaged_file_of_a_word_processor_is_an_error_alone_and_told_beside_texts(tmp_path):
    pytest.importorskip("docx")
    (tmp_path / "a.docx").write_bytes(b"PK\3\4xx")
    with pytest.raises(UserError, match=r"a.docx is not a readable .docx file \(.*\); save it again"):
        texts(tmp_path)
    (tmp_path / "b.txt").write_text("one")
    report = ReadingReport()
    assert "".join(texts(tmp_path, report=report)) == "one"
    assert "a.docx is not a readable .docx" in report.bad_files[0]


def test_suffixes_may_be_of_capitals(tmp_path):
    for suffix, compress in COMPRESS.items():
        (tmp_path / f"A.TXT{suffix.upper()}").write_bytes(compress(b"one"))
        assert texts(tmp_path / f"A.TXT{suffix.upper()}") == ["one"]
    assert len(local_files(str(tmp_path))) == 2


def test_a_parquet_file_inside_of_zstd_is_told_to_be_decompressed(tmp_path):
    write_rows(tmp_path / "a.parquet.zst", TEXTS)
    with pytest.raises(UserError, match=r"a.parquet.zst needs random access, which zstd does not allow; decompress"):
        texts(tmp_path / "a.parquet.zst")


def test_csv_rows_with_unquoted_commas_are_refused_not_cut(tmp_path):
    (tmp_path / "a.csv").write_text("id,text\n1,Hello, world\n")
    with pytest.raises(UserError, match=r"a.csv line 2 has 3 fields, the header 2; put fields that hold"):
        texts(tmp_path / "a.csv")


@pytest.mark.parametrize("content", [b"text\0more", bytes(range(1, 32)) * 9, b"\x89PNG\r\n\x1a\n\0\0"])
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv", "a"])
def test_a_binary_file_is_no_text(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=rf"{name} looks like a binary file"):
        texts(tmp_path / name)


def test_archives_and_other_formats_that_hold_much_text_are_no_text(tmp_path):
    (tmp_path / "text").write_text("many words\n" * 9999)
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(tmp_path / "text")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(tmp_path / "text")
    for name in ("a.tar", "a.zip"):
        with pytest.raises(UserError, match=rf"{name} looks like a binary file"):
            texts(tmp_path / name)
    (tmp_path / "a.pdf").write_text("%PDF-1.4\n" + "text\n" * 99)
    with pytest.raises(UserError, match=r"a.pdf (is not a readable .pdf file|needs pypdf)"):
        texts(tmp_path / "a.pdf")


@pytest.mark.parametrize("place", [0, 40, 500, 80_000, 2_000_000])
def test_a_nul_byte_is_handed_on_wherever_it_stands_and_told_with_its_line(tmp_path, place):
    text = "one two three\n" * 200_000
    (tmp_path / "a.txt").write_text(text[:place] + "\0" + text[place:])
    report = ReadingReport()
    (found,) = read_texts(str(tmp_path / "a.txt"), report=report)
    assert found.replace("\0", "") == text.strip()
    (line,) = report.lines
    assert line.endswith(f"a.txt: 1 of them, the first in line {place // 14 + 1}")


@pytest.mark.parametrize("offset", [3, 70_000, 2_000_001])
def test_bytes_of_no_encoding_are_named_with_their_place(tmp_path, offset):
    (tmp_path / "a.txt").write_bytes(("é" * (offset // 2) + "x" * (offset % 2)).encode() + b"\x81 what")
    with pytest.raises(UserError, match=rf"is neither UTF-8 nor Windows-1252: byte {offset} is 0x81 .line 1.; re-"):
        texts(tmp_path / "a.txt")


def test_another_alphabet_that_is_not_recognised_is_not_taken_for_a_western_one(tmp_path):
    (tmp_path / "a.txt").write_bytes("Привет, как дела? Спасибо, хорошо!".encode("mac_cyrillic"))
    with pytest.raises(UserError, match=r"is neither UTF-8 nor Windows-1252: byte \d+ is .*line 1.*data.encoding"):
        texts(tmp_path / "a.txt")


POLISH = "Litwo! Ojczyzno moja! ty jesteś jak zdrowie; Ile cię trzeba cenić, ten tylko się dowie, Kto cię stracił."
CZECH = "Příliš žluťoučký kůň úpěl ďábelské ódy. Voda hučí po lučinách, bory šumí po skalinách."
RUSSIAN = "Мороз и солнце; день чудесный! Еще ты дремлешь, друг прелестный."
JAPANESE = "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。"


@pytest.mark.parametrize(
    ("text", "codec", "shown"),
    [
        (POLISH * 2, "cp1250", "windows-1250"),
        (POLISH * 2, "iso8859-2", "iso8859-2"),
        (CZECH, "cp1250", "windows-1250"),
        (RUSSIAN, "cp1251", "windows-1251"),
        (RUSSIAN, "koi8-r", "koi8-r"),
        (JAPANESE, "shift_jis", "shift_jis"),
        ("Le café est près de la forêt.", "cp1252", "windows-1252"),
    ],
)
@pytest.mark.parametrize("before", [0, 100_000])
def test_an_encoding_that_is_guessed_is_told_with_what_it_gives(tmp_path, text, codec, shown, before):
    text = "plain words\n" * (before // 12) + text
    (tmp_path / "a.txt").write_bytes(text.encode(codec))
    report = ReadingReport()
    assert "".join(texts(tmp_path / "a.txt", report=report)) == text
    (line,) = report.lines
    assert re.search(rf"not UTF-8.*data.encoding.*a.txt: read as {shown}.*line {before // 12 + 1}: '", line)


def test_a_weak_guess_is_windows_1252_and_says_what_else_it_could_be(tmp_path):
    (tmp_path / "a.txt").write_bytes(POLISH.encode("cp1250") + b" Plain." * 500)
    report = ReadingReport()
    assert texts(tmp_path / "a.txt", report=report)[0].startswith("Litwo! Ojczyzno moja! ty jesteœ jak zdrowie")
    assert "read as windows-1252, could be windows-1250" in report.lines[0]


@pytest.mark.parametrize("codec", ["cp1250", "koi8-r", "mac_cyrillic", "cp037", "utf-16-le", "shift_jis", "iso2022_jp"])
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv", "a.html"])
def test_a_stated_encoding_is_read_without_a_guess(tmp_path, codec, name):
    text = {"cp1250": POLISH, "cp037": "café", "shift_jis": JAPANESE, "iso2022_jp": JAPANESE}.get(codec, RUSSIAN)
    forms = {".jsonl": '{{"text": "{}"}}', ".csv": 'text,n\n"{}",1\n', ".html": "<html><body><p>{}</p></body></html>"}
    (tmp_path / name).write_bytes(forms.get(Path(name).suffix, "{}").format(text).encode(codec))
    if name == "a.html" and codec in ("cp037", "utf-16-le"):
        pytest.skip("a page is known by its first bytes")
    report = ReadingReport()
    assert texts(tmp_path / name, encoding=codec, report=report) == [text]
    assert report.lines == []


def test_a_stated_encoding_is_for_files_that_do_not_show_theirs(tmp_path):
    (tmp_path / "a.txt").write_bytes(POLISH.encode("cp1250"))
    (tmp_path / "b.txt").write_text(POLISH)
    (tmp_path / "c.txt").write_bytes(POLISH.encode("utf-16"))
    report = ReadingReport()
    assert texts(tmp_path, encoding="cp1250", report=report) == [POLISH] * 3
    assert report.wrongly_declared == [
        "b.txt: data.encoding says cp1250, is utf-8",
        "c.txt: data.encoding says cp1250, is utf-16",
    ]


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "shift_jis", "utf-16-le"])
def test_a_wrong_stated_encoding_is_one_line_with_the_place(tmp_path, encoding):
    (tmp_path / "a.txt").write_bytes(b"one\n" + POLISH.encode("cp1250") + b"\xff\xfe\xdc")
    with pytest.raises(
        UserError, match=rf"a.txt is not {encoding}, as data.encoding says: byte \d+ is 0x.*line "
    ) as info:
        texts(tmp_path / "a.txt", encoding=encoding)
    assert "\n" not in str(info.value)
    with pytest.raises(UserError, match="data.encoding=cp99 is not the name of an encoding"):
        texts(tmp_path / "a.txt", encoding="cp99")


def test_utf_16_without_a_byte_order_mark_is_told_what_to_state(tmp_path):
    for codec, text in (("utf-16-le", "plain words"), ("utf-16-be", RUSSIAN)):
        (tmp_path / "a.txt").write_bytes(text.encode(codec))
        with pytest.raises(UserError, match=f"looks like a binary file .*if it is text in {codec}, set data.encoding"):
            texts(tmp_path / "a.txt")
        assert texts(tmp_path / "a.txt", encoding=codec) == [text]


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


@pytest.mark.parametrize("rows", ["1,one\n2\n", "1,one\n2,two,three\n"])
def test_ragged_rows_are_named_by_their_line(tmp_path, rows):
    (tmp_path / "a.csv").write_text("id,text\n" + rows)
    with pytest.raises(UserError, match=r"a.csv line 3 has [13] fields, the header 2; put fields that hold separators"):
        texts(tmp_path / "a.csv")


@pytest.mark.parametrize("name", ["a.csv", "a.html", "a.jsonl"])
def test_a_row_too_long_to_hold_is_named_before_it_fills_the_memory(tmp_path, monkeypatch, name):
    monkeypatch.setattr(rows, "LONGEST_ROW", 1000)
    monkeypatch.setattr(rows, "PIECE_CHARACTERS", 100)
    monkeypatch.setattr(formats, "LONGEST_PAGE", 1000)
    before = '{"text": "' if name == "a.jsonl" else "text\n"
    (tmp_path / name).write_text(before + "x" * 5000)
    with pytest.raises(UserError, match=rf"{name} .*1000 characters"):
        texts(tmp_path / name)


def test_a_damaged_zstd_file_is_named(tmp_path):
    write_rows(tmp_path / "a.txt.zst", [str(number) for number in range(1000)])
    whole = (tmp_path / "a.txt.zst").read_bytes()
    for content in (whole[: len(whole) // 2], b"no zstd"):
        (tmp_path / "a.txt.zst").write_bytes(content)
        with pytest.raises(UserError, match=r"a.txt.zst is a damaged zstd file"):
            texts(tmp_path / "a.txt.zst")


def test_a_folder_of_images_is_told_what_is_read(tmp_path):
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0")
    with pytest.raises(
        UserError, match=r"no files of text, only 1 .png such as a.png; expected some of \*.txt, .*also .gz"
    ):
        texts(tmp_path)
    with pytest.raises(UserError, match=r"a.png looks like a binary file"):
        texts(tmp_path / "a.png")


def test_a_file_that_may_not_be_read_is_named_or_skipped(tmp_path, monkeypatch):
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text(name)
    opened = Path.open

    def refuse(path, *arguments, **options):
        if path.name == "a.txt":
            raise PermissionError(errno.EACCES, "Permission denied")
        return opened(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", refuse)  # root may read everything
    with pytest.raises(UserError, match=r"a.txt cannot be read \(Permission denied\); change its permissions"):
        texts(tmp_path)
    report = ReadingReport()
    assert texts(tmp_path, on_bad_file="skip", report=report) == ["b.txt"]
    assert len(report.bad_files) == 1


def test_a_file_that_a_disk_no_longer_gives_is_named(tmp_path, monkeypatch):
    (tmp_path / "a.txt").touch()

    def fail(*arguments, **options):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Path, "open", fail)
    with pytest.raises(UserError, match=r"a.txt cannot be read \(.*Input/output error\); repair or remove it"):
        texts(tmp_path / "a.txt")


def test_the_line_of_a_fault_is_named(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"one\ntwo\n" * 100_000 + b"x\x81")
    with pytest.raises(UserError, match=r"byte 800001 is 0x81 .line 200001."):
        texts(tmp_path / "a.txt")
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n\n' * 100_000 + '{"text": }\n')
    with pytest.raises(UserError, match=r"a.jsonl row 100001 is not JSON \(Expecting value in line 200001\)"):
        texts(tmp_path / "a.jsonl")
    (tmp_path / "a.csv").write_text('id,text\n1,one\n2,"two\n3,three\n')
    with pytest.raises(UserError, match=r"a.csv line 4 is not CSV \(unexpected end of data\)"):
        texts(tmp_path / "a.csv")


def test_an_index_beside_the_texts_of_a_folder_is_passed_over_and_reported(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "index.tsv").write_text("file\ttitle\na.txt\tA\n")
    report = ReadingReport()
    assert texts(tmp_path, report=report) == ["a"]
    assert report.other_tables == ["index.tsv"]
    (tmp_path / "a.txt").unlink()
    with pytest.raises(UserError, match=r"index.tsv row 1 has no column 'text'"):
        texts(tmp_path)


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "a.csv", "a.jsonl"])
def test_json_that_describes_the_tables_beside_it_is_passed_over_and_reported(tmp_path, name):
    write_rows(tmp_path / name, TEXTS)
    (tmp_path / "dataset_info.json").write_text('{"description": "of tables", "features": {}}')
    (tmp_path / "state.json").write_text('{"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}')
    (tmp_path / "splits.json").write_text('["train"]')
    report = ReadingReport()
    assert texts(tmp_path, report=report) == TEXTS
    assert report.other_tables == ["dataset_info.json", "splits.json", "state.json"]
    (tmp_path / name).unlink()
    write_rows(tmp_path / name, TEXTS, column="story")
    with pytest.raises(UserError, match=rf"{name} row 1 has no column 'text', only 'id', 'story'"):
        texts(tmp_path)


def test_files_whose_names_are_of_any_bytes_are_read(tmp_path):
    folder = os.fsencode(tmp_path)
    try:
        os.mkdir(folder + b"/\xc8\xfd")
    except OSError:
        pytest.skip("this file system wants names of Unicode")
    contents = {
        b"\xc8\xfd/\xb9.txt": b"caf\xe9 two",
        b"\xfc.txt.zst": COMPRESS[".zst"](b"three"),
        b"\xff.csv": b"a;text\n1;2",
    }
    for name, content in contents.items():
        Path(os.fsdecode(folder + b"/" + name)).write_bytes(content)
    Path(os.fsdecode(folder + b"/\xfd.jsonl")).write_text("{")
    report = ReadingReport()
    found = list(read_documents(str(tmp_path), on_bad_file="skip", report=report))
    assert [document.text for document in found] == ["café two", "three", "2"]
    said = [*report.lines, *report.bad_files, *(f"{document.id} {document.metadata}" for document in found)]
    assert "\n".join(said).encode()  # can be printed and kept
    with pytest.raises(
        UserError, match=r"its name is not UTF-8; rename it, or give the folder that it lies in"
    ) as info:
        texts(os.fsdecode(folder + b"/\xc8\xfd"))
    assert str(info.value).encode()


@pytest.fixture
def saved(tmp_path):
    """A folder of data sets as `save_to_disk` leaves them."""
    import datasets

    rows = datasets.Dataset.from_dict({"n": [1, 2, 3], "text": TEXTS})
    rows.save_to_disk(tmp_path / "saved" / "plain", num_shards=2)
    rows.select([2, 0]).save_to_disk(tmp_path / "saved" / "chosen")
    datasets.DatasetDict({"train": rows, "test": rows.select([1])}).save_to_disk(tmp_path / "saved" / "splits")
    return tmp_path / "saved"


def test_a_saved_data_set_is_read_by_its_library(saved):
    (saved / "plain" / "cache-1.arrow").write_bytes((saved / "plain" / "data-00000-of-00002.arrow").read_bytes())
    assert texts(saved / "plain") == TEXTS
    assert texts(saved / "chosen") == [TEXTS[2], TEXTS[0]]
    assert texts(saved) == [TEXTS[2], TEXTS[0], *TEXTS, TEXTS[1], *TEXTS]
    assert {document.id for document in read_documents(str(saved / "chosen"))} == {"dataset#1", "dataset#2"}
    before = fingerprint_source(str(saved / "plain"), contents=True)
    shutil.rmtree(saved / "chosen")
    assert fingerprint_source(str(saved / "plain"), contents=True) == before
    (saved / "plain" / "data-00001-of-00002.arrow").unlink()
    assert fingerprint_source(str(saved / "plain"), contents=True) != before
    with pytest.raises(UserError, match="plain is not a readable data set of save_to_disk"):
        texts(saved / "plain")
    (saved / "plain" / "data-00000-of-00002.arrow").unlink()
    (saved / "plain" / "cache-1.arrow").unlink()
    with pytest.raises(UserError, match="plain is not a readable data set of save_to_disk"):
        texts(saved / "plain")


def test_saved_splits_are_chosen_like_those_of_the_hub(saved):
    source = saved / "splits"
    assert has_splits(str(source))
    assert not has_splits(str(saved / "plain"))
    assert texts(source) == TEXTS
    assert texts(source, split="test") == [TEXTS[1]]
    with pytest.raises(UserError, match=r"splits has no split 'dev', only \['train', 'test'\]; set data.split"):
        texts(source, split="dev")


def test_what_was_guessed_is_logged_where_nobody_asks_for_it(tmp_path, caplog):
    (tmp_path / "a.txt").write_bytes(b"caf\xe9 au lait")
    list(read_texts(str(tmp_path / "a.txt")))
    assert "read as windows-1252" in caplog.text


def test_bad_files_are_left_from_their_fault_on_and_reported(tmp_path):
    for name in ("a.txt", "d.txt"):
        (tmp_path / name).write_text(name)
    (tmp_path / "b.jsonl").write_text('{"text": "b"}\n{"text": broken')
    noise = "\n".join(random.Random(n).randbytes(40).hex() for n in range(2000))
    (tmp_path / "c.txt.gz").write_bytes(gzip.compress(noise.encode())[:40_000])
    (tmp_path / "c.epub").write_bytes(b"no zip")
    with pytest.raises(UserError, match=r"b.jsonl row 2"):
        texts(tmp_path)
    report = ReadingReport()
    found = list(read_documents(str(tmp_path), on_bad_file="skip", report=report))
    assert [document.id for document in found if document.text] == ["a.txt#1", "b.jsonl#1", "c.txt.gz#1", "d.txt#1"]
    assert all(document.is_last for document in found)
    assert len(report.bad_files) == 3
    assert report.files == 5


# --- the Hub ---------------------------------------------------------------------------------------------------------


def test_an_unreachable_hub_names_both_readings_and_the_local_way(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{unused.getsockname()[1]}")
    began = time.monotonic()
    with pytest.raises(UserError, match=r"a/b is not a file.*; as a Hub data set.*--data.source PATH") as info:
        next(read_documents("a/b"))
    assert time.monotonic() - began < 10
    assert "\n" not in str(info.value)


def test_a_cached_data_set_loads_without_the_hub(cached_data_set):
    found = list(read_documents(cached_data_set, configuration="small", split="validation", text_column="story"))
    assert [document.text for document in found] == TEXTS
    assert found[0].id == f"{cached_data_set}/validation#1"


def test_a_revision_and_streaming_are_handed_on(monkeypatch):
    import datasets

    asked = {}

    def load(*arguments, **options):
        asked.update(options, arguments=arguments)
        return datasets.IterableDataset.from_generator(lambda: iter([{"text": "one"}, {"text": "two"}]))

    monkeypatch.setattr(hub, "require_hub", lambda *_: None)
    monkeypatch.setattr(datasets, "load_dataset", load)
    assert texts("a/b", configuration="small", revision="v1", streaming=True) == ["one", "two"]
    assert asked == {"arguments": ("a/b", "small"), "split": "train", "revision": "v1", "streaming": True}
    assert fingerprint_source("a/b", revision="v1") != fingerprint_source("a/b")


def test_a_wrong_column_of_a_data_set_is_named(cached_data_set):
    with pytest.raises(UserError, match=r"row 1 has no column 'text', only 'story', 'n'"):
        next(read_documents(cached_data_set, configuration="small", split="validation"))


def test_what_the_hub_has_not_got_is_told_in_one_line(monkeypatch):
    monkeypatch.setattr(hub, "require_hub", lambda *_: None)
    with pytest.raises(UserError, match=r"a/b is not a file.*, and as a Hub data set.*split train.*cannot be") as info:
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
    (tmp_path / "late.txt").write_bytes(text + b"caf\x9d au lait")
    with pytest.raises(UserError, match=rf"late.txt is neither .*: byte {len(text) + 3} is 0x9d"):
        list(read_documents(str(tmp_path / "late.txt")))
    (tmp_path / "cut.txt.gz").write_bytes(gzip.compress(random.Random(0).randbytes(200_000).hex().encode())[:100_000])
    with pytest.raises(UserError, match=r"cut.txt.gz is a damaged gzip file"):
        list(read_documents(str(tmp_path / "cut.txt.gz")))
