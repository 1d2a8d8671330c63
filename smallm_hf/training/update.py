"""The update: forward and backward passes in micro-steps that fit into memory, and one step of the optimizer."""

import math
import time
from collections.abc import Callable
from contextlib import nullcontext

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

from smallm_hf.base.errors import Interrupted, UserError, one_line
from smallm_hf.data.batches.ordering import WindowOrder
from smallm_hf.data.batches.packed import next_token_batch, positions_in_documents
from smallm_hf.training.checkpoints import LoopState, random_state, set_random_state
from smallm_hf.training.clock import Clock
from smallm_hf.training.configuration import TrainingConfig, largest_micro_step
from smallm_hf.training.devices import forked_random
from smallm_hf.training.loss import TrainingLoss
from smallm_hf.training.optimization import whole_tensor
from smallm_hf.training.progress import duration
from smallm_hf.training.stopping import StopRequest
from smallm_hf.training.watch import UpdateWatch


class Updater:
    """Updates the weights, at the rates that the optimizer has, with the next windows of the text.

    Args:
        step_loss: as `prepare` made it ready, like the optimizer.
        optimizer: of its weights.
        tokens: (N,) token ids, memory-mapped.
        order: of the windows.
        separator: the eos, where the run attends within documents; None where it does not.
        training: every `auto` decided.
        accelerator: that they were made ready by.
        state: the counters, which go on with each update.
        watch: judges and counts the updates.
        clock: stands still while something is compiled.
        stop_request: is looked at between micro-steps.
        say: is told of what takes long, and of memory that runs out.
    """

    def __init__(
        self,
        *,
        step_loss: TrainingLoss,
        optimizer: torch.optim.Optimizer,
        tokens: np.ndarray,
        order: WindowOrder,
        separator: int | None,
        training: TrainingConfig,
        accelerator: Accelerator,
        state: LoopState,
        watch: UpdateWatch,
        clock: Clock,
        stop_request: StopRequest,
        say: Callable[[str], None],
    ):
        self.step_loss, self.optimizer = step_loss, optimizer
        self.tokens, self.order, self.separator = tokens, order, separator
        self.training, self.accelerator, self.state = training, accelerator, state
        self.watch, self.clock, self.stop_request, self.say = watch, clock, stop_request, say

    def update(self, row_length: int) -> None:
        """One optimizer update on windows that are cut into rows of `row_length`; leaves the counters after it.

        An update whose loss or gradient is no number, or a spike, is left out: its data counts as seen, weights and
        optimizer stay as they are. That is decided on the device, and told when the next record is written. Where this
        process is the only one and asked to stop meanwhile, there is no update, and all stays as it was.
        """
        training, state = self.training, self.state
        before = random_state(self.accelerator.device)
        loss = None
        while loss is None:
            try:
                loss = self.gradients(row_length)
            except Interrupted:
                set_random_state(before, self.accelerator.device)
                return
            except RuntimeError as error:
                if not should_reduce_batch_size(error):
                    raise
            if loss is None:  # not inside `except`, where the traceback would keep the failed pass in memory
                self.make_room()
                if training.compile:
                    self.warm_up()
                set_random_state(before, self.accelerator.device)
        norm = self.accelerator.clip_grad_norm_(self.step_loss.parameters(), training.max_gradient_norm or math.inf)
        usable = self.watch.judge(loss, whole_tensor(norm))
        self.optimizer.optimizer.found_inf = (~usable).float()
        if self.accelerator.scaler:  # by itself it would leave out what is infinite, and apply a spike
            self.optimizer.optimizer.step()
            self.accelerator.scaler.update()
        else:
            self.optimizer.step()
        self.optimizer.zero_grad()
        state.step += 1
        state.closed = False
        state.windows += training.windows_per_step
        state.tokens += training.tokens_per_step

    def gradients(self, row_length: int) -> torch.Tensor:
        """Forward and backward passes of one update; returns its loss, over all processes.

        Micro-step m of an update takes the windows m * batch_size ... of it, and process r of P the micro-steps r,
        r + P, ...: the windows of an update do not depend on how many processes share it.

        Raises:
            Interrupted: this process, being the only one, is asked to stop between micro-steps.
        """
        accelerator, size = self.accelerator, self.state.batch_size
        share = torch.zeros((), device=accelerator.device)
        for micro_step in range(self.micro_steps):
            if accelerator.num_processes == 1 and self.stop_request:
                self.optimizer.zero_grad()
                raise Interrupted
            first = (micro_step * accelerator.num_processes + accelerator.process_index) * size
            batch = self.batch(self.order.starts(self.state.windows + first, size), row_length)
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

    def batch(self, starts: np.ndarray, row_length: int) -> dict[str, torch.Tensor]:
        """The windows at `starts` on the device, each cut into rows of `row_length` tokens."""
        device = self.accelerator.device
        pinned = device.type == "cuda"  # memory that is copied while the host goes on
        batch = next_token_batch(self.tokens, starts, self.training.context_length, pin_memory=pinned)
        batch = {name: tensor.view(-1, row_length) for name, tensor in batch.items()}
        if self.separator is not None:
            batch["position_ids"] = positions_in_documents(batch["input_ids"], self.separator)
        return {name: tensor.to(device, non_blocking=pinned) for name, tensor in batch.items()}

    def make_room(self) -> None:
        """Goes on with smaller micro-steps, and as many more of them, after one did not fit into memory.

        Raises:
            UserError: there is nothing to halve, or other processes are in the middle of theirs.
        """
        state, processes = self.state, self.accelerator.num_processes
        if state.batch_size == 1 or processes > 1:
            raise UserError(
                f"out of memory with training.batch_size={state.batch_size} windows of training.context_length="
                f"{self.training.context_length}; lower the first (accumulation_steps keeps the update), or the second"
            )
        size = largest_micro_step(self.training, processes, state.batch_size // 2)
        self.say(
            f"out of memory with {state.batch_size} windows per micro-step; going on with {size}, the update stays"
        )
        state.batch_size = size
        self.optimizer.zero_grad()
        clear_device_cache(garbage_collection=True)

    def warm_up(self) -> None:
        """Compiles by a forward and backward pass for each length of row.

        Changes no weight and leaves the random state as it was.

        Raises:
            UserError: the compiler of this machine fails.
        """
        self.say("compiling the training step (once; its time does not count)")
        began = time.perf_counter()
        with self.clock.stopped(), forked_random(self.accelerator.device):
            fits = False
            while not fits:
                try:
                    for length in self.training.row_lengths:
                        starts = np.zeros(self.state.batch_size, dtype=np.int64)
                        self.accelerator.backward(self.step_loss(**self.batch(starts, length)))
                    fits = True
                except (torch._dynamo.exc.TorchDynamoException, torch._inductor.exc.InductorError) as error:
                    raise UserError(
                        f"training.compile=true fails on this machine ({one_line(error)}); "
                        "train with --training.compile false"
                    ) from error
                except RuntimeError as error:
                    if not should_reduce_batch_size(error):
                        raise
                if not fits:
                    self.make_room()
        self.optimizer.zero_grad()
        self.say(f"compiled in {duration(time.perf_counter() - began)}")
