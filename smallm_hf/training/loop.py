"""The training loop: evaluate, sample, save, stop, step, log."""

import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from smallm_hf.data.batching import WindowOrder, causal_batch
from smallm_hf.errors import UserError
from smallm_hf.evaluation.scoring import Sums, position_limit, score_token_stream, summarize
from smallm_hf.generation import sample
from smallm_hf.tokenization import save_tokenizer
from smallm_hf.training.checkpoints import LoopState, load_optimizer, replacing, save_checkpoint
from smallm_hf.training.optimization import build_optimizer, rate_factor, set_learning_rate
from smallm_hf.training.progress import Reporter, count, duration

# How samples are drawn during a run: likely words, with some freedom (Holtzman et al. 2020).
SAMPLING = {"temperature": 0.8, "top_p": 0.95}


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
        for name in (
            "max_steps max_seconds epochs context_length batch_size accumulation_steps learning_rate log_every "
            "evaluate_every validation_tokens checkpoint_every keep_checkpoints sample_every sample_tokens"
        ).split():
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise UserError(f"training.{name}={value} must be above 0")
        for name in ("warmup_fraction", "decay_fraction", "final_learning_rate_fraction", "beta1", "beta2"):
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

    def _loss(self, input_ids: torch.Tensor, targets: torch.Tensor, counted_tokens: torch.Tensor) -> torch.Tensor:
        # `shift_labels` is the library's word for labels that are the next tokens already.
        output = self.model(
            input_ids=input_ids,
            labels=targets,
            shift_labels=targets,
            num_items_in_batch=counted_tokens,
            use_cache=False,
        )
        return output.loss

    def forward(self, input_ids: torch.Tensor, targets: torch.Tensor, counted_tokens: torch.Tensor) -> torch.Tensor:
        """Summed nats of the targets (B, T) divided by `counted_tokens`, the counted tokens of the whole update."""
        return self.compute(input_ids, targets, counted_tokens)


class Clock:
    """Training time in seconds: runs, except inside `stopped`."""

    def __init__(self, seconds: float):
        self._before = seconds
        self._since = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Training time so far."""
        return self._before + time.perf_counter() - self._since

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Time spent inside does not count."""
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()
        self._before = self.seconds
        yield
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()
        self._since = time.perf_counter()


@dataclass(frozen=True)
class ValidationSet:
    """The fixed tokens every validation of a run scores, and the bytes of text they stand for."""

    tokens: np.ndarray
    bytes: int

    @classmethod
    def choose(
        cls, tokens: np.ndarray, all_bytes: int, limit: int | None, tokenizer: PreTrainedTokenizerFast
    ) -> "ValidationSet":
        """The whole documents among the first `limit` tokens, or all of them; eos counts as one byte.

        Args:
            tokens: every validation token, each document closed by eos.
            all_bytes: bytes of all of them, eos counted as one.
            limit: tokens at most; None takes all.
            tokenizer: counts the bytes where the set is cut.
        """
        if limit is None or limit >= len(tokens):
            return cls(tokens, all_bytes)
        kept = np.asarray(tokens[:limit])
        ends = np.flatnonzero(kept == tokenizer.eos_token_id)
        kept = kept[: ends[-1] + 1] if len(ends) else kept
        text = tokenizer.decode(kept[kept != tokenizer.eos_token_id], clean_up_tokenization_spaces=False)
        return cls(kept, len(text.encode()) + len(ends))


def train(
    *,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    train_tokens: np.ndarray,
    validation: ValidationSet,
    training: TrainingConfig,
    run: Path,
    accelerator: Accelerator,
    checkpoint: Path | None,
    state: LoopState,
) -> dict[str, Any]:
    """Trains `model` and leaves weights, checkpoints, metrics and samples in the run folder.

    Args:
        model: on the CPU, in float32, with the weights to start from.
        tokenizer: saved beside the weights; reads the sample prompts.
        train_tokens: (N,) token ids, memory-mapped.
        validation: the fixed set that is scored.
        training: the section of the run config, every `auto` decided.
        run: the run folder; exists.
        accelerator: built for that precision.
        checkpoint: where optimizer and random state come from; None starts afresh.
        state: the counters to start from.

    Returns:
        What `results.json` says of the training: steps, tokens, seconds, speed, memory, last and best validation.
    """
    accumulation = micro_steps_per_process(training.accumulation_steps, accelerator.num_processes)
    order = WindowOrder(len(train_tokens), training.context_length, training.seed)
    planned_steps = plan_steps(training, order.windows_per_epoch)
    if training.activation_checkpointing:
        model.activation_checkpointing_enable()
    model.to(accelerator.device)
    optimizer = build_optimizer(
        model,
        training.optimizer,
        learning_rate=training.learning_rate,
        muon_learning_rate=training.muon_learning_rate,
        weight_decay=training.weight_decay,
        beta1=training.beta1,
        beta2=training.beta2,
    )
    step_loss, optimizer = accelerator.prepare(TrainingLoss(model, training.compile), optimizer)
    reporter = Reporter(accelerator.is_main_process)
    log = MetricLog(run, accelerator.is_main_process)
    first_tokens = state.tokens

    model.train()
    if training.compile:
        reporter.say("compiling the training step (once; its time does not count)")
        compile_seconds = warm_up(step_loss, accelerator, training, train_tokens)
        reporter.say(f"compiled in {duration(compile_seconds)}")
        optimizer.zero_grad()
    if checkpoint is not None:  # last, so that nothing above disturbs the random state
        load_optimizer(checkpoint, accelerator, optimizer)

    clock = Clock(state.seconds)
    start_step, start_seconds = state.step, state.seconds
    loss_since_log, steps_since_log, logged_at = torch.zeros((), device=accelerator.device), 0, state.seconds
    validated: dict[str, float] = {}

    with reporter:
        while True:
            progress = shared_progress(training, planned_steps, state, clock, accelerator)
            last = progress >= 1

            def due(every: int | None, last: bool = last) -> bool:
                return last or (every is not None and state.step % every == 0 and state.step > start_step)

            with clock.stopped() if last or any(
                due(every) for every in (training.evaluate_every, training.sample_every, training.checkpoint_every)
            ) else nullcontext():
                if due(training.evaluate_every):
                    validated = {"step": state.step, **evaluate(model, validation, training, accelerator)}
                    log.write("metrics", {"tokens": state.tokens, **validated})
                    reporter.say(describe_validation(validated))
                    if state.best is None or validated["validation_loss"] < state.best["validation_loss"]:
                        state.best = validated
                        save_model(run / "best", model, tokenizer, accelerator)
                if due(training.sample_every):
                    for prompt, text in sample_texts(model, tokenizer, training, accelerator):
                        log.write("samples", {"step": state.step, "prompt": prompt, "text": text})
                        if last:
                            reporter.say(f"\nsample | {prompt}{text}")
                state.seconds = clock.seconds
                if due(training.checkpoint_every):
                    save_checkpoint(run, accelerator, model, optimizer, state, training.keep_checkpoints)
            if last:
                break

            factor = rate_factor(
                progress,
                state.step,
                schedule=training.schedule,
                warmup_steps=training.warmup_steps,
                warmup_fraction=training.warmup_fraction,
                decay_fraction=training.decay_fraction,
                final_fraction=training.final_learning_rate_fraction,
            )
            set_learning_rate(optimizer, factor)
            loss, gradient_norm = update(step_loss, optimizer, accelerator, order, train_tokens, training, state, accumulation)
            loss_since_log += loss
            state.step += 1
            state.windows += training.windows_per_step
            state.tokens += training.tokens_per_step
            steps_since_log += 1

            reporter.advance(progress)
            if state.step % training.log_every == 0 or state.step == 1:
                mean_loss = accelerator.reduce(loss_since_log, "sum").item() / steps_since_log
                state.seconds = clock.seconds
                record = {
                    "step": state.step,
                    "tokens": state.tokens,
                    "epoch": state.windows / order.windows_per_epoch,
                    "seconds": state.seconds,
                    "loss": mean_loss,
                    "learning_rate": training.learning_rate * factor,
                    "gradient_norm": float(gradient_norm),
                    "tokens_per_second": steps_since_log * training.tokens_per_step / (state.seconds - logged_at),
                }
                log.write("metrics", record)
                eta = (1 - progress) / progress * state.seconds if progress else math.nan
                reporter.step(state.step, planned_steps, record, eta)
                if not math.isfinite(mean_loss):
                    raise UserError(
                        f"the training loss is {mean_loss} at step {state.step}; lower training.learning_rate="
                        f"{training.learning_rate:g} and resume from the last checkpoint"
                    )
                loss_since_log, steps_since_log, logged_at = torch.zeros_like(loss_since_log), 0, state.seconds

        save_model(run / "final", model, tokenizer, accelerator)
    seconds = state.seconds - start_seconds
    return {
        "steps": state.step,
        "tokens": state.tokens,
        "epochs": state.windows / order.windows_per_epoch,
        "training_seconds": state.seconds,
        "tokens_per_second": (state.tokens - first_tokens) / seconds if seconds else None,
        "processes": accelerator.num_processes,
        "last": validated,
        "best": state.best,
    }


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
    """The updates after which `max_steps` or `epochs` ends the run; None where only time, or data not read yet, does."""
    limits = []
    if training.max_steps:
        limits.append(training.max_steps)
    if training.epochs and windows_per_epoch:
        limits.append(max(1, math.ceil(training.epochs * windows_per_epoch / training.windows_per_step)))
    return min(limits, default=None)


def shared_progress(
    training: TrainingConfig, planned_steps: int | None, state: LoopState, clock: Clock, accelerator: Accelerator
) -> float:
    """The share of the run that is done, by the limit nearest to its end; the same on every process."""
    by_steps = state.step / planned_steps if planned_steps else 0.0
    if not training.max_seconds:
        return by_steps
    by_time = torch.tensor(clock.seconds / training.max_seconds, device=accelerator.device, dtype=torch.float32)
    if accelerator.num_processes > 1:  # clocks differ by a little, and all must stop together
        by_time = broadcast(by_time)
    return max(by_steps, by_time.item())


def update(
    step_loss: nn.Module,
    optimizer: torch.optim.Optimizer,
    accelerator: Accelerator,
    order: WindowOrder,
    tokens: np.ndarray,
    training: TrainingConfig,
    state: LoopState,
    accumulation: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """One optimizer update.

    Micro-step m of an update takes the windows m * batch_size ... of it, and process r of P the micro-steps r, r + P,
    ...: the windows of an update do not depend on how many processes share it.

    Returns:
        This process's share of the mean loss over the update's counted tokens (sum it over processes), and the norm
        of the gradient before clipping.
    """
    batches = []
    for micro_step in range(accumulation):
        first = (micro_step * accelerator.num_processes + accelerator.process_index) * training.batch_size
        starts = order.starts(state.windows + first, training.batch_size)
        batch = causal_batch(tokens, starts, training.context_length)
        batches.append({name: tensor.to(accelerator.device, non_blocking=True) for name, tensor in batch.items()})
    counted = sum((batch["targets"] != -100).sum() for batch in batches)
    counted = accelerator.reduce(counted, "sum")

    total = torch.zeros((), device=accelerator.device)
    for index, batch in enumerate(batches):
        with accelerator.no_sync(step_loss) if index < accumulation - 1 else nullcontext():
            loss = step_loss(**batch, counted_tokens=counted)
            # DistributedDataParallel averages gradients over processes; ours are shares of one sum.
            accelerator.backward(loss * accelerator.num_processes)
        total += loss.detach()
    norm = accelerator.clip_grad_norm_(step_loss.parameters(), training.max_gradient_norm or math.inf)
    optimizer.step()
    optimizer.zero_grad()
    return total, norm


def warm_up(step_loss: nn.Module, accelerator: Accelerator, training: TrainingConfig, tokens: np.ndarray) -> float:
    """Compiles by running one forward and backward pass; changes no weight and leaves the random state as it was.

    Returns:
        The seconds it took.
    """
    began = time.perf_counter()
    with torch.random.fork_rng():
        batch = causal_batch(tokens, np.zeros(training.batch_size, dtype=np.int64), training.context_length)
        batch = {name: tensor.to(accelerator.device) for name, tensor in batch.items()}
        with accelerator.no_sync(step_loss):
            loss = step_loss(**batch, counted_tokens=torch.ones((), dtype=torch.int64, device=accelerator.device))
            accelerator.backward(loss * accelerator.num_processes)
    return time.perf_counter() - began


def evaluate(
    model: PreTrainedModel, validation: ValidationSet, training: TrainingConfig, accelerator: Accelerator
) -> dict[str, float]:
    """Scores the fixed set by the `packed` protocol, in float32, shared over the processes."""
    sums = score_token_stream(
        model,
        validation.tokens,
        context_length=training.context_length,
        batch_size=training.batch_size,
        shard=(accelerator.process_index, accelerator.num_processes),
    )
    if accelerator.num_processes > 1:
        shares = accelerator.gather(torch.tensor([astuple(sums)], dtype=torch.float64, device=accelerator.device))
        sums = Sums(*(type(field)(total) for field, total in zip(astuple(sums), shares.sum(0).tolist(), strict=True)))
    figures = summarize(sums + Sums(bytes=validation.bytes))
    return {f"validation_{name}": value for name, value in figures.items()}


def describe_validation(validated: dict[str, float]) -> str:
    """The line printed for one validation."""
    return (
        f"step {validated['step']} | validation loss {validated['validation_loss']:.4f} | "
        f"perplexity {validated['validation_perplexity']:.2f} | "
        f"bits per byte {validated['validation_bits_per_byte']:.4f} | {count(validated['validation_tokens'])} tokens"
    )


def sample_texts(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, training: TrainingConfig, accelerator: Accelerator
) -> list[tuple[str, str]]:
    """One continuation of each fixed prompt, by the run's seed; main process only."""
    if not accelerator.is_main_process:
        return []
    texts = sample(
        model,
        tokenizer,
        training.sample_prompts,
        max_new_tokens=training.sample_tokens,
        seed=training.seed,
        **SAMPLING,
    )
    return list(zip(training.sample_prompts, texts, strict=True))


def save_model(
    folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, accelerator: Accelerator
) -> None:
    """A plain `save_pretrained` folder with its tokenizer, replaced whole; every process calls it."""
    if accelerator.is_main_process:
        with replacing(folder) as fresh:
            model.save_pretrained(fresh)
            save_tokenizer(tokenizer, fresh, position_limit(model) or tokenizer.model_max_length)
    accelerator.wait_for_everyone()


class MetricLog:
    """Appends records to `metrics.jsonl` and `samples.jsonl` of a run; only the main process writes."""

    def __init__(self, run: Path, enabled: bool):
        self.run, self.enabled = run, enabled

    def write(self, name: str, record: dict[str, Any]) -> None:
        """Appends one record to `NAME.jsonl`."""
        if self.enabled:
            with open(self.run / f"{name}.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
