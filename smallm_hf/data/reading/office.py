"""Files of word processors and PDF: their text, read by the libraries of the extra `documents`."""

import contextlib
import io
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from smallm_hf.base.errors import UserError, one_line
from smallm_hf.data.reading.decoding import open_binary
from smallm_hf.data.reading.files import lacking_library, suffix_of

NAMES = {"docx": "python-docx"}  # of a library that is installed under another name
WORD = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
FALLBACK = "{http://schemas.openxmlformats.org/markup-compatibility/2006}Fallback"  # the same once more
NOTES_PARTS = ("/footnotes", "/endnotes")
ODT_BLOCKS = (  # paragraphs, headings, and notes behind what they are about
    "//text:*[self::text:p or self::text:h][not(ancestor::text:tracked-changes or ancestor::office:annotation)]"
)
CHARACTERS = {f"{WORD}tab": "\t", f"{WORD}br": "\n", f"{WORD}cr": "\n", f"{WORD}noBreakHyphen": "\u2011"}


class NoOfficeText(UserError):
    """A file of a word processor, or a PDF, that gives no text."""


def office_text(path: Path) -> Iterator[str]:
    """Yields the text of a .docx, .odt, .rtf or .pdf in parts, footnotes included; headers, comments and pictures not.

    Raises:
        NoOfficeText: the library is not installed, the file is damaged or encrypted, or has no text, as a scan.
    """
    suffix = suffix_of(path)
    if lacking := lacking_library(path):
        name = NAMES.get(lacking, lacking)
        raise NoOfficeText(f'{path} needs {name} to be read; pip install "smallm_hf[documents]", or give its text')
    has_text = False
    with open_binary(path) as file:
        content = io.BytesIO(file.read())
    read = {".docx": _docx, ".odt": _odt, ".rtf": _rtf, ".pdf": _pdf}[suffix]
    try:
        with _quiet():
            for part in read(content):
                has_text = has_text or not part.isspace()
                yield part
    except Exception as error:  # whatever a library makes of a damaged file
        reason = one_line(error) or type(error).__name__
        raise NoOfficeText(f"{path} is not a readable {suffix} file ({reason[:200]}); save it again") from error
    if not has_text:
        raise NoOfficeText(f"{path} has no text in it, as a scan has none; recognise its letters first (OCR)")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps what pypdf finds odd in a file off the terminal."""
    logger = logging.getLogger("pypdf")
    level, logger.level = logger.level, logging.CRITICAL
    try:
        yield
    finally:
        logger.level = level


def _docx(file: io.BytesIO) -> Iterator[str]:
    import docx

    part = docx.Document(file).part
    yield from (f"{block}\n\n" for block in _blocks(part.element))
    for relation in part.rels.values():
        if relation.reltype.endswith(NOTES_PARTS):
            from lxml import etree

            yield from (f"{block}\n\n" for block in _blocks(etree.fromstring(relation.target_part.blob)))


def _blocks(element: Any) -> Iterator[str]:
    """The paragraphs in an element and the rows of its tables, inserted ones included and deleted ones not.

    python-docx itself passes over what was inserted while changes were tracked, over forms and over footnotes.
    """
    for child in element:
        if child.tag == f"{WORD}p":
            if (text := _line(child)).strip():
                yield text.strip("\n")
            for box in child.iter(f"{WORD}txbxContent"):
                if not any(parent.tag == FALLBACK for parent in box.iterancestors()):
                    yield from _blocks(box)
        elif child.tag == f"{WORD}tr":
            cells = [" ".join(_blocks(cell)) for cell in child.iter(f"{WORD}tc")]
            if any(cells):
                yield "\t".join(cells)
        elif child.tag != FALLBACK and isinstance(child.tag, str):
            yield from _blocks(child)


def _line(element: Any) -> str:
    parts = []
    for child in element:
        if child.tag == f"{WORD}t":
            parts.append(child.text or "")
        elif child.tag not in (f"{WORD}txbxContent", f"{WORD}pPr", FALLBACK):
            parts.append(CHARACTERS.get(child.tag) or _line(child))
    return "".join(parts)


def _odt(file: io.BytesIO) -> Iterator[str]:
    import odfdo

    for block in odfdo.Document(file).body.get_elements(ODT_BLOCKS):
        yield f"{block.get_formatted_text().strip()}\n\n"


def _rtf(file: io.BytesIO) -> Iterator[str]:
    from striprtf.striprtf import rtf_to_text

    content = file.getvalue().decode("latin-1")
    if not content.lstrip().startswith("{\\rtf"):
        raise ValueError("it does not begin as one")
    yield rtf_to_text(content, errors="replace")


def _pdf(file: io.BytesIO) -> Iterator[str]:
    import pypdf

    reader = pypdf.PdfReader(file)
    if reader.is_encrypted and not reader.decrypt(""):
        raise ValueError("it is encrypted")
    for page in reader.pages:
        yield page.extract_text() + "\n\n"
