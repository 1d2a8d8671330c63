"""Pushes while a run trains: its newest weights leave this machine, and no step waits for them."""

import shutil
import threading
from collections.abc import Callable
from pathlib import Path

from huggingface_hub.utils import disable_progress_bars

from smallm_hf.base.errors import one_line
from smallm_hf.hub.configuration import HubConfig
from smallm_hf.hub.repository import Repository
from smallm_hf.hub.staging import MODEL_FILES, TOKENIZER_FILES

TRAINING_BRANCH = "training"


class TrainingPush:
    """Pushes weights to branch `training` of a repository while training continues.

    One push runs at a time, in a thread of its own: a daemon, while at its end Python would wait for one of
    `HfApi.run_as_future`. A failure is one line, never an exception.

    Args:
        hub: names the repository, which is created unless it exists.
        report: called with lines of progress, from that thread too.

    Raises:
        UserError: see `Repository.open`.
    """

    def __init__(self, hub: HubConfig, report: Callable[[str], None]):
        disable_progress_bars()  # the run has its own
        self.report, self.thread, self.step, self.folder = report, None, 0, None
        self.repository = Repository.open(hub.repo, private=hub.private)
        self.repository.create(TRAINING_BRANCH)

    def push(self, folder: Path, step: int) -> None:
        """Takes over a `save_pretrained` folder and returns; it is removed once it is pushed, or will not be."""
        if self.thread and self.thread.is_alive():
            self.report(f"step {step} is not pushed to the Hub: step {self.step} is still on its way")
            shutil.rmtree(folder)
            return
        self.step, self.folder = step, folder
        self.thread = threading.Thread(target=self._push, args=(folder, step), daemon=True)
        self.thread.start()

    def wait(self, timeout_seconds: float = 600) -> None:
        """Waits for the push that is running, if any, and gives it up after `timeout_seconds`."""
        if self.folder:
            self.thread.join(timeout_seconds)
            folder, self.folder = self.folder, None
            if self.thread.is_alive():
                self.report(f"step {self.step} did not reach the Hub in {timeout_seconds:g} seconds; given up")
                shutil.rmtree(folder, ignore_errors=True)  # the process may end before the thread does it

    def _push(self, folder: Path, step: int) -> None:
        try:
            self.repository.upload(folder, TRAINING_BRANCH, f"Step {step}", only=MODEL_FILES + TOKENIZER_FILES)
            outcome = f"step {step} pushed to {self.repository.url}/tree/{TRAINING_BRANCH}"
        except Exception as error:  # whatever happens here, training continues
            outcome = f"step {step} is not pushed to the Hub: {one_line(error)}"
        shutil.rmtree(folder, ignore_errors=True)
        if self.folder == folder:  # not given up
            self.report(outcome)
