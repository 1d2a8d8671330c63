"""Texts for many at once: each begins as soon as a slot is free, whatever the others are at.

Continuous batching (Yu et al. 2022, "Orca"), for models that fit many times into a machine: one thread owns the model,
reads each prompt alone, and steps all slots together. The same request and seed have the same text, alone and among
others, in any order, and after a restart.
"""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import torch

from smallm_hf.base.errors import UserError
from smallm_hf.generation.engine import Engine, Text
from smallm_hf.generation.request import Request, Token
from smallm_hf.generation.slots import Slots, has_slots

# Takes each token as it is written, and at last None, or what went wrong; called by the writing thread, so quickly.
Deliver = Callable[[Token | BaseException | None], None]


class Busy(UserError):
    """As many texts wait as may wait."""


@dataclass(eq=False)
class Job:
    """A text that was asked for.

    Attributes:
        prompt_tokens: what the model reads before it.
    """

    text: Text
    deliver: Deliver
    cancelled: threading.Event = field(default_factory=threading.Event)

    @property
    def prompt_tokens(self) -> int:
        """With the start token."""
        return self.text.most - self.text.request.max_new_tokens

    def cancel(self) -> None:
        """Its slot is given to the next before the next token."""
        self.cancelled.set()


class SingleSteps:
    """The slots of a model that has none: each text by steps of its own, one after the other.

    Args:
        engine: of the model.
    """

    def __init__(self, engine: Engine):
        self.engine, self.steps, self.newest = engine, {}, {}

    def read(self, slot: int, text: Text) -> torch.Tensor:
        """Begins a text; gives the logits (1, V) of its first token."""
        self.newest.pop(slot, None)
        self.steps[slot] = self.engine.prepare([text])
        return self.steps[slot].logits()

    def take(self, slot: int, token: torch.Tensor) -> None:
        """The next token (1, 1) of a slot."""
        self.newest[slot] = token

    def leave(self, slot: int) -> None:
        """Forgets the text of a slot."""
        self.steps.pop(slot), self.newest.pop(slot, None)

    def step(self) -> dict[int, torch.Tensor]:
        """The logits (V,) after the newest token of each."""
        for slot, token in self.newest.items():
            self.steps[slot].go_on([0], token)
        return {slot: self.steps[slot].logits()[0] for slot in self.newest}


class ContinuousWriter:
    """Writes texts side by side in a thread of its own; everything else that needs the model is done between two steps.

    Args:
        engine: its model has to be used by nobody else.
        slots: texts beside each other; every step costs as much as all of them, so no more than are usual.
        waiting: texts that may wait for a slot.
        compile: compile the step, which takes 10 to 20 seconds, here.
    """

    def __init__(self, engine: Engine, *, slots: int = 8, waiting: int = 64, compile: bool = False):
        self.engine, self.slots, self.most_waiting = engine, slots, waiting
        if has_slots(engine.model):
            self.steps: Slots | SingleSteps = Slots(engine.model, slots, compile=compile)
        else:
            self.steps = SingleSteps(engine)
        self.waiting: deque[Job] = deque()
        self.errands: deque[tuple[Callable[[], Any], Future]] = deque()
        self.writing: dict[int, Job] = {}
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="writer", daemon=True)
        self._thread.start()

    def submit(self, requests: Sequence[Request], deliver: Sequence[Deliver]) -> list[Job]:
        """Asks for texts: for all of them, or for none.

        Raises:
            Busy: more would wait than may.
            UserError: what the model cannot begin with, see `Engine.stream`.
        """
        texts = [self.engine.begin(number, request) for number, request in enumerate(requests)]
        jobs = [Job(text, one) for text, one in zip(texts, deliver, strict=True)]
        with self._changed:
            free = self.slots - len(self.writing)
            if len(self.waiting) + len(jobs) > self.most_waiting + free:
                raise Busy(f"{len(self.waiting)} texts wait and {self.most_waiting} may; ask again later")
            self.waiting.extend(jobs)
            self._changed.notify()
        return jobs

    def run(self, errand: Callable[[], Any]) -> Future:
        """Runs a function in the thread that owns the model, between two steps."""
        done: Future = Future()
        with self._changed:
            self.errands.append((errand, done))
            self._changed.notify()
        return done

    def close(self) -> None:
        """Ends all texts and the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        with torch.no_grad():
            while self._wait():
                self._run_errands()
                self._fill_slots()
                self._step()
        for job in [*self.writing.values(), *self.waiting]:
            job.deliver(None)
        for _, done in self.errands:
            done.cancel()

    def _wait(self) -> bool:
        """Whether there is something to do; waits until there is, and False at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self.writing or self.waiting or self.errands)
            return not self._closed

    def _run_errands(self) -> None:
        while self.errands:
            errand, done = self.errands.popleft()
            if done.set_running_or_notify_cancel():
                try:
                    done.set_result(errand())
                except BaseException as error:
                    done.set_exception(error)

    def _fill_slots(self) -> None:
        """Begins texts that wait, oldest first, each in a free slot."""
        while self.waiting and len(self.writing) < self.slots:
            slot = next(slot for slot in range(self.slots) if slot not in self.writing)
            with self._changed:
                job = self.waiting.popleft()
                self.writing[slot] = job
            self._read(slot)

    def _read(self, slot: int) -> None:
        """Reads a text from where it is, and writes its next token."""
        job = self.writing[slot]
        if job.cancelled.is_set():
            return self._leave(slot)
        try:
            if isinstance(self.steps, Slots):
                job.text.make_room(self.engine.limit)
                self.engine.ask_generate(
                    job.text, job.text.token_ids, attention_mask=torch.ones_like(job.text.token_ids)
                )
                logits = self.steps.read(slot, job.text.token_ids)
            else:
                logits = self.steps.read(slot, job.text)
            self._write(slot, logits[0])
        except Exception as error:  # of this text alone: the others go on
            self._leave(slot, error)

    def _step(self) -> None:
        if not self.writing:
            return
        logits = self.steps.step()
        for slot, job in list(self.writing.items()):
            if job.cancelled.is_set():
                self._leave(slot)
                continue
            try:
                self._write(slot, logits[slot])
            except Exception as error:
                self._leave(slot, error)

    def _write(self, slot: int, logits: torch.Tensor) -> None:
        """Draws the next token of a slot from its logits (V,)."""
        job, logits = self.writing[slot], logits[None]
        drawn = job.text.draw(logits)
        id = drawn.item()
        token = job.text.add(id, id in self.engine.eos_token_ids, *job.text.tell(logits[0]))
        job.deliver(token)
        if not job.text.goes_on:
            self._leave(slot)
        elif job.text.room:
            self.steps.take(slot, drawn)
        else:  # the positions are full
            self._read(slot)

    def _leave(self, slot: int, error: BaseException | None = None) -> None:
        with self._changed:
            job = self.writing.pop(slot)
        if isinstance(self.steps, SingleSteps):
            self.steps.leave(slot)
        job.deliver(error)
