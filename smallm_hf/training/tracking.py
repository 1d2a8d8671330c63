"""Mirrors of a run's records in TensorBoard, Trackio and wandb, through Accelerate; the `.jsonl` files stay the record.

A resumed run goes on in the same tracker run, and each step shows once. A tracker first forgets what the run takes
again, as far as it can, and is then given all that it lacks of the record:

- TensorBoard: the same folder; `purge_step` hides what was written from the checkpoint's step on.
- Trackio: the same name. A local run is deleted and written again from the record; one on a Space or a server goes on
  behind its last step.
- wandb: the same id. Online, the server goes on behind its last step and refuses earlier ones, so a step it has shown
  stays as it was first. Offline nothing can be resumed: the run is written again from the record, and the session
  before it is removed, because `wandb sync` would upload one over the other.
"""

import html
import importlib.metadata
import json
import math
import os
import re
import shlex
import shutil
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate.tracking import GeneralTracker, TensorBoardTracker, TrackioTracker, WandBTracker

from smallm_hf.base.command_line import is_main_process
from smallm_hf.base.errors import UserError, one_line
from smallm_hf.training.configuration import TRACKER_NAMES, LoggingConfig
from smallm_hf.training.progress import RECORDS, read_records

PROJECT = "smallm_hf"
IDENTITIES_FILE = "trackers.json"
# Panels of a tracker; a name of the record that stands in none of them is of the training, `validation_` is a panel.
PANELS = {"progress": ("tokens", "epoch", "seconds"), "speed": ("tokens_per_second", "mfu", "memory_bytes")}
COMPARED = ("validation/loss", "validation/bits_per_byte")  # what TensorBoard sets beside the hyper-parameters
SECRET = re.compile(r"(^|_)(token|key|password|secret)$")
# wandb would wait without end for a network that has gone; what is missing then is left for `wandb sync`.
FINISH_SECONDS = 300


# --- one class per tracker -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Session:
    """What a tracker is told of this process's share of a run.

    Args:
        run: the run folder.
        project: `logging.project`.
        name: `logging.run_name`.
        identity: what the tracker called this run before; None where it did not know it.
        first_step: updates done so far; records of later steps are taken again.
    """

    run: Path
    project: str | None
    name: str | None
    identity: str | None
    first_step: int


class TensorBoard(TensorBoardTracker):
    """Event files in `tensorboard/` of the run folder."""

    def __init__(self, session: Session):
        # Said in every session: TensorBoard takes the second word of this kind for a restart, never the first.
        super().__init__(self.name, session.run, purge_step=session.first_step)
        self.held = session.first_step - 1 if (session.run / self.name).exists() else -1
        self.identity = self.name
        self.hint = f"tensorboard --logdir {shlex.quote(str(session.run.parent))}"

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        """Writes hyper-parameters into the run itself; Accelerate's way makes another run of them at every start."""
        from torch.utils.tensorboard.summary import hparams

        for summary in hparams(values, dict.fromkeys(COMPARED, 0.0)):
            self.writer.file_writer.add_summary(summary)

    def sample(self, prompt: str, text: str) -> str:
        """Markdown that shows a text as it is."""
        return textwrap.indent(prompt + text, "    ")


class Trackio(TrackioTracker):
    """A run in the Trackio project beside the run folder, in TRACKIO_DIR, or on TRACKIO_SPACE_ID or _SERVER_URL."""

    def __init__(self, session: Session):
        # Read once, when the library is imported: all runs of a folder of runs share it, as their dashboard does.
        directory = os.environ.setdefault("TRACKIO_DIR", str(session.run.parent.resolve() / ".trackio"))
        self.local = not (os.environ.get("TRACKIO_SPACE_ID") or os.environ.get("TRACKIO_SERVER_URL"))
        self.identity, self.held = session.identity, -1
        project = session.project or PROJECT
        resume = "never" if self.local or self.identity is None else "allow"
        # embed: in a notebook the dashboard would be served from this process, under an address with a secret in it.
        super().__init__(project, name=session.name or session.run.resolve().name, resume=resume, embed=False)
        command = f"TRACKIO_DIR={shlex.quote(directory)} trackio show --project {shlex.quote(project)}"
        self.hint = command if self.local else None

    def start(self) -> None:
        """Begins the run; what a local project had of it is removed."""
        import trackio

        super().start()  # which ends, in a process that failed before, the run that is removed here
        for known in trackio.Api().runs(self.run_name) if self.local and self.identity else ():
            if known.id == self.identity:
                known.delete()
        self.identity = self.run.id
        if not self.local:
            self.held = self.run._next_step - 1

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        """Stores hyper-parameters; Accelerate's way adds an option of wandb's to them."""
        self.run.config.update(values)

    def finish(self) -> None:
        """Ends the run for the library too, which would end it once more when Python exits."""
        import trackio

        trackio.finish()

    def sample(self, prompt: str, text: str) -> Any:
        """A table of one row."""
        import trackio

        return trackio.Table(columns=["prompt", "text"], data=[[prompt, text]])


class Wandb(WandBTracker):
    """A run of wandb, with its files in `wandb/` of the run folder or in WANDB_DIR."""

    hint = None  # it says itself where it writes

    def __init__(self, session: Session):
        super().__init__(
            session.project or os.environ.get("WANDB_PROJECT", PROJECT),
            name=session.name or os.environ.get("WANDB_NAME", session.run.resolve().name),
            dir=os.environ.get("WANDB_DIR", str(session.run)),
            id=session.identity,
            resume=None if session.identity is None else "allow",
            reinit="finish_previous",
            settings={"finish_timeout": float(os.environ.get("WANDB_FINISH_TIMEOUT", FINISH_SECONDS))},
        )

    def start(self) -> None:
        """Begins or resumes the run."""
        super().start()
        self.identity, self.held = self.run.id, self.run.starting_step - 1
        if self.run.offline:
            session = Path(self.run.dir).parent
            for before in session.parent.glob(f"offline-run-*-{self.identity}"):
                if before != session:
                    shutil.rmtree(before, ignore_errors=True)

    def finish(self) -> None:
        """Ends the run, with the mark of one that failed if it did."""
        self.run.finish(exit_code=int(self.failed))

    def sample(self, prompt: str, text: str) -> Any:
        """A page; unlike a table it has a slider over the steps and leaves no file outside the run."""
        import wandb

        shown = f"<b>{html.escape(prompt)}</b>{html.escape(text)}"
        return wandb.Html(f"<pre style='white-space: pre-wrap'>{shown}</pre>", inject=False)


TRACKERS = dict(zip(TRACKER_NAMES, (TensorBoard, Trackio, Wandb), strict=True))


# --- the whole -------------------------------------------------------------------------------------------------------


class Trackers:
    """Shows the records of a run in every tracker that was asked for; none of them can stop it.

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
        """Shows what is written inside, and first what the record holds already; the main process alone.

        After an exception the run is shown as failed, where a tracker knows that word.

        Args:
            config: the resolved run config, shown as hyper-parameters; without values whose key names a secret.
            first_step: updates done so far; records of later steps are taken again.
        """
        failed = True
        try:
            if is_main_process():
                self._start(flat(config), first_step)
                self._replay()
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
        with suppress(OSError, ValueError):  # the first session, or a file that says nothing
            identities = json.loads(file.read_text(encoding="utf-8"))
        for name in self.logging.trackers:
            with self._guarded(name):
                tracker = self.active[name] = TRACKERS[name](
                    Session(self.run, self.logging.project, self.logging.run_name, identities.get(name), first_step)
                )
                tracker.start()
                tracker.store_init_configuration(hyperparameters)
                identities[name] = tracker.identity
                file.write_text(json.dumps(identities, indent=2) + "\n", encoding="utf-8")
                if tracker.hint:
                    self.say(f"watch with: {tracker.hint}")

    def _replay(self) -> None:
        """Shows the record as it stands, in the order of its steps."""
        files = [name for name in RECORDS if self.active and (self.run / f"{name}.jsonl").exists()]
        recorded = [(name, record) for name in files for record in read_records(self.run, name)]
        for name, record in sorted(recorded, key=lambda item: item[1]["step"]):
            self.write(name, record)

    @contextmanager
    def _guarded(self, name: str) -> Iterator[None]:
        """Gives a tracker up, with one line, where it raises."""
        try:
            yield
        except Exception as error:  # whatever its libraries raise, the training is worth more
            self.active.pop(name, None)
            reason = one_line(error)
            self.say(f"warning: {name} fails ({reason}); training goes on without it, the records are in {self.run}")


def metric_panels(record: dict[str, Any]) -> dict[str, float]:
    """The numbers of a record of metrics under the names trackers show: `train/loss`, `validation/bits_per_byte`."""
    numbers = {name: value for name, value in record.items() if isinstance(value, int | float) and math.isfinite(value)}
    del numbers["step"]
    if "learning_rate" not in record:  # a validation repeats the tokens of its step, which must not show twice
        numbers.pop("tokens", None)
    return {_metric_panel(name): value for name, value in numbers.items()}


def _metric_panel(name: str) -> str:
    if name.startswith("validation_"):
        return name.replace("_", "/", 1)
    return next((f"{panel}/{name}" for panel, names in PANELS.items() if name in names), f"train/{name}")


def sample_panel(prompt: str) -> str:
    """The name under which what followed a prompt is shown, of characters every tracker takes: `samples/the_cat`."""
    return "samples/" + (re.sub(r"\W+", "_", prompt).strip("_")[:40] or "no_prompt")


def flat(config: dict[str, Any], prefix: str = "") -> dict[str, str | float | bool | None]:
    """A nested config as `section/key: value`, lists as JSON; a value whose key names a secret is left out."""
    values: dict[str, str | float | bool | None] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            values |= flat(value, f"{prefix}{key}/")
        elif not SECRET.search(key):
            plain = value is None or isinstance(value, str | int | float)
            values[prefix + key] = value if plain else json.dumps(value, default=str)
    return values


def _is_installed(name: str) -> bool:
    """By its metadata: an import would also find the folder `wandb/` that wandb leaves where it runs."""
    try:
        return bool(importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
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
