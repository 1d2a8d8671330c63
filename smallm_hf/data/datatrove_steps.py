"""`Stages` as steps of datatrove, whose executors spread them over machines (extra `datatrove`).

Of a source of many files every task reads and cleans its share; of one file or data set every task reads all, which is
quick, and cleans its share of the parts. All need the same text and the same folder of parts, on a file system that
they share; what they leave there is what one machine would.
"""

from collections.abc import Callable
from pathlib import Path

from datatrove.executor.base import PipelineExecutor
from datatrove.pipeline.base import PipelineStep

from smallm_hf.data.prepare import find_or_prepare, shared_stages
from smallm_hf.data.request import DataRequest
from smallm_hf.data.workers import Workers
from smallm_hf.tokenizing.loading import tokenizer_fingerprint

Executor = Callable[[str, list[PipelineStep], int, PipelineExecutor | None], PipelineExecutor]


class Step(PipelineStep):
    """One stage; each task does its share of it, in its own process. Documents that come in go out as they are.

    `clean` and `encode` do every `world_size`-th part. `choose`, which finds duplicates, splits, and trains or loads
    the tokenizer, and `join`, which leaves token files in `folder`, are one task each.
    """

    type = "smallm_hf"

    def __init__(self, name: str, request: DataRequest, folder: Path, model_max_length: int):
        super().__init__()
        self.name, self.request, self.folder, self.model_max_length = name, request, folder, model_max_length

    def run(self, data=None, rank: int = 0, world_size: int = 1):
        """Does the share of one task."""
        with self.track_time("task"):
            if self.name == "join":
                find_or_prepare(self.request, self.folder, self.model_max_length)
            else:
                self._share(rank, world_size)
        yield from data or ()

    def _share(self, rank: int, world_size: int) -> None:
        stages = shared_stages(self.request, self.folder, self.model_max_length, Workers(1))
        if self.name == "clean":
            stages.clean(rank, world_size)
            return
        # Before choosing, cleaning only looks, or does what a task that failed has left.
        cleaned = stages.clean() if self.name == "choose" else stages.cleaned()
        selection = stages.choose(cleaned)
        tokenizer = stages.tokenizer(cleaned, selection)
        if self.name == "encode":
            stages.encode(cleaned, selection, tokenizer_fingerprint(tokenizer), rank, world_size)


def prepare_with(
    executor: Executor, request: DataRequest, folder: str | Path, model_max_length: int, tasks: int
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
    for name, number in (("clean", tasks), ("choose", 1), ("encode", tasks), ("join", 1)):
        before = executor(name, [Step(name, request, Path(folder), model_max_length)], number, before)
    return before
