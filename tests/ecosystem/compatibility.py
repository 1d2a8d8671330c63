"""The page that says which program loads a model, written from the reports of the tests that tried."""

import datetime
import importlib.metadata
import platform
from pathlib import Path

from smallm_hf.card import without_paths

PAGE = """# What loads a model trained here

Every row is a test in `tests/ecosystem/`; this page was written by the run of {date}, on {system} with Python {python}
and torch {torch}. ✅ ran and passed; ❌ failed or did not run. The model is a small run's `best/`, pulled from a Hub on
the same machine into an empty cache; presets and exports are read from their folders. Everybody must get the logits or
the text of the class that was trained, or its scores, or train it further.

Green: {passed} of {rows}, {flagless} of them without any flag.

| what | how it is loaded | result | version |
|---|---|---|---|
{table}

Tried: transformers 5.23 and 5.24, both by the rows above; torch 2.13.0 by every test, 2.14.1 by `.ci/newest`,
which tries the newest releases; Python 3.11 by every test, 3.12 and 3.13 by hand (916 and 858 passed in November 2026).

Documented, and not run here:

| what | how it is loaded | result | version |
|---|---|---|---|
| vLLM | no flag: `vllm serve user/name` | not run here | |
| Ollama, a published GGUF | no flag: `ollama run hf.co/user/name` | not run here | |
| Ollama, an exported GGUF | no flag: `ollama create name -f Modelfile` in its folder | not run here | |

To write it again:

```bash
pip install -c constraints.txt -e ".[test,test-ecosystem]"
pytest -n 0 -m "ecosystem or not ecosystem" tests/ecosystem --compatibility docs/compatibility.md
```
"""
PASSED = "✅ passed"
NO_FLAG = "no flag"


class CompatibilityPage:
    """Collects the reports of tests that are marked as a row of the matrix; writes the page when all have ended."""

    def __init__(self, path: Path):
        self.path = path
        self.rows: dict[str, tuple[str, str, str, str]] = {}

    def pytest_runtest_logreport(self, report):
        properties = dict(report.user_properties)
        if "row" in properties and (report.when == "call" or not report.passed):
            what, loaded, *packages = properties["row"]
            version = properties.get("version") or ", ".join(f"{name} {installed(name)}" for name in packages)
            self.rows[report.nodeid] = (what, loaded, result(report), version)

    def pytest_sessionfinish(self):
        rows = sorted(self.rows.values(), key=lambda row: (not row[1].startswith(NO_FLAG), row[0].lower()))
        passed = [row for row in rows if row[2] == PASSED]
        page = PAGE.format(
            date=datetime.datetime.now(datetime.UTC).date(),
            system=f"{platform.system()} {platform.machine()}",
            python=platform.python_version(),
            torch=installed("torch"),
            passed=len(passed),
            rows=len(rows),
            flagless=sum(row[1].startswith(NO_FLAG) for row in passed),
            table="\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows),
        )
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(page, encoding="utf-8")


def installed(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def result(report) -> str:
    """One cell: passed, or why not, in one line without the places of this machine."""
    if report.passed:
        return PASSED
    if report.skipped:
        return f"❌ not run: {without_paths(report.longrepr[2].removeprefix('Skipped: '))}"
    reason = getattr(getattr(report.longrepr, "reprcrash", None), "message", str(report.longrepr))
    return f"❌ failed: {without_paths(reason.splitlines()[0])}"
