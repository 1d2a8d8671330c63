"""A picture, what it says of itself, and the files it becomes."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill

import matplotlib
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font

from smallm_hf.base.errors import UserError
from smallm_hf.evaluation.page import fill_template
from smallm_hf.plots import DOTS_PER_INCH
from smallm_hf.plots import STYLE as PLOT_STYLE

STYLE = PLOT_STYLE | {"axes.grid": False, "text.parse_math": False}  # a "$" in a text is a dollar
MOST_PIXELS = 10_000  # of the longer side: a grid of many heads is drawn with fewer dots per inch
COLOURS = tuple(map(to_hex, matplotlib.color_sequences["petroff10"]))  # the colour-blind tell them apart (Petroff 2021)
WHITE_SPACE = {" ": "␣", "\n": "↵", "\r": "␍", "\t": "⇥"}
CAPTION_POINTS, TITLE_POINTS, USUAL_INCHES = 9, 12, 13


@dataclass(frozen=True)
class Picture:
    """One picture, either drawn or as HTML.

    Attributes:
        name: of its files.
        title: what it is of.
        caption: what one sees, and how it was made.
        figure: a drawing that holds its title and caption.
        html: a fragment of a page that holds its caption, and brings its style and script with it.
    """

    name: str
    title: str
    caption: str
    figure: Figure | None = None
    html: str | None = None

    @property
    def shown(self) -> str | bytes:
        """For a page of somebody else's: the HTML, or the bytes of a PNG."""
        return self.html if self.figure is None else to_png(self.figure)


def to_png(figure: Figure) -> bytes:
    """A figure as the bytes of a PNG file."""
    buffer = io.BytesIO()
    _save(figure, buffer, "png")
    return buffer.getvalue()


def write_pictures(pictures: Sequence[Picture], folder: Path, page: str) -> list[Path]:
    """Writes each drawing as PNG and SVG, and what is HTML as one page that needs no other file.

    Args:
        pictures: to write.
        folder: made if missing.
        page: name of the page.

    Returns:
        The files written; equal pictures give equal files.

    Raises:
        UserError: they cannot be written there.
    """
    files = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for picture in pictures:
            if picture.figure is not None:
                for suffix in ("png", "svg"):
                    files.append(folder / f"{picture.name}.{suffix}")
                    _save(picture.figure, files[-1], suffix)
        if shown := [picture for picture in pictures if picture.html is not None]:
            files.append(folder / f"{page}.html")
            files[-1].write_text(fill_template("pictures.html", __package__, pictures=shown), encoding="utf-8")
    except (FileExistsError, IsADirectoryError, NotADirectoryError, PermissionError) as error:
        raise UserError(f"{error.filename} cannot be written: {error.strerror}; give another --output_dir") from error
    return files


def _save(figure: Figure, file: Path | io.BytesIO, suffix: str) -> None:
    dots = min(DOTS_PER_INCH, MOST_PIXELS / max(figure.get_size_inches()))
    with matplotlib.rc_context(STYLE):
        figure.savefig(file, format=suffix, dpi=dots, metadata={"Date": None} if suffix == "svg" else None)


def write_around(figure: Figure, title: str, caption: str) -> None:
    """Puts the title above and the caption below a figure, in lines as long as it is wide, and settles its layout.

    Afterwards nothing moves: labels can be measured, and the same picture gives the same bytes; the solver of the
    layout is not exact to the last digit.
    """
    inches = figure.get_size_inches()[0]
    width, larger = 72 * inches, max(1, inches / USUAL_INCHES)  # a large figure is looked at from farther away
    lines = fill(legible(title), int(width / (0.66 * TITLE_POINTS * larger)))
    figure.suptitle(lines, fontsize=TITLE_POINTS * larger, fontweight="bold")
    lines = fill(legible(caption), int(width / (0.56 * CAPTION_POINTS * larger)))
    figure.supxlabel(lines, x=0.01, ha="left", fontsize=CAPTION_POINTS * larger, color="0.3")
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for axes in figure.axes:
        axes.set_position([round(edge, 4) for edge in axes.get_position(original=True).bounds])


def signs(text: str) -> str:
    """A token as it can be read: its white space as signs."""
    return "".join(WHITE_SPACE.get(letter, letter) for letter in text)


def legible(text: str) -> str:
    """Text for a figure: the letters that its font lacks are `�`; pages show every letter."""
    known = get_font(findfont("DejaVu Sans")).get_charmap()
    return "".join(letter if ord(letter) in known or letter == "\n" else "\ufffd" for letter in text)


def shorten(text: str, letters: int) -> str:
    """Text of so many letters at most."""
    return text if len(text) <= letters else f"{text[: letters - 1]}…"
