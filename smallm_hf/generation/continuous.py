"""Texts for many at once: each begins as soon as a slot is free, whatever the others are at.

Continuous batching (Yu et al. 2022, "Orca"), for models that fit many times into a machine: one thread owns the model,
reads each prompt alone, and steps all slots together. The same request and seed have the same text, alone and among
others, in any order, and after a restart.
"""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch

from smallm_hf.base.errors import UserError
from smallm_hf.generation.engine import Engine, Text
from smallm_hf.generation.request import Request, Token
from smallm_hf.generation.slots import steps_of

# Takes each token as it is written, and at last None, or what went wrong; called by the writing thread, so quickly.
Deliver = Callable[[Token | BaseException | None], None]
# Tokens of prompts that are read between two steps, and one prompt at least: the texts in the slots wait for them.
PROMPT_TOKENS = 512


class Busy(UserError):
    """As many wait as may wait; what was asked for can be asked for again later."""


class Closed(UserError):
    """The writer has been closed."""

    def __init__(self) -> None:
        super().__init__("the writer is closed and writes nothing any more; start another one")


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
        """Ends it before its next token; where it waits, its place is free at once."""
        self.cancelled.set()


class ContinuousWriter:
    """Writes texts side by side in a thread of its own; everything else that needs the model is done between two steps.

    Args:
        engine: its model has to be used by nobody else.
        slots: texts beside each other; every step costs as much as all of them, so no more than are usual.
        waiting: texts that may wait for a slot, and errands that may wait for the model.
        compile: compile the step, which takes 10 to 20 seconds, here.
    """

    def __init__(self, engine: Engine, *, slots: int = 8, waiting: int = 64, compile: bool = False):
        self.engine, self.slots, self.most_waiting = engine, slots, waiting
        self.steps = steps_of(engine, slots, compile=compile)
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
            Closed: the writer is.
            UserError: what the model cannot begin with, see `Engine.stream`.
        """
        texts = [self.engine.begin(number, request) for number, request in enumerate(requests)]
        jobs = [Job(text, one) for text, one in zip(texts, deliver, strict=True)]
        with self._changed:
            self._require_open()
            wait = sum(not job.cancelled.is_set() for job in self.waiting)
            room = self.slots - len(self.writing) + self.most_waiting - wait
            if len(jobs) > room:
                raise Busy(f"{len(jobs)} texts were asked for and there is room for {room}; ask again later")
            self.waiting.extend(jobs)
            self._changed.notify()
        return jobs

    def run(self, errand: Callable[[], Any]) -> Future:
        """Runs a function in the thread that owns the model, between two steps: `Engine.embed`, for example.

        Raises:
            Busy: more would wait than may.
            Closed: the writer is.
        """
        done: Future = Future()
        with self._changed:
            self._require_open()
            wait = sum(not done.cancelled() for _, done in self.errands)
            if wait >= self.most_waiting:
                raise Busy(f"{wait} wait for the model and {self.most_waiting} may; ask again later")
            self.errands.append((errand, done))
            self._changed.notify()
        return done

    def close(self) -> None:
        """Ends the thread, and all texts by the error `Closed`; errands that wait are cancelled."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _require_open(self) -> None:
        if self._closed:
            raise Closed

    def _run(self) -> None:
        try:
            with torch.no_grad():
                while self._wait():
                    self._run_errand()
                    self._fill_slots()
                    self._go_on()
        finally:  # whatever ends the thread, nobody waits for it
            with self._changed:
                self._closed = True
            for job in [*self.writing.values(), *self.waiting]:
                _tell(job, Closed())
            for _, done in self.errands:
                done.cancel()

    def _wait(self) -> bool:
        """Waits until there is something to do; False at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self.writing or self.waiting or self.errands)
            return not self._closed

    def _run_errand(self) -> None:
        """The oldest one that was not cancelled, alone: the texts go on between two of them."""
        with self._changed:
            while self.errands and self.errands[0][1].cancelled():
                self.errands.popleft()
            errand, done = self.errands.popleft() if self.errands else (None, None)
        if errand and done.set_running_or_notify_cancel():
            try:
                done.set_result(errand())
            except BaseException as error:
                done.set_exception(error)

    def _fill_slots(self) -> None:
        """Gives free slots to the texts that wait, oldest first; those that were cancelled leave."""
        tokens = 0
        with self._changed:
            left = [job for job in self.waiting if job.cancelled.is_set()]
            self.waiting = deque(job for job in self.waiting if not job.cancelled.is_set())
            free = [slot for slot in range(self.slots) if slot not in self.writing]
            while self.waiting and free and tokens < PROMPT_TOKENS:
                job = self.waiting.popleft()
                self.writing[free.pop(0)] = job
                tokens += job.prompt_tokens
        for job in left:
            _tell(job, None)

    def _go_on(self) -> None:
        """Writes a token of every text, after a step of all; one that begins, or whose positions are full, is read."""
        for slot in [slot for slot, job in self.writing.items() if job.cancelled.is_set()]:
            self._leave(slot)
        stepping = [slot for slot, job in self.writing.items() if job.text.room]
        try:
            if stepping:
                self.steps.step()
        except BaseException as error:  # of all who share the step
            for slot in stepping:
                self._leave(slot, error)
        for slot in list(self.writing):
            try:
                self._write(slot, reads=slot not in stepping)
            except BaseException as error:  # of this text alone, or of who takes it: the others go on
                self._leave(slot, error)

    def _write(self, slot: int, *, reads: bool) -> None:
        """Draws the next token of a slot and delivers it."""
        job, text = self.writing[slot], self.writing[slot].text
        logits = self.steps.read(slot, text) if reads else self.steps.logits(slot)
        drawn = text.draw(logits[None])
        token_id = drawn.item()
        job.deliver(text.add(token_id, token_id in self.engine.eos_token_ids, *text.tell(logits)))
        if not text.goes_on:
            self._leave(slot)
        elif text.room:
            self.steps.take(slot, drawn)

    def _leave(self, slot: int, error: BaseException | None = None) -> None:
        with self._changed:
            job = self.writing.pop(slot)
        self.steps.leave(slot)
        _tell(job, error)


def _tell(job: Job, end: BaseException | None) -> None:
    """Delivers the end of a text; one who can no longer be told of it is gone."""
    with suppress(BaseException):
        job.deliver(end)
