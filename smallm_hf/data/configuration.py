"""What a run reads: the settings of its sources, and of the mixture that several of them make."""

import math
from dataclasses import dataclass, fields, replace
from pathlib import PurePath
from typing import Literal

from smallm_hf.errors import UserError

PYTHON_DOCS = "python-docs"


@dataclass(frozen=True)
class Source:
    """One of several sources of a mixture; what is left out is as `data` has it.

    Args:
        source: as `data.source`.
        weight: its part of the tokens that a run trains on, over the sum of all weights; given for every source or for
            none, and then they train in proportion to their size.
        split: of a Hub data set.
        configuration: of a Hub data set.
        revision: of a Hub data set.
        text_column: column that holds the text.
        encoding: of local files.
        separator: of .csv and .tsv files.
    """

    source: str
    weight: float | None = None
    split: str | None = None
    configuration: str | None = None
    revision: str | None = None
    text_column: str | None = None
    encoding: str | None = None
    separator: str | None = None

    def __post_init__(self):
        try:
            "".encode(self.encoding or "utf-8")
        except (LookupError, UnicodeError) as error:
            raise UserError(
                f"data.encoding={self.encoding} is not the name of an encoding; write it as in windows-1250, koi8-r, "
                "shift_jis, utf-16-le, or leave it out"
            ) from error
        object.__setattr__(self, "separator", {r"\t": "\t", "tab": "\t"}.get(self.separator, self.separator))
        if self.separator is not None and (len(self.separator) != 1 or self.separator in '"\r\n'):
            raise UserError(
                f"data.separator={self.separator!r} is not one character; set it to what stands between the columns, "
                r"such as ; or \t"
            )


HOW_TO_READ = tuple(field.name for field in fields(Source) if field.name not in ("source", "weight"))


@dataclass(frozen=True)
class DataConfig:
    """Where the text comes from, and which part of it is kept for validation.

    Args:
        source: `python-docs` (the documentation inside this Python), a local file, folder or glob of .txt, .md, .html,
            .epub, .jsonl, .json, .csv, .tsv, .parquet, .arrow (also .gz, .zst), a folder that `save_to_disk` of
            `datasets` has left, or the id of a Hub data set. Of a folder that holds texts, tables without the text
            column are passed over.
        sources: several of them in place of `source`, each with `source` and, if need be, `weight`, `split`,
            `configuration`, `revision`, `text_column`, `encoding` and `separator`: '[{"source": "books", "weight": 2},
            {"source": "a.jsonl", "weight": 1}]'.
        configuration: configuration of a Hub data set.
        revision: branch, tag or commit of a Hub data set.
        streaming: whether a Hub data set is read over the network while it is used, instead of downloaded first.
        split: split to train on, of a Hub data set or of a `DatasetDict` that was saved.
        text_column: column that holds the text, in everything but text files; in a .csv or .tsv without a header the
            number of the column, from 1. Chat exports (`messages`, or rows of `role` and `content`) need none.
        encoding: of local files that are neither UTF-8 nor marked by a byte order mark, such as windows-1250; left out,
            files that do not say it are guessed and named. `utf-8` refuses all others.
        separator: what stands between the columns of .csv and .tsv files, such as ; or \\t; left out, it is a tab in
            .tsv files, and guessed in others.
        validation_source: another source to validate on; left out, validation is cut from `source`.
        validation_split: split of a Hub data set to validate on: of `validation_source` (then `validation` by default),
            or without one of `source`. Local files have no splits and take no notice.
        validation_ratio: share of `source` kept for validation when nothing else is given for it.
        folder: where the token files live; left out, a folder under `data/` named after these settings.
        on_bad_file: whether a local file that cannot be read is an error, or is left from the fault on and counted.
        workers: processes that clean and tokenise; left out, one for each core and each GiB of free memory. A text of
            less than 16 MB takes one.
        license: of the text, as the Hub spells it; for the model card.
        language: of the text, an ISO 639 code, several with commas between; for the model card.
    """

    source: str | None = PYTHON_DOCS
    sources: list[Source] | None = None
    configuration: str | None = None
    revision: str | None = None
    streaming: bool = False
    split: str = "train"
    text_column: str = "text"
    encoding: str | None = None
    separator: str | None = None
    validation_source: str | None = None
    validation_split: str | None = None
    validation_ratio: float = 0.05
    folder: str | None = None
    on_bad_file: Literal["error", "skip"] = "error"
    workers: int | None = None
    license: str | None = None
    language: str | None = None

    def __post_init__(self):
        weights = [source.weight for source in self.sources or []]
        if self.sources is not None:
            if self.source not in (None, PYTHON_DOCS) or not weights:
                raise UserError(
                    f"data.source={self.source} and data.sources with {len(weights)} entries are both given; leave one "
                    "of them out"
                )
            object.__setattr__(self, "source", None)  # what only stood there by default
        elif self.source is None:
            raise UserError("data.source=null and no data.sources leave nothing to read; give one of them")
        if set(weights) != {None} and not all(weight and 0 < weight < math.inf for weight in weights):
            raise UserError(
                f"data.sources has the weights {weights}; give every source one above 0, or none to train on all in "
                "proportion to their size"
            )
        Source("", encoding=self.encoding, separator=self.separator)  # which refuses wrong ones
        if self.workers is not None and self.workers < 1:
            raise UserError(f"data.workers={self.workers} processes do nothing; set it to 1 or more, or leave it out")

    @property
    def mixture(self) -> list[Source]:
        """The sources to train on, one or several, with everything stated."""
        return [
            replace(source, **{name: getattr(source, name) or getattr(self, name) for name in HOW_TO_READ})
            for source in self.sources or [Source(self.source)]
        ]

    @property
    def title(self) -> str:
        """The sources by name, for people."""
        if self.sources is None:
            return self.source
        paths = [PurePath(source.source) for source in self.sources]
        return " + ".join(path.name if path.is_absolute() else str(path) for path in paths)
