"""Sources of text as a lazy stream of documents: local files, Hub data sets, and Python's own documentation.

The order and the ids are the same on every run, and no more than about a megabyte of a document is held at a time: a
longer one comes in consecutive pieces.
"""

import ast
import functools
import hashlib
import itertools
import json
import logging
import re
import sys
import sysconfig
import warnings
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from smallm_hf.base.errors import UserError
from smallm_hf.base.hub_access import require_hub
from smallm_hf.data.configuration import PYTHON_DOCS, Source
from smallm_hf.data.reading.files import (
    PIECE_CHARACTERS,
    ReadingReport,
    contents_of,
    local_files,
    saved_splits,
    suffix_of,
)
from smallm_hf.data.reading.formats import Found, in_parts, read_files, text_of
from smallm_hf.tokenizing.encoding import valid_unicode

INDENTED = re.compile(r"[ \t]+\S[^\n]*\n(?:[ \t]*\n)*[ \t]+\S")  # a line and the next one that is not blank
BEFORE_LAST_WORD = re.compile(r".+(?=[ \n]\S)", re.DOTALL)  # greedy: found from the end
CODE_SUFFIXES = {
    *(".bash", ".c", ".cc", ".cpp", ".cs", ".css", ".cu", ".cuh", ".dart", ".el", ".ex", ".exs", ".f90", ".go", ".h"),
    *(".hpp", ".hs", ".ini", ".ipynb", ".java", ".jl", ".js", ".jsx", ".kt", ".lisp", ".lua", ".m", ".mjs", ".ml"),
    *(".php", ".pl", ".pm", ".ps1", ".py", ".pyi", ".pyx", ".r", ".rb", ".rs", ".scala", ".scm", ".scss", ".sh"),
    *(".sql", ".svelte", ".swift", ".toml", ".ts", ".tsx", ".vue", ".yaml", ".yml", ".zig"),
}
NOT_DOCUMENTATION = {"test", "tests", "idlelib", "idle_test", "site-packages", "dist-packages", "pydoc_data", "lib2to3"}


Kind = Literal["text", "row", "code"]


@dataclass(frozen=True)
class Document:
    """A document without surrounding whitespace (see `strip_start`), or one piece of a long one.

    Args:
        text: valid Unicode; empty if the source holds an empty document.
        id: unique within its source and equal on every run; the pieces of a document share it.
        metadata: where it was found.
        piece: 0, 1, ... within the document. The texts of all pieces, joined, are the document.
        is_last: no piece follows.
        kind: a text of its own; a row of a table, a conversation among them; or a file of source code.
    """

    text: str
    id: str
    metadata: dict[str, Any] = field(default_factory=dict)
    piece: int = 0
    is_last: bool = True
    kind: Kind = "text"


def strip_start(text: str, kind: Kind) -> str:
    """Takes whitespace off the beginning; where that may be code, an indented line stays so if the next one is, too."""
    stripped = text.lstrip()
    line = text.rfind("\n", 0, len(text) - len(stripped)) + 1
    return text[line:] if kind != "text" and INDENTED.match(text, line) else stripped


def _kind(metadata: dict[str, Any]) -> Kind:
    if "row" in metadata:
        return "row"
    return "code" if suffix_of(Path(metadata.get("file", ""))) in CODE_SUFFIXES else "text"


def cut_pieces(id: str, metadata: dict[str, Any], parts: Iterable[str], kind: Kind | None = None) -> Iterator[Document]:
    """Joins the parts of one text, strips it, and yields it in pieces of about `PIECE_CHARACTERS`; at least one.

    Its kind, where it is not given, shows in where it was found.

    Pieces are cut just before the space or line end in front of a word. GPT-2's pre-tokenisation cuts there too, and
    takes the end of a text for such a place, so that the ids of the pieces, joined, are those of the text. Only a
    megabyte without such a place is cut elsewhere.
    """
    held, characters, enough, piece, kind = [], 0, PIECE_CHARACTERS, 0, kind or _kind(metadata)
    for part in parts:
        held.append(part)
        characters += len(part)
        if characters < enough:
            continue
        text = "".join(held) if piece else strip_start("".join(held), kind)
        cut = _last_cut(text) if len(text) >= PIECE_CHARACTERS else 0
        if cut:
            yield Document(valid_unicode(text[:cut]), id, metadata, piece, is_last=False, kind=kind)
            piece += 1
        held, characters = [text[cut:]], len(text) - cut
        enough = max(PIECE_CHARACTERS, 2 * characters)  # so that a part is not looked at time and again
    text = "".join(held).rstrip()
    yield Document(valid_unicode(text if piece else strip_start(text, kind)), id, metadata, piece, kind=kind)


def _last_cut(text: str) -> int:
    """Position before the last word and the space before it, or before the last letter; what follows is never blank."""
    match = BEFORE_LAST_WORD.match(text)
    return match.end() if match else max(0, len(text.rstrip()) - 1)


# --- the Hub ---------------------------------------------------------------------------------------------------------


def _read_hub(
    source: str, configuration: str | None, revision: str | None, split: str, streaming: bool, text_column: str
) -> Iterator[Found]:
    rows = _load_hub(source, configuration, split=split, revision=revision, streaming=streaming)
    if text_column in (rows.column_names or ()):  # a stream may not know them
        rows = rows.select_columns([text_column])
    for number, row in enumerate(rows, start=1):
        text = text_of(row, text_column, source, number)
        yield f"{source}/{split}#{number}", {"data_set": source, "split": split, "row": number}, in_parts(text)


def _load_hub(source: str, configuration: str | None, **options):
    """Loads one split: a stream, or memory-mapped from the local data sets cache, where a first use downloads it to."""
    import datasets

    offline = datasets.config.HF_HUB_OFFLINE
    try:
        require_hub(
            f"data source {source} is no file or folder here; as a Hub data set it",
            "give a local file or folder, --data.source PATH (and --data.validation_source PATH)",
        )
    except UserError:
        datasets.config.HF_HUB_OFFLINE = True  # the cache alone, without retries
        with suppress(Exception):  # the cache has not got it, in whatever way that shows
            return datasets.load_dataset(source, configuration, **options)
        raise
    finally:
        datasets.config.HF_HUB_OFFLINE = offline
    try:
        return datasets.load_dataset(source, configuration, **options)
    except (datasets.exceptions.DatasetsError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"data source {source} is no file or folder here, and as a Hub data set (configuration {configuration}, "
            f"split {options['split']}) it cannot be loaded: {reason}; check data.source, data.configuration, "
            "data.revision and data.split"
        ) from error


# --- Python's own documentation --------------------------------------------------------------------------------------


@functools.cache
def python_docs() -> tuple[tuple[str, dict, list[str]], ...]:
    """Returns (id, metadata, parts of the text) of the documentation inside this Python, about 2 MB.

    One document per module of the standard library, its docstrings under the names and signatures they explain, read
    from the source without importing it; and one per topic of `help()`.

    Raises:
        UserError: an installation without the library's source files.
    """
    found = []
    for name, path in _documented_modules():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # old escapes in other people's strings
                tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError):
            continue
        sections = list(_docstrings(tree, name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")))
        if sections:
            found.append((name, {"module": name}, ["\n\n".join(sections)]))
    if not found:
        raise UserError(
            f"data source {PYTHON_DOCS}: this Python has no library sources in {sysconfig.get_path('stdlib')}; "
            "give a local file or folder, --data.source PATH"
        )
    try:
        from pydoc_data.topics import topics
    except ImportError:  # some distributions package it apart
        topics = {}
    return (*found, *((f"topics/{name}", {"topic": name}, [topics[name]]) for name in sorted(topics)))


def _documented_modules() -> list[tuple[str, Path]]:
    root = Path(sysconfig.get_path("stdlib"))
    modules = ((path.relative_to(root), path) for path in root.rglob("*.py"))
    return sorted((name.as_posix(), path) for name, path in modules if NOT_DOCUMENTATION.isdisjoint(name.parts))


def _docstrings(node: ast.AST, name: str, signature: str = "") -> Iterator[str]:
    """Yields a heading and a docstring for the node and for all that is defined in it, in source order."""
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        docstring = ast.get_docstring(node)
        if docstring:
            yield f"{name}{signature}\n\n{docstring}"
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef):
            yield from _docstrings(child, f"{name}.{child.name}")
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _docstrings(child, f"{name}.{child.name}", f"({ast.unparse(child.args)})")
        elif isinstance(child, ast.stmt | ast.excepthandler):
            yield from _docstrings(child, name)


# --- the whole -------------------------------------------------------------------------------------------------------


def read_documents(
    source: str,
    *,
    configuration: str | None = None,
    revision: str | None = None,
    streaming: bool = False,
    split: str = "train",
    text_column: str = "text",
    encoding: str | None = None,
    separator: str | None = None,
    on_bad_file: Literal["error", "skip"] = "error",
    report: ReadingReport | None = None,
) -> Iterator[Document]:
    """Yields the documents of a source, in an order and with ids that are equal on every run; see `DataConfig`.

    Text is UTF-8, UTF-16 or UTF-32 by its byte order mark, or UTF-8; the encoding of any other is stated or guessed.
    What was guessed or left out is logged at the end if there is no report for it.

    Raises:
        UserError: while reading, for a missing source, a missing column, values that are no text, binary files, bytes
            of no known encoding, damaged files, or a Hub that does not answer.
    """
    reading = ReadingReport() if report is None else report
    if source == PYTHON_DOCS:
        found = python_docs()
    elif (files := local_files(source)) is not None:
        files = _of_split(source, files, split)
        how = Source(source, text_column=text_column, encoding=encoding, separator=separator)
        found = read_files(files, how, on_bad_file == "skip", reading)
    else:
        found = _read_hub(source, configuration, revision, split, streaming, text_column)
    try:
        for id, metadata, parts in found:
            yield from cut_pieces(id, metadata, parts)
    finally:
        for line in reading.lines if report is None else ():
            _log_once(f"{source}: {line}")


@functools.cache
def _log_once(line: str) -> None:
    logging.getLogger(__name__).warning(line)


def _of_split(source: str, files: list[tuple[str, Path]], split: str) -> list[tuple[str, Path]]:
    """Of a folder of saved splits the one that is asked for; all files of any other source."""
    if (splits := saved_splits(source)) is None:
        return files
    if split not in splits:
        raise UserError(f"data source {source} has no split {split!r}, only {splits}; set data.split to one of these")
    return [(name, path) for name, path in files if name == split]


def read_texts(source: str, **options) -> Iterator[str]:
    """Yields the same documents whole, as strings, leaving out empty ones; memory grows with the longest of them."""
    for _, pieces in itertools.groupby(read_documents(source, **options), key=lambda document: document.id):
        text = "".join(piece.text for piece in pieces)
        if text:
            yield text


def has_splits(source: str) -> bool:
    """Returns whether a source is a data set of the Hub, or a `DatasetDict` that was saved; others have no splits."""
    return source != PYTHON_DOCS and (local_files(source) is None or saved_splits(source) is not None)


def fingerprint_source(
    source: str,
    *,
    configuration: str | None = None,
    revision: str | None = None,
    split: str = "train",
    contents: bool = False,
) -> str:
    """Returns a sha256 that changes when the source does.

    Local files count with names, sizes and times, or with `contents` with names and every byte; Python's documentation
    with the version and its files' sizes; a Hub data set with its name only: token files once made from it are used
    again without asking the Hub.
    """
    if source == PYTHON_DOCS:
        facts = [sys.version, *((name, path.stat().st_size) for name, path in _documented_modules())]
    elif (files := local_files(source)) is not None:
        files = [(name, file) for name, path in files for file in contents_of(path)]
        facts = [(name, _sha256(path) if contents else _size_and_time(path)) for name, path in files]
    else:
        facts = [source, configuration, split, *([revision] if revision else [])]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _size_and_time(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns
