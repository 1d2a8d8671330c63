"""Where a result comes from: versions, commit, command."""

import importlib.metadata
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from smallm_hf import __version__

RECORDED = ("transformers", "tokenizers", "datasets", "accelerate", "evaluate", "huggingface_hub", "tiktoken")


def versions() -> dict[str, str]:
    """The versions of Python, of this package and of the libraries a result depends on.

    torch states its own, which tells builds apart (`2.14.1+cu130` where the installed package says `2.14.1`).
    """
    import torch

    found = {"python": platform.python_version(), "smallm_hf": __version__, "torch": str(torch.__version__)}
    return found | {name: importlib.metadata.version(name) for name in RECORDED}


def commit() -> str | None:
    """The commit of the checkout this package runs from, with `-dirty` where files differ; None outside git."""
    folder = Path(__file__).resolve().parent
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        answer = subprocess.run(command, capture_output=True, errors="replace", timeout=10)
    except (OSError, subprocess.TimeoutExpired):  # no git, or a checkout too slow to ask
        return None
    return answer.stdout.strip() or None if answer.returncode == 0 else None


def environment() -> dict[str, Any]:
    """What it takes to get the same result again, beside the config."""
    program, *words = sys.argv
    names = program.split() if program.startswith("smallm ") else [program]
    return {"command": [*names, *words], "commit": commit(), "versions": versions()}
