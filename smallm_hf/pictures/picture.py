"""A picture with its title and caption, and the files it is written to."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill

import matplotlib
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font

from smallm_hf.base.errors import UserError
from smallm_hf.evaluation.page import fill_template
from smallm_hf.plots import DOTS_PER_INCH
from smallm_hf.plots import STYLE as PLOT_STYLE

STYLE = PLOT_STYLE | {"axes.grid": False, "text.parse_math": False}  # a "$" in a text is a dollar
MOST_PIXELS = 10_000  # of the longer side: a grid of many heads is drawn with fewer dots per inch
WHITE_SPACE = {" ": "␣", "\n": "↵", "\r": "␍", "\t": "⇥"}
CAPTION_POINTS, TITLE_POINTS, USUAL_INCHES = 9, 12, 13


@dataclass(frozen=True)
class Picture:
    """A drawing, or a fragment of a page.

    Attributes:
        name: of its files, without suffix.
        title: what it shows.
        caption: how to read it, and how it was made.
        figure: the drawing, with title and caption.
        html: the fragment, with caption, style and script.
    """

    name: str
    title: str
    caption: str
    figure: Figure | None = None
    html: str | None = None

    @property
    def shown(self) -> str | bytes:
        """For another page: the HTML, or the bytes of a PNG."""
        if self.figure is None:
            return self.html
        buffer = io.BytesIO()
        _save(self.figure, buffer, "png")
        return buffer.getvalue()


def write_pictures(pictures: Sequence[Picture], folder: Path, page: str) -> list[Path]:
    """Writes each drawing as PNG and SVG, and the fragments as one page that needs no other file.

    Returns:
        The files written; equal pictures give equal files.

    Raises:
        UserError: they cannot be written to the folder, which is made if missing.
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
    """Puts the title above and the caption below a figure, in lines as long as it is wide, and fixes its layout.

    Afterwards labels can be measured, and the same picture gives the same bytes: the solver of the layout is not exact
    to the last digit.
    """
    inches = figure.get_size_inches()[0]
    width, larger = 72 * inches, max(1, inches / USUAL_INCHES)  # a large figure is viewed from farther away
    lines = fill(legible(title), int(width / (0.66 * TITLE_POINTS * larger)))
    figure.suptitle(lines, fontsize=TITLE_POINTS * larger, fontweight="bold")
    lines = fill(legible(caption), int(width / (0.56 * CAPTION_POINTS * larger)))
    figure.supxlabel(lines, x=0.01, ha="left", fontsize=CAPTION_POINTS * larger, color="0.3")
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for axes in figure.axes:
        axes.set_position([round(edge, 4) for edge in axes.get_position(original=True).bounds])


def signs(text: str) -> str:
    """A token with visible signs for its white space."""
    return "".join(WHITE_SPACE.get(letter, letter) for letter in text)


def legible(text: str) -> str:
    """Text for a figure: characters that its font lacks become `�`; pages show every character."""
    known = get_font(findfont("DejaVu Sans")).get_charmap()
    return "".join(letter if ord(letter) in known or letter == "\n" else "\ufffd" for letter in text)
