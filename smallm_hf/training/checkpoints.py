"""Checkpoints: everything the next step depends on, in one folder that appears whole or not at all.

`checkpoints/step-N/` holds the model as `save_pretrained` writes it, `optimizer.pt`, one `random-RANK.pt` per process,
`state.json`, the counters, and, written last, `manifest.json`: what the run was, and the sha256 of every other file.
A checkpoint is used only where all of these agree. Where training is split, the optimizer's state is so too, in the
folder `optimizer/`; either kind can be resumed either way.
"""

import json
import math
import pickle
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from safetensors import SafetensorError
from transformers import PreTrainedModel

from smallm_hf.base.environment import versions
from smallm_hf.base.errors import UserError, one_line
from smallm_hf.base.folders import file_sha256, remove, replacing, restore_all
from smallm_hf.base.plain_json import write_json
from smallm_hf.training.configuration import TrainingConfig, share_done
from smallm_hf.training.optimization import muon_dtype
from smallm_hf.training.sharding import is_sharded, load_shards, save_shards, share_out_states, whole
from smallm_hf.training.validation import figures_of_json

STATE_FILE, MANIFEST_FILE = "state.json", "manifest.json"
FORMAT = 1
# What json, torch, pickle and safetensors raise for a file that is missing, cut off or of another kind.
UNREADABLE = (
    *(OSError, ValueError, TypeError, KeyError, RuntimeError, EOFError),
    *(pickle.UnpicklingError, SafetensorError),
)


@dataclass
class LoopState:
    """The counters of a run: with weights, optimizer and random state, all that the next step depends on."""

    step: int = 0  # optimizer updates done
    windows: int = 0  # training windows seen, over all processes: the position in the data
    tokens: int = 0  # targets counted, over all processes: in packed windows all tokens
    step_tokens: int = 0  # of these, those of the last update
    seconds: float = 0.0  # training time: data, steps and logging
    closed: bool = True  # whether what is due after this step, such as its validation, has been done
    batch_size: int = 0  # windows per process and micro-step; smaller than configured where memory ran out
    gradient_norm: float = 0.0  # of the last update, before clipping
    rate_factor: float = 0.0  # of the last update: the share of the peak rate
    cooldown_step: int = 0  # where a run with training.cooldown_from began, and
    cooldown_seconds: float = 0.0  # its training time by then
    best: dict[str, float] | None = None  # the validation with the lowest loss
    validations_without_gain: int = 0  # since then
    validated_step: int = 0  # of the last validation that these two count
    skipped_steps: int = 0  # updates skipped for a loss or gradient that is NaN or infinite, or a spike
    skipped_in_a_row: int = 0  # of these, the last ones
    logged_step: int = 0  # of the last record, with
    logged_tokens: int = 0  # its tokens and
    logged_seconds: float = 0.0  # its training time
    nats_since_log: float = 0.0  # sum of the losses of the updates since, and
    updates_since_log: int = 0  # how many of them were not skipped
    recent_losses: list[float] = field(default_factory=list)  # where spikes are looked for
    recent_norms: list[float] = field(default_factory=list)

    def out_of_patience(self, training: TrainingConfig) -> bool:
        """Whether too many validations in a row have brought no lower loss."""
        return bool(training.patience) and self.validations_without_gain >= training.patience

    def finished(self, training: TrainingConfig, planned_steps: int | None) -> bool:
        """Whether a run that starts from here has no update left to do."""
        return share_done(training, planned_steps, self.step, self.seconds) >= 1 or self.out_of_patience(training)


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint is of, and what its files must be.

    Args:
        format: version of this layout.
        step: updates done.
        tokens: training tokens seen.
        processes: how many shared an update.
        config: of the run, every `auto` decided.
        fingerprints: sha256 of the tokenizer and of the token files.
        versions: of Python and the libraries.
        files: size in bytes and sha256 of every other file.
        muon_dtype: what Muon multiplied in on the device of the run; bfloat16 in those that do not say.
    """

    format: int
    step: int
    tokens: int
    processes: int
    config: dict[str, Any]
    fingerprints: dict[str, str]
    versions: dict[str, str]
    files: dict[str, dict[str, int | str]]
    muon_dtype: str = "bfloat16"


def list_checkpoints(run: Path) -> list[Path]:
    """The finished checkpoints of a run folder, oldest first."""
    found = [path for path in (run / "checkpoints").glob("step-*") if re.fullmatch(r"step-\d+", path.name)]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))


def newest_checkpoint(run: Path, say: Callable[[str], None]) -> Path | None:
    """The newest checkpoint that is whole; damaged ones after it are reported and renamed.

    Only a process that has the run to itself may ask: what is unfinished is cleared away.
    """
    restore_all(run / "checkpoints")
    for checkpoint in reversed(list_checkpoints(run)):
        reason = damage(checkpoint)
        if reason is None:
            return checkpoint
        aside = checkpoint.with_name(f"damaged-{checkpoint.name}")
        shutil.rmtree(aside, ignore_errors=True)
        checkpoint.rename(aside)
        say(f"{checkpoint} is damaged ({reason}); set aside as {aside.name}")
    return None


def damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint by its own manifest; None where nothing is."""
    try:
        manifest = read_manifest(checkpoint)
        found = _describe_files(checkpoint)
    except (UserError, OSError) as error:
        return one_line(error)
    for name in sorted(manifest.files.keys() | found.keys()):
        expected, actual = manifest.files.get(name), found.get(name)
        if actual is None or expected is None:
            return f"{name} is {'missing' if actual is None else 'not of this checkpoint'}"
        if expected != actual:
            return (
                f"{name} has {actual['bytes']} bytes with sha256 {actual['sha256'][:12]}, "
                f"its manifest says {expected['bytes']} with {expected['sha256'][:12]}"
            )
    return None


def read_manifest(checkpoint: Path) -> Manifest:
    """What a checkpoint says it is.

    Raises:
        UserError: it says nothing that can be read, or speaks another format.
    """
    path = checkpoint / MANIFEST_FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        written = content.get("format")
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{path} cannot be read ({one_line(error)}); take another checkpoint") from error
    if written != FORMAT:
        raise UserError(f"{path} is of format {written}, this version reads {FORMAT}; take another checkpoint")
    return Manifest(**content)


def _describe_files(folder: Path) -> dict[str, dict[str, int | str]]:
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != MANIFEST_FILE:
            files[path.relative_to(folder).as_posix()] = {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
    return files


def save_checkpoint(
    run: Path,
    accelerator: Accelerator,
    model: PreTrainedModel,
    optimizer: torch.optim.Optimizer,
    state: LoopState,
    identity: dict[str, Any],
    *,
    kept: Callable[[int], bool],
    newest: int,
    carried: list[tuple[torch.Tensor, ...]] | None = None,
) -> Path:
    """Writes `checkpoints/step-N`, reads it back, and only then removes older ones; every process calls it.

    Args:
        run: the run folder.
        accelerator: knows the processes, and the gradient scaler if there is one.
        model: its weights are saved.
        optimizer: its state is saved.
        state: the counters.
        identity: `config` and `fingerprints` of the run, for the manifest.
        kept: whether the checkpoint of a step stays though it is old.
        newest: how many of the newest stay in any case.
        carried: what the objective leaves to the next batch.

    Returns:
        Where it is.

    Raises:
        DiskFull: no space was left; nothing has changed.
        UserError: what was written cannot be read back as it was.
    """
    # One gather before any file: each process's random state travels to the one that writes.
    random_states = [random_state(accelerator.device)]
    if accelerator.num_processes > 1:
        random_states = gather_object(random_states)
    checkpoint, writes = run / "checkpoints" / f"step-{state.step}", accelerator.is_main_process
    with whole(model) as weights, replacing(checkpoint) if writes else nullcontext() as folder:
        sharded = is_sharded(model)
        if sharded:
            save_shards(folder, model, optimizer)
        if writes:
            # A native class has no trained temperature of its own, and rounds it into other weights.
            native = not getattr(weights.config, "trainable_temperature", False)
            weights.save_pretrained(folder, save_original_format=native)
            saved = {} if sharded else {"optimizer": optimizer.state_dict()}
            saved["scaler"] = accelerator.scaler.state_dict() if accelerator.scaler else {}
            saved |= {} if carried is None else {"carried": carried}
            torch.save(saved, folder / "optimizer.pt")
            for rank, each in enumerate(random_states):
                torch.save(each, folder / f"random-{rank}.pt")
            write_json(folder / STATE_FILE, asdict(state))
            progress = {"step": state.step, "tokens": state.tokens, "processes": accelerator.num_processes}
            made_by = {"versions": versions(), "muon_dtype": str(muon_dtype(accelerator.device)).removeprefix("torch.")}
            manifest = Manifest(FORMAT, **progress, **identity, **made_by, files=_describe_files(folder))
            write_json(folder / MANIFEST_FILE, asdict(manifest))
    if writes:
        if reason := damage(checkpoint):
            raise UserError(f"{checkpoint} was just written and is damaged ({reason}); check the disk, then --resume")
        for old in list_checkpoints(run)[:-newest]:
            if not kept(int(old.name.removeprefix("step-"))):
                remove(old)
    accelerator.wait_for_everyone()
    return checkpoint


def load_state(checkpoint: Path) -> LoopState:
    """The counters of a checkpoint.

    Raises:
        UserError: they cannot be read.
    """
    with readable(checkpoint):
        content = json.loads((checkpoint / STATE_FILE).read_text(encoding="utf-8"))
        if "step_tokens" not in content:  # of a version whose updates were all of one size
            size = content["tokens"] // content["step"]
            content |= {"step_tokens": size, "logged_tokens": content["logged_step"] * size}
        state = LoopState(**content)
        if state.gradient_norm is None:  # of an update that was skipped, which JSON cannot hold
            state.gradient_norm = math.inf
        state.best = state.best and figures_of_json(state.best)
        return state


def load_training_state(
    checkpoint: Path, accelerator: Accelerator, model: PreTrainedModel, optimizer: torch.optim.Optimizer
) -> list[tuple[torch.Tensor, ...]] | None:
    """Restores optimizer, gradient scaler and this process's random state, after model and optimizer are prepared.

    The optimizer's rates, betas and weight decay stay as they were built: those are the config's, its moments the
    checkpoint's.

    Returns:
        What the objective had left to the next batch.

    Raises:
        UserError: a file is missing or damaged, or of another optimizer.
    """
    built = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    with readable(checkpoint):
        saved = torch.load(checkpoint / "optimizer.pt", map_location=accelerator.device.type, weights_only=True)
        if "optimizer" in saved:
            optimizer.load_state_dict(saved["optimizer"])
            share_out_states(optimizer)
        else:
            load_shards(checkpoint, model, optimizer)
        for group, settings in zip(optimizer.param_groups, built, strict=True):
            group |= settings  # which loading has replaced
        if accelerator.scaler and saved["scaler"]:
            accelerator.scaler.load_state_dict(saved["scaler"])
        random_file = checkpoint / f"random-{accelerator.process_index}.pt"
        if random_file.exists():  # a run resumed on more processes than it had starts the new ones from its seed
            set_random_state(torch.load(random_file, weights_only=True), accelerator.device)
        return saved.get("carried")


@contextmanager
def readable(checkpoint: Path) -> Iterator[None]:
    """Names the checkpoint where one of its files cannot be read.

    Raises:
        UserError: in place of what the libraries raise.
    """
    try:
        yield
    except UserError:
        raise
    except UNREADABLE as error:
        raise UserError(
            f"{checkpoint} is damaged or of another kind of run ({one_line(error)}); "
            "remove it to resume from the one before"
        ) from error


def random_state(device: torch.device) -> dict[str, torch.Tensor]:
    """The state of the generators that dropout draws from, of the CPU and of this device."""
    state = {"cpu": torch.get_rng_state()}
    if device.type != "cpu":
        state[device.type] = torch.get_device_module(device).get_rng_state()
    return state


def set_random_state(state: dict[str, torch.Tensor], device: torch.device) -> None:
    """Restores what `random_state` gave."""
    torch.set_rng_state(state["cpu"])
    if device.type in state and device.type != "cpu":
        torch.get_device_module(device).set_rng_state(state[device.type])
