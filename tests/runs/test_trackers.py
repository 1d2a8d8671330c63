"""`logging.report_to` mirrors a whole run, interrupted or not."""

import shutil

import pytest
from running import train

from smallm_hf.base.errors import UserError
from smallm_hf.training.progress import read_records


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_MODE", "offline")
    for name in ("CACHE", "CONFIG", "DATA"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / "wandb"))


def test_a_resumed_run_shows_each_step_once(recipe, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator

    run, words = tmp_path / "run", ["--logging.report_to", "tensorboard"]
    train(recipe, run, *words)
    shutil.rmtree(run / "checkpoints" / "step-6")  # as if the run had died after its last record
    train(recipe, run, *words, "--resume")
    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"tensors": 0}).Reload()
    records = read_records(run, "metrics")
    for panel, name in (("train/loss", "loss"), ("validation/loss", "validation_loss")):
        shown = {event.step: event.tensor_proto.float_val[0] for event in events.Tensors(panel)}
        assert len(events.Tensors(panel)) == len(shown)
        assert shown == pytest.approx({r["step"]: r[name] for r in records if name in r})
    assert any(tag.startswith("samples/the_cat") for tag in events.Tags()["tensors"])
    assert any("train" in tag and "learning_rate" in tag for tag in events.Tags()["tensors"])


def test_all_trackers_may_watch_one_run(recipe, tmp_path, monkeypatch, capsys):
    for name in ("tensorboard", "trackio", "wandb"):
        pytest.importorskip(name)
    train(recipe, tmp_path / "run", "--logging.report_to", "tensorboard,trackio,wandb", "--training.max_steps", 2)
    said = capsys.readouterr().out
    assert "warning" not in said and "watch with: tensorboard --logdir" in said
    assert said.count("trackio show") == 1  # trackio itself would name another command
    assert list((tmp_path / "run").glob("wandb/offline-run-*")) and (tmp_path / "run" / "trackers.json").is_file()


def test_an_unknown_tracker_is_refused_with_the_nearest(recipe, tmp_path):
    with pytest.raises(UserError, match="logging.report_to=tensorbord is not a tracker; did you mean tensorboard"):
        train(recipe, tmp_path / "run", "--logging.report_to", "tensorbord")
    assert not (tmp_path / "run").exists()
