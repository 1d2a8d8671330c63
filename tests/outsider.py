"""A process in which our package cannot be imported, as it is for anybody who loads a model of ours."""

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from textwrap import indent
from typing import Any

PROGRAM = """
import importlib.abc, json, sys

class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "smallm_hf":
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Absent())
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

report = {}
for kind, folder in json.loads(sys.argv[1]).items():
%s
assert not any(name.split(".")[0] == "smallm_hf" for name in sys.modules)
print(json.dumps(report))
"""


def asked_outside(question: str, place: Path, kinds: Iterable[str]) -> dict[str, Any]:
    """What such a process finds of the model in each folder of `place`.

    Args:
        question: lines that set `report[kind]` by what is in `folder`.
        place: where the process works.
        kinds: the names of the folders.
    """
    folders = json.dumps({kind: str(place / kind) for kind in kinds})
    command = [sys.executable, "-I", "-c", PROGRAM % indent(question.strip("\n"), "    "), folders]
    done = subprocess.run(command, capture_output=True, text=True, cwd=place, env=os.environ, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])
