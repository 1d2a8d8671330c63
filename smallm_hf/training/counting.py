"""A run of a model that is counted: one pass over the training text in place of updates, then what other runs leave."""

import time
from typing import Any

from accelerate import Accelerator
from transformers import PreTrainedModel

from smallm_hf.base.errors import Interrupted
from smallm_hf.base.settings import RUN_MODELS
from smallm_hf.data.batches.base import Batches
from smallm_hf.data.token_files import TokenFiles
from smallm_hf.training.devices import peak_memory_bytes
from smallm_hf.training.kneser_ney import count_ngrams, fill_model
from smallm_hf.training.loop import write_samples
from smallm_hf.training.objectives import Objective
from smallm_hf.training.progress import Reporter
from smallm_hf.training.saving import Pushes, Saver
from smallm_hf.training.stopping import StopRequest

STEP = 1  # the pass, in records that name the step they were made at


class Counting:
    """Counts a text and leaves weights, metrics and samples in the run folder; to `runs.py` a loop of one step.

    Every process counts the whole text, which needs no messages between them; they share the validation.

    Args:
        model: with empty tables.
        files: hold the text.
        batches: say how much of it is of which source.
        objective: validates.
        saver: writes what is left; its training config is that of the run.
        reporter: shows it.
        accelerator: knows the processes.
    """

    pushes: Pushes | None = None
    planned_steps = None

    def __init__(
        self,
        model: PreTrainedModel,
        files: TokenFiles,
        batches: Batches,
        objective: Objective,
        saver: Saver,
        reporter: Reporter,
        accelerator: Accelerator,
    ):
        self.model, self.files, self.batches, self.objective = model, files, batches, objective
        self.saver, self.reporter, self.accelerator = saver, reporter, accelerator
        self.stop_request = StopRequest()

    def run(self) -> dict[str, Any]:
        """Counts, validates, saves and samples.

        Returns:
            What `results.json` says of the training, as `TrainingLoop.run` does, and how many n-grams of 1, 2 ...
            tokens the model holds.

        Raises:
            Interrupted: the run was asked to stop; there is nothing to go on from.
        """
        with self.reporter, self.stop_request:
            began = time.perf_counter()
            self._count()
            seconds = time.perf_counter() - began
            figures = self.objective.validate(
                self.model, self.saver.training.batch_size, self.accelerator, lambda: bool(self.stop_request)
            )
            self._stop_if_asked(figures is None)
            tokens, validated = len(self.files.train), {"step": STEP, **figures}
            ngrams = [self.model.config.vocab_size, *self.model.config.ngrams]
            speed = {"seconds": seconds, "tokens_per_second": tokens / seconds, "memory_bytes": peak_memory_bytes()}
            self.saver.write("metrics", {"tokens": tokens, "epoch": 1.0, **speed, "ngrams": sum(ngrams), **validated})
            self.reporter.validation(validated)
            for name in RUN_MODELS:
                self.saver.save_model(name, validated)
            if self.accelerator.is_main_process:
                write_samples(self.model, self.saver, self.reporter, STEP, lambda: bool(self.stop_request))
            self.accelerator.wait_for_everyone()
        return {
            "steps": STEP,
            "tokens": tokens,
            "epochs": 1.0,
            "sources": self.batches.drawn(self.batches.examples_per_epoch),
            "training_seconds": seconds,
            "tokens_per_second": speed["tokens_per_second"],
            "processes": self.accelerator.num_processes,
            "skipped_steps": 0,
            "stopped_early": False,
            "last": validated,
            "best": validated,
            "ngrams": ngrams,
        }

    def close(self) -> None:
        """There is nothing to let go of."""

    def _count(self) -> None:
        tokens, config = self.files.train, self.model.config
        eos = self.files.meta.eos_token_id

        def advance(read: int) -> None:
            self._stop_if_asked()
            self.reporter.advance(read / len(tokens))

        counted = count_ngrams(tokens, config.order, config.vocab_size, eos, advance)
        fill_model(self.model, counted, self.reporter.say)
        self.model.to(self.accelerator.device)

    def _stop_if_asked(self, interrupted: bool = False) -> None:
        if interrupted or self.stop_request:
            reason = self.stop_request.reason or "another process was asked to"
            raise Interrupted(f"stopped ({reason}) while counting; nothing is saved yet, --resume begins again")
