"""`training.cooldown_from`: a new run that decays from a checkpoint of a run at its full rate."""

import pytest
import torch
from running import train
from safetensors.torch import load_file

from smallm_hf.base.errors import UserError
from smallm_hf.training import update
from smallm_hf.training.progress import read_records

STABLE = ["--training.decay_fraction", 0, "--training.warmup_steps", 1, "--training.log_every", 1]


@pytest.fixture
def stable(recipe, tmp_path):
    """A run of six steps at the full rate, with a checkpoint at its third."""
    train(recipe, tmp_path / "stable", *STABLE)
    return tmp_path / "stable" / "checkpoints" / "step-3"


def rates(run):
    return {r["step"]: r["learning_rate"] for r in read_records(run, "metrics") if "learning_rate" in r}


def test_the_rate_falls_from_the_checkpoint_to_the_end(stable, recipe, tmp_path):
    words = [*STABLE, "--training.cooldown_from", stable, "--training.max_steps", 7]
    results = train(recipe, tmp_path / "cooled", *words)
    assert results["steps"] == 7
    assert rates(tmp_path / "stable")[6] == 3e-3
    assert [rates(tmp_path / "cooled")[step] for step in (4, 5, 6, 7)] == pytest.approx(
        [3e-3, 3e-3 * 0.75, 3e-3 * 0.5, 3e-3 * 0.25]
    )
    first = {r["step"]: r["loss"] for r in read_records(tmp_path / "stable", "metrics") if "loss" in r}
    cooled = {r["step"]: r["loss"] for r in read_records(tmp_path / "cooled", "metrics") if "loss" in r}
    assert cooled[4] == first[4]  # the same weights on the same data


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_a_cooldown_trains_at_the_rates_that_it_was_given_and_logs_what_acts(recipe, tmp_path, optimizer):
    words = [*STABLE, "--training.optimizer", optimizer]
    train(recipe, tmp_path / "stable", *words, "--training.max_steps", 3)
    words += ["--training.cooldown_from", tmp_path / "stable" / "checkpoints" / "step-3"]
    words += ["--training.learning_rate", 1e-3, "--training.muon_learning_rate", 4e-3]
    words += ["--training.weight_decay", 0.3, "--training.beta1", 0.7, "--training.max_steps", 5]
    train(recipe, tmp_path / "cooled", *words)
    saved = torch.load(tmp_path / "cooled" / "checkpoints" / "step-5" / "optimizer.pt", weights_only=True)["optimizer"]
    *muon, adamw = [part["param_groups"] for part in saved.get("optimizers", [saved])]
    assert [group["lr"] for group in adamw] == pytest.approx([1e-3 / 2, 1e-3 / 2])  # of the last update
    assert {group["betas"] for group in adamw} == {(0.7, 0.95)}
    assert [group["weight_decay"] for group in adamw] == [0.3, 0.0]
    assert [group["lr"] for groups in muon for group in groups] == pytest.approx([4e-3 / 2] * len(muon))
    assert [group["weight_decay"] for groups in muon for group in groups] == [0.3] * len(muon)
    records = [record for record in read_records(tmp_path / "cooled", "metrics") if "loss" in record]
    assert [record["learning_rate"] for record in records] == pytest.approx([1e-3, 1e-3 / 2])
    logged = [record["muon_learning_rate"] for record in records if "muon_learning_rate" in record]
    assert logged == pytest.approx([4e-3, 4e-3 / 2] if muon else [])


def test_what_is_logged_is_the_rate_of_the_optimizer_not_that_of_the_config(recipe, tmp_path, monkeypatch):
    set_learning_rate = update.set_learning_rate
    monkeypatch.setattr(update, "set_learning_rate", lambda optimizer, factor: set_learning_rate(optimizer, factor / 2))
    train(recipe, tmp_path / "run", *STABLE, "--training.max_steps", 2)
    assert rates(tmp_path / "run") == {1: 3e-3 / 2, 2: 3e-3 / 2}


def test_an_interrupted_cooldown_resumes_where_it_was(stable, recipe, tmp_path):
    words = [*STABLE, "--training.cooldown_from", stable, "--training.checkpoint_every", 1]
    train(recipe, tmp_path / "whole", *words, "--training.max_steps", 6)
    train(recipe, tmp_path / "parts", *words, "--training.max_steps", 6)
    for step in (5, 6):
        for file in (tmp_path / "parts" / "checkpoints" / f"step-{step}").iterdir():
            file.unlink()
        (tmp_path / "parts" / "checkpoints" / f"step-{step}").rmdir()
    train(recipe, tmp_path / "parts", *words, "--training.max_steps", 6, "--resume")
    assert rates(tmp_path / "parts") == rates(tmp_path / "whole")
    whole, parts = (load_file(tmp_path / name / "final" / "model.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(parts[name], tensor) for name, tensor in whole.items())


@pytest.mark.parametrize(
    ("first", "then", "message"),
    [
        (["--training.schedule", "cosine"], [], "was trained with training.schedule=cosine, this run has wsd"),
        (STABLE, ["--training.schedule", "cosine"], "decay of schedule wsd, training.schedule=cosine; set it to wsd"),
        (["--training.decay_fraction", 1], [], "was at 0.67 of its peak rate, warming up or decaying already"),
        (STABLE, ["--training.max_steps", 3], "is at step 3 .*and the run ends at training.max_steps=3"),
    ],
    ids=["another schedule", "no wsd", "decaying already", "no room"],
)
def test_a_checkpoint_that_cannot_be_cooled_down_is_refused(recipe, tmp_path, first, then, message):
    train(recipe, tmp_path / "first", *first)
    words = ["--training.cooldown_from", tmp_path / "first" / "checkpoints" / "step-3", *then]
    with pytest.raises(UserError, match=message):
        train(recipe, tmp_path / "cooled", *words)
    assert not (tmp_path / "cooled").exists()


def test_a_folder_that_is_no_checkpoint_is_refused(recipe, tmp_path):
    with pytest.raises(UserError, match="nowhere is no checkpoint; give a folder such as RUN/checkpoints/step-1000"):
        train(recipe, tmp_path / "cooled", "--training.cooldown_from", tmp_path / "nowhere")
