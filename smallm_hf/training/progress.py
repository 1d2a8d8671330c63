"""What a run prints while it trains (a bar on a terminal or in a notebook, lines in a log), and its records."""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn

from smallm_hf.base.errors import UserError
from smallm_hf.base.folders import write_whole
from smallm_hf.base.plain_json import json_text

RECORDS = ("metrics", "samples")
NOTEBOOK_REDRAW_SECONDS = 0.25


def duration(seconds: float) -> str:
    """Two units at most: `42s`, `7m05s`, `1h12m`, `3d04h`."""
    seconds = round(seconds)
    for size, unit, part, smaller in ((86400, "d", 3600, "h"), (3600, "h", 60, "m"), (60, "m", 1, "s")):
        if seconds >= size:
            return f"{seconds // size}{unit}{seconds % size // part:02d}{smaller}"
    return f"{seconds}s"


def count(number: float) -> str:
    """Three digits and a unit: `873`, `41.2k`, `2.62B`."""
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.3g}"


class NotebookProgress(Progress):
    """A bar that is redrawn in one output of a notebook cell; rich's own needs `ipywidgets`, which kernels may lack."""

    def start(self) -> None:
        """Shows the bar."""
        from IPython.display import display

        self.output = display(self, display_id=True)
        self.drawn = time.monotonic()

    def update(self, task_id: TaskID, **fields: Any) -> None:
        """Changes the bar; each redraw is a message to the browser, so there are only a few per second."""
        super().update(task_id, **fields)
        if time.monotonic() - self.drawn >= NOTEBOOK_REDRAW_SECONDS:
            self.stop()
            self.drawn = time.monotonic()

    def stop(self) -> None:
        """Draws the bar a last time."""
        self.output.update(self)


class Reporter:
    """What the training loop prints.

    On a terminal and in a notebook a bar shows loss, tokens/s and ETA and moves on every update; elsewhere each logged
    step is a line. Only the main process prints.
    """

    def __init__(self, enabled: bool, console: Console | None = None):
        in_notebook = console is None and Console().is_jupyter
        # By default rich draws bars into a log if FORCE_COLOR is set, and makes every line of a notebook an output.
        self.console = console or Console(
            quiet=not enabled,
            highlight=False,
            soft_wrap=True,
            force_terminal=sys.stdout is not None and sys.stdout.isatty(),
            force_jupyter=False,
        )
        self.bar: Progress | None = None
        if enabled and (in_notebook or self.console.is_interactive):
            self.bar = (NotebookProgress if in_notebook else Progress)(
                BarColumn(bar_width=None),
                TaskProgressColumn(),
                TextColumn("{task.description}"),
                console=self.console,
                expand=True,
                transient=True,
            )
            self.task = self.bar.add_task("training", total=1.0)

    def __enter__(self) -> "Reporter":
        if self.bar:
            self.bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self.bar:
            self.bar.stop()

    def say(self, line: str) -> None:
        """Prints one line above the bar, without reading markup in it."""
        self.console.print(line, markup=False)

    def advance(self, progress: float) -> None:
        """Moves the bar to `progress`, the fraction of the run that is done."""
        if self.bar:
            self.bar.update(self.task, completed=min(progress, 1.0))

    def step(self, step: int, planned: int | None, record: dict[str, float], eta_seconds: float) -> None:
        """Shows one logged step: all of it in a log, what fits beside the bar on a terminal."""
        where = f"step {step}" + (f"/{planned}" if planned else "")
        loss = f"loss {record['loss']:.3f}"
        rate, norm = f"lr {record['learning_rate']:.2e}", f"grad {record['gradient_norm']:.2f}"
        speed, eta = f"{count(record['tokens_per_second'])} tok/s", f"eta {duration(eta_seconds)}"
        hardware = [f"mfu {100 * record['mfu']:.3g}%"] if "mfu" in record else []
        hardware += [f"{record['memory_bytes'] / 2**30:.1f} GiB"] if "memory_bytes" in record else []
        if self.bar:
            self.bar.update(self.task, description=" | ".join((where, loss, speed, eta)))
        else:
            self.say(" | ".join((where, loss, rate, norm, speed, *hardware, eta)))

    def validation(self, validated: dict[str, float]) -> None:
        """Shows one validation."""
        self.say(
            f"step {validated['step']} | validation loss {validated['validation_loss']:.4f} | "
            f"perplexity {validated['validation_perplexity']:.2f} | "
            f"bits per byte {validated['validation_bits_per_byte']:.4f} | "
            f"{count(validated['validation_tokens'])} tokens"
        )


class RunLog:
    """Appends records to the `.jsonl` files of a run folder, without those that the run is about to repeat.

    Args:
        run: the run folder; need not exist yet.
        enabled: whether this process writes; the main one does.
        first_step: updates done so far; later records are of an interrupted run.
        finished: whether validation and samples of this very step remain to be done.
        mirror: called with all that is written, as `write` is.
    """

    def __init__(
        self,
        run: Path,
        enabled: bool,
        first_step: int = 0,
        finished: bool = False,
        mirror: Callable[[str, dict[str, Any]], None] | None = None,
    ):
        self.run, self.enabled, self.mirror = run, enabled, mirror
        for path in (run / f"{name}.jsonl" for name in RECORDS) if enabled else ():
            if path.exists():
                kept = [
                    record
                    for record in read_records(run, path.stem)
                    if record["step"] < first_step + (not finished or "learning_rate" in record)
                ]
                write_whole(path, "".join(map(_line, kept)))

    def write(self, name: str, record: dict[str, Any]) -> None:
        """Appends one record to `NAME.jsonl`, or on a full disk no part of it."""
        if self.enabled:
            path = self.run / f"{name}.jsonl"
            before = path.stat().st_size if path.exists() else 0
            try:
                with open(path, "a", encoding="utf-8") as file:
                    file.write(_line(record))
            except OSError:
                os.truncate(path, before)  # half a line would spoil the next
                raise
            if self.mirror:
                self.mirror(name, record)


def _line(record: dict[str, Any]) -> str:
    return json_text(record) + "\n"  # a gradient that overflowed is null


def read_records(run: Path, name: str) -> list[dict[str, Any]]:
    """The records of `NAME.jsonl`, in order, without a last line that a killed process left unfinished.

    Raises:
        UserError: a line that is not JSON.
    """
    path, records = run / f"{name}.jsonl", []
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
        try:
            records.append(json.loads(line))
        except ValueError as error:
            raise UserError(f"{path} is damaged: line {number} is not JSON; remove that line") from error
    return records
