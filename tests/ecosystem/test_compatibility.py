"""The committed page of the matrix is whole, and says nothing of the machine that wrote it."""

import importlib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from compatibility import NO_FLAG, PASSED

HERE = Path(__file__).resolve().parent
PAGE = HERE.parent.parent / "docs" / "compatibility.md"


@pytest.fixture
def page(request) -> str:
    if request.config.getoption("--compatibility", None):
        pytest.skip("this run writes the page")
    return PAGE.read_text(encoding="utf-8")


def rows_of(marks: Iterable[pytest.Mark]) -> Iterator[tuple[str, str]]:
    """What a test is called on the page, and how it loads; a parametrized one has a row for each of its cases."""
    for mark in marks:
        if mark.name == "matrix":
            yield mark.args[:2]
        elif mark.name == "parametrize":
            yield from rows_of(inner for case in mark.args[1] for inner in getattr(case, "marks", ()))


def test_the_page_lists_every_test_of_the_matrix_and_nothing_else(page):
    tests = [
        function
        for path in HERE.glob("test_*.py")
        for name, function in vars(importlib.import_module(path.stem)).items()
        if name.startswith("test_")
    ]
    declared = [row for test in tests for row in rows_of(getattr(test, "pytestmark", ()))]
    written = re.findall(r"^\| (.+?) \| (.+?) \| [✅❌]", page, flags=re.MULTILINE)
    assert sorted(written) == sorted(declared)


def test_at_least_nine_ways_are_green_without_any_flag(page):
    green = [line for line in page.splitlines() if f"| {PASSED} |" in line]
    assert sum(f"| {NO_FLAG}" in line for line in green) >= 9


def test_the_page_names_no_place_of_a_machine(page):
    assert not re.findall(r"(?<!\w)(?:/(?:home|root|tmp|work|Users|private|usr|opt)/|[A-Z]:\\)\S*", page)
