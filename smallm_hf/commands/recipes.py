"""Lists the recipes that come with this package, or prints one."""

import re
from textwrap import shorten

from smallm_hf.base.errors import UserError
from smallm_hf.base.parser import CommandParser
from smallm_hf.base.shipped import recipes, top_file
from smallm_hf.base.wording import nearest

DESCRIPTION = "Lists the recipes that `--config NAME` takes by name, or prints one of them."
EXAMPLES = ("recipes", "recipes quickstart", "recipes quickstart > my_recipe.yaml")


def main() -> None:
    """Prints what the line asks for."""
    parser = CommandParser(DESCRIPTION, EXAMPLES, usage="[NAME]")
    parser.add_argument("name", nargs="?", help="a recipe, to print it")
    name, known = parser.parse_args().name, recipes()
    if name is None:
        width = max(map(len, known), default=0)
        for one, path in known.items():
            print(f"{one:{width}}  {_first_sentence(path.read_text(encoding='utf-8'))}")
        print(f"\nsmallm recipes NAME prints one; all are in {top_file('configs/quickstart.yaml').parent}")
    elif name in known:
        print(known[name].read_text(encoding="utf-8"), end="")
    else:
        raise UserError(f"there is no recipe {name}{nearest(name, known) or '; smallm recipes lists them'}")


def _first_sentence(recipe: str) -> str:
    """What the comment at the top says first."""
    comment = " ".join(line.strip("# ") for line in re.match(r"(?:#.*\n)*", recipe)[0].splitlines())
    return shorten(re.split(r"(?<!al)\.\s", comment)[0].rstrip(".:"), 100, placeholder=" ...")
