"""The update: rate, forward and backward passes in micro-steps that fit into memory, clip, and one optimizer step."""

import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from transformers import PreTrainedModel

from smallm_hf.base.errors import UserError, one_line
from smallm_hf.data.batches.base import Batches
from smallm_hf.training.checkpoints import LoopState, load_training_state, random_state, set_random_state
from smallm_hf.training.clock import Clock
from smallm_hf.training.configuration import TrainingConfig, largest_micro_step, micro_steps_per_process
from smallm_hf.training.objectives import Objective
from smallm_hf.training.optimization import build_optimizer, set_learning_rate, whole_tensor
from smallm_hf.training.progress import duration
from smallm_hf.training.sharding import prepare_step
from smallm_hf.training.stopping import StopRequest
from smallm_hf.training.watch import UpdateWatch


@dataclass
class Updater:
    """Updates the weights of an objective's model with the next examples; `build` makes one.

    Attributes:
        model: the objective's.
        objective: as Accelerate prepared it, like the optimizer.
        unprepared: the objective itself, which may carry something from batch to batch.
        optimizer: of its weights.
        batches: what trains.
        training: every `auto` decided.
        accelerator: knows the processes and the precision.
        watch: judges and counts the updates.
        clock: stands still while something is compiled.
        stop_request: looked at between micro-steps.
        say: prints a line about what takes long, and about memory that runs out.
        batch_size: examples per micro-step; smaller than configured where memory ran out.
    """

    model: PreTrainedModel
    objective: Objective
    unprepared: Objective
    optimizer: torch.optim.Optimizer
    batches: Batches
    training: TrainingConfig
    accelerator: Accelerator
    watch: UpdateWatch
    clock: Clock
    stop_request: StopRequest
    say: Callable[[str], None]
    batch_size: int

    @classmethod
    def build(
        cls,
        objective: Objective,
        batches: Batches,
        training: TrainingConfig,
        accelerator: Accelerator,
        state: LoopState,
        say: Callable[[str], None],
    ) -> "Updater":
        """Puts the objective's model, in float32 with the weights to start from, on its device; makes an optimizer.

        Raises:
            UserError: processes that do not divide the accumulation, or a model that cannot recompute activations.
        """
        micro_steps_per_process(training.accumulation_steps, accelerator.num_processes)
        model = objective.model
        if training.activation_checkpointing:
            try:
                model.activation_checkpointing_enable()
            except ValueError as error:
                raise UserError(f"training.activation_checkpointing=true: {one_line(error)} Set it to false") from error
        model.to(accelerator.device).train()
        names = ("learning_rate", "muon_learning_rate", "weight_decay", "beta1", "beta2")
        optimizer = build_optimizer(model, training.optimizer, **{name: getattr(training, name) for name in names})
        prepared, optimizer = prepare_step(accelerator, objective, optimizer, training)
        return cls(
            model,
            prepared,
            objective,
            optimizer,
            batches,
            training,
            accelerator,
            UpdateWatch(accelerator.device, state, training.skip_spikes),
            Clock(state.seconds),
            StopRequest(),
            say,
            # Another number of processes may have halved it, to what does not divide the share of these.
            largest_micro_step(training, accelerator.num_processes, state.batch_size or training.batch_size),
        )

    def load(self, checkpoint: Path, state: LoopState) -> None:
        """Restores what the next update depends on beside weights and counters, and the rates of the last one."""
        with self.clock.stopped():
            carried = load_training_state(checkpoint, self.accelerator, self.model, self.optimizer)
        self.unprepared.carried = carried
        set_learning_rate(self.optimizer, state.rate_factor)  # a record of that update may be due

    def update(self, first: int, rate_factor: float, row_length: int) -> int | None:
        """One optimizer update on the examples from the `first` on; returns how many targets it counted.

        An update whose loss or gradient is NaN or infinite, or a spike, is skipped: its data counts as seen, weights
        and optimizer stay as they are. That is decided on the device, and read when the next record is written. Where
        this process is the only one and asked to stop meanwhile, there is no update and None is returned.

        Args:
            first: index of its first example.
            rate_factor: share of the peak learning rates.
            row_length: tokens in the rows that windows are cut into.
        """
        set_learning_rate(self.optimizer, rate_factor)
        counted = self.batches.counted(first, self.training.windows_per_step)
        loss = self.backward(first, counted, row_length)
        if loss is None:
            return None
        norm = self.accelerator.clip_grad_norm_(
            self.objective.parameters(), self.training.max_gradient_norm or math.inf
        )
        usable = self.watch.judge(loss, whole_tensor(norm))
        self.optimizer.optimizer.found_inf = (~usable).float()
        if self.accelerator.scaler:  # by itself it would skip what is infinite, and apply a spike
            self.optimizer.optimizer.step()
            self.accelerator.scaler.update()
        else:
            self.optimizer.step()
        self.optimizer.zero_grad()
        return counted

    def backward(self, first: int, counted: int, row_length: int) -> torch.Tensor | None:
        """Forward and backward passes of one update, in smaller micro-steps where memory runs out.

        Returns:
            Its loss over all processes, in nats per counted target; None where it was interrupted.
        """
        before, carried = random_state(self.accelerator.device), self.unprepared.carried

        def take_back() -> None:
            set_random_state(before, self.accelerator.device)
            self.unprepared.carried = carried

        def begin_again() -> None:
            if self.training.compile:
                self.warm_up()
            take_back()

        loss = self.fitting(lambda: self.gradients(first, counted, row_length), begin_again)
        if loss is None:
            self.optimizer.zero_grad()
            take_back()
        return loss

    def gradients(self, first: int, counted: int, row_length: int) -> torch.Tensor | None:
        """`backward` as it is.

        Micro-step m of an update takes the examples m * batch_size ... of it, and process r of P the micro-steps r,
        r + P, ...: the examples of an update do not depend on how many processes share it.
        """
        accelerator, size = self.accelerator, self.batch_size
        share = torch.zeros((), device=accelerator.device)
        micro_steps = self.training.windows_per_step // (size * accelerator.num_processes)
        for micro_step in range(micro_steps):
            if accelerator.num_processes == 1 and self.stop_request:
                return None
            own = first + (micro_step * accelerator.num_processes + accelerator.process_index) * size
            batch = self.batches.at(own, size, row_length).to(accelerator.device)
            with nullcontext() if micro_step == micro_steps - 1 else accelerator.no_sync(self.objective):
                loss = self.objective(**batch) / max(1, counted)
                # DistributedDataParallel averages gradients over processes; ours are shares of one sum.
                accelerator.backward(loss * accelerator.num_processes)
            share += loss.detach()
        return accelerator.reduce(share, "sum")

    def fitting(
        self, passes: Callable[[], torch.Tensor | None], begin_again: Callable[[], None]
    ) -> torch.Tensor | None:
        """What `passes` returns, which is called again with smaller micro-steps where memory runs out."""
        while True:
            try:
                return passes()
            except RuntimeError as error:
                if not should_reduce_batch_size(error):
                    raise
            self.make_room()  # not inside `except`, where the traceback would keep the failed pass in memory
            begin_again()

    def make_room(self) -> None:
        """Goes on with smaller micro-steps, and as many more of them, after one did not fit into memory.

        Raises:
            UserError: there is nothing to halve, or other processes are in the middle of theirs.
        """
        if self.batch_size == 1 or self.accelerator.num_processes > 1:
            raise UserError(
                f"out of memory with training.batch_size={self.batch_size} windows of training.context_length="
                f"{self.training.context_length}; lower the first (accumulation_steps keeps the update), or the second"
            )
        size = largest_micro_step(self.training, 1, self.batch_size // 2)
        self.say(f"out of memory with {self.batch_size} windows per micro-step; going on with {size}, the update stays")
        self.batch_size = size
        self.optimizer.zero_grad()
        clear_device_cache(garbage_collection=True)

    def warm_up(self) -> None:
        """Compiles by a forward and backward pass for each length of row.

        Changes no weight and leaves the random state as it was.

        Raises:
            UserError: the compiler of this machine fails.
        """

        def passes() -> None:
            for length in self.training.row_lengths:
                batch = self.batches.at(0, self.batch_size, length).to(self.accelerator.device)
                self.accelerator.backward(self.objective(**batch))

        self.say("compiling the training step (once; its time does not count)")
        began, before = time.perf_counter(), random_state(self.accelerator.device)
        try:
            with self.clock.stopped():
                self.fitting(passes, lambda: None)
        except (torch._dynamo.exc.TorchDynamoException, torch._inductor.exc.InductorError) as error:
            raise UserError(
                f"training.compile=true fails on this machine ({one_line(error)}); train with --training.compile false"
            ) from error
        set_random_state(before, self.accelerator.device)
        self.optimizer.zero_grad()
        self.say(f"compiled in {duration(time.perf_counter() - began)}")

    def close(self) -> None:
        """Lets go of what was prepared, before the process group is destroyed.

        The other way round, DistributedDataParallel is the last to hold the group, and frees it while it holds Python's
        lock; gloo's thread may want that lock to free its last barrier, and both wait forever (torch 2.13, seen at one
        in about sixty ends of two processes).
        """
        del self.objective
        self.accelerator.free_memory()
        if self.training.compile:
            torch.compiler.reset()  # which keeps so many steps of a process at most, and refuses the next run's
