"""Pages and fragments of pages: what their templates can rely on."""

from collections.abc import Callable, Mapping
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

# Where `page.html`, which all pages extend, lies with its style.
FRAME = "smallm_hf.evaluation"


def fill_template(template: str, room: str, filters: Mapping[str, Callable] | None = None, **values: Any) -> str:
    """A template, filled. In HTML what is put in is escaped, but for what goes through the filter `html`.

    Args:
        template: name of its file.
        room: package that the file lies in.
        filters: of its own.
        values: what it shows; one that it lacks is an error.
    """
    environment = Environment(
        loader=ChoiceLoader([PackageLoader(room, "."), PackageLoader(FRAME, ".")]),
        autoescape=template.endswith(".html"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"html": Markup, **(filters or {})}
    return environment.get_template(template).render(**values)
