"""The training loop: update after update, and between them what is due: records, validation, samples, checkpoints."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from smallm_hf.base.errors import Interrupted, UserError
from smallm_hf.generation.engine import Engine
from smallm_hf.generation.request import Request, seed_of
from smallm_hf.inspection import evaluation_mode
from smallm_hf.training.checkpoints import LoopState
from smallm_hf.training.configuration import plan_steps, row_length, share_done
from smallm_hf.training.devices import peak_flops, peak_memory_bytes
from smallm_hf.training.objectives import Objective
from smallm_hf.training.optimization import learning_rates, rate_factor
from smallm_hf.training.progress import Reporter
from smallm_hf.training.saving import Pushes, Saver
from smallm_hf.training.sharding import whole
from smallm_hf.training.update import Updater

# How samples are drawn during a run: likely words, with some freedom (Holtzman et al. 2020).
SAMPLING = {"temperature": 0.8, "top_p": 0.95}


class TrainingLoop:
    """Trains a model and leaves weights, checkpoints, metrics and samples in the run folder.

    Args:
        updater: makes the updates; its training config, batches, clock and watch are those of the loop.
        objective: what the updater minimises, not prepared: it validates.
        saver: writes what is left.
        reporter: shows it.
        state: the counters to start from.
        flops_per_token: forward and backward, for the share of the peak that metrics state.
        push_every: steps or tokens between two pushes of the weights, by what is set as `pushes`.
    """

    def __init__(
        self,
        updater: Updater,
        objective: Objective,
        saver: Saver,
        reporter: Reporter,
        state: LoopState,
        *,
        flops_per_token: float,
        push_every: int | None = None,
    ):
        self.updater, self.objective, self.saver, self.reporter, self.state = updater, objective, saver, reporter, state
        self.training, self.accelerator, self.batches = updater.training, updater.accelerator, updater.batches
        self.clock, self.watch, self.stop_request = updater.clock, updater.watch, updater.stop_request
        self.push_every = push_every
        self.pushes: Pushes | None = None
        peak = peak_flops(self.training.peak_tflops, self.training.precision)
        self.peak_tokens_per_second = peak and self.accelerator.num_processes * peak / flops_per_token
        self.first_tokens, self.first_seconds = state.tokens, state.seconds
        self.planned_steps = plan_steps(self.training, self.batches.examples_per_epoch)
        self.validated: dict[str, float] = {}
        self.asked_to_stop = False
        # What the hosts agree on after each update does not wait for their devices.
        on_device = self.accelerator.num_processes > 1 and self.accelerator.device.type != "cpu"
        self.hosts = torch.distributed.new_group(backend="gloo") if on_device else None

    def run(self) -> dict[str, Any]:
        """Trains until the first limit is reached.

        Returns:
            What `results.json` says of the training: steps, tokens, seconds, speed, last and best validation.

        Raises:
            Interrupted: the run was asked to stop, and has saved its state.
            UserError: too many updates in a row had no usable loss or gradient.
        """
        with self.reporter, self.stop_request:
            while True:
                progress = self.agree()
                last = progress >= 1 or self.state.out_of_patience(self.training)
                self.reporter.advance(progress)
                if self.asked_to_stop:
                    self.stop(self.state)
                if self.close_step(last):
                    break
                self.advance(progress)
            self.saver.save_model("final", self.validated)
        state = self.state
        seconds = state.seconds - self.first_seconds
        return {
            "steps": state.step,
            "tokens": state.tokens,
            "epochs": state.windows / self.batches.examples_per_epoch,
            "sources": self.batches.drawn(state.windows),
            "training_seconds": state.seconds,
            "tokens_per_second": (state.tokens - self.first_tokens) / seconds if seconds else None,
            "processes": self.accelerator.num_processes,
            "skipped_steps": state.skipped_steps,
            "stopped_early": self.state.out_of_patience(self.training),
            "last": self.validated,
            "best": state.best,
        }

    def advance(self, progress: float) -> None:
        """The next update of a run of which so much is done, at its rate and in rows of its length."""
        state, factor, self.objective.progress = self.state, self.rate_factor(progress), progress
        tokens = self.updater.update(state.windows, factor, row_length(self.training, progress))
        if tokens is not None:  # otherwise it was interrupted, and all is as it was
            state.step += 1
            state.windows += self.training.windows_per_step
            state.tokens += tokens
            state.step_tokens, state.rate_factor, state.closed = tokens, factor, False

    def close_step(self, last: bool) -> bool:
        """Does what is due after an update: record, validation, samples, checkpoint; returns whether it was the last.

        Raises:
            Interrupted: the run was asked to stop meanwhile; the counters are saved as they were before validation and
                samples, which a resumed run takes again.
        """
        training, state = self.training, self.state
        intervals = (training.evaluate_every, training.sample_every, training.checkpoint_every)
        if last or state.step == 1 or state.step % training.log_every == 0 or any(map(self.due, intervals)):
            self.report()
        before = replace(state)
        if last or self.due(training.evaluate_every):
            self.evaluate()
            last = last or self.state.out_of_patience(self.training)
        if not self.asked_to_stop and (last or self.due(training.sample_every)):
            self.sample()
        if self.asked_to_stop:
            self.stop(before)
        if self.due(self.push_every):
            with self.clock.stopped():
                self.saver.push(self.pushes, state.step)
        saves = last or self.due(training.checkpoint_every)
        state.closed = True  # behind all records of this step, which a resumed run does not take again
        if saves:
            with self.saver.spared_by_full_disk():
                self.save_checkpoint(state)
        return last

    # --- where a run stands ------------------------------------------------------------------------------------------

    def agree(self) -> float:
        """The share of the run that is done, by the limit nearest to its end; the same on every process.

        Leaves in `asked_to_stop` whether any of them was: clocks and signals differ, and all must go on or stop.
        """
        seconds, stop = self.clock.seconds, float(bool(self.stop_request))
        if self.accelerator.num_processes > 1:
            sent = torch.tensor([seconds * self.accelerator.is_main_process, stop], dtype=torch.float64)
            torch.distributed.all_reduce(sent, group=self.hosts)
            seconds, stop = sent.tolist()
        self.asked_to_stop = stop > 0
        return self.share_done(seconds)

    def share_done(self, seconds: float) -> float:
        """The share of the run that is done after its updates and so many seconds."""
        return share_done(self.training, self.planned_steps, self.state.step, seconds)

    def due(self, every: int | None) -> bool:
        """Whether something that happens `every` so many steps or tokens happens after this update."""
        if every is None or self.state.closed:
            return False
        if self.training.interval_unit == "steps":
            return self.state.step % every == 0
        return self.state.tokens // every > (self.state.tokens - self.state.step_tokens) // every

    def rate_factor(self, progress: float) -> float:
        """The share of the peak learning rates that the next update is made at."""
        training = self.training
        decay_fraction = training.decay_fraction
        if training.cooldown_from:  # from where it began to the end of the run
            begin = (self.state.cooldown_step, self.state.cooldown_seconds)
            decay_fraction = 1 - share_done(training, self.planned_steps, *begin)
        return rate_factor(
            progress,
            self.state.step,
            schedule=training.schedule,
            warmup_steps=0 if training.cooldown_from else training.warmup_steps,
            warmup_fraction=training.warmup_fraction,
            decay_fraction=decay_fraction,
            final_fraction=training.final_learning_rate_fraction,
        )

    # --- what an update leaves ---------------------------------------------------------------------------------------

    def report(self) -> None:
        """Writes and shows what happened since the last record.

        Raises:
            UserError: too many updates in a row were skipped; the state is saved.
        """
        state = self.state
        steps = state.step - state.logged_step
        if not steps:
            return
        skipped_before = state.skipped_steps
        bad_loss, bad_norm = self.watch.read(state)
        state.seconds = self.clock.seconds
        speed = (state.tokens - state.logged_tokens) / (state.seconds - state.logged_seconds)
        record = {
            "step": state.step,
            "tokens": state.tokens,
            "epoch": state.windows / self.batches.examples_per_epoch,
            "seconds": state.seconds,
            "loss": state.nats_since_log / state.updates_since_log if state.updates_since_log else math.nan,
            **learning_rates(self.updater.optimizer),
            "gradient_norm": state.gradient_norm,
            "skipped_steps": state.skipped_steps,
            "tokens_per_second": speed,
            **({"mfu": speed / self.peak_tokens_per_second} if self.peak_tokens_per_second else {}),
            "memory_bytes": peak_memory_bytes(),
        }
        self.watch.begin_record()
        state.nats_since_log, state.updates_since_log = 0.0, 0
        state.logged_step, state.logged_tokens, state.logged_seconds = state.step, state.tokens, state.seconds
        self.saver.write("metrics", record)
        eta_seconds = state.seconds * max(0.0, 1 / self.share_done(state.seconds) - 1)
        self.reporter.step(state.step, self.planned_steps, record, eta_seconds)
        if state.skipped_steps > skipped_before:
            self.report_skipped(state.skipped_steps - skipped_before, steps, bad_loss, bad_norm)

    def report_skipped(self, skipped: int, steps: int, loss: float, norm: float) -> None:
        """Says that some of the last updates were skipped, and ends a run that has no others any more."""
        numbers = f"loss {loss:.4g}, gradient norm {norm:.4g}"
        self.reporter.say(f"left out {skipped} of {steps} updates; the last: {numbers}")
        if self.state.skipped_in_a_row >= self.training.max_skipped_steps:
            self.save_checkpoint(self.state)
            raise UserError(
                f"the last {self.state.skipped_in_a_row} updates had no usable loss or gradient ({numbers}, before "
                f"step {self.state.step}); lower training.learning_rate={self.training.learning_rate:g} in a new run, "
                "or --resume this one from its last good checkpoint"
            )

    def evaluate(self) -> None:
        """Scores the fixed set, and keeps the weights where it is the best so far."""
        state = self.state
        with self.clock.stopped():
            with whole(self.objective.model) as model:
                size = self.updater.batch_size
                figures = self.objective.validate(model, size, self.accelerator, lambda: bool(self.stop_request))
            if figures is None:
                self.asked_to_stop = True
                return
            self.validated = {"step": state.step, **figures}
            self.saver.write("metrics", {"tokens": state.tokens, **self.validated})
            self.reporter.validation(self.validated)
            if state.validated_step == state.step:  # a run that had ended goes on: counted before
                return
            state.validated_step = state.step
            if state.best is None or self.validated["validation_loss"] < state.best["validation_loss"]:
                state.best = self.validated
                state.validations_without_gain = 0
                self.saver.save_model("best", self.validated)
            else:
                state.validations_without_gain += 1

    def sample(self) -> None:
        """Continues the fixed prompts; the main process alone writes, and the others wait for it."""
        with self.clock.stopped():
            with whole(self.objective.model) as model, evaluation_mode(model):
                if self.accelerator.is_main_process:
                    write_samples(model, self.saver, self.reporter, self.state.step, lambda: bool(self.stop_request))
            self.agree()

    def save_checkpoint(self, state: LoopState) -> Path:
        """Saves all that the next update depends on; returns where."""
        with self.clock.stopped():
            state.seconds, state.batch_size = self.clock.seconds, self.updater.batch_size
            self.watch.read(state)
            return self.saver.save_checkpoint(state)

    # --- ends --------------------------------------------------------------------------------------------------------

    def stop(self, state: LoopState) -> None:
        """Saves a state of a run that was asked to stop, and leaves it."""
        reason = self.stop_request.reason or "another process was asked to"
        if not state.step:
            raise Interrupted(f"stopped ({reason}) before the first step; there is nothing to resume")
        where = self.save_checkpoint(state)
        raise Interrupted(f"stopped ({reason}) at step {state.step}; saved {where}, --resume goes on from it")

    def close(self) -> None:
        """Lets go of what the updater holds."""
        self.updater.close()


def write_samples(
    model: PreTrainedModel, saver: Saver, reporter: Reporter, step: int, interrupted: Callable[[], bool]
) -> None:
    """Continues the fixed prompts into `samples.jsonl`, each by a seed of its own, until `interrupted` is true.

    An encoder-decoder answers them.
    """
    engine, training = Engine(model, saver.tokenizer), saver.training
    reads, arrow = ("source", " -> ") if engine.answers else ("prompt", "")
    for prompt in training.sample_prompts:
        seed, text = seed_of(training.seed, step, prompt), ""
        request = Request(**{reads: prompt}, max_new_tokens=training.sample_tokens, seed=seed, **SAMPLING)
        for token in engine.stream(request):
            text += token.text
            if interrupted():
                return
        saver.write("samples", {"step": step, "prompt": prompt, "seed": seed, "text": text})
        reporter.say(f"\nsample | {prompt}{arrow}{text}")
