"""Local files: which ones a source means, and a report of what was found in them."""

import glob
import importlib.util
import itertools
import json
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from smallm_hf.base.errors import UserError, printable

ROW_SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".arrow")
HTML_SUFFIXES = (".html", ".htm", ".xhtml")
OFFICE_LIBRARIES = {".docx": "docx", ".odt": "odfdo", ".rtf": "striprtf", ".pdf": "pypdf"}  # as they are imported
SUFFIXES = (".txt", ".md", *HTML_SUFFIXES, ".epub", *OFFICE_LIBRARIES, *ROW_SUFFIXES)
CODE_SUFFIXES = {
    *(".bash", ".c", ".cc", ".cpp", ".cs", ".css", ".cu", ".cuh", ".dart", ".el", ".ex", ".exs", ".f90", ".go", ".h"),
    *(".hpp", ".hs", ".ini", ".ipynb", ".java", ".jl", ".js", ".jsx", ".kt", ".lisp", ".lua", ".m", ".mjs", ".ml"),
    *(".php", ".pl", ".pm", ".ps1", ".py", ".pyi", ".pyx", ".r", ".rb", ".rs", ".scala", ".scm", ".scss", ".sh"),
    *(".sql", ".svelte", ".swift", ".toml", ".ts", ".tsx", ".vue", ".yaml", ".yml", ".zig"),
}
SETTINGS_SUFFIXES = {".ini", ".ipynb", ".toml", ".yaml", ".yml"}  # code that is read where it is named, not in a folder
COMPRESSED = (".gz", ".zst")
PARALLEL_ENDS = tuple(text + end for text in ("", ".txt") for end in ("", *COMPRESSED))  # behind the language
PIECE_CHARACTERS = 1 << 20  # of a document or a file, held at a time
SAVED, DATA_SET_DICT = ("state.json", "dataset_info.json"), "dataset_dict.json"  # of `save_to_disk`

BY_KIND = ("passed_over", "source_code")  # of these notes all are shown
KINDS_SHOWN = 12

NOTES = {  # the lists of a `ReadingReport`, an entry for each file or kind of file, and their headings
    "passed_over": "files of the folder passed over, by kind",
    "source_code": "files of source code, read as they are, by kind",
    "bad_files": "files skipped, or left from a fault on",
    "other_tables": "tables without the text column passed over",
    "guessed_encodings": "files that are not UTF-8, whose encoding was guessed (data.encoding states it)",
    "wrongly_declared": "files that say another encoding than they have (at most 20 are noted)",
    "guessed_separators": "tables whose separator was guessed (data.separator states it)",
    "nul_bytes": "files with NUL bytes or characters (cleaning, if it is on, removes them)",
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
    passed_over: list[str] = field(default_factory=list)
    source_code: list[str] = field(default_factory=list)
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

    def add(self, other: "ReadingReport") -> None:
        """Takes in what reading other files came across."""
        for name, found in vars(other).items():
            own = getattr(self, name)
            if isinstance(own, dict):
                own |= {key: own.get(key, 0) + number for key, number in found.items()}
            else:
                setattr(self, name, own + found)

    @property
    def lines(self) -> list[str]:
        """What to print on the terminal, a line for each kind of note."""
        said = []
        for kind, heading in NOTES.items():
            if notes := getattr(self, kind):
                first = f"{f'{len(notes):,}, the first: ' if len(notes) > 1 else ''}{notes[0]}"
                said.append(f"{heading}: {', '.join(notes) if kind in BY_KIND else first}")
        return said


def local_files(
    source: str, columns: Sequence[str] = (), report: ReadingReport | None = None
) -> list[tuple[str, Path]] | None:
    """Returns the (name below the source, path) of each local file of a source, sorted by name.

    A folder gives all files below it with a known suffix, if what reads them is installed; a data set saved by
    `save_to_disk` is one entry, its folder. What else is in it, but for hidden files, is counted in the `report`.
    Names are Unicode, with other bytes escaped. The files of pairs, which have two `columns`, may be `parallel_texts`.
    None if the source can only be a Hub data set.

    Raises:
        UserError: a path or glob without files, or one that is not Unicode.
    """
    if printable(source) != source:
        raise UserError(f"data source {source}: its name is not UTF-8; rename it, or give the folder that it lies in")
    path, others = Path(source).expanduser(), list[Path]()
    if parallel := parallel_texts(source, columns):
        return [(file.name, file) for file in parallel]
    if path.is_file():
        return [(path.name, path)]
    if path.is_dir():
        root, candidates = path, []
        for file in path.rglob("*"):
            if file.is_file() and not _is_hidden(file.relative_to(path)):
                (candidates if _is_read(file) else others).append(file)
        others.sort()
    elif glob.has_magic(source):
        root = Path(*itertools.takewhile(lambda part: not glob.has_magic(part), path.parts))
        candidates = map(Path, glob.glob(str(path), recursive=True))
    elif source.startswith((".", "~")) or path.is_absolute() or source.count("/") > 1 or suffix_of(path) in SUFFIXES:
        raise UserError(f"data source {source}: no such file or folder; check the path (now in {Path.cwd()})")
    else:
        return None
    found = {_saved_folder(file) or file for file in candidates if file.is_file() and file.name != DATA_SET_DICT}
    named = ((printable(file.relative_to(root).as_posix()) if file != root else "dataset", file) for file in found)
    files = sorted((name, file) for name, file in named if not _is_hidden(Path(name)))
    if not files:
        held = f"files of text, only {', '.join(kinds(others))}" if others else "files"
        raise UserError(
            f"data source {source} has no {held}; expected some of *{', *'.join(SUFFIXES)} (also "
            f"{', '.join(COMPRESSED)}), or source code"
        )
    if report is not None:
        others = [file for file in others if file.parent not in found]  # beside the rows of a saved data set
        report.passed_over = kinds(others)
        code = [file for _, file in files if suffix_of(file) in CODE_SUFFIXES]
        report.source_code = kinds(code) if path.is_dir() else []
    return files


def file_runs(source: str, columns: Sequence[str], run_bytes: int) -> list[tuple[int, int]]:
    """Cuts the local files of a source into runs of `run_bytes` or more: the number of the first, and behind the last.

    Empty for a source that is not read file by file: a data set, a parallel text, or a folder of splits.
    """
    files = None if parallel_texts(source, columns) or saved_splits(source) is not None else local_files(source)
    runs, first, held = [], 0, 0
    for number, (_, path) in enumerate(files or (), start=1):
        held += path.stat().st_size if path.is_file() else sum(file.stat().st_size for file in path.iterdir())
        if held >= run_bytes or number == len(files):
            runs.append((first, number))
            first, held = number, 0
    return runs


def lacking_library(path: Path) -> str | None:
    """The library that reading a file needs and that is not installed, as it is imported; None without one."""
    name = OFFICE_LIBRARIES.get(suffix_of(path))
    return name if name and importlib.util.find_spec(name) is None else None


def kinds(files: Iterable[Path]) -> list[str]:
    """How many files there are of each suffix, the commonest first, each with the name of one."""
    by_suffix: dict[str, list[Path]] = {}
    for file in files:
        by_suffix.setdefault(suffix_of(file) or "without a suffix", []).append(file)
    shown = sorted(by_suffix.items(), key=lambda item: -len(item[1]))
    texts = []
    for suffix, alike in shown[:KINDS_SHOWN]:
        reads = ' (pip install "smallm_hf[documents]" reads them)' if lacking_library(alike[0]) else ""
        texts.append(f"{len(alike):,} {suffix} such as {printable(alike[0].name)}{reads}")
    if rest := sum(len(alike) for _, alike in shown[KINDS_SHOWN:]):
        texts.append(f"{rest:,} of other kinds")
    return texts


def _is_read(file: Path) -> bool:
    suffix = suffix_of(file)
    is_code = suffix in CODE_SUFFIXES and suffix not in SETTINGS_SUFFIXES
    return (suffix in SUFFIXES or is_code) and not lacking_library(file)


def _is_hidden(name: Path) -> bool:
    return any(part.startswith(".") for part in name.parts)


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
