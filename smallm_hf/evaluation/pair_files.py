"""Minimal pairs from files: a sentence that is acceptable beside one that is not, in the form of BLiMP."""

import json
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from smallm_hf.base.command_line import is_main_process
from smallm_hf.base.errors import UserError

SENTENCES = ("sentence_good", "sentence_bad")


@dataclass(frozen=True)
class Paradigm:
    """Minimal pairs that differ in the same way.

    Attributes:
        uid: its name.
        field: the part of grammar it belongs to, such as `morphology`; None where the file does not say.
        term: the phenomenon, such as `anaphor_agreement`; None where the file does not say.
        pairs: the acceptable and the unacceptable sentence of each.
    """

    uid: str
    field: str | None
    term: str | None
    pairs: list[tuple[str, str]]


def read_paradigms(source: str, max_pairs: int | None = None) -> list[Paradigm]:
    """Reads minimal pairs: lines of JSON with `sentence_good`, `sentence_bad` and, as in BLiMP, `UID`, `field` and
    `linguistics_term`. Without a UID the file's name names the paradigm.

    A file of a folder or archive whose lines have neither sentence holds something else; it is passed over and named
    on stderr.

    Args:
        source: a file of such lines, a .zip of them, or a folder of both.
        max_pairs: the first so many of each paradigm; None takes all.

    Returns:
        The paradigms, by field and name.

    Raises:
        UserError: no such file, none with pairs in it, or a line that is not a pair.
    """
    paradigms: dict[str, Paradigm] = {}
    others = []
    for name, content in _files(Path(source).expanduser()):
        for number, row in _rows(name, content):
            missing = [column for column in SENTENCES if column not in row]
            if missing:
                wrong = (
                    f"{name} line {number} has no {' and no '.join(missing)}, only {', '.join(row)[:200] or 'nothing'}"
                )
                if number > 1 or len(missing) == 1:
                    raise UserError(f"{wrong}; a minimal pair has {' and '.join(SENTENCES)}")
                others.append(wrong)
                break
            pair = tuple(row[column] for column in SENTENCES)
            if not all(isinstance(sentence, str) and sentence.strip() for sentence in pair):
                raise UserError(f"{name} line {number} has a sentence that is empty or not text; repair or remove it")
            uid = str(row.get("UID") or Path(name).stem)
            # One file of BLiMP writes syntax/semantics where the others have syntax_semantics.
            field = str(row["field"]).replace("/", "_") if row.get("field") else None
            paradigm = paradigms.setdefault(uid, Paradigm(uid, field, row.get("linguistics_term"), []))
            if max_pairs is None or len(paradigm.pairs) < max_pairs:
                paradigm.pairs.append(pair)
    if not paradigms:
        raise UserError(
            f"{others[0] if others else f'{source} is empty'}; a minimal pair has {' and '.join(SENTENCES)}"
        )
    if others and is_main_process():
        print(*(f"passed over: {other}" for other in others), sep="\n", file=sys.stderr)
    return sorted(paradigms.values(), key=lambda paradigm: (paradigm.field or "", paradigm.uid))


def _files(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yields the name and the content of each file of lines, by name; hidden ones, as macOS leaves them, are none."""
    if path.is_dir():
        inside = [file for file in sorted(path.rglob("*")) if file.suffix in (".jsonl", ".zip") and _visible(file.name)]
        if not inside:
            raise UserError(f"{path} holds no .jsonl and no .zip; give minimal pairs in the form of BLiMP")
        for file in inside:
            yield from _files(file)
    elif path.suffix == ".zip":
        try:
            with zipfile.ZipFile(path) as archive:
                names = [name for name in sorted(archive.namelist()) if not name.endswith("/")]
                inside = [name for name in names if name.endswith(".jsonl") and _visible(Path(name).name)]
                if not inside:
                    raise UserError(
                        f"{path} holds no .jsonl, only {', '.join(names)[:200] or 'nothing'}; give BLiMP.zip"
                    )
                for name in inside:
                    yield f"{path}/{name}", archive.read(name)
        except (OSError, zipfile.BadZipFile, RuntimeError, NotImplementedError) as error:
            raise UserError(f"{path} cannot be unpacked ({error}); download it again") from error
    else:
        try:
            yield str(path), path.read_bytes()
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror}; give a .zip, a folder or a .jsonl") from error


def _visible(name: str) -> bool:
    return not name.startswith(".")


def _rows(name: str, content: bytes) -> Iterator[tuple[int, dict]]:
    """Yields the number and the object of each line; blank lines hold none."""
    for number, line in enumerate(content.splitlines(), start=1):
        if line.strip():
            try:
                row = json.loads(line.decode("utf-8-sig"))
            except ValueError as error:
                raise UserError(f"{name} line {number} is not JSON ({error}); repair or remove it") from error
            if not isinstance(row, dict):
                raise UserError(f"{name} line {number} is {type(row).__name__}, not an object with {SENTENCES[0]}")
            yield number, row
