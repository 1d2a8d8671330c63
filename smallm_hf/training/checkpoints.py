"""Checkpoints: everything the next step depends on, in one folder that appears whole or not at all.

`checkpoints/step-N/` holds the model as `save_pretrained` writes it, `optimizer.pt`, one `random-RANK.pt` per process
and `state.json`, the counters.
"""

import json
import pickle
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from safetensors import SafetensorError
from transformers import PreTrainedModel

from smallm_hf.errors import UserError, one_line
from smallm_hf.folders import replacing

STATE_FILE = "state.json"
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
    tokens: int = 0  # tokens seen, over all processes
    seconds: float = 0.0  # training time: data, steps and logging
    validations_without_gain: int = 0  # since the lowest validation loss
    rate_factor: float = 0.0  # of the last update: the share of the peak rate
    cooldown_step: int = 0  # where a run with training.cooldown_from began, and
    cooldown_seconds: float = 0.0  # its training time by then
    schedule: str = ""  # training.schedule
    optimizer: str = ""  # training.optimizer
    tokenizer_sha256: str = ""  # of the tokenizer that gave the tokens their meaning


def list_checkpoints(run: Path) -> list[Path]:
    """The finished checkpoints of a run folder, oldest first."""
    found = [path for path in (run / "checkpoints").glob("step-*") if re.fullmatch(r"step-\d+", path.name)]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))


def save_checkpoint(
    run: Path,
    accelerator: Accelerator,
    model: PreTrainedModel,
    optimizer: torch.optim.Optimizer,
    state: LoopState,
    keep: int,
) -> None:
    """Writes `checkpoints/step-N` and removes all but the newest `keep`; every process calls it."""
    # One gather before any file: each process's random state travels to the one that writes.
    random_states = [_random_state(accelerator.device)]
    if accelerator.num_processes > 1:
        random_states = gather_object(random_states)
    if accelerator.is_main_process:
        with replacing(run / "checkpoints" / f"step-{state.step}") as folder:
            model.save_pretrained(folder)
            scaler = accelerator.scaler.state_dict() if accelerator.scaler else {}
            torch.save({"optimizer": optimizer.state_dict(), "scaler": scaler}, folder / "optimizer.pt")
            for rank, random_state in enumerate(random_states):
                torch.save(random_state, folder / f"random-{rank}.pt")
            (folder / STATE_FILE).write_text(json.dumps(asdict(state), indent=2) + "\n")
        for old in list_checkpoints(run)[:-keep]:
            shutil.rmtree(old)
    accelerator.wait_for_everyone()


def load_state(checkpoint: Path) -> LoopState:
    """The counters of a checkpoint.

    Raises:
        UserError: they cannot be read.
    """
    with readable(checkpoint):
        return LoopState(**json.loads((checkpoint / STATE_FILE).read_text()))


def load_training_state(checkpoint: Path, accelerator: Accelerator, optimizer: torch.optim.Optimizer) -> None:
    """Restores optimizer, gradient scaler and this process's random state, after model and optimizer are prepared.

    Raises:
        UserError: a file is missing or damaged, or of another optimizer.
    """
    with readable(checkpoint):
        saved = torch.load(checkpoint / "optimizer.pt", map_location=accelerator.device, weights_only=True)
        optimizer.load_state_dict(saved["optimizer"])
        if accelerator.scaler and saved["scaler"]:
            accelerator.scaler.load_state_dict(saved["scaler"])
        random_file = checkpoint / f"random-{accelerator.process_index}.pt"
        if random_file.exists():  # a run resumed on more processes than it had starts the new ones from its seed
            _set_random_state(torch.load(random_file, weights_only=True), accelerator.device)


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


def _random_state(device: torch.device) -> dict[str, torch.Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if device.type != "cpu":
        state[device.type] = torch.get_device_module(device).get_rng_state()
    return state


def _set_random_state(state: dict[str, torch.Tensor], device: torch.device) -> None:
    torch.set_rng_state(state["cpu"])
    if device.type in state and device.type != "cpu":
        torch.get_device_module(device).set_rng_state(state[device.type])
