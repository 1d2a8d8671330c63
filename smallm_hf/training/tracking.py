"""Mirrors a run's records in TensorBoard, Trackio and wandb; the `.jsonl` files remain the record.

A resumed run continues in the same tracker run, and each step is shown once. A tracker first drops what the run is
about to repeat, as far as it can, and then receives all that it lacks of the record:

- TensorBoard: the same folder; `purge_step` hides what was written from the checkpoint's step on.
- Trackio: the same name. A local run is deleted and written again from the record; one on a Space or a server continues
  after its last step.
- wandb: the same id. Online, the server continues after its last step and refuses earlier ones, so a step it has shown
  stays as it was first. Offline nothing can be resumed: the run is written again from the record, and the files of the
  session before it are removed, because `wandb sync` would upload one over the other.

The trackers are Accelerate's. `Accelerator.init_trackers`, `log` and `end_training` are not used: in them one tracker
that raises ends the others and the run, and the last destroys the process group.
"""

import html
import importlib.metadata
import io
import json
import math
import os
import re
import shlex
import shutil
import textwrap
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stdout, suppress
from pathlib import Path
from typing import Any

from accelerate.tracking import GeneralTracker, TensorBoardTracker, TrackioTracker, WandBTracker
from transformers.utils.generic import flatten_dict

from smallm_hf.base.command_line import is_main_process
from smallm_hf.base.errors import UserError, one_line
from smallm_hf.training.configuration import TRACKER_NAMES, LoggingConfig
from smallm_hf.training.progress import RECORDS, read_records

DEFAULT_PROJECT = "smallm_hf"
IDENTITIES_FILE = "trackers.json"  # what each tracker calls the run
PANELS = {
    **{"tokens": "progress", "epoch": "progress", "seconds": "progress"},
    **{"tokens_per_second": "speed", "mfu": "speed", "memory_bytes": "speed"},
}
COMPARED_METRICS = ("validation/loss", "validation/bits_per_byte")  # shown by TensorBoard beside the hyperparameters
SECRET = re.compile(r"(^|[_/])(token|key|password|secret)$")
# wandb would wait forever for a network that is gone; `wandb sync` can upload the rest later.
FINISH_SECONDS = 300


# --- the trackers: each knows its `identity`, the last step it has `held`, and a `hint` where to watch ---------------


class TensorBoard(TensorBoardTracker):
    """Event files in `tensorboard/` of the run folder."""

    def __init__(self, run: Path, logging: LoggingConfig, identity: str | None, first_step: int):
        # Also in the first session: TensorBoard takes the second event of this kind for a restart, never the first.
        super().__init__(self.name, run, purge_step=first_step)
        self.identity, self.held = self.name, first_step - 1 if (run / self.name).exists() else -1
        self.hint = f"tensorboard --logdir {shlex.quote(str(run.parent))}"

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        """Writes hyperparameters into the run itself; Accelerate creates another run for them at every start."""
        from torch.utils.tensorboard.summary import hparams

        for summary in hparams(values, dict.fromkeys(COMPARED_METRICS, 0.0)):
            self.writer.file_writer.add_summary(summary)

    def sample(self, prompt: str, text: str) -> str:
        """Markdown that shows a text verbatim."""
        return textwrap.indent(prompt + text, "    ")


class Trackio(TrackioTracker):
    """A run in the Trackio project beside the run folder, in TRACKIO_DIR, or on TRACKIO_SPACE_ID or _SERVER_URL."""

    def __init__(self, run: Path, logging: LoggingConfig, identity: str | None, first_step: int):
        # Trackio reads it once, at its import: all runs of a folder share it, as they share a dashboard.
        directory = os.environ.setdefault("TRACKIO_DIR", str(run.parent.resolve() / ".trackio"))
        project, self.identity, self.held = logging.project or DEFAULT_PROJECT, identity, -1
        self.local = not (os.environ.get("TRACKIO_SPACE_ID") or os.environ.get("TRACKIO_SERVER_URL"))
        resume = "never" if self.local or identity is None else "allow"
        # embed: a notebook's dashboard would be served by this process, at an address with a secret in it.
        super().__init__(project, name=logging.run_name or run.resolve().name, resume=resume, embed=False)
        command = f"TRACKIO_DIR={shlex.quote(directory)} trackio show --project {shlex.quote(project)}"
        self.hint = command if self.local else None

    def start(self) -> None:
        """Starts the run; a local project's earlier one is deleted."""
        import trackio

        with self._quiet():
            super().start()  # which ends the run that is deleted here, where this process failed in it
        for known in trackio.Api().runs(self.run_name) if self.local and self.identity else ():
            if known.id == self.identity:
                known.delete()
        self.identity = self.run.id
        if not self.local:
            self.held = self.run._next_step - 1

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        """Stores hyperparameters; Accelerate adds an option of wandb's to them."""
        self.run.config.update(values)

    def finish(self) -> None:
        """Ends the run for the library too, which would end it a second time when Python exits."""
        import trackio

        with self._quiet():
            trackio.finish()

    def _quiet(self) -> AbstractContextManager:
        """Inside the block a local project prints nothing: its commands would stand beside our own."""
        return redirect_stdout(io.StringIO()) if self.local else nullcontext()

    def sample(self, prompt: str, text: str) -> Any:
        """A table of one row."""
        import trackio

        return trackio.Table(columns=["prompt", "text"], data=[[prompt, text]])


class Wandb(WandBTracker):
    """A run of wandb, with its files in `wandb/` of the run folder or in WANDB_DIR."""

    hint = None  # wandb prints where it writes

    def __init__(self, run: Path, logging: LoggingConfig, identity: str | None, first_step: int):
        super().__init__(
            logging.project or os.environ.get("WANDB_PROJECT", DEFAULT_PROJECT),
            name=logging.run_name or os.environ.get("WANDB_NAME", run.resolve().name),
            dir=os.environ.get("WANDB_DIR", str(run)),
            id=identity,
            resume=None if identity is None else "allow",
            reinit="finish_previous",
            settings={"finish_timeout": float(os.environ.get("WANDB_FINISH_TIMEOUT", FINISH_SECONDS))},
        )

    def start(self) -> None:
        """Starts or resumes the run."""
        super().start()
        self.identity, self.held = self.run.id, self.run.starting_step - 1
        if self.run.offline:
            session = Path(self.run.dir).parent
            for before in session.parent.glob(f"offline-run-*-{self.identity}"):
                if before != session:
                    shutil.rmtree(before, ignore_errors=True)

    def finish(self) -> None:
        """Ends the run, marked as failed if it failed."""
        self.run.finish(exit_code=int(self.failed))

    def sample(self, prompt: str, text: str) -> Any:
        """A page; unlike a table it has a slider over the steps and leaves no file outside the run."""
        import wandb

        shown = f"<b>{html.escape(prompt)}</b>{html.escape(text)}"
        return wandb.Html(f"<pre style='white-space: pre-wrap'>{shown}</pre>", inject=False)


TRACKERS = dict(zip(TRACKER_NAMES, (TensorBoard, Trackio, Wandb), strict=True))


# --- all of them -----------------------------------------------------------------------------------------------------


class Trackers:
    """Shows the records of a run in every tracker of `logging.report_to`; none of them can stop the run.

    Args:
        logging: the section of the run config.
        run: the run folder; need not exist yet.
        say: prints a line.

    Raises:
        UserError: a package is missing, or wandb knows no account.
    """

    def __init__(self, logging: LoggingConfig, run: Path, say: Callable[[str], None] = print):
        self.logging, self.run, self.say = logging, run, say
        self.active: dict[str, GeneralTracker] = {}
        missing = [name for name in logging.trackers if not _is_installed(name)]
        if missing:
            raise UserError(
                f"logging.report_to={missing[0]} needs a package that is not installed; pip install {' '.join(missing)}"
            )
        if "wandb" in logging.trackers and is_main_process():
            _require_account()

    @contextmanager
    def mirroring(self, config: dict[str, Any], first_step: int = 0) -> Iterator[None]:
        """Shows what the record holds, then what is written inside the block; in the main process only.

        After an exception wandb shows the run as failed.

        Args:
            config: the resolved run config, shown as hyperparameters without the values of secrets.
            first_step: updates done so far; records of later steps will be repeated.
        """
        failed = True
        try:
            if is_main_process():
                self._start(flat(config), first_step)
                recorded = [
                    (record, name)
                    for name in RECORDS
                    if self.active and (self.run / f"{name}.jsonl").exists()
                    for record in read_records(self.run, name)
                ]
                for record, name in sorted(recorded, key=lambda item: item[0]["step"]):
                    self.write(name, record)
            yield
            failed = False
        finally:
            for name, tracker in list(self.active.items()):
                with self._guarded(name):
                    tracker.failed = failed
                    tracker.finish()
            self.active.clear()

    def write(self, name: str, record: dict[str, Any]) -> None:
        """Shows one record of `metrics` or `samples`."""
        for tracker in list(self.active.values()):
            if record["step"] > tracker.held:
                with self._guarded(tracker.name):
                    if name == "metrics":
                        values = metric_panels(record)
                    else:
                        values = {sample_panel(record["prompt"]): tracker.sample(record["prompt"], record["text"])}
                    tracker.log(values, step=record["step"])

    def _start(self, hyperparameters: dict[str, Any], first_step: int) -> None:
        file, identities = self.run / IDENTITIES_FILE, {}
        with suppress(OSError, ValueError):  # the first session, or a damaged file
            identities = json.loads(file.read_text(encoding="utf-8"))
        for name in self.logging.trackers:
            with self._guarded(name):
                tracker = TRACKERS[name](self.run, self.logging, identities.get(name), first_step)
                self.active[name] = tracker
                tracker.start()
                tracker.store_init_configuration(hyperparameters)
                identities[name] = tracker.identity
                file.write_text(json.dumps(identities, indent=2) + "\n", encoding="utf-8")
                if tracker.hint:
                    self.say(f"watch with: {tracker.hint}")

    @contextmanager
    def _guarded(self, name: str) -> Iterator[None]:
        """Drops a tracker that raises, with one line."""
        try:
            yield
        except Exception as error:  # whatever its libraries raise, the training matters more
            self.active.pop(name, None)
            reason = one_line(error)
            self.say(f"warning: {name} fails ({reason}); training continues without it, the records are in {self.run}")


def metric_panels(record: dict[str, Any]) -> dict[str, float]:
    """The finite numbers of a record of metrics, named as trackers show them: `train/loss`, `validation/loss`."""
    numbers = {name: value for name, value in record.items() if isinstance(value, int | float) and math.isfinite(value)}
    del numbers["step"]
    if "learning_rate" not in record:  # a validation repeats the tokens of its step, which must not be shown twice
        numbers.pop("tokens", None)
    return {
        name.replace("_", "/", 1) if name.startswith("validation_") else f"{PANELS.get(name, 'train')}/{name}": value
        for name, value in numbers.items()
    }


def sample_panel(prompt: str) -> str:
    """The name that samples of a prompt are shown under, in characters every tracker takes: `samples/the_cat`."""
    return "samples/" + (re.sub(r"\W+", "_", prompt).strip("_")[:40] or "no_prompt")


def flat(config: dict[str, Any]) -> dict[str, str | float | bool | None]:
    """A nested config as `section/key: value`, lists as JSON; keys that name a secret are left out."""
    values = {key: value for key, value in flatten_dict(config, delimiter="/").items() if not SECRET.search(key)}
    plain = str | int | float | None
    return {key: value if isinstance(value, plain) else json.dumps(value, default=str) for key, value in values.items()}


def _is_installed(name: str) -> bool:
    """By its metadata: an import would also find the folder `wandb/` that wandb leaves where it runs."""
    with suppress(importlib.metadata.PackageNotFoundError):
        return bool(importlib.metadata.version(name))
    return False


def _require_account() -> None:
    """Refuses a wandb that would ask for an account in the middle of a run, or fail there."""
    import wandb

    reason = "it knows no account"
    try:
        ready = wandb.setup().settings.mode != "online" or wandb.login(prompt=False, verify=False)
    except wandb.Error as error:
        ready, reason = False, one_line(error)
    if not ready:
        raise UserError(f"logging.report_to=wandb: {reason}; run wandb login or set WANDB_MODE=offline")
