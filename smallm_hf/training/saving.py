"""What a run writes to disk, also when that is full: records, weights, checkpoints."""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from smallm_hf.base.errors import DiskFull, is_disk_full
from smallm_hf.base.folders import replacing
from smallm_hf.inspection import position_limit
from smallm_hf.tokenizing.loading import save_tokenizer
from smallm_hf.training.checkpoints import LoopState, save_checkpoint
from smallm_hf.training.configuration import TrainingConfig
from smallm_hf.training.objectives import Objective
from smallm_hf.training.progress import RunLog
from smallm_hf.training.sharding import whole
from smallm_hf.training.validation import write_validation


class Pushes(Protocol):
    """Something that sends weights elsewhere while training continues."""

    def push(self, folder: Path, step: int) -> None:
        """Takes over a folder, to be removed once it is sent, and returns at once."""


@dataclass(kw_only=True)
class Saver:
    """Writes what a run leaves; every process calls it, and the main one writes.

    Args:
        model: the model to save.
        objective: what it leaves to the next batch is saved in checkpoints.
        tokenizer: saved beside the weights.
        optimizer: saved in checkpoints; None for a model that is counted, which has none.
        training: what is kept, and whether a run continues when the disk is full.
        run: the run folder; exists.
        log: the records there.
        accelerator: knows the processes.
        identity: `config` and `fingerprints` of the run, for the manifests of its checkpoints.
        say: prints a line.
    """

    model: PreTrainedModel
    objective: Objective
    tokenizer: PreTrainedTokenizerFast
    optimizer: torch.optim.Optimizer | None
    training: TrainingConfig
    run: Path
    log: RunLog
    accelerator: Accelerator
    identity: dict[str, Any]
    say: Callable[[str], None]

    def write(self, name: str, record: dict[str, Any]) -> None:
        """Appends to `NAME.jsonl`; on a full disk the run stops or continues without the record."""
        try:
            self.log.write(name, record)
        except OSError as error:
            if not (is_disk_full(error) and self.training.on_full_disk == "continue"):
                raise
            self.say(f"no space left for a record of {name}; going on without it")

    def save_checkpoint(self, state: LoopState) -> Path:
        """Saves all that the next update depends on, and returns the folder.

        Raises:
            DiskFull: there is no space; see `spared_by_full_disk`.
        """
        every = self.training.keep_every

        def kept(step: int) -> bool:
            return bool((state.best and step == state.best["step"]) or (every and step % every == 0))

        parts = (self.run, self.accelerator, self.model, self.optimizer, state)
        options = {"newest": self.training.keep_checkpoints, "carried": self.objective.carried}
        return save_checkpoint(*parts, self.identity, kept=kept, **options)

    def save_model(self, name: str, validated: dict[str, float]) -> None:
        """Writes a `save_pretrained` folder with the tokenizer and the last validation, in one step or not at all."""
        with self.spared_by_full_disk():
            with whole(self.model) as model:
                if self.accelerator.is_main_process:
                    with replacing(self.run / name) as folder:
                        self._write_model(model, folder)
                        write_validation(folder, validated)
            self.accelerator.wait_for_everyone()

    def push(self, pushes: Pushes | None, step: int) -> None:
        """Writes the weights and has them pushed while training continues; only the main process has `pushes`."""
        with whole(self.model) as model:
            if not pushes:
                return
            folder = Path(tempfile.mkdtemp(dir=self.run, prefix=".push-"))
            try:
                self._write_model(model, folder)
            except BaseException as error:
                shutil.rmtree(folder, ignore_errors=True)
                if not is_disk_full(error):
                    raise
                self.say(f"no space left to push step {step}; going on without it")
            else:
                pushes.push(folder, step)

    def _write_model(self, model: PreTrainedModel, folder: Path) -> None:
        model.save_pretrained(folder)
        limit = position_limit(model) or self.training.context_length
        save_tokenizer(self.tokenizer, folder, model_max_length=limit)

    @contextmanager
    def spared_by_full_disk(self) -> Iterator[None]:
        """Continues without what could not be written, if the config says so."""
        try:
            yield
        except DiskFull as error:
            if self.training.on_full_disk == "stop":
                raise
            self.say(f"{error}; going on without it")
            self.accelerator.wait_for_everyone()
