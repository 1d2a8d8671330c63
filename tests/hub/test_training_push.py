"""Weights reach the Hub while a run trains, and the run never waits for it or dies of it."""

import errno
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi
from running import train
from safetensors.torch import load, load_file

from smallm_hf.base.errors import UserError
from smallm_hf.hub.configuration import HubConfig
from smallm_hf.hub.training_push import TrainingPush
from smallm_hf.training.saving import Saver

CONFIG = HubConfig(repo="user/tiny", push_every=2)


@pytest.fixture
def said():
    return []


def taken(folder: Path) -> Path:
    """A copy for a push to take over, where a run writes it."""
    return Path(shutil.copytree(folder, folder.parent / f".push-{folder.name}"))


def test_a_push_brings_weights_code_and_tokenizer_to_the_branch_training(hub, run, said):
    (run / "best" / "optimizer.pt").write_text("not for others")
    push = TrainingPush(CONFIG, said.append)
    push.push(taken(run / "best"), 2)
    push.wait()
    files = hub.files("user/tiny", "training")
    assert files["model.safetensors"] == (run / "best" / "model.safetensors").read_bytes()
    assert {"config.json", "tokenizer.json", "modeling_smallm.py"} <= set(files) and "optimizer.pt" not in files
    assert hub.files("user/tiny") == {}  # main is for what is finished
    assert said == [f"step 2 pushed to {hub.url}/user/tiny/tree/training"]
    assert not list(run.glob(".push-*"))


def test_a_push_returns_at_once_and_one_runs_at_a_time(hub, run, said):
    push = TrainingPush(CONFIG, said.append)
    hub.open.clear()
    push.push(taken(run / "best"), 2)  # returns, though the Hub does not answer
    push.push(taken(run / "final"), 4)
    assert [path.name for path in run.glob(".push-*")] == [".push-best"]
    hub.open.set()
    push.wait()
    push.push(taken(run / "final"), 6)
    push.wait()
    assert said[0] == "step 4 is not pushed to the Hub: step 2 is still on its way"
    assert [line[:13] for line in said[1:]] == ["step 2 pushed", "step 6 pushed"]
    assert len(hub.repositories["model", "user/tiny"].commits) == 1 + 2


def test_a_hub_that_goes_away_costs_one_line(hub, run, said, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between the client's attempts
    push = TrainingPush(CONFIG, said.append)
    hub.close()
    push.push(taken(run / "best"), 2)
    push.wait()
    assert [line.partition(": ")[0] for line in said] == ["step 2 is not pushed to the Hub"]
    assert "\n" not in said[0] and not list(run.glob(".push-*"))


def test_a_folder_without_a_model_leaves_the_branch_as_it_was(hub, run, said):
    push = TrainingPush(CONFIG, said.append)
    push.push(taken(run / "best"), 2)
    push.wait()
    push.push(run / "none", 4)
    push.wait()
    assert said[1].startswith("step 4 is not pushed to the Hub: ") and "none" in said[1]
    assert "model.safetensors" in hub.files("user/tiny", "training") and not list(run.glob(".push-*"))


def test_waiting_has_an_end(hub, run, said):
    push = TrainingPush(CONFIG, said.append)
    hub.open.clear()
    push.push(taken(run / "best"), 2)
    push.wait(timeout_seconds=0.05)
    assert said == ["step 2 did not reach the Hub in 0.05 seconds; given up"]
    assert push.thread.daemon  # the process may end
    assert not list(run.glob(".push-*"))
    hub.open.set()
    push.wait()


def test_what_can_be_known_is_refused_before_the_training(hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_reader")
    with pytest.raises(UserError, match="the token of user is read-only"):
        TrainingPush(CONFIG, print)


def test_publishing_finds_the_repository_its_own(hub, run, said):
    push = TrainingPush(HubConfig(repo="tiny", push_every=2, private=True), said.append)
    push.push(taken(run / "best"), 2)
    push.wait()
    assert HfApi().model_info("user/tiny").private
    again = TrainingPush(CONFIG, said.append)
    again.push(taken(run / "best"), 4)
    again.wait()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"repo": "a/b/c"}, "'a/b/c' is not a name for a repository of the Hub"),
        ({"push_every": 5}, "hub.push_every=5 names no repository; set hub.repo to user/name"),
        ({"repo": "user/tiny", "push_every": 0}, "hub.push_every=0 is out of range; set it to a number above 0"),
    ],
)
def test_a_section_that_cannot_work_is_refused(fields, message):
    with pytest.raises(UserError, match=message):
        HubConfig(**fields)


def test_a_run_pushes_its_weights_while_it_trains(hub, finished_run, tmp_path, capsys):
    words = ["--hub.repo", CONFIG.repo, "--hub.push_every", 4, "--training.checkpoint_every", 4]
    train(finished_run.parent / "recipe.yaml", tmp_path / "run", *words)
    assert "step 4 pushed to" in capsys.readouterr().out
    pushed = hub.files(CONFIG.repo, "training")["model.safetensors"]
    at_4 = load_file(tmp_path / "run" / "checkpoints" / "step-4" / "model.safetensors")
    assert all(torch.equal(tensor, at_4[name]) for name, tensor in load(pushed).items())
    assert not list((tmp_path / "run").glob(".push*"))


def test_a_full_disk_costs_the_push_and_not_the_run(hub, finished_run, tmp_path, monkeypatch, capsys):
    write = Saver._write_model

    def full(saver, model, folder):
        (folder / "half").write_text("written before the disk was full")
        if folder.name.startswith(".push-"):
            raise OSError(errno.ENOSPC, "No space left on device")
        (folder / "half").unlink()
        write(saver, model, folder)

    monkeypatch.setattr(Saver, "_write_model", full)
    words = ["--hub.repo", CONFIG.repo, "--hub.push_every", 4]
    train(finished_run.parent / "recipe.yaml", tmp_path / "run", *words)
    assert "no space left to push step 4; going on without it" in capsys.readouterr().out
    assert (tmp_path / "run" / "results.json").is_file() and not list((tmp_path / "run").glob(".push*"))


def test_a_run_that_fails_while_it_pushes_waits_a_little_and_leaves_nothing(
    hub, finished_run, tmp_path, monkeypatch, capsys
):
    def fail(loop):
        raise OSError("the sensor is gone")

    push = TrainingPush.push
    monkeypatch.setattr(TrainingPush, "push", lambda *arguments: (hub.open.clear(), push(*arguments)))
    monkeypatch.setattr("smallm_hf.runs.LAST_PUSH_SECONDS", 0.2)
    monkeypatch.setattr("smallm_hf.training.loop.TrainingLoop.sample", fail)
    words = ["--hub.repo", CONFIG.repo, "--hub.push_every", 4]
    with pytest.raises(OSError, match="the sensor is gone"):
        train(finished_run.parent / "recipe.yaml", tmp_path / "run", *words)
    hub.open.set()
    assert "step 4 did not reach the Hub in 0.2 seconds; given up" in capsys.readouterr().out
    assert not list((tmp_path / "run").glob(".push*"))


def test_what_a_killed_process_left_of_a_push_is_cleared_away_by_the_next(run, finished_run):
    (run / ".push-x").mkdir()
    (run / ".push-x" / "model.safetensors").touch()
    train(finished_run.parent / "recipe.yaml", run, "--resume", "--training.max_steps", 7)
    assert not list(run.glob(".push-*"))


def test_a_repository_that_refuses_ends_the_run_before_it_begins(hub, finished_run, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_nobody")
    words = ["--hub.repo", CONFIG.repo, "--hub.push_every", 4]
    with pytest.raises(UserError, match="token"):
        train(finished_run.parent / "recipe.yaml", tmp_path / "run", *words)
    assert not (tmp_path / "run").exists()
