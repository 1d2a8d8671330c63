"""The `training` and `logging` sections of a run config, and what follows from them alone."""

import difflib
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from smallm_hf.base.errors import UserError

TRACKER_NAMES = ("tensorboard", "trackio", "wandb")  # which mirror the records of a run

# What a number of the config may be, the test, and the keys it holds for; null is allowed where a key allows it.
RANGES: tuple[tuple[str, Callable[[float], bool], tuple[str, ...]], ...] = (
    (
        "above 0",
        lambda value: value > 0,
        (
            *("max_steps", "max_seconds", "epochs", "context_length", "batch_size", "accumulation_steps"),
            *("global_batch_size", "learning_rate", "muon_learning_rate", "cpu_threads", "peak_tflops", "log_every"),
            *("evaluate_every", "validation_tokens", "patience", "checkpoint_every", "keep_checkpoints"),
            *("keep_every", "sample_every", "sample_tokens", "max_skipped_steps", "skip_spikes"),
        ),
    ),
    ("of 0 or more", lambda value: value >= 0, ("warmup_steps", "weight_decay", "max_gradient_norm")),
    (
        "from 0 to 1",
        lambda value: 0 <= value <= 1,
        ("warmup_fraction", "decay_fraction", "final_learning_rate_fraction", "length_warmup_fraction"),
    ),
    ("from 0 to below 1", lambda value: 0 <= value < 1, ("beta1", "beta2", "label_smoothing", "scheduled_sampling")),
    ("from 0 to below 4294967296", lambda value: 0 <= value < 2**32, ("seed",)),
)

# How updates are made: without a meaning for a model that is counted.
OF_UPDATES = (
    *("length_warmup", "length_warmup_fraction", "optimizer", "learning_rate", "muon_learning_rate", "weight_decay"),
    *("beta1", "beta2", "max_gradient_norm", "schedule", "warmup_steps", "warmup_fraction", "decay_fraction"),
    *("final_learning_rate_fraction", "activation_checkpointing", "max_skipped_steps", "skip_spikes"),
)


@dataclass(frozen=True)
class TrainingConfig:
    """How a model is trained. The first of max_steps, max_seconds and epochs that is reached ends the run.

    Args:
        max_steps: optimizer updates.
        max_seconds: training time (data, steps and logging; not compiling, validation, sampling or saving). The
            schedule fits itself to it.
        epochs: passes over the training tokens.
        context_length: tokens per window, and of a source or target of pairs at most, of which longer ones are left
            out; at most model.max_position_embeddings.
        length_warmup: shorter lengths to begin with, in tokens: each window is cut into rows of the first, then of the
            next, then left whole. Each divides context_length; those that are not shorter are passed over.
        length_warmup_fraction: share of the run trained in shorter rows, shared equally by the lengths.
        batch_size: windows, or pairs, per process and micro-step; auto takes the most that fit into memory and divide
            the update.
        accumulation_steps: micro-steps per optimizer update on one process; several processes share them.
        global_batch_size: windows per optimizer update; null is batch_size x accumulation_steps, as the recipe states
            them where batch_size is set to auto on the line.
        optimizer: muon takes the hidden matrices, multiplied in bfloat16 where the device does that well and else in
            float32, and leaves the rest to AdamW; adamw takes everything.
        learning_rate: peak rate of AdamW.
        muon_learning_rate: peak rate of Muon; ignored by adamw.
        weight_decay: decoupled decay of matrices and tables; biases and norms have none.
        beta1: decay of AdamW's first moment.
        beta2: decay of AdamW's second moment.
        max_gradient_norm: gradients are scaled down to this norm; 0 leaves them alone.
        schedule: cosine, wsd (warm-up, stable, linear decay) or constant.
        cooldown_from: a checkpoint that was still at its full rate; a new run goes on from it, decaying at once
            from its own rates, with its own betas and weight decay.
        warmup_steps: updates of linear warm-up, at most a tenth of the run; null takes warmup_fraction.
        warmup_fraction: share of the run spent warming up where warmup_steps is null.
        decay_fraction: share of the run over which wsd falls.
        final_learning_rate_fraction: where cosine and wsd end, as a share of the peak.
        precision: auto takes bf16 where the hardware multiplies it well, fp16 on older GPUs, else fp32.
        compile: auto compiles the training step where the run is long enough to pay for it, by the share of its
            operations that can be compiled: torch's recurrent cells cannot.
        loss: logits makes them all at once; chunked computes the loss from hidden states and never holds float32 logits
            for more than a part of the batch; auto does so on a GPU whose memory they would fill.
        label_smoothing: share of each target's probability that is spread evenly over the vocabulary (Szegedy et al.
            2016, section 7). Validation stays plain cross entropy, so the training loss is not comparable with it.
        scheduled_sampling: share of the tokens read in training that the model itself has drawn, at the end of the run;
            it grows linearly from 0, which is teacher forcing (Bengio et al. 2015). Each step then reads its text
            twice (Mihaylova and Martins 2019).
        cpu_threads: threads of each process on a CPU; null takes its share of the cores.
        activation_checkpointing: recompute activations in the backward pass: less memory, about a third more work.
        peak_tflops: dense TFLOP/s of one device, whose share reached is stated as mfu; null knows common GPUs.
        max_skipped_steps: updates are skipped where loss or gradient is NaN or infinite; after so many in a row the
            run saves its state and stops.
        skip_spikes: also skip an update whose loss or gradient norm is so many standard deviations above the mean
            of the last 128; null never.
        deterministic: only algorithms that give the same bits each time, slower on a GPU.
        seed: of weights, order, dropout and samples.
        log_every: optimizer updates between two lines of metrics.jsonl.
        interval_unit: what evaluate_every, checkpoint_every and sample_every count, optimizer steps or training tokens.
        evaluate_every: steps or tokens between two validations; null validates at the end only.
        patience: validations without a lower loss after which the run ends early; null never.
        validation_tokens: size of the fixed validation set, in whole documents from the front, the first in any case;
            null takes all.
        checkpoint_every: steps or tokens between two checkpoints; null keeps the last state only.
        keep_checkpoints: how many of the newest checkpoints stay; that of the best validation stays too.
        keep_every: checkpoints at multiples of so many steps stay for good.
        on_full_disk: stop, or continue without what could not be written.
        sample_every: steps or tokens between two rounds of samples; null samples at the end only.
        sample_prompts: what the samples continue; an empty prompt starts a new document. Of an encoder-decoder the
            sources that it answers, by default the first of the validation pairs.
        sample_tokens: new tokens per sample.
    """

    max_steps: int | None = None
    max_seconds: float | None = None
    epochs: float | None = None
    context_length: int = 256
    length_warmup: list[int] = field(default_factory=list)
    length_warmup_fraction: float = 0.7
    batch_size: int | Literal["auto"] = 16
    accumulation_steps: int = 1
    global_batch_size: int | None = None
    optimizer: Literal["adamw", "muon"] = "muon"
    learning_rate: float = 3e-3
    muon_learning_rate: float = 2e-2
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.95
    max_gradient_norm: float = 1.0
    schedule: Literal["cosine", "wsd", "constant"] = "wsd"
    cooldown_from: str | None = None
    warmup_steps: int | None = None
    warmup_fraction: float = 0.02
    decay_fraction: float = 0.5
    final_learning_rate_fraction: float = 0.0
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    compile: bool | Literal["auto"] = "auto"
    loss: Literal["auto", "logits", "chunked"] = "auto"
    label_smoothing: float = 0.0
    scheduled_sampling: float = 0.0
    cpu_threads: int | None = None
    activation_checkpointing: bool = False
    peak_tflops: float | None = None
    max_skipped_steps: int = 10
    skip_spikes: float | None = None
    deterministic: bool = False
    seed: int = 42
    log_every: int = 10
    interval_unit: Literal["steps", "tokens"] = "steps"
    evaluate_every: int | None = None
    patience: int | None = None
    validation_tokens: int | None = 1_000_000
    checkpoint_every: int | None = 1000
    keep_checkpoints: int = 2
    keep_every: int | None = None
    on_full_disk: Literal["stop", "continue"] = "stop"
    sample_every: int | None = None
    sample_prompts: list[str] = field(default_factory=lambda: ["", "The", "In the beginning"])
    sample_tokens: int = 100

    def __post_init__(self) -> None:
        for wanted, fits, names in RANGES:
            for name in names:
                value = getattr(self, name)
                if not (value is None or isinstance(value, str) or fits(value)):
                    raise UserError(f"training.{name}={value} is out of range; set it to a number {wanted}")
        if self.patience and not self.evaluate_every:
            raise UserError(f"training.patience={self.patience} waits for validations; set training.evaluate_every too")
        if self.cooldown_from and self.schedule != "wsd":
            raise UserError(
                f"training.cooldown_from is the decay of schedule wsd, training.schedule={self.schedule}; set it to wsd"
            )
        if self.batch_size == "auto":
            if self.global_batch_size is None:
                raise UserError("training.batch_size=auto divides training.global_batch_size, which is null; set it")
        elif self.global_batch_size not in (None, self.batch_size * self.accumulation_steps):
            raise UserError(
                f"training.batch_size={self.batch_size} x training.accumulation_steps={self.accumulation_steps} is "
                f"{self.batch_size * self.accumulation_steps} windows per update, training.global_batch_size="
                f"{self.global_batch_size}; leave the last out, or set training.batch_size to auto"
            )
        for length in self.length_warmup:
            if length < 1 or (length < self.context_length and self.context_length % length):
                raise UserError(
                    f"training.length_warmup={self.length_warmup} cuts windows of training.context_length="
                    f"{self.context_length} into rows, and {length} does not; take lengths that divide it, such as "
                    f"{max(1, self.context_length // 4)}"
                )
        if not self.sample_prompts:
            raise UserError('training.sample_prompts=[] leaves nothing to continue; give at least one, such as [""]')

    @property
    def limits(self) -> str:
        """The limits that a run has, the first of which ends it, as a user states them."""
        stated = {name: getattr(self, name) for name in ("max_steps", "max_seconds", "epochs", "patience")}
        return ", ".join(f"training.{name}={value:g}" for name, value in stated.items() if value)

    @property
    def windows_per_step(self) -> int:
        """Windows in one optimizer update, over all processes."""
        return self.global_batch_size or self.batch_size * self.accumulation_steps

    @property
    def row_lengths(self) -> list[int]:
        """Tokens in the rows that windows are cut into, one after the other; the last is the whole window."""
        return [*(length for length in self.length_warmup if length < self.context_length), self.context_length]

    @property
    def tokens_per_step(self) -> int:
        """Tokens in one optimizer update, over all processes."""
        return self.windows_per_step * self.context_length


@dataclass(frozen=True)
class LoggingConfig:
    """Where a run is shown beside its own files, which hold everything without.

    Args:
        report_to: tensorboard, trackio, wandb, several of them (a list, or commas between), or none.
        project: what holds the run in Trackio and wandb; null takes WANDB_PROJECT in wandb, else smallm_hf.
        run_name: the run's name in Trackio and wandb; null takes WANDB_NAME in wandb, else the run folder's.
    """

    report_to: str | list[str] | None = "none"
    project: str | None = None
    run_name: str | None = None

    def __post_init__(self) -> None:
        for name in self.trackers:
            if name not in TRACKER_NAMES:
                near = difflib.get_close_matches(name.lower(), TRACKER_NAMES, n=1, cutoff=0.4)
                hint = f"; did you mean {near[0]}?" if near else f"; set it to {', '.join(TRACKER_NAMES)} or none"
                raise UserError(f"logging.report_to={name} is not a tracker{hint}")

    @property
    def trackers(self) -> list[str]:
        """The names in `report_to`, each once."""
        names = self.report_to or []
        names = names.replace(",", " ").split() if isinstance(names, str) else names
        return [name for name in dict.fromkeys(names) if name != "none"]


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


def largest_micro_step(training: TrainingConfig, processes: int, at_most: int) -> int:
    """Windows of the largest micro-step up to a size that divides what one process has of an update."""
    windows = training.windows_per_step // processes
    return max(size for size in range(1, at_most + 1) if windows % size == 0)


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


def row_length(training: TrainingConfig, progress: float) -> int:
    """Tokens in the rows that windows are cut into at a share of the run, see `TrainingConfig.length_warmup`.

    Short rows cost less attention, and near context is what a model learns first (Li et al. 2022, "The Stability-
    Efficiency Dilemma"; Press et al. 2021, "Shortformer", section 4).
    """
    *shorter, whole = training.row_lengths
    if not shorter or progress >= training.length_warmup_fraction:
        return whole
    return shorter[int(progress / training.length_warmup_fraction * len(shorter))]
