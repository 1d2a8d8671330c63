"""The training loop: evaluate, sample, save, stop, step, log."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from smallm_hf.data.batching import WindowOrder, next_token_batch
from smallm_hf.errors import UserError, one_line
from smallm_hf.evaluation.scoring import position_limit
from smallm_hf.folders import replacing
from smallm_hf.generation import forked_random, sample
from smallm_hf.tokenization import save_tokenizer
from smallm_hf.training.checkpoints import LoopState, load_training_state, save_checkpoint
from smallm_hf.training.configuration import TrainingConfig, micro_steps_per_process, plan_steps, share_done
from smallm_hf.training.devices import peak_flops, peak_memory_bytes
from smallm_hf.training.loss import TrainingLoss
from smallm_hf.training.optimization import build_optimizer, rate_factor, set_learning_rate
from smallm_hf.training.progress import Reporter, RunLog, duration
from smallm_hf.training.validation import ValidationSet, read_validation, write_validation

# How samples are drawn during a run: likely words, with some freedom (Holtzman et al. 2020).
SAMPLING = {"temperature": 0.8, "top_p": 0.95}


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
        checkpoint: where optimizer and random state come from; None starts afresh.
        state: the counters to start from.

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
        checkpoint: Path | None = None,
        state: LoopState | None = None,
    ):
        self.model, self.tokenizer, self.tokens, self.validation = model, tokenizer, train_tokens, validation
        self.training, self.run_folder, self.accelerator = training, run, accelerator
        self.state = state or LoopState()
        peak = peak_flops(training.peak_tflops, training.precision)
        self.peak_tokens_per_second = peak and accelerator.num_processes * peak / flops_per_token
        self.first_step, self.first_tokens, self.first_seconds = self.state.step, self.state.tokens, self.state.seconds
        self.micro_steps = micro_steps_per_process(training.accumulation_steps, accelerator.num_processes)
        self.order = WindowOrder(len(train_tokens), training.context_length, training.seed)
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
        self.step_loss, self.optimizer = accelerator.prepare(
            TrainingLoss(model, compile=training.compile, chunked=training.loss == "chunked"), optimizer
        )
        self.reporter = Reporter(accelerator.is_main_process)
        self.log = RunLog(run, accelerator.is_main_process, self.state.step, self.finished())
        self.validated: dict[str, float] = {}
        self.best = read_validation(run / "best") if checkpoint is not None else None
        self.loss = self.gradient_norm = self.loss_since_log = torch.zeros((), device=accelerator.device)
        self.logged = (self.state.step, self.state.seconds)
        if training.compile:
            self.warm_up()
        if checkpoint is not None:  # last, so that nothing above disturbs the random state
            load_training_state(checkpoint, accelerator, self.optimizer)
        self.clock = Clock(self.state.seconds)

    def run(self) -> dict[str, Any]:
        """Trains until the first limit is reached.

        Returns:
            What `results.json` says of the training: steps, tokens, seconds, speed, last and best validation.

        Raises:
            UserError: loss or gradient are no longer numbers.
        """
        training, state = self.training, self.state
        with self.reporter:
            while True:
                progress = self.progress()
                last = progress >= 1 or self.out_of_patience()
                self.reporter.advance(progress)
                intervals = (training.evaluate_every, training.sample_every, training.checkpoint_every)
                # Each of these begins a new record too, so that a resumed run averages over the same updates.
                if last or state.step == 1 or state.step % training.log_every == 0 or any(map(self.due, intervals)):
                    self.report()
                if last or self.due(training.evaluate_every):
                    self.evaluate()
                    last = last or self.out_of_patience()
                if last or self.due(training.sample_every):
                    self.sample()
                if last or self.due(training.checkpoint_every):
                    self.save_checkpoint()  # behind all records of this step, which a resumed run does not take again
                if last:
                    break
                self.set_rate(progress)
                self.update()
            self.save_model("final")
        seconds = state.seconds - self.first_seconds
        return {
            "steps": state.step,
            "tokens": state.tokens,
            "epochs": state.windows / self.order.windows_per_epoch,
            "training_seconds": state.seconds,
            "tokens_per_second": (state.tokens - self.first_tokens) / seconds if seconds else None,
            "processes": self.accelerator.num_processes,
            "stopped_early": self.out_of_patience(),
            "last": self.validated,
            "best": self.best,
        }

    def progress(self) -> float:
        """The share of the run that is done, by the limit nearest to its end; the same on every process."""
        seconds = self.clock.seconds
        if self.training.max_seconds and self.accelerator.num_processes > 1:
            # Clocks differ by a little, and all must stop together.
            seconds = broadcast(torch.tensor(seconds, device=self.accelerator.device, dtype=torch.float32)).item()
        return share_done(self.training, self.planned_steps, self.state.step, seconds)

    def finished(self) -> bool:
        """Whether the counters to start from are at the end already."""
        done = share_done(self.training, self.planned_steps, self.state.step, self.state.seconds)
        return done >= 1 or self.out_of_patience()

    def due(self, every: int | None) -> bool:
        """Whether something that happens `every` so many steps or tokens happens after this update."""
        if every is None or self.state.step == self.first_step:
            return False
        if self.training.interval_unit == "steps":
            return self.state.step % every == 0
        return self.state.tokens // every > (self.state.tokens - self.training.tokens_per_step) // every

    def out_of_patience(self) -> bool:
        """Whether too many validations in a row have brought no lower loss."""
        return bool(self.training.patience) and self.state.validations_without_gain >= self.training.patience

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
        self.learning_rate = training.learning_rate * self.state.rate_factor

    def update(self) -> None:
        """One optimizer update; leaves its loss, the norm of its gradient before clipping, and the counters after it.

        Micro-step m of an update takes the windows m * batch_size ... of it, and process r of P the micro-steps r,
        r + P, ...: the windows of an update do not depend on how many processes share it.
        """
        accelerator, training, state = self.accelerator, self.training, self.state
        batches = []
        for micro_step in range(self.micro_steps):
            first = (micro_step * accelerator.num_processes + accelerator.process_index) * training.batch_size
            batches.append(self.batch(self.order.starts(state.windows + first, training.batch_size)))
        # Counted before the first forward pass: every micro-step is divided by the targets of the whole update.
        counted = accelerator.reduce(sum((batch["targets"] != -100).sum() for batch in batches), "sum")
        share = torch.zeros((), device=accelerator.device)
        for index, batch in enumerate(batches):
            with nullcontext() if index == len(batches) - 1 else accelerator.no_sync(self.step_loss):
                loss = self.step_loss(**batch, counted_targets=counted)
                # DistributedDataParallel averages gradients over processes; ours are shares of one sum.
                accelerator.backward(loss * accelerator.num_processes)
            share += loss.detach()
        self.gradient_norm = accelerator.clip_grad_norm_(
            self.step_loss.parameters(), training.max_gradient_norm or math.inf
        )
        self.optimizer.step()
        self.optimizer.zero_grad()
        state.step += 1
        state.windows += training.windows_per_step
        state.tokens += training.tokens_per_step
        self.loss = share  # this process's: the loss of the update is the sum over all
        self.loss_since_log = self.loss_since_log + share

    def batch(self, starts: np.ndarray) -> dict[str, torch.Tensor]:
        """The windows at `starts`, on the device."""
        batch = next_token_batch(self.tokens, starts, self.training.context_length)
        if self.accelerator.device.type == "cuda":  # only pinned memory is copied while the host goes on
            return {name: tensor.pin_memory().to("cuda", non_blocking=True) for name, tensor in batch.items()}
        return {name: tensor.to(self.accelerator.device) for name, tensor in batch.items()}

    def warm_up(self) -> None:
        """Compiles by one forward and backward pass; changes no weight and leaves the random state as it was.

        Raises:
            UserError: the compiler of this machine fails.
        """
        self.reporter.say("compiling the training step (once; its time does not count)")
        began = time.perf_counter()
        with forked_random(self.accelerator.device), self.accelerator.no_sync(self.step_loss):
            batch = self.batch(np.zeros(self.training.batch_size, dtype=np.int64))
            try:
                loss = self.step_loss(**batch, counted_targets=(batch["targets"] != -100).sum())
                self.accelerator.backward(loss)
            except (torch._dynamo.exc.TorchDynamoException, torch._inductor.exc.InductorError) as error:
                raise UserError(
                    f"training.compile=true fails on this machine ({one_line(error)}); "
                    "train with --training.compile false"
                ) from error
        self.optimizer.zero_grad()
        self.reporter.say(f"compiled in {duration(time.perf_counter() - began)}")

    def report(self) -> None:
        """Writes and shows what happened since the last record, and stops a run that is lost."""
        steps = self.state.step - self.logged[0]
        if not steps:
            return
        mean_loss = self.accelerator.reduce(self.loss_since_log, "sum").item() / steps  # waits for the device: first
        self.state.seconds = self.clock.seconds
        seconds = self.state.seconds - self.logged[1]
        record = {
            "step": self.state.step,
            "tokens": self.state.tokens,
            "epoch": self.state.windows / self.order.windows_per_epoch,
            "seconds": self.state.seconds,
            "loss": mean_loss,
            "learning_rate": self.learning_rate,
            "gradient_norm": float(self.gradient_norm),
            "tokens_per_second": (speed := steps * self.training.tokens_per_step / seconds),
            **({"mfu": speed / self.peak_tokens_per_second} if self.peak_tokens_per_second else {}),
            "memory_bytes": peak_memory_bytes(),
        }
        self.loss_since_log, self.logged = torch.zeros_like(self.loss), (self.state.step, self.state.seconds)
        self.log.write("metrics", record)
        done = share_done(self.training, self.planned_steps, self.state.step, self.state.seconds)
        self.reporter.step(self.state.step, self.planned_steps, record, self.state.seconds * max(0.0, 1 / done - 1))
        self.require_finite(mean_loss)

    def require_finite(self, loss: float) -> None:
        """Stops a run that is lost, on every process alike, before its weights are scored or saved."""
        norm = float(self.gradient_norm)
        # Under fp16 the scaler skips an update whose gradient is infinite, and tries a smaller scale.
        if not math.isfinite(loss) or not (math.isfinite(norm) or self.accelerator.scaler):
            raise UserError(
                f"the training loss is {loss} and its gradient {norm} at step {self.state.step}; lower "
                f"training.learning_rate={self.training.learning_rate:g} and --resume from the last checkpoint"
            )

    def evaluate(self) -> None:
        """Scores the fixed set, and keeps the weights where it is the best so far."""
        with self.clock.stopped():
            self.require_finite(self.accelerator.reduce(self.loss, "sum").item())
            figures = self.validation.score(
                self.model, self.training.context_length, self.training.batch_size, self.accelerator
            )
            self.validated = {"step": self.state.step, **figures}
            self.log.write("metrics", {"tokens": self.state.tokens, **self.validated})
            self.reporter.validation(self.validated)
            if self.best is None or self.validated["validation_loss"] < self.best["validation_loss"]:
                self.best = self.validated
                self.state.validations_without_gain = 0
                self.save_model("best")
            else:
                self.state.validations_without_gain += 1

    def sample(self) -> None:
        """Continues the fixed prompts into `samples.jsonl`, by the run's seed; the main process alone."""
        if not self.accelerator.is_main_process:
            return
        training = self.training
        with self.clock.stopped():
            texts = sample(
                self.model,
                self.tokenizer,
                training.sample_prompts,
                max_new_tokens=training.sample_tokens,
                seed=training.seed,
                **SAMPLING,
            )
            for prompt, text in zip(training.sample_prompts, texts, strict=True):
                self.log.write("samples", {"step": self.state.step, "prompt": prompt, "text": text})
                self.reporter.say(f"\nsample | {prompt}{text}")

    def save_checkpoint(self) -> None:
        """Saves all that the next update depends on."""
        with self.clock.stopped():
            self.state.seconds = self.clock.seconds
            save_checkpoint(
                self.run_folder,
                self.accelerator,
                self.model,
                self.optimizer,
                self.state,
                self.training.keep_checkpoints,
            )

    def save_model(self, name: str) -> None:
        """Writes a plain `save_pretrained` folder with its tokenizer, replaced whole."""
        if self.accelerator.is_main_process:
            with replacing(self.run_folder / name) as folder:
                self.model.save_pretrained(folder)
                write_validation(folder, self.validated)
                limit = position_limit(self.model) or self.training.context_length
                save_tokenizer(self.tokenizer, folder, model_max_length=limit)
        self.accelerator.wait_for_everyone()
