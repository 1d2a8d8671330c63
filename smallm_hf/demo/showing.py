"""Pieces of the page as HTML. Everything that comes from a model or a visitor is escaped."""

import math
from collections.abc import Sequence
from html import escape

from smallm_hf.demo.asking import Asking, Progress, Steps
from smallm_hf.demo.facts import Fact
from smallm_hf.evaluation.page import fill_template
from smallm_hf.pictures.picture import signs

END = "⏹ the end of the text"
FIGURE_SPACE = "\u2007"  # as wide as a digit
ENDINGS = {
    "stop": "The model ended the text there.",
    "length": "It reached the length that you set.",
    "cancelled": "You stopped it.",
}
# The page of a picture is as high as its content; it has styles and scripts of its own, which would meet the page's.
FRAME = (
    "new ResizeObserver(() => this.style.height = this.contentDocument.documentElement.scrollHeight + 'px')"
    ".observe(this.contentDocument.body)"
)


def plain(text: str) -> str:
    """Text as HTML; braces and dollars too, which the component that shows it would take for a template."""
    return escape(text).replace("{", "&#123;").replace("}", "&#125;").replace("$", "&#36;").replace("`", "&#96;")


def header_html(name: str) -> str:
    """What stands at the top of the page."""
    return (
        f"<header><h1>{plain(name)}</h1><p>This model has learned one thing: what comes next in a text. Give it a "
        "beginning, and it goes on from there. It answers no questions, and what it says is made up.</p></header>"
    )


def help_html(text: str) -> str:
    """A line that explains what is below it."""
    return f'<p class="help">{plain(text)}</p>'


def text_html(prompt: str, pieces: Sequence[str]) -> str:
    """A prompt and what follows it, each piece apart."""
    written = "".join(f"<ins>{plain(piece)}</ins>" for piece in pieces)
    return f'<p class="written"><b>{plain(prompt)}</b>{written}</p>'


def notice(line: str) -> str:
    """A line on how it goes, read aloud by screen readers."""
    return f'<p class="notice" role="status">{plain(line)}</p>'


def problem(error: object) -> str:
    """A line on what went wrong, read aloud at once."""
    return f'<p class="notice problem" role="alert">{plain(str(error))}</p>'


def told(progress: Progress, seed: int) -> str:
    """How far a text is, or how it ended."""
    if progress.ended is None:
        return notice(f"Writing … {progress.tokens:,} tokens")
    tokens = f"{progress.tokens:,} token{'s' if progress.tokens != 1 else ''}"
    return notice(f"{tokens} with seed {seed}. {ENDINGS[progress.ended]}")


def choice_labels(asking: Asking, steps: Steps) -> list[str]:
    """What the buttons of the choices say: per cent and token."""
    names = [
        END if asking.has_ended(token_id) else signs(asking.vocabulary.shown(token_id)) for token_id, _ in steps.choices
    ]
    shares = [f"{math.exp(log_probability):.1%}" for _, log_probability in steps.choices]
    return [f"{share.rjust(6, FIGURE_SPACE)}  {name}" for share, name in zip(shares, names, strict=True)]


def choice_bars(steps: Steps) -> str:
    """The style that draws a bar behind the button of each choice, the longest for the most probable one."""
    shares = [math.exp(log_probability) for _, log_probability in steps.choices]
    rules = (f"#choice-{place} {{ --share: {100 * share / shares[0]:.1f}% }}" for place, share in enumerate(shares))
    return f"<style>{' '.join(rules)}</style>"


def steps_told(steps: Steps) -> str:
    """What can be done next."""
    if not steps.choices:
        return notice("The text ends here. Take a token back, or begin again.")
    others = max(0.0, 1 - sum(math.exp(log_probability) for _, log_probability in steps.choices))
    return notice(f"All other tokens together have {others:.1%}.")


def framed(title: str, fragment: str) -> str:
    """A fragment that runs in a frame of its own."""
    page = fill_template("picture.html", __package__, title=title, fragment=fragment)
    return f'<iframe title="{escape(title)}" srcdoc="{plain(page)}" onload="{escape(FRAME)}"></iframe>'


def facts_html(facts: Sequence[Fact]) -> str:
    """A list of what is known of a model."""
    items = (f"<div><dt>{fact.name}</dt><dd>{plain(fact.value)}<small>{fact.help}</small></dd></div>" for fact in facts)
    return f'<dl class="facts">{"".join(items)}</dl>'
