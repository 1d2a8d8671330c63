"""Checkpoints: everything the next step depends on, in one folder that appears whole or not at all.

`checkpoints/step-N/` holds the model as `save_pretrained` writes it, `optimizer.pt`, one `random-RANK.pt` per process
and `state.json`, the counters.
"""

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from transformers import PreTrainedModel

from smallm_hf.errors import UserError


@dataclass
class LoopState:
    """The counters of a run: with weights, optimizer and random state, all that the next step depends on."""

    step: int = 0  # optimizer updates done
    windows: int = 0  # training windows seen, over all processes: the position in the data
    tokens: int = 0  # tokens seen, over all processes
    seconds: float = 0.0  # training time: data, steps and logging
    best: dict[str, float] | None = None  # the validation with the lowest loss, and its step


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """Gives an empty folder beside `folder` that takes its place when the block ends without an exception."""
    fresh = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    try:
        yield fresh
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    fresh.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


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
    random_states = _gather_random_states(accelerator)
    if accelerator.is_main_process:
        with replacing(run / "checkpoints" / f"step-{state.step}") as folder:
            model.save_pretrained(folder)
            torch.save(optimizer.state_dict(), folder / "optimizer.pt")
            for rank, random_state in enumerate(random_states):
                torch.save(random_state, folder / f"random-{rank}.pt")
            (folder / "state.json").write_text(json.dumps(asdict(state), indent=2) + "\n")
        for old in list_checkpoints(run)[:-keep]:
            shutil.rmtree(old)
    accelerator.wait_for_everyone()


def load_state(checkpoint: Path) -> LoopState:
    """The counters of a checkpoint."""
    try:
        return LoopState(**json.loads((checkpoint / "state.json").read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            f"{checkpoint} cannot be read as a checkpoint ({error}); delete it to resume an older one"
        ) from error


def load_optimizer(checkpoint: Path, accelerator: Accelerator, optimizer: torch.optim.Optimizer) -> None:
    """Restores the optimizer and this process's random state, after model and optimizer are prepared."""
    optimizer.load_state_dict(
        torch.load(checkpoint / "optimizer.pt", map_location=accelerator.device, weights_only=True)
    )
    random_file = checkpoint / f"random-{accelerator.process_index}.pt"
    if random_file.exists():  # a run resumed on more processes than it had starts the new ones from its seed
        _set_random_state(torch.load(random_file, weights_only=True))


def _random_state() -> dict[str, torch.Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def _set_random_state(state: dict[str, torch.Tensor]) -> None:
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def _gather_random_states(accelerator: Accelerator) -> list[dict[str, torch.Tensor]]:
    if accelerator.num_processes == 1:
        return [_random_state()]
    states: list = [None] * accelerator.num_processes
    torch.distributed.all_gather_object(states, _random_state())
    return states
