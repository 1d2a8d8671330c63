"""Imports one module right after another: how transformers gets to know our classes without our importing it.

Python has no hook for this (PEP 369 was withdrawn). A finder at the front of `sys.meta_path` lets the others find the
module, and makes its loader do one thing more.
"""

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


def when_imported(name: str, *, then: str) -> None:
    """Imports the module `then` as soon as `name` has been imported, immediately if it already has."""
    if name in sys.modules:
        importlib.import_module(then)
    else:
        sys.meta_path.insert(0, _Follower(name, then))


class _Follower(MetaPathFinder):
    def __init__(self, name: str, then: str):
        self.name, self.then = name, then

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != self.name:
            return None
        others = (finder for finder in sys.meta_path if finder is not self and hasattr(finder, "find_spec"))
        spec = next((spec for finder in others if (spec := finder.find_spec(name, path, target))), None)
        # Libraries ask whether the module exists without importing it; its import then comes here again.
        if spec and spec.loader:
            execute = spec.loader.exec_module

            def execute_and_follow(module: ModuleType) -> None:
                execute(module)
                if self in sys.meta_path:
                    sys.meta_path.remove(self)
                importlib.import_module(self.then)

            spec.loader.exec_module = execute_and_follow
        return spec
