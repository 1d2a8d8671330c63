"""The training loop: evaluate, sample, save, stop, step, log."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils.memory import should_reduce_batch_size
from safetensors import SafetensorError
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from smallm_hf.data.batching import WindowOrder, next_token_batch, positions_in_documents
from smallm_hf.errors import DiskFull, Interrupted, UserError, is_disk_full, one_line
from smallm_hf.evaluation.scoring import position_limit
from smallm_hf.folders import replacing
from smallm_hf.generation import forked_random, sample
from smallm_hf.tokenization import save_tokenizer
from smallm_hf.training.checkpoints import (
    LoopState,
    load_training_state,
    random_state,
    save_checkpoint,
    set_random_state,
)
from smallm_hf.training.configuration import (
    TrainingConfig,
    micro_steps_per_process,
    plan_steps,
    row_length,
    share_done,
)
from smallm_hf.training.devices import peak_flops, peak_memory_bytes
from smallm_hf.training.loss import TrainingLoss
from smallm_hf.training.optimization import build_optimizer, rate_factor, set_learning_rate, whole_tensor
from smallm_hf.training.progress import Reporter, RunLog, duration
from smallm_hf.training.sharding import prepare, whole
from smallm_hf.training.stopping import StopRequest
from smallm_hf.training.validation import ValidationSet, write_validation
from smallm_hf.training.watch import UpdateWatch

# How samples are drawn during a run: likely words, with some freedom (Holtzman et al. 2020).
SAMPLING = {"temperature": 0.8, "top_p": 0.95}


class Pushes(Protocol):
    """Something that takes weights elsewhere without a step that waits for them."""

    def push(self, folder: Path, step: int) -> None:
        """Begins with a folder, which may be changed or removed at once, and returns."""


class Clock:
    """Training time in seconds: runs, except inside `stopped`."""

    def __init__(self, seconds: float):
        self._before = seconds
        self._since: float | None = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Training time so far."""
        return self._before if self._since is None else self._before + time.perf_counter() - self._since

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Time spent inside does not count."""
        _synchronize()
        self._before, self._since = self.seconds, None
        yield
        _synchronize()
        self._since = time.perf_counter()


def _synchronize() -> None:
    """Waits for the accelerator, whose work a clock on the CPU would otherwise miss."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()


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
        self.model, self.tokenizer, self.tokens, self.validation = model, tokenizer, train_tokens, validation
        self.training, self.run_folder, self.accelerator = training, run, accelerator
        self.identity, self.push_every = identity, push_every
        self.pushes: Pushes | None = None
        self.state = state or LoopState()
        self.state.batch_size = self.state.batch_size or training.batch_size
        peak = peak_flops(training.peak_tflops, training.precision)
        self.peak_tokens_per_second = peak and accelerator.num_processes * peak / flops_per_token
        self.first_tokens, self.first_seconds = self.state.tokens, self.state.seconds
        micro_steps_per_process(training.accumulation_steps, accelerator.num_processes)  # or they are refused
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
        self.step_loss, self.optimizer = prepare(accelerator, step_loss, optimizer, training)
        self.reporter = Reporter(accelerator.is_main_process)
        retakes = not self.state.closed or self.finished()  # validation and samples of the step to start from
        self.log = RunLog(run, accelerator.is_main_process, self.state.step, retakes, mirror)
        self.validated: dict[str, float] = {}
        self.watch = UpdateWatch(accelerator.device, self.state, training.skip_spikes)
        self.row_length = training.context_length
        self.stop_request, self.asked_to_stop = StopRequest(), False
        # What the hosts agree on after each update does not wait for their devices.
        on_device = accelerator.num_processes > 1 and accelerator.device.type != "cpu"
        self.hosts = torch.distributed.new_group(backend="gloo") if on_device else None
        if training.compile:
            self.warm_up()
        if checkpoint is not None:  # last, so that nothing above disturbs the random state
            load_training_state(checkpoint, accelerator, model, self.optimizer)
        self.clock = Clock(self.state.seconds)

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
                if not self.asked_to_stop:
                    last = self.close_step(last)
                if self.asked_to_stop:
                    self.stop()
                if last:
                    break
                self.advance(progress)
            self.save_model("final")
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
        del self.step_loss
        self.accelerator.free_memory()

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

        Where the run is asked to stop meanwhile, the counters are left as they were before validation and samples,
        which a resumed run takes again.
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
            self.state = before
            return last
        if self.due(self.push_every):
            self.push()
        saves = last or self.due(training.checkpoint_every)
        state.closed = True  # behind all records of this step, which a resumed run does not take again
        if saves:
            with self.spared_by_full_disk():
                self.save_checkpoint()
        return last

    def stop(self) -> None:
        """Saves the state of a run that was asked to stop, and leaves it."""
        reason = self.stop_request.reason or "another process was asked to"
        where = self.run_folder / "checkpoints" / f"step-{self.state.step}"
        if self.state.step:
            self.save_checkpoint()
            raise Interrupted(f"stopped ({reason}) at step {self.state.step}; saved {where}, --resume goes on from it")
        raise Interrupted(f"stopped ({reason}) before the first step; there is nothing to resume")

    # --- the update --------------------------------------------------------------------------------------------------

    def advance(self, progress: float) -> None:
        """The next update of a run of which so much is done, at its rate and in rows of its length."""
        self.set_rate(progress)
        self.row_length = row_length(self.training, progress)
        self.update()

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

    def update(self) -> None:
        """One optimizer update; leaves the counters after it.

        An update whose loss or gradient is no number, or a spike, is left out: its data counts as seen, weights and
        optimizer stay as they are. That is decided on the device, and told when the next record is written.
        """
        training, state = self.training, self.state
        before = random_state(self.accelerator.device)
        loss = None
        while loss is None:
            try:
                loss = self.gradients()
            except RuntimeError as error:
                if not should_reduce_batch_size(error):
                    raise
                self.halve_batch()
                if training.compile:
                    with self.clock.stopped():
                        self.warm_up()
                set_random_state(before, self.accelerator.device)
            if self.asked_to_stop:
                set_random_state(before, self.accelerator.device)
                return
        norm = self.accelerator.clip_grad_norm_(self.step_loss.parameters(), training.max_gradient_norm or math.inf)
        usable = self.watch.judge(loss, whole_tensor(norm))
        if not self.accelerator.scaler:  # which leaves an infinite gradient out by itself, and scales it down
            self.optimizer.optimizer.found_inf = (~usable).float()
        self.optimizer.step()
        self.optimizer.zero_grad()
        state.step += 1
        state.closed = False
        state.windows += training.windows_per_step
        state.tokens += training.tokens_per_step

    def gradients(self) -> torch.Tensor | None:
        """Forward and backward passes of one update; returns its loss, over all processes.

        Micro-step m of an update takes the windows m * batch_size ... of it, and process r of P the micro-steps r,
        r + P, ...: the windows of an update do not depend on how many processes share it.

        Returns None where this process, being the only one, is asked to stop between micro-steps.
        """
        accelerator, size = self.accelerator, self.state.batch_size
        share = torch.zeros((), device=accelerator.device)
        for micro_step in range(self.micro_steps):
            if accelerator.num_processes == 1 and self.stop_request:
                self.asked_to_stop = True
                self.optimizer.zero_grad()
                return None
            first = (micro_step * accelerator.num_processes + accelerator.process_index) * size
            batch = self.batch(self.order.starts(self.state.windows + first, size), self.row_length)
            last = micro_step == self.micro_steps - 1
            with nullcontext() if last else accelerator.no_sync(self.step_loss):
                # Every token has a target, so each micro-step is divided by the tokens of the whole update.
                loss = self.step_loss(**batch) / self.training.tokens_per_step
                # DistributedDataParallel averages gradients over processes; ours are shares of one sum.
                accelerator.backward(loss * accelerator.num_processes)
            share += loss.detach()
        return accelerator.reduce(share, "sum")

    @property
    def micro_steps(self) -> int:
        """Forward and backward passes of one process in an update."""
        return self.training.windows_per_step // (self.state.batch_size * self.accelerator.num_processes)

    def halve_batch(self) -> None:
        """Goes on with smaller micro-steps, and as many more of them, after one did not fit into memory.

        Raises:
            UserError: there is nothing to halve, or other processes are in the middle of theirs.
        """
        state, processes = self.state, self.accelerator.num_processes
        windows = self.training.windows_per_step // processes
        size = max((n for n in range(1, state.batch_size // 2 + 1) if windows % n == 0), default=0)
        if not size or processes > 1:
            raise UserError(
                f"out of memory with training.batch_size={state.batch_size} windows of training.context_length="
                f"{self.training.context_length}; lower the first (accumulation_steps keeps the update), or the second"
            )
        self.reporter.say(
            f"out of memory with {state.batch_size} windows per micro-step; going on with {size}, the update stays"
        )
        state.batch_size = size
        self.optimizer.zero_grad()
        if torch.accelerator.is_available():
            torch.accelerator.empty_cache()

    def batch(self, starts: np.ndarray, row_length: int) -> dict[str, torch.Tensor]:
        """The windows at `starts` on the device, each cut into rows of `row_length` tokens."""
        device = self.accelerator.device
        pinned = device.type == "cuda"  # memory that is copied while the host goes on
        batch = next_token_batch(self.tokens, starts, self.training.context_length, pin_memory=pinned)
        batch = {name: tensor.view(-1, row_length) for name, tensor in batch.items()}
        if self.order.batching.within_documents:
            batch["position_ids"] = positions_in_documents(batch["input_ids"], self.tokenizer.eos_token_id)
        return {name: tensor.to(device, non_blocking=pinned) for name, tensor in batch.items()}

    def warm_up(self) -> None:
        """Compiles by a forward and backward pass for each length of row.

        Changes no weight and leaves the random state as it was.

        Raises:
            UserError: the compiler of this machine fails.
        """
        self.reporter.say("compiling the training step (once; its time does not count)")
        began = time.perf_counter()
        with forked_random(self.accelerator.device):
            fits = False
            while not fits:
                try:
                    for length in self.training.row_lengths:
                        batch = self.batch(np.zeros(self.state.batch_size, dtype=np.int64), length)
                        self.accelerator.backward(self.step_loss(**batch))
                    fits = True
                except (torch._dynamo.exc.TorchDynamoException, torch._inductor.exc.InductorError) as error:
                    raise UserError(
                        f"training.compile=true fails on this machine ({one_line(error)}); "
                        "train with --training.compile false"
                    ) from error
                except RuntimeError as error:
                    if not should_reduce_batch_size(error):
                        raise
                    self.halve_batch()
        self.optimizer.zero_grad()
        self.reporter.say(f"compiled in {duration(time.perf_counter() - began)}")

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
            "learning_rate": training.learning_rate * state.rate_factor,
            "gradient_norm": state.gradient_norm,
            "skipped_steps": state.skipped_steps,
            "tokens_per_second": speed,
            **({"mfu": speed / self.peak_tokens_per_second} if self.peak_tokens_per_second else {}),
            "memory_bytes": peak_memory_bytes(),
        }
        self.watch.begin_record()
        state.nats_since_log, state.updates_since_log = 0.0, 0
        state.logged_step, state.logged_seconds = state.step, state.seconds
        self.write("metrics", record)
        done = share_done(training, self.planned_steps, state.step, state.seconds)
        self.reporter.step(state.step, self.planned_steps, record, state.seconds * max(0.0, 1 / done - 1))
        if state.skipped_steps == skipped_before:
            return
        numbers = f"loss {bad_loss:.4g}, gradient norm {bad_norm:.4g}"
        self.reporter.say(f"left out {state.skipped_steps - skipped_before} of {steps} updates; the last: {numbers}")
        if state.skipped_in_a_row >= training.max_skipped_steps:
            self.save_checkpoint()
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
            self.write("metrics", {"tokens": state.tokens, **self.validated})
            self.reporter.validation(self.validated)
            if state.validated_step == state.step:  # a run that had ended goes on: counted before
                return
            state.validated_step = state.step
            if state.best is None or self.validated["validation_loss"] < state.best["validation_loss"]:
                state.best = self.validated
                state.validations_without_gain = 0
                self.save_model("best")
            else:
                state.validations_without_gain += 1

    def sample(self) -> None:
        """Continues the fixed prompts into `samples.jsonl`, by the run's seed; the main process alone."""
        training = self.training

        def look_up() -> None:
            if self.stop_request:
                raise Interrupted

        with self.clock.stopped():
            with suppress(Interrupted), whole(self.model) as model:
                for prompt in training.sample_prompts if self.accelerator.is_main_process else ():
                    settings = {"max_new_tokens": training.sample_tokens, "seed": training.seed, **SAMPLING}
                    text = sample(model, self.tokenizer, [prompt], heard=look_up, **settings)[0]
                    self.write("samples", {"step": self.state.step, "prompt": prompt, "text": text})
                    self.reporter.say(f"\nsample | {prompt}{text}")
            self.agree()  # the others have waited for the one that wrote

    def write(self, name: str, record: dict[str, Any]) -> None:
        """Appends to `NAME.jsonl`; on a full disk the run stops or goes on without the record."""
        try:
            self.log.write(name, record)
        except OSError as error:
            if not (is_disk_full(error) and self.training.on_full_disk == "continue"):
                raise
            self.reporter.say(f"no space left for a record of {name}; going on without it")

    def save_checkpoint(self) -> None:
        """Saves all that the next update depends on."""
        training, state = self.training, self.state

        def kept(step: int) -> bool:
            return bool(state.best and step == state.best["step"]) or bool(
                training.keep_every and step % training.keep_every == 0
            )

        with self.clock.stopped():
            state.seconds = self.clock.seconds
            self.watch.read(state)
            save_checkpoint(
                self.run_folder,
                self.accelerator,
                self.model,
                self.optimizer,
                state,
                **self.identity,
                kept=kept,
                newest=training.keep_checkpoints,
            )

    def save_model(self, name: str) -> None:
        """Writes a plain `save_pretrained` folder with its tokenizer and the last validation, replaced whole."""
        with self.spared_by_full_disk():
            with whole(self.model) as model:
                if self.accelerator.is_main_process:
                    with replacing(self.run_folder / name) as folder:
                        self.write_model(model, folder)
                        write_validation(folder, self.validated)
            self.accelerator.wait_for_everyone()

    def push(self) -> None:
        """Hands the weights to what pushes them while training goes on; only the main process has it."""
        with self.clock.stopped(), whole(self.model) as model:
            if not self.pushes:
                return
            with TemporaryDirectory(dir=self.run_folder, prefix=".push-") as folder:
                try:
                    self.write_model(model, Path(folder))
                except (OSError, RuntimeError, SafetensorError) as error:
                    if not is_disk_full(error):
                        raise
                    self.reporter.say(f"no space left to push step {self.state.step}; going on without it")
                    return
                self.pushes.push(Path(folder), self.state.step)

    def write_model(self, model: PreTrainedModel, folder: Path) -> None:
        """Writes model and tokenizer as `save_pretrained` does."""
        model.save_pretrained(folder)
        limit = position_limit(model) or self.training.context_length
        save_tokenizer(self.tokenizer, folder, model_max_length=limit)

    @contextmanager
    def spared_by_full_disk(self) -> Iterator[None]:
        """Goes on without what could not be written, where the config says so."""
        try:
            yield
        except DiskFull as error:
            if self.training.on_full_disk == "stop":
                raise
            self.reporter.say(f"{error}; going on without it")
            self.accelerator.wait_for_everyone()
