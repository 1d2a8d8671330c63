"""From the bytes of a file to text: decompressed, and decoded whatever the encoding is."""

import codecs
import functools
import gzip
import io
import itertools
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from smallm_hf.base.errors import UserError, one_line, printable
from smallm_hf.data.reading.files import PIECE_CHARACTERS, ReadingReport

BINARY_SAMPLE_BYTES = 1 << 16
HEADER_BYTES = 64  # in which a binary format that holds much text, such as an archive, shows itself
CONTROL_BYTES = bytes(set(range(32)) - set(b"\b\t\n\v\f\r\x1b"))
CONTROL_CHARACTERS = re.compile(f"[{re.escape(CONTROL_BYTES.decode())}]")
LARGEST_CONTROL_SHARE = 0.05
LARGEST_FOREIGN_SHARE = 0.25  # of a block's bytes that are not UTF-8; Western text in Windows-1252 has fewer
BEFORE_BYTES, GUESSED_BYTES = 1 << 8, 1 << 17  # around the first byte beyond ASCII, from which an encoding is guessed
FEWEST_FOREIGN, SMALLEST_FOREIGN_SHARE = 8, 0.01  # of them beyond ASCII; with fewer a guess is weak
FEWEST_LETTERS = (
    4  # different ones that text in UTF-8 has where none is Western; in other encodings pairs come together
)
FEWEST_MAC = 3  # bytes beyond ASCII by which Mac Roman is told
MAC_ROMAN, MAC_FIT, MAC_LEAD = "mac-roman", 0.8, 0.3  # share of the letters in their place, and more than otherwise
ASCII = bytes(range(128))
STRAY = re.compile("[\udc80-\udcff]")  # a byte that is not UTF-8, decoded with surrogateescape
LETTERS = re.compile("[^\0-\x7f\udc80-\udcff]")  # of several bytes
BEYOND_ASCII = re.compile("[^\0-\x7f]")
WESTERN_LETTERS = "ÀÁÂÃÄÅÆÇÈÉÊËÌÍÎÏÑÒÓÔÕÖØÙÚÛÜŒŸß"
LONE_LETTERS, OPENING, CLOSING, ANYWHERE = "àáèéòóùœæ", "“‘«„‚¿¡", "”’»…", "\xa0–—§°€£•©®™"
BYTE_ORDER_MARKS = {  # longest first: one begins with another
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
WIDE = ("utf-16", "utf-32")
WESTERN = ("ascii", "iso8859-1", "cp1252")  # each holds the one before it
DECLARATION = re.compile(rb"(?i)(?:Character set encoding|charset|encoding)\s*[=:]\s*[\"']?\s*([\w-]+(?: [\d-]+)?)")
DECLARED_BYTES = 4096  # at the beginning of a file, where it may declare its encoding
MOST_NOTES = 20  # of wrong declarations


@contextmanager
def open_binary(path: Path) -> Iterator[io.BufferedIOBase]:
    """Opens a file, decompressed, and names it in whatever goes wrong while it is open.

    Raises:
        UserError: a file that cannot be read, or a damaged gzip or zstd file.
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
            raise UserError(f"{path} needs random access, which zstd does not allow; decompress it") from error
        raise UserError(f"{path} is a damaged zstd file ({error}); fetch or compress it again") from error


def _decompressed(path: Path) -> io.BufferedIOBase:
    if path.suffix.lower() == ".gz":
        return gzip.open(path)
    if path.suffix.lower() == ".zst":
        import pyarrow

        # opened here: a path may not be Unicode, and pyarrow requires that
        return io.BufferedReader(pyarrow.input_stream(path.open("rb"), compression="zstd"))
    return path.open("rb")


@contextmanager
def open_text(
    path: Path, report: ReadingReport, encoding: str | None = None, newline: str | None = None
) -> Iterator[io.TextIOBase]:
    """Opens a file as text, whatever its encoding, and reports on it when it is closed.

    Args:
        path: of the file.
        report: is added to.
        encoding: of a file that is neither UTF-8 nor marked by a byte order mark; None guesses it unless declared.
        newline: as in `open`.

    Raises:
        UserError: as `open_binary`, a binary file, or, while reading, bytes that are not text in the encoding.
    """
    with open_binary(path) as file:
        sample = file.read(BINARY_SAMPLE_BYTES)
        blocks = iter(functools.partial(file.read, PIECE_CHARACTERS), b"")
        content = _ToUtf8(path, itertools.chain([sample], blocks), sample, encoding)
        if content.encoding is None:
            _refuse_binary(path, sample)
        with io.TextIOWrapper(io.BufferedReader(content), "utf-8-sig", newline=newline) as text:
            try:
                yield text
            finally:
                _report_content(content, report)


def decoded(path: Path, content: bytes) -> str:
    """Returns the text of bytes that came out of a file, whatever their encoding; see `open_text`."""
    return io.BufferedReader(_ToUtf8(path, iter([content]), content)).read().decode("utf-8-sig")


def _refuse_binary(path: Path, sample: bytes) -> None:
    if sample.startswith(b"%PDF-"):
        raise UserError(f"{path} is a PDF; name it .pdf, or give its text")
    for part in (sample[:HEADER_BYTES], sample):
        controls = len(part) - len(part.translate(None, CONTROL_BYTES))
        if controls > LARGEST_CONTROL_SHARE * len(part):
            fix = "give text, or name a parquet or gzip file .parquet or .gz"
            if wide := _unmarked(sample):
                fix = f"if it is text in {wide}, set data.encoding to that"
            raise UserError(
                f"{path} looks like a binary file ({controls} control bytes in its first {len(part)}); {fix}"
            )


def _unmarked(sample: bytes) -> str | None:
    """UTF-16 without a byte order mark: decoded as such, it has spaces and no control characters."""
    for encoding in ("utf-16-le", "utf-16-be"):
        text = sample[: len(sample) // 2 * 2].decode(encoding, "replace")
        if " " in text and "\ufffd" not in text[:-1] and not CONTROL_CHARACTERS.search(text):
            return encoding
    return None


def _declared(sample: bytes) -> str | None:
    """The Python name of the encoding that a file declares at its beginning, if it does and Python knows it."""
    if not (found := DECLARATION.search(sample[:DECLARED_BYTES])):
        return None
    try:
        name = codecs.lookup(found[1].decode().replace(" ", "-")).name
        "".encode(name)  # not one of bytes, as in `Content-Transfer-Encoding: base64`
        return name
    except (LookupError, UnicodeError):
        return None


def _holds_ascii(encoding: str) -> bool:
    """Whether ASCII bytes mean ASCII and nothing else in an encoding, so that the first other byte tells."""
    others = (letter.encode(encoding, "ignore") for letter in "éяあ한")
    is_same = ASCII.decode(encoding, "replace") == ASCII.decode()
    return is_same and not any(other and other.isascii() for other in others)


def _shown(encoding: str) -> str:
    """An encoding by the name that people know."""
    return encoding.replace("cp125", "windows-125")


def _guess(content: bytes) -> tuple[str, str | None]:
    """The likely encoding of bytes that are not UTF-8, and another that is hardly less likely.

    That is the guess of uchardet, or Windows-1252 where there is little to guess from: Western text with a few letters
    beyond ASCII is the commonest case, and Eastern text has many.
    """
    from resiliparse.parse.encoding import detect_encoding

    try:
        found = codecs.lookup(detect_encoding(content)).name
    except LookupError:  # uchardet knows some encodings that Python does not
        found = "cp1252"
    if found == "utf-8" or found in WESTERN:  # utf-8 and ascii mean that it does not know
        found = "cp1252"
    foreign = len(content.translate(None, ASCII))
    if found.startswith(("cp125", "iso8859")) and _is_mac_roman(content, found):  # which uchardet does not know
        return (MAC_ROMAN, None) if foreign >= FEWEST_MAC else ("cp1252", MAC_ROMAN)
    is_strong = foreign >= max(FEWEST_FOREIGN, SMALLEST_FOREIGN_SHARE * len(content))
    return (found, None) if is_strong or found == "cp1252" else ("cp1252", found)


def _is_mac_roman(content: bytes, other: str) -> bool:
    """Whether letters and quotes stand where they belong if bytes are Mac Roman, and not if they are in the other."""
    mac, rival = (_fit(content.decode(encoding, "replace")) for encoding in (MAC_ROMAN, other))
    return mac >= MAC_FIT and mac - rival >= MAC_LEAD


def _fit(text: str) -> float:
    """The share of the characters beyond ASCII that stand where such a one does in Western text."""
    fits = misfits = 0
    for match in BEYOND_ASCII.finditer(text):
        character = match[0]
        before, behind = text[: match.start()][-1:] or " ", text[match.end() :][:1] or " "
        if character in WESTERN_LETTERS.lower():
            is_fit = before.isalpha() or behind.isalpha() or character in LONE_LETTERS
        elif character in WESTERN_LETTERS:
            is_fit = not before.islower() and (behind.isalpha() or not behind.isalnum())
        elif character in OPENING:
            is_fit = not before.isalnum()
        elif character in CLOSING:
            is_fit = not before.isspace()
        elif character in ANYWHERE:
            continue
        else:
            is_fit = False
        fits, misfits = fits + is_fit, misfits + (not is_fit)
    return fits / max(1, fits + misfits)


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
    if not agrees and len(report.wrongly_declared) < MOST_NOTES:
        who = "data.encoding says" if content.stated else "says"
        report.wrongly_declared.append(f"{name}: {who} {said}, is {found}")


class _ToUtf8(io.RawIOBase):
    """Bytes of any encoding as UTF-8; the first block that is not ASCII shows which encoding it is.

    If that is UTF-8, stray bytes in it and later are read as Windows-1252 (or the stated encoding), and counted. If
    not, the whole file has the encoding that is stated or declared, or the one that is guessed.

    Args:
        path: named in errors.
        blocks: the bytes.
        sample: the first of them, which may hold a byte order mark or a declaration.
        stated: encoding of what is neither marked nor UTF-8; `utf-8` refuses that.

    Raises:
        UserError: while reading, for bytes that are not in the encoding.
    """

    def __init__(self, path: Path, blocks: Iterator[bytes], sample: bytes, stated: str | None = None):
        self.path, self.blocks, self.sample = path, blocks, sample
        self.stated = codecs.lookup(stated).name if stated else None
        self.stray = self.stated or "cp1252"
        self.ready = b""
        self.offset = self.foreign = self.nul_bytes = self.nul_line = 0  # foreign: bytes read as Windows-1252
        self.line = 1
        self.is_ascii = True
        self.note = ""
        self.encoding = next((name for mark, name in BYTE_ORDER_MARKS.items() if sample.startswith(mark)), None)
        self.is_marked = self.encoding is not None
        if not self.is_marked and self.stated and not _holds_ascii(self.stated):
            self.encoding = self.stated
        self.decoder = self._decoder(self.encoding or "utf-8")

    def _decoder(self, encoding: str) -> codecs.IncrementalDecoder:
        has_strays = encoding == "utf-8" and self.stated != "utf-8"
        return codecs.getincrementaldecoder(encoding)("surrogateescape" if has_strays else "strict")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        while not self.ready:
            block = next(self.blocks, b"")
            self.is_ascii = self.is_ascii and block.isascii()
            if self.encoding is None and not block.isascii():
                self.encoding = self._choose(block)
                self.decoder = self._decoder(self.encoding)
            start = self.offset - len(self.decoder.getstate()[0])  # bytes of a letter may be held from the block before
            self.offset += len(block)
            text = self._decode(block, start)
            try:
                self.ready = text.encode()
            except UnicodeEncodeError:  # by surrogateescape
                text = self._read_strays(text, start, self.offset - start)
                self.ready = text.encode()
            if "\0" in text:
                self.nul_line = self.nul_line or self.line + text.count("\n", 0, text.index("\0"))
                self.nul_bytes += text.count("\0")
            self.line += text.count("\n")
            if not block:
                break
        number = min(len(buffer), len(self.ready))
        buffer[:number], self.ready = self.ready[:number], self.ready[number:]
        return number

    def _choose(self, block: bytes) -> str:
        text = codecs.utf_8_decode(block, "surrogateescape", False)[0]  # whose last letter may be cut
        letters, strays = LETTERS.findall(text), len(STRAY.findall(text))
        declared = _declared(self.sample)
        said = self.stated or (declared if declared not in (None, "utf-8", "ascii", *WIDE) else None)
        # In another encoding few pairs look like UTF-8, and what they look like is rarely a letter of the West.
        is_plausible = len(set(letters)) >= FEWEST_LETTERS
        plausible = len(letters) if is_plausible else sum(bool(letter.encode("cp1252", "ignore")) for letter in letters)
        if (plausible > strays or not (letters or strays)) if said else 2 * plausible >= strays:
            return "utf-8"
        if said:
            return "cp1252" if said in WESTERN and not self.stated else said
        first = _first_beyond_ascii(block)
        encoding, other = _guess(block[max(0, first - BEFORE_BYTES) : first + GUESSED_BYTES])
        around = block[max(0, first - 30) : first + 30].decode(encoding, "ignore")
        line = self.line + block.count(b"\n", 0, first)
        could_be = f", could be {_shown(other)}" if other else ""
        self.note = f"read as {_shown(encoding)}{could_be}, as in line {line}: {' '.join(around.split())!r}"
        return encoding

    def _decode(self, block: bytes, start: int) -> str:
        try:
            text = self.decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            if self.is_marked:
                raise UserError(f"{self.path} is damaged {self.encoding} ({error.reason}); save it again") from error
            raise self._refusal(start, error.object, error.start) from error
        if self.encoding == "cp1252":
            foreign = len(block.translate(None, ASCII))
            if foreign > LARGEST_FOREIGN_SHARE * len(block) + 16 and not self.stated:
                raise self._refusal(start, block, _first_beyond_ascii(block))
            self.foreign += foreign
        return text

    def _read_strays(self, text: str, start: int, size: int) -> str:
        """Reads the stray bytes in a text that came from `size` bytes, from the `start`-th of the file on."""

        def refusal(match: re.Match) -> UserError:
            before = text[: match.end()].encode("utf-8", "surrogateescape")
            return self._refusal(start, before, len(before) - 1)

        def letter(match: re.Match) -> str:
            try:
                read = match[0].encode("utf-8", "surrogateescape").decode(self.stray)
            except UnicodeDecodeError:
                raise refusal(match) from None
            if not self.note:
                line = self.line + text.count("\n", 0, match.start())
                self.note = f"stray bytes read as {_shown(self.stray)}, the first in line {line}"
            return read

        strays, mended = list(STRAY.finditer(text)), STRAY.sub(letter, text)
        if len(strays) > LARGEST_FOREIGN_SHARE * size + 16:
            raise refusal(strays[-1])
        self.foreign += len(strays) if self.stray == "cp1252" else 0
        return mended

    def _refusal(self, start: int, content: bytes, place: int) -> UserError:
        """The error about a byte of some content, which begins at the `start`-th byte of the file."""
        encoding = self.stray if self.encoding in (None, "utf-8") else self.encoding
        what = f"neither UTF-8 nor {_shown(encoding).replace('windows', 'Windows')}"
        fix = "re-encode the file, for example iconv -f KOI8-R -t UTF-8, or state its encoding as data.encoding"
        if self.stated:
            what, fix = f"not {self.stated}, as data.encoding says", "state the right one, or leave it out"
        line = self.line + content.count(b"\n", 0, place)
        return UserError(f"{self.path} is {what}: byte {start + place} is 0x{content[place]:02x} (line {line}); {fix}")


def _first_beyond_ascii(content: bytes) -> int:
    return next(index for index, byte in enumerate(content) if byte > 127)
