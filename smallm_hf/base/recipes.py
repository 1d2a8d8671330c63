"""Recipes: YAML files whose sections are dataclasses, read so that they mean what they say.

YAML keeps the last of two equal keys, and reads `no`, `1984` and `12:30` as a truth value and as numbers. Where that
would lose a section, or text was meant, the recipe is refused with the line and what to write.
"""

import dataclasses
import json
import re
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml
from jsonargparse import get_loader

from smallm_hf.base.errors import UserError, one_line
from smallm_hf.base.shipped import recipes
from smallm_hf.base.wording import nearest

# Numbers that YAML reads as other numbers: 12:30 counts in sixties, 017 in eights.
STRANGE_NUMBER = re.compile(r"[-+]?(?:0[0-7_]+|[0-9][0-9_]*(?::[0-5]?[0-9])+(?:\.[0-9_]*)?)")
NUMBERS = (int, float)
MERGE = "tag:yaml.org,2002:merge"  # of the key <<


def read_recipe(path: str | Path, types_of_keys: Mapping[str, Any]) -> dict[str, Any]:
    """Reads a recipe, or the config.yaml of a run.

    Args:
        path: of the file, or the name of a recipe that comes with this package.
        types_of_keys: the type of each `section.key`; others are read as YAML has them.

    Raises:
        UserError: a file that cannot be read, is not YAML or has no sections; a key that stands twice; a value that
            YAML reads as a number or a truth value where text is wanted.
    """
    where = f"--config {path}"
    try:
        text = find_recipe(path).read_text(encoding="utf-8")
        root, content = yaml.compose(text, yaml.SafeLoader), get_loader("yaml")(text)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{where}: cannot be read ({one_line(error)}){_meant(Path(path).stem)}") from error
    except yaml.YAMLError as error:
        raise UserError(f"{where}: not YAML ({one_line(error)}); `smallm recipes quickstart` shows one") from error
    if isinstance(content, str):  # jsonargparse reads a file of empty sections as text
        content = yaml.safe_load(text)
    if not isinstance(content, dict | None):
        raise UserError(f"{where}: holds no sections; `smallm recipes quickstart` shows one")
    _refuse_repetition(root, where)
    for name, section in _items(root):
        keys = [(f"{name.value}.{key.value}", node) for key, node in _items(section)] or [(name.value, section)]
        for key, node in keys:
            if wanted := types_of_keys.get(key):
                _refuse_misreading(key, node, wanted, f"{where} line {node.start_mark.line + 1}: {key}")
    return content or {}


def find_recipe(path: str | Path) -> Path:
    """The file of a recipe: where it is, or where this package has one of that name."""
    return Path(path) if Path(path).is_file() else recipes().get(str(path), Path(path))


def _meant(name: str) -> str:
    """The end of an error line: the recipe of ours that was probably meant."""
    return nearest(name, known := recipes(), "--config ") or f"; give a file, or one of {', '.join(known)}"


def check_word(key: str, word: str, wanted: Any) -> None:
    """Refuses a list or a mapping on the command line for the same reasons; where text is wanted, a bare word is text.

    Raises:
        UserError: with the corrected text.
    """
    try:
        node = yaml.compose(word, yaml.SafeLoader)
    except yaml.YAMLError:
        return
    is_list = isinstance(node, yaml.SequenceNode) or (_element(wanted) is str and str not in _options(wanted))
    if wanted and node and (is_list or key.startswith("model.")):
        _refuse_repetition(node, f"--{key}")
        _refuse_misreading(f"--{key}", node, wanted, f"--{key} {word}")


def load_word(word: str) -> Any:
    """What a word of the command line is in YAML; the word itself if it is not YAML."""
    try:
        return get_loader("yaml")(word)
    except yaml.YAMLError:
        return word


def _items(node: yaml.Node | None) -> Iterator[tuple[yaml.ScalarNode, yaml.Node]]:
    if isinstance(node, yaml.MappingNode):
        yield from ((key, value) for key, value in node.value if isinstance(key, yaml.ScalarNode) and key.tag != MERGE)


def _refuse_repetition(node: yaml.Node, where: str, trail: str = "", above: tuple[yaml.Node, ...] = ()) -> None:
    """Refuses a key that stands twice in one mapping."""
    if any(node is other for other in above):  # an alias of what it stands in
        return
    lines = {}
    for key, value in _items(node):
        name, line = f"{trail}{key.value}", key.start_mark.line + 1
        if name in lines:
            raise UserError(
                f"{where}: {name} stands twice, in line {lines[name]} and in line {line}, and YAML keeps only the "
                "last; join them, or leave one out"
            )
        lines[name] = line
        _refuse_repetition(value, where, f"{name}.", (*above, node))
    for item in node.value if isinstance(node, yaml.SequenceNode) else ():
        _refuse_repetition(item, where, trail, (*above, node))


def _refuse_misreading(key: str, node: yaml.Node, wanted: Any, where: str) -> None:
    """Refuses a value that is meant as text and that YAML reads as something else, with the corrected text."""
    element = _element(wanted)
    if dataclasses.is_dataclass(element):
        hints = get_type_hints(element)
        for item in node.value if isinstance(node, yaml.SequenceNode) else ():
            for name, value in _items(item):
                if name.value in hints:
                    _refuse_misreading(name.value, value, hints[name.value], f"{where}: {name.value}")
        return
    is_list = isinstance(node, yaml.SequenceNode)
    scalars = [scalar for scalar in (node.value if is_list else [node]) if isinstance(scalar, yaml.ScalarNode)]
    options = _options(wanted)
    is_text = isinstance(node, yaml.ScalarNode) and _value(node) is not None and node.value not in options
    if is_text and element is str and str not in options:
        raise UserError(f"{where}: {node.value} is not a list; write {_written(key, [node.value])}")
    wanted = element if is_list else wanted
    misread = [scalar for scalar in scalars if _is_misread(scalar, wanted)]
    if not misread:
        return
    value = _value(misread[0])
    is_number = type(value) in NUMBERS
    read = f"{where}: YAML reads {misread[0].value} as {'the number ' * is_number}{json.dumps(value)}"
    if is_number and _fits(value, wanted):
        raise UserError(f"{read}; write {json.dumps(value)}, or what is meant")
    meant = [scalar.value if scalar in misread else _value(scalar) for scalar in scalars]
    raise UserError(f"{read}, not as text; quote it: {_written(key, meant if is_list else meant[0])}")


def _is_misread(node: yaml.ScalarNode, wanted: Any) -> bool:
    value = _value(node)
    if node.style is not None or not node.value or isinstance(value, str):
        return False
    if _fits(value, wanted):
        return type(value) in NUMBERS and STRANGE_NUMBER.fullmatch(node.value) is not None
    return str in _options(wanted) or node.value in _options(wanted)


def _options(wanted: Any) -> tuple[Any, ...]:
    """The types of a union, and the values of a literal type."""
    parts = get_args(wanted) if get_origin(wanted) in (Union, types.UnionType) else (wanted,)
    return tuple(value for part in parts for value in (get_args(part) if get_origin(part) is Literal else (part,)))


def _element(wanted: Any) -> Any:
    """What a list of this type holds; None if it is not a list."""
    return next((get_args(option)[0] for option in _options(wanted) if get_origin(option) is list), None)


def _fits(value: Any, wanted: Any) -> bool:
    return type(value) in _options(wanted) or (type(value) is int and float in _options(wanted))


def _value(node: yaml.ScalarNode) -> Any:
    """What jsonargparse makes of it, whose numbers are not quite those of YAML."""
    return get_loader("yaml")(node.value) if node.style is None else node.value


def _written(key: str, value: Any) -> str:
    """How to write a key, on the command line or in a file: JSON is YAML too."""
    text = json.dumps(value, ensure_ascii=False)
    return f"{key} '{text}'" if key.startswith("--") else f"{key.rpartition('.')[2]}: {text}"
