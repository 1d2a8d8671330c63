"""The training loop: evaluate, sample, save, stop, step, log."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from smallm_hf.data.batching import WindowOrder, next_token_batch
from smallm_hf.errors import UserError
from smallm_hf.evaluation.scoring import position_limit
from smallm_hf.generation import sample
from smallm_hf.tokenization import save_tokenizer
from smallm_hf.training.checkpoints import LoopState, load_optimizer, replacing, save_checkpoint
from smallm_hf.training.optimization import build_optimizer, rate_factor, set_learning_rate
from smallm_hf.training.progress import Reporter, RunLog, duration
from smallm_hf.training.validation import ValidationSet

# How samples are drawn during a run: likely words, with some freedom (Holtzman et al. 2020).
SAMPLING = {"temperature": 0.8, "top_p": 0.95}

ABOVE_ZERO = (
    *("max_steps", "max_seconds", "epochs", "context_length", "batch_size", "accumulation_steps"),
    *("learning_rate", "muon_learning_rate", "cpu_threads", "log_every", "evaluate_every", "validation_tokens"),
    *("checkpoint_every", "keep_checkpoints", "sample_every", "sample_tokens"),
)
SHARES = ("warmup_fraction", "decay_fraction", "final_learning_rate_fraction", "beta1", "beta2")


@dataclass(frozen=True)
class TrainingConfig:
    """How a model is trained. The first of max_steps, max_seconds and epochs that is reached ends the run.

    Args:
        max_steps: optimizer updates.
        max_seconds: training time (data, steps and logging; not compiling, validation, sampling or saving). The
            schedule fits itself to it.
        epochs: passes over the training tokens.
        context_length: tokens per window; at most model.max_position_embeddings.
        batch_size: windows per process and micro-step.
        accumulation_steps: micro-steps per optimizer update on one process; several processes share them.
        optimizer: muon takes the hidden matrices and leaves the rest to AdamW; adamw takes everything.
        learning_rate: peak rate of AdamW.
        muon_learning_rate: peak rate of Muon; ignored by adamw.
        weight_decay: decoupled decay of matrices and tables; biases and norms have none.
        beta1: decay of AdamW's first moment.
        beta2: decay of AdamW's second moment.
        max_gradient_norm: gradients are scaled down to this norm; 0 leaves them alone.
        schedule: cosine, wsd (warm-up, stable, linear decay) or constant.
        warmup_steps: updates of linear warm-up; null takes warmup_fraction.
        warmup_fraction: share of the run spent warming up where warmup_steps is null.
        decay_fraction: share of the run over which wsd falls.
        final_learning_rate_fraction: where cosine and wsd end, as a share of the peak.
        precision: auto takes bf16 where the hardware multiplies it, fp16 on older GPUs, else fp32.
        compile: auto compiles the training step where the run is long enough to pay for it.
        cpu_threads: threads of each process on a CPU; null takes its share of the cores.
        activation_checkpointing: recompute activations in the backward pass: less memory, about a third more work.
        seed: of weights, order, dropout and samples.
        log_every: optimizer updates between two lines of metrics.jsonl.
        evaluate_every: optimizer updates between two validations; null validates at the end only.
        validation_tokens: size of the fixed validation set, in whole documents from the front; null takes all.
        checkpoint_every: optimizer updates between two checkpoints; null keeps the last state only.
        keep_checkpoints: how many of the newest checkpoints stay.
        sample_every: optimizer updates between two rounds of samples; null samples at the end only.
        sample_prompts: what the samples continue; an empty prompt starts a new document.
        sample_tokens: new tokens per sample.
    """

    max_steps: int | None = None
    max_seconds: float | None = None
    epochs: float | None = None
    context_length: int = 256
    batch_size: int = 16
    accumulation_steps: int = 1
    optimizer: Literal["adamw", "muon"] = "muon"
    learning_rate: float = 3e-3
    muon_learning_rate: float = 2e-2
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.95
    max_gradient_norm: float = 1.0
    schedule: Literal["cosine", "wsd", "constant"] = "wsd"
    warmup_steps: int | None = None
    warmup_fraction: float = 0.02
    decay_fraction: float = 0.5
    final_learning_rate_fraction: float = 0.0
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    compile: bool | Literal["auto"] = "auto"
    cpu_threads: int | None = None
    activation_checkpointing: bool = False
    seed: int = 42
    log_every: int = 10
    evaluate_every: int | None = None
    validation_tokens: int | None = 1_000_000
    checkpoint_every: int | None = 1000
    keep_checkpoints: int = 2
    sample_every: int | None = None
    sample_prompts: list[str] = field(default_factory=lambda: ["", "The", "In the beginning"])
    sample_tokens: int = 100

    def __post_init__(self) -> None:
        for name in ABOVE_ZERO:
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise UserError(f"training.{name}={value} must be above 0")
        for name in SHARES:
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"training.{name}={getattr(self, name)} must lie between 0 and 1")

    @property
    def windows_per_step(self) -> int:
        """Windows in one optimizer update, over all processes."""
        return self.batch_size * self.accumulation_steps

    @property
    def tokens_per_step(self) -> int:
        """Tokens in one optimizer update, over all processes."""
        return self.windows_per_step * self.context_length


class TrainingLoss(nn.Module):
    """The part of the step that is prepared and compiled: a batch in, one number out.

    Returning the loss alone lets the compiler drop the logits, and keeps Accelerate from copying them to float32.
    """

    def __init__(self, model: PreTrainedModel, compile: bool):
        super().__init__()
        self.model = model
        self.compute = self._loss
        if compile:
            fullgraph = getattr(model, "_can_compile_fullgraph", False)
            self.compute = torch.compile(self._loss, fullgraph=fullgraph, dynamic=False)

    def _loss(self, input_ids: torch.Tensor, targets: torch.Tensor, counted_targets: torch.Tensor) -> torch.Tensor:
        # `shift_labels` is the library's word for labels that are the next tokens already.
        output = self.model(
            input_ids=input_ids,
            labels=targets,
            shift_labels=targets,
            num_items_in_batch=counted_targets,
            use_cache=False,
        )
        return output.loss

    def forward(self, input_ids: torch.Tensor, targets: torch.Tensor, counted_targets: torch.Tensor) -> torch.Tensor:
        """Summed nats of the targets (B, T) divided by `counted_targets`, the counted tokens of the whole update."""
        return self.compute(input_ids, targets, counted_targets)


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
        checkpoint: Path | None = None,
        state: LoopState | None = None,
    ):
        self.model, self.tokenizer, self.tokens, self.validation = model, tokenizer, train_tokens, validation
        self.training, self.run_folder, self.accelerator = training, run, accelerator
        self.state = state or LoopState()
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
        self.step_loss, self.optimizer = accelerator.prepare(TrainingLoss(model, training.compile), optimizer)
        self.reporter = Reporter(accelerator.is_main_process)
        self.log = RunLog(run, accelerator.is_main_process, self.state.step)
        self.validated: dict[str, float] = {}
        if training.compile:
            self.warm_up()
        if checkpoint is not None:  # last, so that nothing above disturbs the random state
            load_optimizer(checkpoint, accelerator, self.optimizer)
        self.clock = Clock(self.state.seconds)

    def run(self) -> dict[str, Any]:
        """Trains until the first limit is reached.

        Returns:
            What `results.json` says of the training: steps, tokens, seconds, speed, last and best validation.

        Raises:
            UserError: the loss is no longer a number.
        """
        training, state = self.training, self.state
        loss = loss_since_log = torch.zeros((), device=self.accelerator.device)
        logged = (state.step, state.seconds)
        with self.reporter:
            while True:
                progress = self.progress()
                last = progress >= 1
                if last or self.due(training.evaluate_every):
                    self.require_finite(loss)
                    self.evaluate()
                if last or self.due(training.sample_every):
                    self.sample(aloud=last)
                if last or self.due(training.checkpoint_every):
                    self.require_finite(loss)
                    self.save_checkpoint()
                if last:
                    break
                factor = self.set_rate(progress)
                loss, gradient_norm = self.update()
                loss_since_log = loss_since_log + loss
                self.reporter.advance(progress)
                if state.step % training.log_every == 0 or state.step == 1:
                    steps, state.seconds = state.step - logged[0], self.clock.seconds
                    record = {
                        "step": state.step,
                        "tokens": state.tokens,
                        "epoch": state.windows / self.order.windows_per_epoch,
                        "seconds": state.seconds,
                        "loss": self.accelerator.reduce(loss_since_log, "sum").item() / steps,
                        "learning_rate": training.learning_rate * factor,
                        "gradient_norm": float(gradient_norm),
                        "tokens_per_second": steps * training.tokens_per_step / (state.seconds - logged[1]),
                    }
                    loss_since_log, logged = torch.zeros_like(loss), (state.step, state.seconds)
                    self.report(record)
            self.save_model("final")
        seconds = state.seconds - self.first_seconds
        return {
            "steps": state.step,
            "tokens": state.tokens,
            "epochs": state.windows / self.order.windows_per_epoch,
            "training_seconds": state.seconds,
            "tokens_per_second": (state.tokens - self.first_tokens) / seconds if seconds else None,
            "processes": self.accelerator.num_processes,
            "last": self.validated,
            "best": state.best,
        }

    def progress(self) -> float:
        """The share of the run that is done, by the limit nearest to its end; the same on every process."""
        seconds = self.clock.seconds
        if self.training.max_seconds and self.accelerator.num_processes > 1:
            # Clocks differ by a little, and all must stop together.
            seconds = broadcast(torch.tensor(seconds, device=self.accelerator.device, dtype=torch.float32)).item()
        return share_done(self.training, self.planned_steps, self.state.step, seconds)

    def due(self, every: int | None) -> bool:
        """Whether something that happens `every` so many updates happens now."""
        return every is not None and self.state.step % every == 0 and self.state.step > self.first_step

    def set_rate(self, progress: float) -> float:
        """Sets the learning rates of the next update and returns their share of the peak."""
        training = self.training
        factor = rate_factor(
            progress,
            self.state.step,
            schedule=training.schedule,
            warmup_steps=training.warmup_steps,
            warmup_fraction=training.warmup_fraction,
            decay_fraction=training.decay_fraction,
            final_fraction=training.final_learning_rate_fraction,
        )
        set_learning_rate(self.optimizer, factor)
        return factor

    def update(self) -> tuple[torch.Tensor, torch.Tensor]:
        """One optimizer update, and the counters after it.

        Micro-step m of an update takes the windows m * batch_size ... of it, and process r of P the micro-steps r,
        r + P, ...: the windows of an update do not depend on how many processes share it.

        Returns:
            This process's share of the mean loss over the update's targets (sum it over processes), and the norm of the
            gradient before clipping.
        """
        accelerator, training, state = self.accelerator, self.training, self.state
        batches = []
        for micro_step in range(self.micro_steps):
            first = (micro_step * accelerator.num_processes + accelerator.process_index) * training.batch_size
            batches.append(self.batch(self.order.starts(state.windows + first, training.batch_size)))
        # Counted before the first forward pass: every micro-step is divided by the targets of the whole update.
        counted = accelerator.reduce(sum((batch["targets"] != -100).sum() for batch in batches), "sum")
        total = torch.zeros((), device=accelerator.device)
        for index, batch in enumerate(batches):
            with nullcontext() if index == len(batches) - 1 else accelerator.no_sync(self.step_loss):
                loss = self.step_loss(**batch, counted_targets=counted)
                # DistributedDataParallel averages gradients over processes; ours are shares of one sum.
                accelerator.backward(loss * accelerator.num_processes)
            total += loss.detach()
        norm = accelerator.clip_grad_norm_(self.step_loss.parameters(), training.max_gradient_norm or math.inf)
        self.optimizer.step()
        self.optimizer.zero_grad()
        state.step += 1
        state.windows += training.windows_per_step
        state.tokens += training.tokens_per_step
        return total, norm

    def batch(self, starts: np.ndarray) -> dict[str, torch.Tensor]:
        """The windows at `starts`, on the device."""
        batch = next_token_batch(self.tokens, starts, self.training.context_length)
        return {name: tensor.to(self.accelerator.device, non_blocking=True) for name, tensor in batch.items()}

    def warm_up(self) -> None:
        """Compiles by one forward and backward pass; changes no weight and leaves the random state as it was."""
        self.reporter.say("compiling the training step (once; its time does not count)")
        began = time.perf_counter()
        with torch.random.fork_rng(), self.accelerator.no_sync(self.step_loss):
            batch = self.batch(np.zeros(self.training.batch_size, dtype=np.int64))
            loss = self.step_loss(**batch, counted_targets=(batch["targets"] != -100).sum())
            self.accelerator.backward(loss)
        self.optimizer.zero_grad()
        self.reporter.say(f"compiled in {duration(time.perf_counter() - began)}")

    def report(self, record: dict[str, float]) -> None:
        """Writes and shows one logged step, and stops a run that is lost."""
        self.log.write("metrics", record)
        done = share_done(self.training, self.planned_steps, self.state.step, self.state.seconds)
        self.reporter.step(self.state.step, self.planned_steps, record, self.state.seconds * max(0.0, 1 / done - 1))
        self.require_finite(torch.tensor(record["loss"]))

    def require_finite(self, loss: torch.Tensor) -> None:
        """Stops a run that is lost, before its weights are scored or saved."""
        if not math.isfinite(loss.item()):
            raise UserError(
                f"the training loss is {loss.item()} at step {self.state.step}; lower training.learning_rate="
                f"{self.training.learning_rate:g} and resume from the last checkpoint"
            )

    def evaluate(self) -> None:
        """Scores the fixed set, and keeps the weights where it is the best so far."""
        with self.clock.stopped():
            figures = self.validation.score(
                self.model, self.training.context_length, self.training.batch_size, self.accelerator
            )
            self.validated = {"step": self.state.step, **figures}
            self.log.write("metrics", {"tokens": self.state.tokens, **self.validated})
            self.reporter.validation(self.validated)
            if self.state.best is None or self.validated["validation_loss"] < self.state.best["validation_loss"]:
                self.state.best = self.validated
                self.save_model("best")

    def sample(self, aloud: bool) -> None:
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
                if aloud:
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
                limit = position_limit(self.model) or self.training.context_length
                save_tokenizer(self.tokenizer, folder, model_max_length=limit)
        self.accelerator.wait_for_everyone()


def micro_steps_per_process(accumulation_steps: int, processes: int) -> int:
    """How many of an update's micro-steps each process takes.

    Raises:
        UserError: the processes do not divide them, and one config would no longer mean one update.
    """
    if accumulation_steps % processes:
        raise UserError(
            f"training.accumulation_steps={accumulation_steps} is shared by {processes} processes and does not divide; "
            f"set it to a multiple of {processes} (and training.batch_size so that their product stays)"
        )
    return accumulation_steps // processes


def plan_steps(training: TrainingConfig, windows_per_epoch: int | None) -> int | None:
    """The updates after which `max_steps` or `epochs` ends the run; None where time does, or data not read yet."""
    limits = []
    if training.max_steps:
        limits.append(training.max_steps)
    if training.epochs and windows_per_epoch:
        limits.append(max(1, math.ceil(training.epochs * windows_per_epoch / training.windows_per_step)))
    return min(limits, default=None)


def share_done(training: TrainingConfig, planned_steps: int | None, step: int, seconds: float) -> float:
    """The share of the run that is done after so many updates and seconds; 1 or more at its end."""
    by_steps = step / planned_steps if planned_steps else 0.0
    return max(by_steps, seconds / training.max_seconds if training.max_seconds else 0.0)
