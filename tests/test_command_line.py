import errno
from argparse import ArgumentError

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from smallm_hf.base.command_line import exit_clearly
from smallm_hf.base.errors import UserError, is_disk_full


def fail(error: BaseException):
    def main():
        raise error

    return main


def test_a_users_mistake_is_one_line_and_status_2(capsys):
    with pytest.raises(SystemExit) as end:
        exit_clearly(fail(UserError("training.batch_size=0 must be above 0")))
    assert end.value.code == 2
    assert capsys.readouterr().err == "error: training.batch_size=0 must be above 0\n"


def test_a_full_disk_names_the_file_and_the_fix(capsys):
    with pytest.raises(SystemExit) as end:
        exit_clearly(fail(OSError(errno.ENOSPC, "No space left on device", "runs/a/model.safetensors")))
    assert end.value.code == 2
    assert "no space left writing runs/a/model.safetensors; free some space" in capsys.readouterr().err


WRITERS = {
    "torch": lambda zeros, path: torch.save(torch.from_numpy(zeros), path),
    "numpy": lambda zeros, path: np.save(path, zeros),
    "python": lambda zeros, path: path.write_bytes(zeros.tobytes()),
    "safetensors": lambda zeros, path: save_file({"zeros": zeros}, path),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_a_full_disk_is_recognised_whoever_writes(writer, tmp_path, capsys):
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(Exception) as error:
            WRITERS[writer](np.zeros(50_000), tmp_path / "file.npy")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert is_disk_full(error.value)
    with pytest.raises(SystemExit) as end:
        exit_clearly(fail(error.value))
    assert end.value.code == 2 and capsys.readouterr().err.startswith("error: no space left writing ")


def test_only_the_main_process_prints(capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(SystemExit) as end:
        exit_clearly(fail(UserError("wrong")))
    assert end.value.code == 2
    assert capsys.readouterr().err == ""


def test_a_fault_of_ours_keeps_its_traceback():
    with pytest.raises(ValueError, match="ours"):
        exit_clearly(fail(ValueError("ours")))


def test_ctrl_c_exits_with_the_shells_status(capsys):
    with pytest.raises(SystemExit) as end:
        exit_clearly(fail(KeyboardInterrupt()))
    assert end.value.code == 130


def test_a_wrong_option_is_one_line_and_status_2(capsys):
    with pytest.raises(SystemExit) as end:
        exit_clearly(fail(ArgumentError(None, "unrecognized arguments:\n --modle x")))
    assert end.value.code == 2
    assert capsys.readouterr().err == "error: unrecognized arguments: --modle x; see --help\n"
