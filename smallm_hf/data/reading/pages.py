"""Pages of the web and EPUB books: the text that a reader sees, without navigation."""

import posixpath
import re
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote
from xml.etree import ElementTree

from smallm_hf.base.errors import UserError
from smallm_hf.data.reading.decoding import decoded, open_binary

NAVIGATION = ["nav", "aside", "footer", "form", "button"]
PAGE_NUMBERS = [".pagenum", ".pageno", ".pagenumber", ".x-ebookmaker-pageno"]  # of the print that a book was made from
HTML_FILE = re.compile(rb"(?i)(?:\xef\xbb\xbf)?\s*(?:<\?xml[^>]*>\s*)?<(?:!doctype\s+)?html\b")
BEGINNING_BYTES = 512  # at the beginning of a file, in which it shows that it is a page
BROKEN_ARCHIVE = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError)  # raised by zipfile
BROKEN_PACKAGE = (ElementTree.ParseError, KeyError, StopIteration)


def is_page(path: Path) -> bool:
    """Whether a file is HTML, whatever its name."""
    with open_binary(path) as file:
        return bool(HTML_FILE.match(file.read(BEGINNING_BYTES)))


def visible_text(path: Path, markup: str) -> str:
    """Returns the text that a page of HTML shows, without its navigation.

    Raises:
        UserError: naming the path, if the markup cannot be read.
    """
    from resiliparse.extract.html2text import extract_plain_text

    try:
        return extract_plain_text(markup, alt_texts=False, skip_elements=NAVIGATION + PAGE_NUMBERS)
    except (ValueError, RuntimeError) as error:
        raise UserError(f"{path} is not a readable page ({error}); remove it") from error


def epub_chapters(path: Path) -> Iterator[str]:
    """Yields the chapters of an EPUB in the reading order of its package, without the table of contents.

    Raises:
        UserError: the archive, its package or a chapter is damaged or missing.
    """
    try:
        with open_binary(path) as file, zipfile.ZipFile(file) as archive:
            container = ElementTree.fromstring(archive.read("META-INF/container.xml"))
            package_name = next(container.iterfind(".//{*}rootfile")).get("full-path")  # in any namespace, or none
            package = ElementTree.fromstring(archive.read(package_name))
            items = {node.get("id"): node for node in package.iterfind(".//{*}item")}
            tables = package.iterfind(".//{*}reference[@type='toc']")
            contents = {node.get("href", "").partition("#")[0] for node in tables}
            spine = package.findall(".//{*}itemref")
            if not spine:
                raise KeyError("no chapters in its spine")
            for reference in spine:
                item = items[reference.get("idref")]
                is_navigation = "nav" in item.get("properties", "").split() or item.get("href") in contents
                if is_navigation or reference.get("linear") == "no" or "html" not in item.get("media-type", ""):
                    continue
                href = unquote(item.get("href").partition("#")[0])
                content = archive.read(posixpath.normpath(posixpath.join(posixpath.dirname(package_name), href)))
                yield visible_text(path, decoded(path, content)).strip() + "\n\n"
    except (*BROKEN_ARCHIVE, *BROKEN_PACKAGE) as error:
        raise UserError(f"{path} is a broken EPUB ({' '.join(str(error).split())}); fetch it again") from error
