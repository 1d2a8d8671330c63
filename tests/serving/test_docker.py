"""What the Dockerfile says, done step by step in a clean virtual environment: there need not be a Docker here."""

import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from small_server import byte_tokenizer, small_model

ROOT = Path(__file__).resolve().parents[2]
STEPS = re.findall(
    r"^([A-Z]+) (.+)$", re.sub(r"\\\n\s*", "", (ROOT / "Dockerfile").read_text(encoding="utf-8")), flags=re.MULTILINE
)


def steps(kind: str) -> list[str]:
    return [rest for name, rest in STEPS if name == kind]


def test_the_steps_are_of_the_kinds_that_are_tried_here():
    assert {name for name, _ in STEPS} == {
        *("FROM", "RUN", "WORKDIR", "COPY", "USER", "ENV", "EXPOSE", "HEALTHCHECK", "ENTRYPOINT", "CMD")
    }
    for line in steps("COPY"):
        for source in line.split()[:-1]:
            assert (ROOT / source).exists(), source


@pytest.fixture
def unused_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


def copy_to(folder: Path) -> None:
    for line in steps("COPY"):
        *sources, target = line.split()
        for source in sources:
            if (ROOT / source).is_dir():
                shutil.copytree(ROOT / source, folder / target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(ROOT / source, folder / target)


@pytest.mark.ecosystem
@pytest.mark.timeout(3000)  # installs everything
def test_what_the_image_installs_serves_a_model_and_reports_its_health(tmp_path, unused_port):
    """But for torch, which is this environment's: its index of CPU builds is another one than that of the rest."""
    app, environment, model = tmp_path / "app", tmp_path / "venv", tmp_path / "model"
    app.mkdir()
    copy_to(app)
    small_model().save_pretrained(model)
    byte_tokenizer().save_pretrained(model)
    subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    packages = next((environment / "lib").glob("python*/site-packages"))
    (packages / "torch-of-the-other.pth").write_text(str(Path(torch.__file__).parent.parent))
    variables = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    variables |= {"PATH": f"{environment / 'bin'}{os.pathsep}{os.environ['PATH']}", "SMALLM_API_KEYS": "secret"}
    variables |= dict(pair.split("=") for line in steps("ENV") for pair in line.split())
    here = {"cwd": app, "env": variables, "text": True}
    installed = [line for line in steps("RUN") if line.startswith("pip ") and "--index-url" not in line]
    assert len(installed) == len([line for line in steps("RUN") if line.startswith("pip ")]) - 1
    for line in installed:
        done = subprocess.run(shlex.split(line), **here, capture_output=True)
        if "No matching distribution" in done.stderr or "connection" in done.stderr.lower():
            pytest.skip("pip cannot get what the image installs from a package index")
        assert done.returncode == 0, done.stderr[-3000:]
    (entry,), (command,), (health,) = (steps(kind) for kind in ("ENTRYPOINT", "CMD", "HEALTHCHECK"))
    words = [*json.loads(entry), *json.loads(command)]
    words[words.index("/model")] = str(model)
    check = json.loads(health.partition("CMD ")[2])
    assert ":8000/ready" in check[-1] and steps("EXPOSE") == ["8000"]
    check[-1] = check[-1].replace("8000", str(unused_port))
    server = subprocess.Popen([*words, "--port", str(unused_port), "--compile", "false"], **here)
    try:
        until = time.monotonic() + 300
        while (status := subprocess.run(check, **here, capture_output=True).returncode) and time.monotonic() < until:
            assert server.poll() is None
        assert status == 0
    finally:
        server.terminate()
        assert server.wait(60) == 0
