"""Local files: found, opened, decompressed, and decoded to text whatever their encoding is.

What was met on the way is told in a `ReadingReport`.
"""

import codecs
import functools
import glob
import gzip
import io
import itertools
import json
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from smallm_hf.base.errors import UserError, one_line, printable

ROW_SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".arrow")
HTML_SUFFIXES = (".html", ".htm", ".xhtml")
SUFFIXES = (".txt", ".md", *HTML_SUFFIXES, ".epub", *ROW_SUFFIXES)
COMPRESSED = (".gz", ".zst")
SAVED, DATA_SET_DICT = ("state.json", "dataset_info.json"), "dataset_dict.json"  # of `save_to_disk`
PIECE_CHARACTERS = 1 << 20  # of a document or a file, held at a time
BINARY_SAMPLE_BYTES = 1 << 16
HEADER_BYTES = 64  # in which a binary format that holds much text, such as an archive, shows itself
CONTROL_BYTES = bytes(set(range(32)) - set(b"\b\t\n\v\f\r\x1b"))
LARGEST_CONTROL_SHARE = 0.05
LARGEST_FOREIGN_SHARE = 0.25  # of the bytes of a block that are no UTF-8; more is no Western text in Windows-1252
BEFORE_BYTES, GUESSED_BYTES = 1 << 8, 1 << 17  # around the first that is not ASCII, by which an encoding is guessed
FEWEST_FOREIGN, SMALLEST_FOREIGN_SHARE = 8, 0.01  # of them that are not ASCII; by fewer every guess is a weak one
FIX_OF_BINARY = "give text, or name a parquet or gzip file .parquet or .gz"
ASCII = bytes(range(128))
CONTROL_CHARACTERS = re.compile(f"[{re.escape(CONTROL_BYTES.decode())}]")
STRAY = re.compile("[\udc80-\udcff]")  # bytes that are not UTF-8, decoded with surrogateescape
LETTERS = re.compile("[^\0-\x7f\udc80-\udcff]")  # of several bytes
BYTE_ORDER_MARKS = {  # longest first: one begins with another
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
WIDE = ("utf-16", "utf-32")
UNKNOWN = ("ascii", "utf-8")  # what the detection says where it does not know
WESTERN = ("ascii", "iso8859-1", "cp1252")  # each holds the one before it
DECLARATION = re.compile(
    rb"(?:Character set encoding|charset|encoding)\s*[=:]\s*[\"']?\s*([\w-]+(?: [\d-]+)?)", re.IGNORECASE
)
DECLARED_BYTES = 4096  # at the beginning of a file, in which it says its encoding
SHOWN = 20  # wrong declarations, of as many files


@dataclass
class ReadingReport:
    """What was met while local files were read; counted anew by each reading.

    Args:
        files: how many were opened.
        encodings: how many of them had which encoding.
        foreign_bytes: bytes that were no UTF-8 and were read as Windows-1252.
        guessed_encodings: files that are not UTF-8, and how they were read; none that say their encoding.
        wrongly_declared: files that say another encoding than they have: "name: says this, is that", the first 20.
        guessed_separators: tables whose separator had to be guessed.
        nul_bytes: files with NUL bytes, and where.
        inner_marks: files with `<|endoftext|>` where it separates nothing: in the middle of a line, or in a row.
        bad_files: what was wrong with the files that were skipped.
        other_tables: tables without the text column that lie in a folder beside texts or other tables.
    """

    files: int = 0
    encodings: dict[str, int] = field(default_factory=dict)
    foreign_bytes: int = 0
    guessed_encodings: list[str] = field(default_factory=list)
    wrongly_declared: list[str] = field(default_factory=list)
    guessed_separators: list[str] = field(default_factory=list)
    nul_bytes: list[str] = field(default_factory=list)
    inner_marks: list[str] = field(default_factory=list)
    bad_files: list[str] = field(default_factory=list)
    other_tables: list[str] = field(default_factory=list)

    @property
    def lines(self) -> list[str]:
        """What has to be said on the terminal, a line for each kind."""
        found = ((heading, getattr(self, kind)) for kind, heading in NOTES.items())
        return [
            f"{heading}: {f'{len(notes):,}, the first: ' if len(notes) > 1 else ''}{notes[0]}"
            for heading, notes in found
            if notes
        ]


NOTES = {  # lists of a `ReadingReport`, and what is said of them
    "bad_files": "files skipped, or left from a fault on",
    "other_tables": "tables without the text column passed over",
    "guessed_encodings": "files that are not UTF-8, whose encoding was guessed (data.encoding states it)",
    "wrongly_declared": "files that say another encoding than they have (at most 20 are noted)",
    "guessed_separators": "tables whose separator was guessed (data.separator states it)",
    "nul_bytes": "files with NUL bytes (cleaning, if it is on, removes them)",
    "inner_marks": "files with <|endoftext|> that separates no documents, being inside a line or a row",
}


# --- found -----------------------------------------------------------------------------------------------------------


def local_files(source: str) -> list[tuple[str, Path]] | None:
    """Finds what a source means on this disk: (name below the source, path) of its files, in order of name.

    A folder gives all files below it with a known suffix; a data set that `save_to_disk` has left is one entry, its
    folder. Names are Unicode; bytes that are not are escaped. None if the source can only be a Hub data set.

    Raises:
        UserError: a path or glob without files, or one that is not Unicode.
    """
    if printable(source) != source:
        raise UserError(f"data source {source}: its name is not UTF-8; rename it, or give the folder that it lies in")
    path = Path(source).expanduser()
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
    named = ((printable(_name_below(root, file)), file) for file in found)
    files = sorted((name, file) for name, file in named if not re.search(r"(^|/)\.", name))
    if not files:
        other = next((file.name for file in root.rglob("*") if file.is_file()), None) if path.is_dir() else None
        raise UserError(
            f"data source {source} has no {f'files of text, only such as {other}' if other else 'files'}; expected "
            f"some of *{', *'.join(SUFFIXES)} (also {', '.join(COMPRESSED)})"
        )
    return files


def _name_below(root: Path, file: Path) -> str:
    return file.relative_to(root).as_posix() if file != root else "dataset"


def _saved_folder(file: Path) -> Path | None:
    """The folder of a file that `Dataset.save_to_disk` has left: only the library knows which of them hold the rows."""
    if file.suffix == ".arrow" or file.name in SAVED:
        with suppress(OSError, ValueError, KeyError, TypeError):  # there is no state, or that of something else
            state = json.loads((file.parent / SAVED[0]).read_text(encoding="utf-8"))
            has_rows = any((file.parent / part["filename"]).is_file() for part in state["_data_files"])
            if has_rows or all(other.suffix == ".json" for other in file.parent.iterdir()):
                return file.parent
    return None


def saved_splits(source: str) -> list[str] | None:
    """The splits of a folder that `DatasetDict.save_to_disk` has left; None of all others."""
    path = Path(source).expanduser() / DATA_SET_DICT
    return json.loads(path.read_text(encoding="utf-8"))["splits"] if path.is_file() else None


def contents_of(path: Path) -> list[Path]:
    """The files of an entry of `local_files`."""
    return sorted(path.iterdir()) if path.is_dir() else [path]


def suffix_of(path: Path) -> str:
    """Returns what names the format of a file: its suffix in small letters, below that of a compression."""
    return Path(path.stem if path.suffix.lower() in COMPRESSED else path.name).suffix.lower()


# --- opened and decoded ----------------------------------------------------------------------------------------------


@contextmanager
def open_binary(path: Path) -> Iterator[io.BufferedIOBase]:
    """Opens a file, decompressed, and names it in whatever goes wrong while it is open.

    Raises:
        UserError: a file that cannot be read, or that is no whole gzip or zstd file.
    """
    try:
        with _decompressed(path) as file:
            yield file
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{path} is a damaged gzip file ({error}); fetch or compress it again") from error
    except PermissionError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); change its permissions") from error
    except OSError as error:
        if path.suffix.lower() != ".zst":
            raise UserError(f"{path} cannot be read ({one_line(error)}); repair or remove it") from error
        if "seekable" in str(error):
            raise UserError(f"{path} is read here and there, which zstd does not allow; decompress it") from error
        raise UserError(f"{path} is a damaged zstd file ({error}); fetch or compress it again") from error


def _decompressed(path: Path) -> io.BufferedIOBase:
    if path.suffix.lower() == ".gz":
        return gzip.open(path)
    if path.suffix.lower() == ".zst":
        import pyarrow

        # a path may be no Unicode, which pyarrow wants
        return io.BufferedReader(pyarrow.input_stream(path.open("rb"), compression="zstd"))
    return path.open("rb")


@contextmanager
def open_text(
    path: Path, report: ReadingReport, encoding: str | None = None, newline: str | None = None
) -> Iterator[io.TextIOBase]:
    """Opens a file as text, whatever its encoding, and reports what was met in it when it is closed.

    Args:
        path: of the file.
        report: what is met is written there.
        encoding: of a file that is neither UTF-8 nor marked by a byte order mark; None lets it say that, or guesses.
        newline: as in `open`.

    Raises:
        UserError: as `open_binary`, a binary file, or, while reading, bytes that are no text in the encoding.
    """
    with open_binary(path) as file:
        sample = file.read(BINARY_SAMPLE_BYTES)
        content = _ToUtf8(path, itertools.chain([sample], _blocks(file)), sample, encoding)
        if content.encoding is None:
            _refuse_binary(path, sample)
        with io.TextIOWrapper(io.BufferedReader(content), "utf-8-sig", newline=newline) as text:
            try:
                yield text
            finally:
                _report_content(content, report)


def _blocks(file: io.BufferedIOBase) -> Iterator[bytes]:
    return iter(functools.partial(file.read, PIECE_CHARACTERS), b"")


def _refuse_binary(path: Path, sample: bytes) -> None:
    if sample.startswith(b"%PDF-"):
        raise UserError(f"{path} is a PDF; give the text of it, for example by pdftotext")
    for part in (sample[:HEADER_BYTES], sample):
        controls = len(part) - len(part.translate(None, CONTROL_BYTES))
        if controls > LARGEST_CONTROL_SHARE * len(part):
            wide = _unmarked(sample)
            fix = f"if it is text in {wide}, set data.encoding to that" if wide else FIX_OF_BINARY
            raise UserError(
                f"{path} looks like a binary file ({controls} control bytes in its first {len(part)}); {fix}"
            )


def _unmarked(sample: bytes) -> str | None:
    """UTF-16 without a byte order mark: what it would be as such holds blanks and no control characters."""
    for encoding in ("utf-16-le", "utf-16-be"):
        text = sample[: len(sample) // 2 * 2].decode(encoding, "replace")
        if " " in text and "\ufffd" not in text[:-1] and not CONTROL_CHARACTERS.search(text):
            return encoding
    return None


def _declared(sample: bytes) -> str | None:
    """The encoding that a file says it has in its beginning, by its Python name; None if none that is known."""
    found = DECLARATION.search(sample[:DECLARED_BYTES])
    try:
        return codecs.lookup(found[1].decode().replace(" ", "-")).name if found else None
    except LookupError:
        return None


def _holds_ascii(encoding: str) -> bool:
    """Whether bytes of ASCII are ASCII and nothing else in an encoding, so that the first other byte tells it."""
    others = (letter.encode(encoding, "ignore") for letter in "éяあ한")
    is_same = ASCII.decode(encoding, "replace") == ASCII.decode()
    return is_same and not any(other and other.isascii() for other in others)


def _shown(encoding: str) -> str:
    """An encoding by the name that people know."""
    return encoding.replace("cp125", "windows-125")


def _guess(content: bytes) -> tuple[str, str | None]:
    """The likely encoding of bytes that are not UTF-8, and another one that is hardly less likely.

    What uchardet finds, but Windows-1252 where there is little to find it by: a Western text with a few letters beyond
    ASCII is the commonest case, and those of an Eastern one are many.
    """
    from resiliparse.parse.encoding import detect_encoding

    try:
        found = codecs.lookup(detect_encoding(content)).name
    except LookupError:  # it knows some that Python does not
        return "cp1252", None
    if found in UNKNOWN or found in WESTERN:
        return "cp1252", None
    foreign = len(content.translate(None, ASCII))
    is_strong = foreign >= max(FEWEST_FOREIGN, SMALLEST_FOREIGN_SHARE * len(content))
    return (found, None) if is_strong else ("cp1252", found)


def _report_content(content: "_ToUtf8", report: ReadingReport) -> None:
    name, is_marked = printable(content.path.name), content.sample.startswith(codecs.BOM_UTF8)
    plain = "ascii" if content.is_ascii else "utf-8 with byte order mark" if is_marked else "utf-8"
    actual = content.encoding or "utf-8"
    if actual == "utf-8" and content.foreign:
        actual = content.stray
    found = plain if actual == "utf-8" else _shown(actual)
    report.encodings[found] = report.encodings.get(found, 0) + 1
    report.foreign_bytes += content.foreign
    if content.note:
        report.guessed_encodings.append(f"{name}: {content.note}")
    if content.nul_bytes:
        report.nul_bytes.append(f"{name}: {content.nul_bytes:,} of them, the first in line {content.nul_line}")
    said = content.stated or _declared(content.sample)
    agrees = said in (None, actual) or found == "ascii" or (said in WESTERN and actual == "cp1252")
    if not agrees and len(report.wrongly_declared) < SHOWN:
        who = "data.encoding says" if content.stated else "says"
        report.wrongly_declared.append(f"{name}: {who} {said}, is {found}")


class _ToUtf8(io.RawIOBase):
    """Bytes of any encoding as UTF-8; which one it is shows in the first block that is not ASCII.

    If that is UTF-8, stray bytes in it and later are taken for Windows-1252, and counted. If not, the whole has the
    encoding that is stated or declared, or the one that is guessed.

    Args:
        path: named in errors.
        blocks: the bytes.
        sample: the first of them, in which a byte order mark or a declaration may stand.
        stated: the encoding of what is neither marked nor UTF-8, of which `utf-8` means that there is none.

    Raises:
        UserError: while reading, for bytes that are not in the encoding.
    """

    def __init__(self, path: Path, blocks: Iterator[bytes], sample: bytes, stated: str | None = None):
        self.path, self.blocks, self.sample = path, blocks, sample
        self.stated = codecs.lookup(stated).name if stated else None
        self.stray = self.stated or "cp1252"
        self.ready, self.pending = b"", b""
        self.offset = self.foreign = self.nul_bytes = self.nul_line = 0
        self.line = 1
        self.is_ascii = True
        self.note = ""
        self.encoding = next((name for mark, name in BYTE_ORDER_MARKS.items() if sample.startswith(mark)), None)
        self.is_marked = self.encoding is not None
        if not self.is_marked and self.stated and not _holds_ascii(self.stated):
            self.encoding = self.stated
        self.decoder = codecs.getincrementaldecoder(self.encoding)() if self.encoding else None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        while not self.ready:
            block = next(self.blocks, b"")
            self.is_ascii = self.is_ascii and block.isascii()
            if self.encoding is None and not block.isascii():
                self.encoding = self._choose(block)
                self.decoder = codecs.getincrementaldecoder(self.encoding)()
            is_strict = self.encoding not in (None, "utf-8") or (self.encoding and self.stated == "utf-8")
            text = self._strict(block) if is_strict else self._utf8(block)
            if "\0" in text:
                self.nul_line = self.nul_line or self.line + text.count("\n", 0, text.index("\0"))
                self.nul_bytes += text.count("\0")
            self.line += text.count("\n")
            self.ready = text.encode()
            if not block:
                break
        number = min(len(buffer), len(self.ready))
        buffer[:number], self.ready = self.ready[:number], self.ready[number:]
        return number

    def _choose(self, block: bytes) -> str:
        try:
            codecs.utf_8_decode(block, "strict", False)
            return "utf-8"
        except UnicodeDecodeError:
            text = block.decode("utf-8", "surrogateescape")
        if 2 * len(LETTERS.findall(text)) >= len(STRAY.findall(text)):  # of other encodings few pairs look like UTF-8
            return "utf-8"
        declared = _declared(self.sample)
        if self.stated or declared not in (None, "utf-8", *WESTERN, *WIDE):
            return self.stated or declared
        first = _first_beyond_ascii(block)
        encoding, other = _guess(block[max(0, first - BEFORE_BYTES) : first + GUESSED_BYTES])
        if encoding != "cp1252" or declared not in WESTERN:
            around = block[max(0, first - 30) : first + 30].decode(encoding, "ignore")
            line = self.line + block.count(b"\n", 0, first)
            could_be = f", could be {_shown(other)}" if other else ""
            self.note = f"read as {_shown(encoding)}{could_be}, as in line {line}: {' '.join(around.split())!r}"
        return encoding

    def _strict(self, block: bytes) -> str:
        before = len(self.decoder.getstate()[0])
        try:
            text = self.decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            if self.is_marked:
                raise UserError(f"{self.path} is damaged {self.encoding} ({error.reason}); save it again") from error
            raise self._neither(memoryview(error.object), error.start, before) from error
        if self.encoding == "cp1252":
            foreign = len(block.translate(None, ASCII))
            if foreign > LARGEST_FOREIGN_SHARE * len(block) + 16 and not self.stated:
                raise self._neither(memoryview(block), _first_beyond_ascii(block))
            self.foreign += foreign
        self.offset += len(block)
        return text

    def _utf8(self, block: bytes) -> str:
        content = memoryview(self.pending + block)
        parts, position, foreign, place = [], 0, 0, 0
        while True:
            try:
                text, used = codecs.utf_8_decode(content[position:], "strict", not block)
                break
            except UnicodeDecodeError as error:
                place = position + error.start
                try:
                    foreigner = bytes(content[place : place + 1]).decode(self.stray)
                except UnicodeDecodeError:
                    raise self._neither(content, place) from None
                parts += [str(content[position:place], "utf-8"), foreigner]
                position, foreign = place + 1, foreign + 1
                line = self.line + bytes(content[:place]).count(b"\n") if not self.note else 0
                self.note = self.note or f"stray bytes read as {_shown(self.stray)}, the first in line {line}"
        if foreign > LARGEST_FOREIGN_SHARE * len(content) + 16:
            raise self._neither(content, place)
        self.foreign += foreign if self.stray == "cp1252" else 0
        self.offset += position + used
        self.pending = bytes(content[position + used :])
        return "".join([*parts, text])

    def _neither(self, content: memoryview, place: int, held: int = 0) -> UserError:
        """The error of a byte in content, of which so many bytes were held from the block before."""
        line = self.line + bytes(content[:place]).count(b"\n")
        encoding = self.stray if self.encoding in (None, "utf-8") else self.encoding
        what = f"neither UTF-8 nor {_shown(encoding).replace('windows', 'Windows')}"
        fix = "re-encode the file, for example iconv -f KOI8-R -t UTF-8, or state its encoding as data.encoding"
        if self.stated:
            what, fix = f"not {self.stated}, as data.encoding says", "state the right one, or leave it out"
        offset = self.offset + place - held
        return UserError(f"{self.path} is {what}: byte {offset} is 0x{content[place]:02x} (line {line}); {fix}")


def _first_beyond_ascii(content: bytes) -> int:
    return next(index for index, byte in enumerate(content) if byte > 127)


def decoded(path: Path, content: bytes) -> str:
    """Returns the text of bytes that came out of a file, whatever their encoding; see `open_text`."""
    return io.BufferedReader(_ToUtf8(path, iter([content]), content)).read().decode("utf-8-sig")
