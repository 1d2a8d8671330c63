"""The stages of `preparing` as steps of datatrove, whose executors spread them over machines (extra `datatrove`).

Every task reads all of the text, which is quick, and cleans its share of the parts. All need the same text and the
same folder of parts, on a file system that they share; what they leave there is what one machine would.
"""

from collections.abc import Callable
from pathlib import Path

from datatrove.executor.base import PipelineExecutor
from datatrove.pipeline.base import PipelineStep

from smallm_hf.data.preparing import Preparation, find_or_prepare, join_preparation
from smallm_hf.data.request import Request
from smallm_hf.data.stages import Workers
from smallm_hf.tokenizing.loading import tokenizer_fingerprint

Executor = Callable[[str, list[PipelineStep], int, PipelineExecutor | None], PipelineExecutor]


class _Step(PipelineStep):
    """One stage; each task does its share of it, in its own process. Documents that come in go out as they are."""

    type = "smallm_hf"

    def __init__(self, request: Request, folder: Path, model_max_length: int):
        super().__init__()
        self.request, self.folder, self.model_max_length = request, folder, model_max_length

    def run(self, data=None, rank: int = 0, world_size: int = 1):
        with self.track_time("task"):
            self._do(rank, world_size)
        yield from data or ()

    def _do(self, rank: int, world_size: int) -> None:
        raise NotImplementedError

    def _preparation(self) -> Preparation:
        """The finished parts, and this process as the only worker."""
        return join_preparation(self.request, self.folder, self.model_max_length, Workers(1))


class CleanParts(_Step):
    """Cleans every `world_size`-th part of each source."""

    name = "clean"

    def _do(self, rank: int, world_size: int) -> None:
        self._preparation().clean(rank, world_size)


class ChooseSides(_Step):
    """Finds duplicates, splits, and trains or loads the tokenizer: one task, behind all of `CleanParts`."""

    name = "choose"

    def _do(self, rank: int, world_size: int) -> None:
        preparation = self._preparation()
        cleaned = preparation.clean()  # does nothing but look, or what a task that failed has left
        preparation.tokenizer(cleaned, preparation.choose(cleaned))


class EncodeParts(_Step):
    """Tokenises every `world_size`-th part: behind `ChooseSides`."""

    name = "encode"

    def _do(self, rank: int, world_size: int) -> None:
        preparation = self._preparation()
        cleaned = preparation.cleaned()
        selection = preparation.choose(cleaned)
        sha256 = tokenizer_fingerprint(preparation.tokenizer(cleaned, selection))
        preparation.encode(cleaned, selection, sha256, rank, world_size)


class JoinParts(_Step):
    """Joins all parts to token files in `folder`, and writes the report: one task, behind all of `EncodeParts`."""

    name = "join"

    def _do(self, rank: int, world_size: int) -> None:
        find_or_prepare(self.request, self.folder, self.model_max_length)


def prepare_with(
    executor: Executor, request: Request, folder: str | Path, model_max_length: int, tasks: int
) -> PipelineExecutor:
    """Lines up the stages on an engine of datatrove; `run()` of what is returned runs them all, one behind the other.

    Args:
        executor: makes one stage's executor from its name, steps, number of tasks, and the executor it waits for.
        request: the settings.
        folder: of the token files, on a file system that all machines share.
        model_max_length: tokens, written into the saved tokenizer.
        tasks: to cut the cleaning and the tokenising into.
    """
    before = None
    for step, number in ((CleanParts, tasks), (ChooseSides, 1), (EncodeParts, tasks), (JoinParts, 1)):
        before = executor(step.name, [step(request, Path(folder), model_max_length)], number, before)
    return before
