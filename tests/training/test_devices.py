import os
from types import SimpleNamespace

import pytest
import torch

from smallm_hf.errors import UserError
from smallm_hf.training import devices
from smallm_hf.training.devices import resolve_compile, resolve_precision, set_cpu_threads


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
    for name in ("ACCELERATE_MIXED_PRECISION", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def on(monkeypatch):
    """Pretends to run on a device with given features."""

    def pretend(device: str, **features: bool) -> None:
        monkeypatch.setattr(devices, "accelerator_type", lambda: device)
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: features)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: features.get("bf16", False))

    return pretend


@pytest.mark.parametrize(
    ("device", "features", "precision"),
    [
        ("cpu", {}, "fp32"),
        ("cpu", {"avx512_bf16": True}, "bf16"),
        ("cpu", {"amx_bf16": True}, "bf16"),
        ("cuda", {"bf16": True}, "bf16"),
        ("cuda", {"bf16": False}, "fp16"),
        ("mps", {}, "fp32"),
    ],
)
def test_auto_takes_the_precision_the_hardware_multiplies(on, device, features, precision):
    on(device, **features)
    assert resolve_precision("auto") == precision


def test_fp16_on_a_cpu_is_refused(on):
    on("cpu")
    with pytest.raises(UserError, match="training.precision=fp16 needs a GPU.*use bf16, fp32 or auto"):
        resolve_precision("fp16")


def test_auto_takes_what_the_launcher_was_told(on, monkeypatch):
    on("cpu")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert resolve_precision("auto") == "bf16"
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    assert resolve_precision("auto") == "fp32"


def test_a_launcher_that_contradicts_the_config_is_refused_with_both_values(on, monkeypatch):
    on("cuda", bf16=True)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    with pytest.raises(UserError, match="training.precision=bf16 contradicts the launcher's mixed precision fp16"):
        resolve_precision("bf16")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp8")
    with pytest.raises(UserError, match="fp8 is neither bf16 nor fp16"):
        resolve_precision("auto")


def test_compiling_is_left_out_where_it_would_not_pay(on, monkeypatch):
    on("cpu")
    monkeypatch.setattr(devices, "_can_compile", lambda device: True)
    assert not resolve_compile("auto", planned_flops=1e9, planned_seconds=None)
    assert resolve_compile("auto", planned_flops=1e18, planned_seconds=None)
    assert resolve_compile("auto", planned_flops=None, planned_seconds=60)
    assert not resolve_compile("auto", planned_flops=None, planned_seconds=5)
    assert not resolve_compile("auto", planned_flops=1e9, planned_seconds=3600)


def test_compiling_needs_the_headers_of_python(on, monkeypatch, tmp_path):
    on("cpu")
    monkeypatch.setattr(devices, "shutil", SimpleNamespace(which=lambda name: "/bin/c++"))
    monkeypatch.setattr(devices.sysconfig, "get_path", lambda name: str(tmp_path))
    assert not resolve_compile("auto", planned_flops=1e18, planned_seconds=None)
    (tmp_path / "Python.h").touch()
    assert resolve_compile("auto", planned_flops=1e18, planned_seconds=None) == (devices.sys.platform == "linux")


def test_compiling_needs_a_compiler_unless_it_is_asked_for(on, monkeypatch):
    on("cpu")
    monkeypatch.setattr(devices, "shutil", SimpleNamespace(which=lambda name: None))
    assert not resolve_compile("auto", planned_flops=1e18, planned_seconds=None)
    assert resolve_compile(True, planned_flops=0, planned_seconds=None)
    assert not resolve_compile(False, planned_flops=1e18, planned_seconds=None)


def test_a_launchers_single_thread_becomes_a_share_of_the_cores(on, monkeypatch):
    on("cpu")
    chosen = []
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(8), raising=False)
    monkeypatch.setattr(devices.psutil, "cpu_count", lambda logical: 8)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    set_cpu_threads(None)  # no launcher: the user's own choice stands
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    set_cpu_threads(None)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    set_cpu_threads(None)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    set_cpu_threads(None)
    set_cpu_threads(5)
    assert chosen == [8, 2, 5]
