"""The documentation inside this Python: docstrings of the standard library and the topics of `help()`, about 2 MB."""

import ast
import functools
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

from smallm_hf.base.errors import UserError
from smallm_hf.data.configuration import PYTHON_DOCS

NOT_DOCUMENTATION = {"test", "tests", "idlelib", "idle_test", "site-packages", "dist-packages", "pydoc_data", "lib2to3"}
HAVE_DOCSTRINGS = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


@functools.cache
def python_docs() -> tuple[tuple[str, dict, list[str]], ...]:
    """Returns (id, metadata, parts of the text) of each module with docstrings, and of each topic of `help()`.

    A module's docstrings stand under the names and signatures they explain; its source is read, not imported.

    Raises:
        UserError: an installation without the library's source files.
    """
    found = []
    for name, path in documented_modules():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # old escapes in other people's strings
                tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError):
            continue
        sections = list(_docstrings(tree, name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")))
        if sections:
            found.append((name, {"module": name}, ["\n\n".join(sections)]))
    if not found:
        raise UserError(
            f"data source {PYTHON_DOCS}: this Python has no library sources in {sysconfig.get_path('stdlib')}; "
            "give a local file or folder, --data.source PATH"
        )
    try:
        from pydoc_data.topics import topics
    except ImportError:  # some distributions package it apart
        topics = {}
    return (*found, *((f"topics/{name}", {"topic": name}, [topics[name]]) for name in sorted(topics)))


def documented_modules() -> list[tuple[str, Path]]:
    """Returns (name below the library's folder, path) of its sources, without tests and installed packages."""
    root = Path(sysconfig.get_path("stdlib"))
    modules = ((path.relative_to(root), path) for path in root.rglob("*.py"))
    return sorted((name.as_posix(), path) for name, path in modules if NOT_DOCUMENTATION.isdisjoint(name.parts))


def _docstrings(node: ast.AST, scope: str) -> Iterator[str]:
    """Yields a heading and a docstring for the node and for all that is defined in it, in source order."""
    signature = ""
    if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        scope = f"{scope}.{node.name}"
        signature = "" if isinstance(node, ast.ClassDef) else f"({ast.unparse(node.args)})"
    if isinstance(node, HAVE_DOCSTRINGS) and (docstring := ast.get_docstring(node)):
        yield f"{scope}{signature}\n\n{docstring}"
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.stmt | ast.excepthandler):
            yield from _docstrings(child, scope)
