"""Local files: found, opened, decompressed, and decoded to text whatever their encoding is.

What was met on the way is told in a `ReadingReport`.
"""

import codecs
import functools
import glob
import gzip
import io
import itertools
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from smallm_hf.errors import UserError, one_line

ROW_SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".arrow")
HTML_SUFFIXES = (".html", ".htm", ".xhtml")
SUFFIXES = (".txt", ".md", *HTML_SUFFIXES, ".epub", *ROW_SUFFIXES)
COMPRESSED = (".gz", ".zst")
PIECE_CHARACTERS = 1 << 20  # of a document or a file, held at a time
BINARY_SAMPLE_BYTES = 1 << 16
CONTROL_BYTES = bytes(set(range(32)) - set(b"\b\t\n\v\f\r\x1b"))
LARGEST_CONTROL_SHARE = 0.05
LARGEST_FOREIGN_SHARE = 0.25  # of the bytes of a block that are no UTF-8; more is no Western text in Windows-1252
BYTE_ORDER_MARKS = {  # longest first: one begins with another
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
WIDE = ("utf-16", "utf-32")
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
        wrongly_declared: files that say another encoding than they have: "name: says this, is that", the first 20.
        bad_files: what was wrong with the files that were skipped.
        other_tables: tables without the text column that lie in a folder beside texts, such as an index of it.
    """

    files: int = 0
    encodings: dict[str, int] = field(default_factory=dict)
    foreign_bytes: int = 0
    wrongly_declared: list[str] = field(default_factory=list)
    bad_files: list[str] = field(default_factory=list)
    other_tables: list[str] = field(default_factory=list)


# --- found -----------------------------------------------------------------------------------------------------------


def local_files(source: str) -> list[tuple[str, Path]] | None:
    """Finds what a source means on this disk: (name below the source, path) of its files, in order of name.

    A folder gives all files below it with a known suffix. None if the source can only be a Hub data set.

    Raises:
        UserError: a path or glob without files.
    """
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
    named = ((file.relative_to(root).as_posix(), file) for file in candidates if file.is_file())
    files = sorted((name, file) for name, file in named if not re.search(r"(^|/)\.", name))
    if not files:
        other = next((file.name for file in root.rglob("*") if file.is_file()), None) if path.is_dir() else None
        raise UserError(
            f"data source {source} has no {f'files of text, only such as {other}' if other else 'files'}; expected "
            f"some of *{', *'.join(SUFFIXES)} (also {', '.join(COMPRESSED)})"
        )
    return files


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

        return io.BufferedReader(pyarrow.input_stream(str(path), compression="zstd"))
    return path.open("rb")


@contextmanager
def open_text(path: Path, report: ReadingReport, newline: str | None = None) -> Iterator[io.TextIOBase]:
    """Opens a file as text, whatever its encoding, and reports which that was when it is closed.

    Raises:
        UserError: as `open_binary`, a binary file, or, while reading, bytes that are no text in the encoding.
    """
    with open_binary(path) as file:
        sample = file.read(BINARY_SAMPLE_BYTES)
        encoding = _encoding(sample)
        controls = len(sample) - len(sample.translate(None, CONTROL_BYTES))
        if encoding not in WIDE and (b"\0" in sample or controls > LARGEST_CONTROL_SHARE * len(sample)):
            raise UserError(
                f"{path} looks like a binary file ({controls} control bytes in its first {len(sample)}); "
                "give text, or name a parquet or gzip file .parquet or .gz"
            )
        rest = iter(functools.partial(file.read, PIECE_CHARACTERS), b"")
        content = _ToUtf8(path, itertools.chain([sample], rest), encoding)
        with io.TextIOWrapper(io.BufferedReader(content), "utf-8-sig", newline=newline) as text:
            try:
                yield text
            finally:
                _report_encoding(path, sample, content, report)


def _encoding(sample: bytes) -> str:
    """UTF-8 unless a byte order mark says otherwise, or a declaration does that what follows agrees with."""
    for mark, encoding in BYTE_ORDER_MARKS.items():
        if sample.startswith(mark):
            return encoding
    declared = _declared(sample)
    if declared in (None, "utf-8", *WESTERN, *WIDE):
        return "utf-8"
    try:
        codecs.utf_8_decode(sample, "strict", False)
    except UnicodeDecodeError:
        return declared
    return "utf-8"


def _declared(sample: bytes) -> str | None:
    """The encoding that a file says it has in its beginning, by its Python name; None if none that is known."""
    found = DECLARATION.search(sample[:DECLARED_BYTES])
    try:
        return codecs.lookup(found[1].decode().replace(" ", "-")).name if found else None
    except LookupError:
        return None


def _report_encoding(path: Path, sample: bytes, content: "_ToUtf8", report: ReadingReport) -> None:
    is_marked = sample.startswith(codecs.BOM_UTF8)
    plain = "ascii" if content.is_ascii else "utf-8 with byte order mark" if is_marked else "utf-8"
    found = content.encoding if content.encoding != "utf-8" else "windows-1252" if content.foreign else plain
    report.encodings[found] = report.encodings.get(found, 0) + 1
    report.foreign_bytes += content.foreign
    said = _declared(sample)
    agrees = said in (None, found.split()[0]) or found == "ascii" or (said in WESTERN and found == "windows-1252")
    if not agrees and len(report.wrongly_declared) < SHOWN:
        report.wrongly_declared.append(f"{path.name}: says {said}, is {found}")


class _ToUtf8(io.RawIOBase):
    """Bytes of any encoding as UTF-8; what was to be UTF-8 and is not is taken for Windows-1252, and counted.

    Raises:
        UserError: while reading, for bytes that are neither.
    """

    def __init__(self, path: Path, blocks: Iterator[bytes], encoding: str):
        self.path, self.blocks, self.encoding = path, blocks, encoding
        self.decoder = codecs.getincrementaldecoder(encoding)()
        self.ready, self.pending = b"", b""
        self.offset = self.foreign = 0
        self.line = 1
        self.is_ascii = True

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        while not self.ready:
            block = next(self.blocks, b"")
            self.is_ascii = self.is_ascii and block.isascii()
            self.ready = (self._utf8(block) if self.encoding == "utf-8" else self._other(block)).encode()
            if not block:
                break
        number = min(len(buffer), len(self.ready))
        buffer[:number], self.ready = self.ready[:number], self.ready[number:]
        return number

    def _other(self, block: bytes) -> str:
        try:
            return self.decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            raise UserError(f"{self.path} is damaged {self.encoding} ({error.reason}); save it again") from error

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
                    foreigner = bytes(content[place : place + 1]).decode("cp1252")
                except UnicodeDecodeError:
                    raise self._neither(content, place) from None
                parts += [str(content[position:place], "utf-8"), foreigner]
                position, foreign = place + 1, foreign + 1
        if foreign > LARGEST_FOREIGN_SHARE * len(content) + 16:
            raise self._neither(content, place)
        self.foreign += foreign
        self.offset += position + used
        self.line += block.count(b"\n")  # what is pending is part of a letter
        self.pending = bytes(content[position + used :])
        return "".join([*parts, text])

    def _neither(self, content: memoryview, place: int) -> UserError:
        line = self.line + bytes(content[:place]).count(b"\n")
        return UserError(
            f"{self.path} is neither UTF-8 nor Windows-1252: byte {self.offset + place} is 0x"
            f"{content[place]:02x} (line {line}); re-encode the file, for example iconv -f KOI8-R -t UTF-8"
        )


def decoded(path: Path, content: bytes) -> str:
    """Returns the text of bytes that came out of a file, whatever their encoding; see `open_text`."""
    as_utf8 = _ToUtf8(path, iter([content]), _encoding(content))
    return io.BufferedReader(as_utf8).read().decode("utf-8-sig")
