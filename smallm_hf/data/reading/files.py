"""Local files: which ones a source means, and a report of what was found in them."""

import glob
import itertools
import json
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from smallm_hf.base.errors import UserError, printable

ROW_SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".arrow")
HTML_SUFFIXES = (".html", ".htm", ".xhtml")
SUFFIXES = (".txt", ".md", *HTML_SUFFIXES, ".epub", *ROW_SUFFIXES)
COMPRESSED = (".gz", ".zst")
PARALLEL_ENDS = tuple(text + end for text in ("", ".txt") for end in ("", *COMPRESSED))  # behind the language
PIECE_CHARACTERS = 1 << 20  # of a document or a file, held at a time
SAVED, DATA_SET_DICT = ("state.json", "dataset_info.json"), "dataset_dict.json"  # of `save_to_disk`

NOTES = {  # the lists of a `ReadingReport`, an entry for each file, and their headings
    "bad_files": "files skipped, or left from a fault on",
    "other_tables": "tables without the text column passed over",
    "guessed_encodings": "files that are not UTF-8, whose encoding was guessed (data.encoding states it)",
    "wrongly_declared": "files that say another encoding than they have (at most 20 are noted)",
    "guessed_separators": "tables whose separator was guessed (data.separator states it)",
    "nul_bytes": "files with NUL bytes (cleaning, if it is on, removes them)",
    "empty_pairs": "pairs left out because their source or target is empty",
    "inner_marks": "files with <|endoftext|> that separates no documents, being inside a line or a row",
}


@dataclass
class ReadingReport:
    """What reading local files came across; `NOTES` says what the lists are about.

    Args:
        files: how many were opened.
        encodings: how many of them had which encoding.
        foreign_bytes: bytes that were not UTF-8 and were read as Windows-1252.
    """

    files: int = 0
    encodings: dict[str, int] = field(default_factory=dict)
    foreign_bytes: int = 0
    guessed_encodings: list[str] = field(default_factory=list)
    wrongly_declared: list[str] = field(default_factory=list)
    guessed_separators: list[str] = field(default_factory=list)
    nul_bytes: list[str] = field(default_factory=list)
    empty_pairs: list[str] = field(default_factory=list)
    inner_marks: list[str] = field(default_factory=list)
    bad_files: list[str] = field(default_factory=list)
    other_tables: list[str] = field(default_factory=list)

    @property
    def lines(self) -> list[str]:
        """What to print on the terminal, a line for each kind of note."""
        return [
            f"{heading}: {f'{len(notes):,}, the first: ' if len(notes) > 1 else ''}{notes[0]}"
            for kind, heading in NOTES.items()
            if (notes := getattr(self, kind))
        ]


def local_files(source: str, columns: Sequence[str] = ()) -> list[tuple[str, Path]] | None:
    """Returns the (name below the source, path) of each local file of a source, sorted by name.

    A folder gives all files below it with a known suffix; a data set saved by `save_to_disk` is one entry, its folder.
    Names are Unicode, with other bytes escaped. The files of pairs, which have two `columns`, may be `parallel_texts`.
    None if the source can only be a Hub data set.

    Raises:
        UserError: a path or glob without files, or one that is not Unicode.
    """
    if printable(source) != source:
        raise UserError(f"data source {source}: its name is not UTF-8; rename it, or give the folder that it lies in")
    path = Path(source).expanduser()
    if parallel := parallel_texts(source, columns):
        return [(file.name, file) for file in parallel]
    if path.is_file():
        return [(path.name, path)]
    if path.is_dir():
        root, candidates = path, (file for file in path.rglob("*") if suffix_of(file) in SUFFIXES)
    elif glob.has_magic(source):
        root = Path(*itertools.takewhile(lambda part: not glob.has_magic(part), path.parts))
        candidates = map(Path, glob.glob(str(path), recursive=True))
    elif source.startswith((".", "~")) or path.is_absolute() or source.count("/") > 1 or suffix_of(path) in SUFFIXES:
        raise UserError(f"data source {source}: no such file or folder; check the path (now in {Path.cwd()})")
    else:
        return None
    found = {_saved_folder(file) or file for file in candidates if file.is_file() and file.name != DATA_SET_DICT}
    named = ((printable(file.relative_to(root).as_posix()) if file != root else "dataset", file) for file in found)
    files = sorted((name, file) for name, file in named if not re.search(r"(^|/)\.", name))
    if not files:
        other = next((file.name for file in root.rglob("*") if file.is_file()), None) if path.is_dir() else None
        raise UserError(
            f"data source {source} has no {f'files of text, only such as {other}' if other else 'files'}; expected "
            f"some of *{', *'.join(SUFFIXES)} (also {', '.join(COMPRESSED)})"
        )
    return files


def parallel_texts(source: str, columns: Sequence[str]) -> list[Path] | None:
    """Returns the files of a parallel text, line by line: one for each column, by which their names end.

    With the columns de and en, `train` and `train.de.gz` both mean `train.de.gz` and `train.en.gz`.

    Raises:
        UserError: only one of the files is there.
    """
    path = Path(source).expanduser()
    if not columns or path.is_dir():
        return None
    names = [path.name.removesuffix(f".{columns[0]}{end}") for end in PARALLEL_ENDS] if path.is_file() else [path.name]
    stem = path.with_name(min(names, key=len))
    beside = [[stem.with_name(f"{stem.name}.{column}{end}") for end in PARALLEL_ENDS] for column in columns]
    found = [next(filter(Path.is_file, files), None) for files in beside]
    if not any(found):
        return None
    if None in found:
        lacking = columns[found.index(None)]
        raise UserError(
            f"data source {source}: there is {next(filter(None, found)).name}, and no {stem.name}.{lacking} beside it "
            f"(also {', '.join(PARALLEL_ENDS[1:])}); give both files of the parallel text names that differ in "
            f"{' and '.join(columns)} alone"
        )
    return found


def _saved_folder(file: Path) -> Path | None:
    """The folder saved by `save_to_disk` that a file is part of: only `datasets` knows which files hold rows."""
    if file.suffix == ".arrow" or file.name in SAVED:
        with suppress(OSError, ValueError, KeyError, TypeError):  # there is no state, or that of something else
            state = json.loads((file.parent / SAVED[0]).read_text(encoding="utf-8"))
            has_rows = any((file.parent / part["filename"]).is_file() for part in state["_data_files"])
            if has_rows or all(other.suffix == ".json" for other in file.parent.iterdir()):
                return file.parent
    return None


def saved_splits(source: str) -> list[str] | None:
    """Returns the splits of a folder saved by `DatasetDict.save_to_disk`, None for any other source."""
    path = Path(source).expanduser() / DATA_SET_DICT
    return json.loads(path.read_text(encoding="utf-8"))["splits"] if path.is_file() else None


def suffix_of(path: Path) -> str:
    """Returns the lower-case suffix that names a file's format, without that of a compression."""
    return Path(path.stem if path.suffix.lower() in COMPRESSED else path.name).suffix.lower()
