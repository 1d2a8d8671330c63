"""An interrupted and resumed run ends, bit for bit, where the uninterrupted one does."""

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from running import HARD, interrupt_at, outcome, tensors, train

from smallm_hf.base.errors import Interrupted, UserError
from smallm_hf.training import objectives, optimization, watch
from smallm_hf.training.checkpoints import damage, list_checkpoints, load_state, read_manifest
from smallm_hf.training.progress import read_records
from smallm_hf.training.update import Updater


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The outcomes of uninterrupted runs, by their words."""
    return {}


def expected(whole, recipe, tmp_path, words):
    key = tuple(map(str, words))
    if key not in whole:
        train(recipe, tmp_path / "whole", *words)
        whole[key] = outcome(tmp_path / "whole")
    return whole[key]


@pytest.mark.parametrize(
    ("step", "where"),
    [*((step, "advance") for step in (2, 7, 17)), (8, "evaluate"), (10, "sample"), (20, "evaluate"), (20, "sample")],
)
def test_a_run_stopped_by_a_signal_and_resumed_is_the_uninterrupted_one(
    whole, recipe, tmp_path, monkeypatch, step, where
):
    reference = expected(whole, recipe, tmp_path, HARD)
    interrupt_at(monkeypatch, step, where)
    with pytest.raises(Interrupted, match=rf"stopped \(signal SIGTERM\) at step {step}; saved .*step-{step}, --resume"):
        train(recipe, tmp_path / "run", *HARD)
    assert not (tmp_path / "run" / "results.json").exists()
    train(recipe, tmp_path / "run", *HARD, "--resume")
    found = outcome(tmp_path / "run")
    for name, value in reference.items():
        assert found[name] == value, name


@pytest.mark.parametrize(
    "words",
    [
        ["--training.optimizer", "adamw", "--training.skip_spikes", 0.5],
        ["--training.compile", "true"],
        ["--training.patience", 3, "--training.evaluate_every", 2, "--training.learning_rate", 0.3],
        ["--training.interval_unit", "tokens", "--training.checkpoint_every", 700, "--training.evaluate_every", 500],
        ["--training.precision", "bf16"],
        ["--training.epochs", 1.2, "--training.max_steps", "null"],
        [
            *("--training.label_smoothing", 0.1, "--training.scheduled_sampling", 0.5),
            *("--model.trainable_temperature", "true"),
        ],
    ],
    ids=["spikes", "compiled", "patience", "tokens", "bf16", "epochs", "objectives"],
)
def test_so_is_one_of_another_kind(whole, recipe, tmp_path, monkeypatch, words):
    reference = expected(whole, recipe, tmp_path, [*HARD, *words])
    for step in (3, 7):
        interrupt_at(monkeypatch, step)
        with pytest.raises(Interrupted):
            train(recipe, tmp_path / "run", *HARD, *words, *(["--resume"] if step > 3 else []))
    train(recipe, tmp_path / "run", *HARD, *words, "--resume")
    assert outcome(tmp_path / "run") == reference


def test_a_signal_between_micro_steps_does_not_wait_for_the_update(recipe, tmp_path, monkeypatch):
    passes = []
    forward = objectives.LanguageModelling.forward

    def counted(self, *arguments, **batch):
        passes.append(1)
        if len(passes) == 3:  # the first of the second update's two
            os.kill(os.getpid(), signal.SIGTERM)
        return forward(self, *arguments, **batch)

    monkeypatch.setattr(objectives.LanguageModelling, "forward", counted)
    with pytest.raises(Interrupted, match="at step 1;"):
        train(recipe, tmp_path / "run", *HARD)
    assert len(passes) == 3


def test_a_second_run_of_the_first_seconds_is_told_there_is_nothing(recipe, tmp_path, monkeypatch):
    interrupt_at(monkeypatch, 0)
    with pytest.raises(Interrupted, match="before the first step; there is nothing to resume"):
        train(recipe, tmp_path / "run", *HARD)


# --- what is refused, and what is set aside ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--training.learning_rate", 0.5], "was trained with training.learning_rate=0.003, this config says 0.5"),
        (["--training.batch_size", 2], "training.batch_size=4, this config says 2"),
        (["--training.seed", 1], "training.seed=42, this config says 1"),
        (["--model.dropout", 0.5], "model.dropout=0.0, this config says 0.5"),
        (["--data.validation_ratio", 0.3], "data.validation_ratio=0.2, this config says 0.3"),
    ],
)
def test_a_resume_with_another_config_is_refused_with_both_values(recipe, tmp_path, words, message):
    train(recipe, tmp_path / "run", "--training.max_steps", 3)
    folder = ["--data.folder", tmp_path / "others"] if "data" in words[0] else []
    with pytest.raises(UserError, match=message):
        train(recipe, tmp_path / "run", "--resume", *words, *folder)


def test_an_option_that_is_younger_than_the_checkpoint_may_not_change_either(recipe, tmp_path, capsys):
    train(recipe, tmp_path / "run", "--training.max_steps", 3)
    manifest = tmp_path / "run" / "checkpoints" / "step-3" / "manifest.json"
    content = json.loads(manifest.read_text())
    for name in ("skip_spikes", "beta2", "loss", "sample_prompts"):
        del content["config"]["training"][name]
    del content["config"]["batching"]
    content["config"]["training"]["gone"] = 7
    manifest.write_text(json.dumps(content))
    for words, message in (
        (["--training.skip_spikes", 5], "was trained with training.skip_spikes=None, this config says 5.0"),
        (["--training.beta2", 0.99], "was trained with training.beta2=0.95, this config says 0.99"),
        (["--batching.stride", 8], "was trained with batching.stride=None, this config says 8"),
    ):
        with pytest.raises(UserError, match=message):
            train(recipe, tmp_path / "run", "--resume", *words)
    capsys.readouterr()
    assert train(recipe, tmp_path / "run", "--resume")["steps"] == 6
    assert "step-3 was trained with training.gone=7, which this version does not know" in capsys.readouterr().out


def test_lengths_and_logging_may_change(recipe, tmp_path):
    train(recipe, tmp_path / "run", "--training.max_steps", 3)
    words = ["--training.log_every", 1, "--training.evaluate_every", 2, "--training.keep_checkpoints", 1]
    assert train(recipe, tmp_path / "run", "--resume", *words, "--training.max_steps", 5)["steps"] == 5


def test_what_auto_decided_is_used_again(recipe, tmp_path):
    words = ["--training.precision", "auto", "--training.batch_size", "auto", "--training.compile", "auto"]
    train(recipe, tmp_path / "run", *words, "--training.max_steps", 3)
    manifest = tmp_path / "run" / "checkpoints" / "step-3" / "manifest.json"
    content = json.loads(manifest.read_text())
    assert content["config"]["training"]["precision"] in ("bf16", "fp32")
    content["config"]["training"] |= {"precision": "bf16", "batch_size": 1, "accumulation_steps": 4}
    manifest.write_text(json.dumps(content))
    results = train(recipe, tmp_path / "run", *words, "--resume")
    decided = results["config"]["training"]
    assert (decided["precision"], decided["batch_size"], decided["accumulation_steps"]) == ("bf16", 1, 4)


def test_changed_text_is_refused_with_both_fingerprints(recipe, tmp_path, stories):
    train(recipe, tmp_path / "run", "--training.max_steps", 3)
    other = tmp_path / "other.txt"
    other.write_text(stories.read_text() + "\n<|endoftext|>\nthe cat sat on the red mat.\n")
    tokenizer = ["--tokenizer.source", tmp_path / "run" / "best"]
    words = ["--data.source", other, "--data.folder", tmp_path / "others", *tokenizer]
    with pytest.raises(UserError, match=r"tokenizer.source=bpe, this config says"):
        train(recipe, tmp_path / "run", "--resume", *words)
    train(recipe, tmp_path / "second", *words[2:], "--training.max_steps", 3)
    with pytest.raises(UserError, match=r"trained with (train|validation).bin of sha256 \w{12}, .*more holds \w{12}"):
        train(recipe, tmp_path / "second", "--resume", *words[:2], "--data.folder", tmp_path / "more", *tokenizer)


def test_a_token_file_that_was_changed_is_refused_with_both_fingerprints(recipe, tmp_path):
    train(recipe, tmp_path / "run", "--training.max_steps", 3)
    path = tmp_path / "tokens" / "train.bin"
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"train.bin has sha256 \w{12}, its meta.json says \w{12}: it was changed"):
        train(recipe, tmp_path / "run", "--resume")


@pytest.mark.parametrize(
    "name", ["model.safetensors", "config.json", "optimizer.pt", "state.json", "random-0.pt", "manifest.json"]
)
@pytest.mark.parametrize("how", ["cut off", "missing", "one bit"])
def test_a_damaged_checkpoint_is_set_aside_for_the_one_before(recipe, tmp_path, capsys, name, how):
    train(recipe, tmp_path / "run")
    path = tmp_path / "run" / "checkpoints" / "step-6" / name
    content = bytearray(path.read_bytes())
    if how == "missing":
        path.unlink()
    elif how == "cut off":
        path.write_bytes(content[: len(content) // 2])
    else:
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    if how == "one bit" and name == "manifest.json":
        return  # may hit a letter that says nothing; the cases above are its own
    train(recipe, tmp_path / "run", "--resume")
    said = capsys.readouterr().out
    assert re.search(rf"step-6 is damaged \(.*{name}.*\); set aside as damaged-step-6", said)
    assert f"resuming from {path.parent.parent}/step-3" in said
    assert (path.parent.parent / "damaged-step-6").is_dir()
    assert damage(path.parent) is None  # written again


def test_with_no_whole_checkpoint_the_run_starts_afresh_and_says_so(recipe, tmp_path, capsys):
    train(recipe, tmp_path / "run", "--training.max_steps", 3)
    (tmp_path / "run" / "checkpoints" / "step-3" / "model.safetensors").unlink()
    assert train(recipe, tmp_path / "run", "--resume")["steps"] == 6
    assert "starting afresh" in capsys.readouterr().out
    assert read_records(tmp_path / "run", "metrics")[0]["step"] == 1


def test_a_manifest_tells_what_the_checkpoint_is_of(recipe, tmp_path):
    train(recipe, tmp_path / "run")
    manifest = read_manifest(tmp_path / "run" / "checkpoints" / "step-6")
    assert (manifest.step, manifest.tokens, manifest.processes) == (6, 768, 1)
    assert manifest.config["training"]["seed"] == 42
    assert manifest.fingerprints.keys() == {"tokenizer", "train.bin", "validation.bin"}
    assert manifest.versions["torch"] == torch.__version__
    assert {"model.safetensors", "optimizer.pt", "random-0.pt", "state.json"} <= manifest.files.keys()


def test_a_run_that_goes_on_where_bfloat16_is_slow_says_that_muon_multiplies_otherwise(
    recipe, tmp_path, monkeypatch, capsys
):
    for well, dtype in ((True, "bfloat16"), (False, "float32")):
        monkeypatch.setattr(optimization, "multiplies_well", lambda dtype, device, well=well: well)
        train(recipe, tmp_path / dtype, "--training.max_steps", 3)
        assert read_manifest(tmp_path / dtype / "checkpoints" / "step-3").muon_dtype == dtype
        assert "differ" not in capsys.readouterr().out
    train(recipe, tmp_path / "bfloat16", "--resume")
    said = "may differ from an uninterrupted one: products of Muon in bfloat16 then, float32 now"
    assert said in capsys.readouterr().out
    train(recipe, tmp_path / "float32", "--resume")
    assert "differ" not in capsys.readouterr().out


def test_the_newest_the_best_and_every_so_many_checkpoints_stay(recipe, tmp_path, monkeypatch):
    losses = iter([3.0, 1.0, *[2.0] * 99])
    names = ("perplexity", "bits_per_byte", "top1_accuracy", "top3_accuracy", "tokens", "bytes")
    figures = {f"validation_{name}": 1 for name in names}
    score = "smallm_hf.training.validation.ValidationSet.score"
    monkeypatch.setattr(score, lambda *_: {"validation_loss": next(losses), **figures})
    words = ["--training.max_steps", 12, "--training.checkpoint_every", 1, "--training.evaluate_every", 1]
    train(recipe, tmp_path / "run", *words, "--training.keep_every", 5, "--training.keep_checkpoints", 2)
    kept = [path.name for path in list_checkpoints(tmp_path / "run")]
    assert kept == ["step-2", "step-5", "step-10", "step-11", "step-12"]


# --- bad steps, memory, disk ------------------------------------------------------------------------------------------


def poison(monkeypatch, *steps: int, value: float = math.nan) -> None:
    """Makes the loss of some updates NaN."""
    gradients = Updater.gradients

    def poisoned(self, first, *arguments):
        loss = gradients(self, first, *arguments)
        if first // self.training.windows_per_step + 1 in steps:
            for parameter in self.model.parameters():
                parameter.grad.fill_(value)
            return loss * value
        return loss

    monkeypatch.setattr(Updater, "gradients", poisoned)


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_an_update_that_is_no_number_leaves_weights_and_optimizer_as_they_are(recipe, tmp_path, monkeypatch, optimizer):
    words = ["--training.optimizer", optimizer, "--training.checkpoint_every", 1, "--training.keep_checkpoints", 9]
    poison(monkeypatch, 4)
    results = train(recipe, tmp_path / "run", *words, "--training.log_every", 1)
    assert (results["steps"], results["skipped_steps"]) == (6, 1)
    before, after = (outcome_of(tmp_path / "run", step) for step in (3, 4))
    assert before == after != outcome_of(tmp_path / "run", 5)
    records = {r["step"]: r for r in read_records(tmp_path / "run", "metrics") if "learning_rate" in r}
    assert records[4]["loss"] is None and records[4]["skipped_steps"] == 1
    assert math.isfinite(records[5]["loss"])
    assert load_state(list_checkpoints(tmp_path / "run")[-1]).windows == 24  # its data counts as seen


def outcome_of(run, step):
    """Weights and moments at a checkpoint."""
    folder = run / "checkpoints" / f"step-{step}"
    saved = torch.load(folder / "optimizer.pt", weights_only=True)
    return (folder / "model.safetensors").read_bytes(), [tensor.tolist() for tensor in tensors(saved)]


def test_too_many_bad_updates_in_a_row_stop_the_run_with_a_checkpoint(recipe, tmp_path, monkeypatch):
    poison(monkeypatch, *range(4, 99), value=math.inf)
    words = ["--training.max_skipped_steps", 3, "--training.max_steps", 20, "--training.checkpoint_every", "null"]
    words += ["--training.log_every", 3]  # looked at then
    with pytest.raises(
        UserError, match=r"the last 3 updates had no usable loss or gradient \(loss inf.* before step 6\)"
    ):
        train(recipe, tmp_path / "run", *words)
    assert [path.name for path in list_checkpoints(tmp_path / "run")] == ["step-6"]


def test_a_spike_is_left_out(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(watch, "SPIKE_HISTORY", 8)
    poison(monkeypatch, 7, value=1e4)
    words = ["--training.max_steps", 9, "--training.checkpoint_every", "null"]
    assert train(recipe, tmp_path / "run", *words, "--training.skip_spikes", 6)["skipped_steps"] == 1
    assert train(recipe, tmp_path / "other", *words)["skipped_steps"] == 0


def test_where_memory_runs_out_the_micro_step_is_halved_and_the_update_stays(recipe, tmp_path, monkeypatch, capsys):
    constant = ["--training.schedule", "constant"]
    train(recipe, tmp_path / "whole", *constant)
    forward = objectives.LanguageModelling.forward

    def limited(self, input_ids, **batch):
        if len(input_ids) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return forward(self, input_ids, **batch)

    monkeypatch.setattr(objectives.LanguageModelling, "forward", limited)
    train(recipe, tmp_path / "run", *constant, "--training.max_steps", 3)
    said = capsys.readouterr().out
    assert "out of memory with 4 windows per micro-step; going on with 2" in said
    assert "out of memory with 2 windows per micro-step; going on with 1" in said
    train(recipe, tmp_path / "run", *constant, "--resume")
    assert "out of memory" not in capsys.readouterr().out  # remembered
    whole, halved = (read_records(tmp_path / name, "metrics") for name in ("whole", "run"))
    for mine, theirs in zip(whole, halved, strict=True):
        for name in {"loss", "gradient_norm", "validation_loss"} & mine.keys():
            assert theirs[name] == pytest.approx(mine[name], rel=1e-3), name


def test_one_window_that_does_not_fit_is_refused(recipe, tmp_path, monkeypatch):
    def full(self, **batch):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    monkeypatch.setattr(objectives.LanguageModelling, "forward", full)
    with pytest.raises(UserError, match="out of memory with training.batch_size=1 windows of training.context_length="):
        train(recipe, tmp_path / "run")


def test_on_a_full_disk_a_run_may_go_on_without_the_checkpoint(recipe, tmp_path, capsys):
    resource = pytest.importorskip("resource")
    words = ["--training.optimizer", "adamw", "--training.evaluate_every", "null", "--training.on_full_disk"]
    train(recipe, tmp_path / "run", *words, "continue", "--training.max_steps", 3)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))  # the weights of 40,000 parameters take 160,000 bytes
    try:
        results = train(recipe, tmp_path / "run", "--resume", *words, "continue", "--training.max_steps", 7)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert results["steps"] == 7
    assert "no space left to write" in (said := capsys.readouterr().out) and "going on without it" in said
    assert [path.name for path in list_checkpoints(tmp_path / "run")] == ["step-3"]
    assert damage(tmp_path / "run" / "checkpoints" / "step-3") is None


def test_an_old_checkpoint_goes_only_when_the_newer_is_whole(recipe, tmp_path, monkeypatch):
    train(recipe, tmp_path / "run", "--training.max_steps", 3, "--training.keep_checkpoints", 1)
    from smallm_hf.training import checkpoints

    check = checkpoints.damage
    monkeypatch.setattr(checkpoints, "damage", lambda path: "a worn disk" if path.name == "step-6" else check(path))
    with pytest.raises(UserError, match=r"step-6 was just written and is damaged \(a worn disk\); check the disk"):
        train(recipe, tmp_path / "run", "--resume", "--training.keep_checkpoints", 1)
    assert (tmp_path / "run" / "checkpoints" / "step-3").is_dir()


def test_a_finished_run_is_left_as_it_was(recipe, tmp_path):
    train(recipe, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "final")
    before = outcome_of(tmp_path / "run", 6)
    train(recipe, tmp_path / "run", "--resume")
    assert outcome_of(tmp_path / "run", 6) == before
    assert (tmp_path / "run" / "final" / "model.safetensors").is_file()


def test_a_folder_that_another_process_writes_to_is_waited_for_and_then_refused(recipe, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("smallm_hf.runs.OTHERS_END_SECONDS", 0.1)
    holder = (
        "import sys, pathlib, time; from smallm_hf.base.folders import lock\n"
        "with lock(pathlib.Path(sys.argv[1])): print(flush=True), time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", holder, tmp_path / "run"], stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        with pytest.raises(UserError, match="another process is training in .*run; stop it, or give another"):
            train(recipe, tmp_path / "run")
        process.kill()
    assert "waiting for its end" in capsys.readouterr().out
    assert train(recipe, tmp_path / "run")["steps"] == 6
