"""Recipes: YAML files whose sections are dataclasses, read so that they hold what stands in them.

YAML keeps the last of two equal keys, and takes `no`, `1984` and `12:30` for a truth value and for numbers. Where that
would lose a section, or text was meant, it is refused with the line and what to write.
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

# Numbers that are others in YAML than they look: 12:30 counts in sixties, 017 in eights.
STRANGE_NUMBER = re.compile(r"[-+]?(?:0[0-7_]+|[0-9][0-9_]*(?::[0-5]?[0-9])+(?:\.[0-9_]*)?)")
MERGE = "tag:yaml.org,2002:merge"  # of the key <<


def read_recipe(path: str | Path, hints: Mapping[str, Any]) -> dict[str, Any]:
    """Reads a recipe, or the config.yaml of a run.

    Args:
        path: of the file.
        hints: the type of each `section.key`, as far as it is known.

    Raises:
        UserError: a file that cannot be read, is not YAML or has no sections; a key that stands twice; a value that
            YAML reads as a number or a truth value where text is wanted.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        root, content = yaml.compose(text, yaml.SafeLoader), get_loader("yaml")(text)
        if isinstance(content, str):  # so that loader reads sections that are all empty
            content = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--config {path}: cannot be read ({one_line(error)}); the recipes are in configs/") from error
    except yaml.YAMLError as error:
        raise UserError(f"--config {path}: not YAML ({one_line(error)}); see configs/quickstart.yaml") from error
    if not isinstance(content, dict | None):
        raise UserError(f"--config {path}: holds no sections; see configs/quickstart.yaml")
    _refuse_twice(root, f"--config {path}")
    for name, section in _items(root):
        keys = [(f"{name.value}.{key.value}", node) for key, node in _items(section)] or [(name.value, section)]
        for key, node in keys:
            if hint := hints.get(key):
                _refuse_misread(key, node, hint, f"--config {path} line {node.start_mark.line + 1}: {key}")
    return content or {}


def check_word(key: str, word: str, hint: Any) -> None:
    """Refuses a list or a mapping of the command line for the same reasons; a bare word is text where text is wanted.

    Raises:
        UserError: with the corrected text.
    """
    try:
        node = yaml.compose(word, yaml.SafeLoader)
    except yaml.YAMLError:
        return
    is_list = isinstance(node, yaml.SequenceNode) or (_element(hint) is str and str not in _options(hint))
    if hint and node and (is_list or key.startswith("model.")):
        _refuse_twice(node, f"--{key}")
        _refuse_misread(f"--{key}", node, hint, f"--{key} {word}")


def load_word(word: str) -> Any:
    """What a word of the command line says as YAML; the word itself where it is none."""
    try:
        return get_loader("yaml")(word)
    except yaml.YAMLError:
        return word


# --- keys that stand twice -------------------------------------------------------------------------------------------


def _items(node: yaml.Node | None) -> Iterator[tuple[yaml.ScalarNode, yaml.Node]]:
    if isinstance(node, yaml.MappingNode):
        yield from ((key, value) for key, value in node.value if isinstance(key, yaml.ScalarNode) and key.tag != MERGE)


def _refuse_twice(node: yaml.Node, where: str, trail: str = "", above: tuple[yaml.Node, ...] = ()) -> None:
    if any(node is other for other in above):  # an alias of what it stands in
        return
    lines = {}
    for key, value in _items(node):
        name, line = f"{trail}{key.value}", key.start_mark.line + 1
        if name in lines:
            raise UserError(
                f"{where}: {name} stands twice, in line {lines[name]} and in line {line}, and YAML keeps the last "
                "alone; join them, or leave one out"
            )
        lines[name] = line
        _refuse_twice(value, where, f"{name}.", (*above, node))
    for item in node.value if isinstance(node, yaml.SequenceNode) else ():
        _refuse_twice(item, where, trail, (*above, node))


# --- values that YAML reads as something else ------------------------------------------------------------------------


def _refuse_misread(key: str, node: yaml.Node, hint: Any, where: str) -> None:
    """Refuses a value that is meant as text and is something else to YAML, with the corrected text."""
    element = _element(hint)
    if dataclasses.is_dataclass(element):
        hints = get_type_hints(element)
        for item in node.value if isinstance(node, yaml.SequenceNode) else ():
            for name, value in _items(item):
                if name.value in hints:
                    _refuse_misread(name.value, value, hints[name.value], f"{where}: {name.value}")
        return
    is_text = isinstance(node, yaml.ScalarNode) and _value(node) is not None and node.value not in _options(hint)
    if element is str and is_text and str not in _options(hint):
        raise UserError(f"{where}: {node.value} is not a list; write {_written(key, [node.value])}")
    for wrong in _misread(node, hint):
        value = _value(wrong)
        read = f"{where}: YAML reads {wrong.value} as {'the number ' * _is_number(value)}{json.dumps(value)}"
        if _is_number(value) and _fits(value, hint):
            raise UserError(f"{read}; write {json.dumps(value)}, or what is meant")
        raise UserError(f"{read}, not as text; quote it: {_written(key, _meant(node, hint))}")


def _misread(node: yaml.Node, hint: Any) -> Iterator[yaml.ScalarNode]:
    """Yields the scalars that are not what they look like."""
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _misread(item, _element(hint))
    elif isinstance(node, yaml.ScalarNode) and node.style is None and node.value:
        value = _value(node)
        if isinstance(value, str):
            return
        is_strange = _is_number(value) and STRANGE_NUMBER.fullmatch(node.value)
        if is_strange if _fits(value, hint) else (str in _options(hint) or node.value in _options(hint)):
            yield node


def _options(hint: Any) -> tuple[Any, ...]:
    """The types of a union, and the values of a literal type."""
    parts = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    return tuple(value for part in parts for value in (get_args(part) if get_origin(part) is Literal else (part,)))


def _element(hint: Any) -> Any:
    """What a list of this type holds; None if it is no list."""
    return next((get_args(option)[0] for option in _options(hint) if get_origin(option) is list), None)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _fits(value: Any, hint: Any) -> bool:
    return type(value) in _options(hint) or (type(value) is int and float in _options(hint))


def _value(node: yaml.ScalarNode) -> Any:
    """What the parser of the configuration makes of it, whose numbers are not quite those of YAML."""
    return get_loader("yaml")(node.value) if node.style is None else node.value


def _meant(node: yaml.Node, hint: Any) -> Any:
    if isinstance(node, yaml.SequenceNode):
        return [_meant(item, _element(hint)) for item in node.value]
    return node.value if any(_misread(node, hint)) else _value(node)


def _written(key: str, value: Any) -> str:
    """How to write a key: on the command line as one word of JSON, in a file as YAML."""
    if key.startswith("--"):
        return f"{key} '{json.dumps(value, ensure_ascii=False)}'"
    name, values = key.rpartition(".")[2], value if isinstance(value, list) else [value]
    quoted = ["'" + one.replace("'", "''") + "'" if isinstance(one, str) else json.dumps(one) for one in values]
    return f"{name}: [{', '.join(quoted)}]" if isinstance(value, list) else f"{name}: {quoted[0]}"
