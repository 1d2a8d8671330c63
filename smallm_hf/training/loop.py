"""The training loop: evaluate, sample, save, stop, step, log."""

import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from smallm_hf.base.errors import Interrupted, UserError
from smallm_hf.data.batches.ordering import WindowOrder
from smallm_hf.generation.engine import Engine
from smallm_hf.generation.request import Request, seed_of
from smallm_hf.inspection import evaluation_mode
from smallm_hf.training.checkpoints import LoopState, load_training_state
from smallm_hf.training.clock import Clock
from smallm_hf.training.configuration import (
    TrainingConfig,
    largest_micro_step,
    micro_steps_per_process,
    plan_steps,
    row_length,
    share_done,
)
from smallm_hf.training.devices import peak_flops, peak_memory_bytes
from smallm_hf.training.loss import TrainingLoss
from smallm_hf.training.optimization import build_optimizer, learning_rates, rate_factor, set_learning_rate
from smallm_hf.training.progress import Reporter, RunLog
from smallm_hf.training.saving import Pushes, Saver
from smallm_hf.training.sharding import prepare, whole
from smallm_hf.training.stopping import StopRequest
from smallm_hf.training.update import Updater
from smallm_hf.training.validation import ValidationSet
from smallm_hf.training.watch import UpdateWatch

# How samples are drawn during a run: likely words, with some freedom (Holtzman et al. 2020).
SAMPLING = {"temperature": 0.8, "top_p": 0.95}


class TrainingLoop:
    """Trains a model and leaves weights, checkpoints, metrics and samples in the run folder.

    Args:
        model: in float32, with the weights to start from.
        tokenizer: saved beside the weights; reads the sample prompts.
        train_tokens: (N,) token ids, memory-mapped.
        validation: the fixed set that is scored.
        training: the section of the run config, every `auto` decided.
        run: the run folder; exists.
        accelerator: built for that precision.
        flops_per_token: forward and backward, for the share of the peak that metrics state.
        identity: `config` and `fingerprints` of the run, for the manifests of its checkpoints.
        checkpoint: where optimizer and random state come from; None starts afresh.
        state: the counters to start from.
        mirror: is told all that is recorded, see `RunLog`.
        push_every: steps or tokens between two pushes of the weights, by what is set as `pushes`.
        order: of the windows; None is the plain one over all tokens.

    Raises:
        UserError: processes that do not divide the accumulation, or fewer tokens than one window.
    """

    def __init__(
        self,
        *,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerFast,
        train_tokens: np.ndarray,
        validation: ValidationSet,
        training: TrainingConfig,
        run: Path,
        accelerator: Accelerator,
        flops_per_token: float,
        identity: dict[str, Any],
        checkpoint: Path | None = None,
        state: LoopState | None = None,
        mirror: Callable[..., None] | None = None,
        push_every: int | None = None,
        order: WindowOrder | None = None,
    ):
        self.model, self.tokenizer, self.validation = model, tokenizer, validation
        self.training, self.accelerator, self.push_every = training, accelerator, push_every
        self.pushes: Pushes | None = None
        self.state = state or LoopState()
        peak = peak_flops(training.peak_tflops, training.precision)
        self.peak_tokens_per_second = peak and accelerator.num_processes * peak / flops_per_token
        self.first_tokens, self.first_seconds = self.state.tokens, self.state.seconds
        processes = accelerator.num_processes
        micro_steps_per_process(training.accumulation_steps, processes)  # or they are refused
        # Another number of processes may have halved it, to what does not divide the share of these.
        self.state.batch_size = largest_micro_step(training, processes, self.state.batch_size or training.batch_size)
        self.order = order or WindowOrder(len(train_tokens), training.context_length, training.seed)
        self.planned_steps = plan_steps(training, self.order.windows_per_epoch)
        if training.activation_checkpointing:
            model.activation_checkpointing_enable()
        model.to(accelerator.device).train()
        optimizer = build_optimizer(
            model,
            training.optimizer,
            learning_rate=training.learning_rate,
            muon_learning_rate=training.muon_learning_rate,
            weight_decay=training.weight_decay,
            beta1=training.beta1,
            beta2=training.beta2,
        )
        at_once = training.compile and not accelerator.is_fsdp2  # a model that is split is compiled in its blocks
        step_loss = TrainingLoss(model, compile=at_once, chunked=training.loss == "chunked")
        step_loss, self.optimizer = prepare(accelerator, step_loss, optimizer, training)
        self.reporter = Reporter(accelerator.is_main_process)
        retakes = not self.state.closed or self.finished()  # validation and samples of the step to start from
        self.saver = Saver(
            model=model,
            tokenizer=tokenizer,
            optimizer=self.optimizer,
            training=training,
            run=run,
            log=RunLog(run, accelerator.is_main_process, self.state.step, retakes, mirror),
            accelerator=accelerator,
            identity=identity,
            say=self.reporter.say,
        )
        self.validated: dict[str, float] = {}
        self.watch = UpdateWatch(accelerator.device, self.state, training.skip_spikes)
        self.stop_request, self.asked_to_stop = StopRequest(), False
        # What the hosts agree on after each update does not wait for their devices.
        on_device = accelerator.num_processes > 1 and accelerator.device.type != "cpu"
        self.hosts = torch.distributed.new_group(backend="gloo") if on_device else None
        self.clock = Clock(self.state.seconds)
        self.updater = Updater(
            step_loss=step_loss,
            optimizer=self.optimizer,
            tokens=train_tokens,
            order=self.order,
            separator=tokenizer.eos_token_id if self.order.batching.within_documents else None,
            training=training,
            accelerator=accelerator,
            state=self.state,
            watch=self.watch,
            clock=self.clock,
            stop_request=self.stop_request,
            say=self.reporter.say,
        )
        if training.compile:
            self.updater.warm_up()
        if checkpoint is not None:  # last, so that nothing above disturbs the random state
            with self.clock.stopped():
                load_training_state(checkpoint, accelerator, model, self.optimizer)
            set_learning_rate(self.optimizer, self.state.rate_factor)  # a record of the last update may be due

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
                last = progress >= 1 or self.out_of_patience()
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
            "epochs": state.windows / self.order.windows_per_epoch,
            "sources": self.order.drawn(state.windows),
            "training_seconds": state.seconds,
            "tokens_per_second": (state.tokens - self.first_tokens) / seconds if seconds else None,
            "processes": self.accelerator.num_processes,
            "skipped_steps": state.skipped_steps,
            "stopped_early": self.out_of_patience(),
            "last": self.validated,
            "best": state.best,
        }

    def close(self) -> None:
        """Lets go of what was prepared, before the process group is destroyed.

        The other way round, DistributedDataParallel is the last to hold the group, and frees it while it holds Python's
        lock; gloo's thread may want that lock to free its last barrier, and both wait forever (torch 2.13, seen at one
        in about sixty ends of two processes).
        """
        del self.updater
        self.accelerator.free_memory()
        if self.training.compile:
            torch.compiler.reset()  # which keeps so many steps of a process at most, and refuses the next run's

    # --- where a run stands ------------------------------------------------------------------------------------------

    def agree(self) -> float:
        """The share of the run that is done, by the limit nearest to its end; the same on every process.

        Leaves in `asked_to_stop` whether any of them was: clocks and signals differ, and all must go on or stop.
        """
        seconds, stop = self.clock.seconds, float(bool(self.stop_request))
        if self.accelerator.num_processes > 1:
            told = torch.tensor([seconds * self.accelerator.is_main_process, stop], dtype=torch.float64)
            torch.distributed.all_reduce(told, group=self.hosts)
            seconds, stop = told.tolist()
        self.asked_to_stop = stop > 0
        return share_done(self.training, self.planned_steps, self.state.step, seconds)

    def finished(self) -> bool:
        """Whether the counters to start from are at the end already."""
        done = share_done(self.training, self.planned_steps, self.state.step, self.state.seconds)
        return done >= 1 or self.out_of_patience()

    def due(self, every: int | None) -> bool:
        """Whether something that happens `every` so many steps or tokens happens after this update."""
        if every is None or self.state.closed:
            return False
        if self.training.interval_unit == "steps":
            return self.state.step % every == 0
        return self.state.tokens // every > (self.state.tokens - self.training.tokens_per_step) // every

    def out_of_patience(self) -> bool:
        """Whether too many validations in a row have brought no lower loss."""
        return bool(self.training.patience) and self.state.validations_without_gain >= self.training.patience

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
            last = last or self.out_of_patience()
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

    def stop(self, state: LoopState) -> None:
        """Saves a state of a run that was asked to stop, and leaves it."""
        reason = self.stop_request.reason or "another process was asked to"
        if not state.step:
            raise Interrupted(f"stopped ({reason}) before the first step; there is nothing to resume")
        where = self.save_checkpoint(state)
        raise Interrupted(f"stopped ({reason}) at step {state.step}; saved {where}, --resume goes on from it")

    # --- the update --------------------------------------------------------------------------------------------------

    def advance(self, progress: float) -> None:
        """The next update of a run of which so much is done, at its rate and in rows of its length."""
        self.set_rate(progress)
        self.updater.update(row_length(self.training, progress))

    def set_rate(self, progress: float) -> None:
        """Sets the learning rates of the next update."""
        training = self.training
        decay_fraction = training.decay_fraction
        if training.cooldown_from:  # from where it began to the end of the run
            begin = (self.state.cooldown_step, self.state.cooldown_seconds)
            decay_fraction = 1 - share_done(training, self.planned_steps, *begin)
        self.state.rate_factor = rate_factor(
            progress,
            self.state.step,
            schedule=training.schedule,
            warmup_steps=0 if training.cooldown_from else training.warmup_steps,
            warmup_fraction=training.warmup_fraction,
            decay_fraction=decay_fraction,
            final_fraction=training.final_learning_rate_fraction,
        )
        set_learning_rate(self.optimizer, self.state.rate_factor)

    # --- what an update leaves ---------------------------------------------------------------------------------------

    def report(self) -> None:
        """Writes and shows what happened since the last record.

        Raises:
            UserError: too many updates in a row were left out; the state is saved.
        """
        state, training = self.state, self.training
        steps = state.step - state.logged_step
        if not steps:
            return
        skipped_before = state.skipped_steps
        bad_loss, bad_norm = self.watch.read(state)
        state.seconds = self.clock.seconds
        seconds = state.seconds - state.logged_seconds
        speed = steps * training.tokens_per_step / seconds
        record = {
            "step": state.step,
            "tokens": state.tokens,
            "epoch": state.windows / self.order.windows_per_epoch,
            "seconds": state.seconds,
            "loss": state.nats_since_log / state.updates_since_log if state.updates_since_log else math.nan,
            **learning_rates(self.optimizer),
            "gradient_norm": state.gradient_norm,
            "skipped_steps": state.skipped_steps,
            "tokens_per_second": speed,
            **({"mfu": speed / self.peak_tokens_per_second} if self.peak_tokens_per_second else {}),
            "memory_bytes": peak_memory_bytes(),
        }
        self.watch.begin_record()
        state.nats_since_log, state.updates_since_log = 0.0, 0
        state.logged_step, state.logged_seconds = state.step, state.seconds
        self.saver.write("metrics", record)
        done = share_done(training, self.planned_steps, state.step, state.seconds)
        self.reporter.step(state.step, self.planned_steps, record, state.seconds * max(0.0, 1 / done - 1))
        if state.skipped_steps == skipped_before:
            return
        numbers = f"loss {bad_loss:.4g}, gradient norm {bad_norm:.4g}"
        self.reporter.say(f"left out {state.skipped_steps - skipped_before} of {steps} updates; the last: {numbers}")
        if state.skipped_in_a_row >= training.max_skipped_steps:
            self.save_checkpoint(state)
            raise UserError(
                f"the last {state.skipped_in_a_row} updates had no usable loss or gradient ({numbers}, before step "
                f"{state.step}); lower training.learning_rate={training.learning_rate:g} in a new run, or --resume "
                "this one from its last good checkpoint"
            )

    def evaluate(self) -> None:
        """Scores the fixed set, and keeps the weights where it is the best so far."""
        training, state = self.training, self.state
        with self.clock.stopped():
            with whole(self.model) as model:
                shape = (training.context_length, state.batch_size)
                figures = self.validation.score(model, *shape, self.accelerator, lambda: bool(self.stop_request))
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
        """Continues the fixed prompts into `samples.jsonl`, each by a seed of its own; the main process alone."""
        training = self.training

        with self.clock.stopped():
            with suppress(Interrupted), whole(self.model) as model, evaluation_mode(model):
                engine = Engine(model, self.tokenizer)
                for prompt in training.sample_prompts if self.accelerator.is_main_process else ():
                    seed = seed_of(training.seed, self.state.step, prompt)
                    text = ""
                    for token in engine.stream(
                        Request(prompt, max_new_tokens=training.sample_tokens, seed=seed, **SAMPLING)
                    ):
                        text += token.text
                        if self.stop_request:
                            raise Interrupted
                    record = {"step": self.state.step, "prompt": prompt, "seed": seed, "text": text}
                    self.saver.write("samples", record)
                    self.reporter.say(f"\nsample | {prompt}{text}")
            self.agree()  # the others have waited for the one that wrote

    def save_checkpoint(self, state: LoopState) -> Path:
        """Saves all that the next update depends on; returns where."""
        with self.clock.stopped():
            state.seconds = self.clock.seconds
            self.watch.read(state)
            return self.saver.save_checkpoint(state)
