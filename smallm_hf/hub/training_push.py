"""Pushes while a run trains: its newest weights off this machine, without a step that waits for them."""

import shutil
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

from huggingface_hub.utils import disable_progress_bars

from smallm_hf.base.errors import one_line
from smallm_hf.hub.configuration import HubConfig
from smallm_hf.hub.repository import Repository
from smallm_hf.hub.staging import MODEL_FILES, TOKENIZER_FILES, copy_files

TRAINING_BRANCH = "training"


class TrainingPush:
    """Pushes weights to branch `training` of a repository while training goes on.

    One push is under way at a time, in a thread of its own; a failure is one line, never an exception.

    Args:
        hub: names the repository, which is made if it is not there.
        report: called with lines of progress, from that thread too.

    Raises:
        UserError: see `Repository.open`; told before the training begins.
    """

    def __init__(self, hub: HubConfig, report: Callable[[str], None]):
        disable_progress_bars()  # the run has its own
        self.report, self.thread, self.step, self.copy = report, None, 0, None
        self.repository = Repository.open(hub.repo, private=hub.private)
        self.repository.make(TRAINING_BRANCH, private=hub.private)

    def push(self, folder: Path, step: int) -> None:
        """Begins to push a `save_pretrained` folder and returns; it may be changed or removed at once.

        While an earlier push is under way, nothing is done but to say so.
        """
        if self.thread and self.thread.is_alive():
            self.report(f"step {step} is not pushed to the Hub: step {self.step} is still under way")
            return
        copy = Path(tempfile.mkdtemp(prefix=".push-", dir=folder.parent))  # on the same disk: weights are linked
        try:
            copy_files(folder, copy, MODEL_FILES + TOKENIZER_FILES)
            (copy / "config.json").stat()  # an empty folder would empty the branch
        except OSError as error:
            shutil.rmtree(copy, ignore_errors=True)
            self.report(f"step {step} is not pushed to the Hub: {one_line(error)}")
            return
        self.step, self.copy = step, copy
        self.thread = threading.Thread(target=self._push, args=(copy, step), daemon=True)
        self.thread.start()

    def wait(self, timeout_seconds: float = 600) -> None:
        """Waits for the push that is under way, if there is one, and gives it up where that takes too long."""
        if self.copy:
            self.thread.join(timeout_seconds)
            if self.thread.is_alive():
                self.report(f"step {self.step} did not reach the Hub in {timeout_seconds:g} seconds; given up")
                shutil.rmtree(self.copy, ignore_errors=True)  # the thread may end with its process, and not do so
            self.copy = None

    def _push(self, copy: Path, step: int) -> None:
        try:
            self.repository.push(copy, TRAINING_BRANCH, f"Step {step}")
            self.report(f"step {step} pushed to {self.repository.url}/tree/{TRAINING_BRANCH}")
        except Exception as error:  # whatever happens here, training goes on
            self.report(f"step {step} is not pushed to the Hub: {one_line(error)}")
        finally:
            shutil.rmtree(copy, ignore_errors=True)
