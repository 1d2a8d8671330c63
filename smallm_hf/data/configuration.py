"""The sections of a run config that are about data: what a run reads, and how that becomes windows of tokens."""

import math
from dataclasses import dataclass, fields, replace
from pathlib import PurePath
from typing import Literal

from smallm_hf.base.errors import UserError

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
        source_column: of pairs, as `data.source_column`.
        target_column: of pairs, as `data.target_column`.
        encoding: of local files.
        separator: of .csv and .tsv files.
        documents: of text files.
    """

    source: str
    weight: float | None = None
    split: str | None = None
    configuration: str | None = None
    revision: str | None = None
    text_column: str | None = None
    source_column: str | None = None
    target_column: str | None = None
    encoding: str | None = None
    separator: str | None = None
    documents: Literal["line", "paragraph"] | None = None

    def __post_init__(self):
        if (self.source_column is None) != (self.target_column is None):
            raise UserError(
                f"data.source_column={self.source_column or 'null'} and data.target_column="
                f"{self.target_column or 'null'} make pairs together only; give both, or neither for plain text"
            )
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

    @property
    def columns(self) -> tuple[str, ...]:
        """Source and target column of pairs; none where it is plain text."""
        return (self.source_column, self.target_column) if self.source_column and self.target_column else ()


HOW_TO_READ = tuple(field.name for field in fields(Source) if field.name not in ("source", "weight"))


@dataclass(frozen=True)
class DataConfig:
    """Where the text comes from, and which part of it is kept for validation.

    Args:
        source: `python-docs` (the documentation inside this Python), a local file, folder or glob of .txt, .md, .html,
            .epub, .jsonl, .json, .csv, .tsv, .parquet, .arrow (also .gz, .zst), source code, or with the extra
            `documents` .docx, .odt, .rtf, .pdf, a folder that `save_to_disk` of
            `datasets` has left, or the id of a Hub data set. In a folder that also holds texts, tables without the
            text column are skipped.
        sources: several of them in place of `source`, each with `source` and, if need be, `weight`, `split`,
            `configuration`, `revision`, `text_column`, `encoding`, `separator` and `documents`: '[{"source": "books",
            "weight": 2}, {"source": "a.jsonl", "weight": 1}]'.
        configuration: configuration of a Hub data set.
        revision: branch, tag or commit of a Hub data set.
        streaming: whether a Hub data set is read over the network while it is used, instead of downloaded first.
        split: split to train on, of a Hub data set or of a `DatasetDict` that was saved.
        text_column: column that holds the text, in everything but text files; in a .csv or .tsv without a header the
            number of the column, from 1. Chat exports (`messages`, or rows of `role` and `content`) need none.
        source_column: for an encoder-decoder, which trains on pairs: the column that it reads. A name with dots leads
            into a column, as `translation.de` does, and braces make a text of several: `question: {question} context:
            {context}`. In parallel texts, the end of the file's name: with `data.source: corpus/train`, `de` and `en`
            read `train.de.gz` and `train.en.gz`, line by line. SQuAD's JSON has the columns `question`, `context` and
            `answers.text`.
        target_column: the column that it is to write; of several texts in it the first trains.
        encoding: of local files that are neither UTF-8 nor marked by a byte order mark, such as windows-1250; left out,
            files that do not say it are guessed and named. `utf-8` refuses all others.
        separator: what stands between the columns of .csv and .tsv files, such as ; or \\t; left out, it is a tab in
            .tsv files, and guessed in others.
        documents: whether each `line` or each `paragraph` (lines between blank ones) of a text file is a document;
            left out, a file is one, or as many as stand between `<|endoftext|>`.
        validation_source: another source to validate on; left out, validation is cut from `source`.
        validation_split: split of a Hub data set to validate on: of `validation_source` (then `validation` by default),
            or without one of `source`. Local files have no splits and ignore it.
        validation_ratio: share of the bytes of `source` kept for validation when nothing else is given for it.
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
    source_column: str | None = None
    target_column: str | None = None
    encoding: str | None = None
    separator: str | None = None
    documents: Literal["line", "paragraph"] | None = None
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
        Source("", **{name: getattr(self, name) for name in HOW_TO_READ})  # which refuses wrong ones
        if len({bool(source.columns) for source in self.mixture}) > 1:
            raise UserError(
                "some of data.sources have source_column and target_column, others have not; a run trains on pairs or "
                "on texts, so give them to all or to none"
            )
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
    def is_pairs(self) -> bool:
        """Whether the data are pairs of a source and a target."""
        return bool(self.mixture[0].columns)

    @property
    def title(self) -> str:
        """The sources by name, for people."""
        if self.sources is None:
            return self.source
        paths = [PurePath(source.source) for source in self.sources]
        return " + ".join(path.name if path.is_absolute() else str(path) for path in paths)


@dataclass(frozen=True)
class CleaningConfig:
    """What is cleaned, and which documents are left out.

    Args:
        enabled: off, documents are tokenised as they were read.
        gutenberg: whether the rules for Project Gutenberg's books run: on files recognised as such by the marks around
            the book, on all, on none.
        html: whether entities (`&amp;`) are decoded and tags removed: `auto` does so in books of Project Gutenberg and
            where a text is a page of the web from its beginning on; true everywhere but in code between backticks, for
            texts that still hold markup; false nowhere. A file of HTML is read as the text that it shows.
        repeated_lines: share of the documents, at least 10, in whose first or last 20 lines a line has to stand to be
            removed as boilerplate, as 0.5 does with what stands in half of them; 0 keeps all. Rows of tables,
            conversations and source code keep theirs in any case.
        min_words: a document of fewer is dropped. In scripts that put no spaces between words, such as Chinese, every
            letter counts as one.
        max_words: a document of more is dropped; null keeps all.
        max_symbols: largest share of characters that are ASCII punctuation.
        max_digits: largest share of characters that are ASCII digits.
        languages: ISO 639-1 codes, such as [en, de]; a document in another language is dropped. One of fewer than 200
            characters is too short to tell and stays.
        repetition: whether documents of 50 words or more are dropped by the repetition rules of Gopher (Rae et al.
            2021, table A1): duplicated lines and paragraphs, and repeated n-grams. Made for pages of the web;
            reference works and children's stories repeat themselves for good reasons.
    """

    enabled: bool = True
    gutenberg: Literal["auto", "always", "never"] = "auto"
    html: bool | Literal["auto"] = "auto"
    repeated_lines: float = 0.0
    min_words: int = 0
    max_words: int | None = None
    max_symbols: float = 0.5
    max_digits: float = 0.5
    languages: list[str] | None = None
    repetition: bool = False


@dataclass(frozen=True)
class SelectionConfig:
    """Which documents are left out as duplicates, and how the others are split.

    Args:
        duplicates: whether of documents that are equal but for blanks (`exact`), or nearly equal too (`near`), only the
            first is kept.
        similarity: share of the different runs of 5 words in two documents that have to stand in both (Jaccard) for
            them to be near duplicates; estimated with a standard error of at most 0.045.
        split: whether documents are split by a hash of their text, so that rare words are spread evenly (`stratified`),
            or so that the last `data.validation_ratio` of a source validates (`tail`): the last documents; of fewer
            than 20 the last characters.
        max_leakage: share of the runs of 13 words of a validation document that may stand in training too; a document
            of more leaves validation. 1 keeps all.
        formula_documents: runs of 13 words in more training documents than this are formulas, and give nothing away.
    """

    duplicates: Literal["keep", "exact", "near"] = "near"
    similarity: float = 0.8
    split: Literal["random", "stratified", "tail"] = "random"
    max_leakage: float = 0.2
    formula_documents: int = 5


@dataclass(frozen=True)
class TokenizerConfig:
    """Which tokenizer turns the text into ids.

    Args:
        source: `bpe` trains a byte-level BPE on the text, `char` has an entry for each character of it, `word` for each
            word, number and mark, `gpt2` takes GPT-2's; anything else is the folder or the Hub id of an existing
            tokenizer.
        vocab_size: number of entries, special tokens included: of `bpe` exactly, of `char` and `word` at most; left
            out, it is `model.vocab_size`. An existing tokenizer has its own number.
        lowercase: of `word`: whether the text is lowered, which is then what a model reads, writes and is scored on.
        min_count: of `word`: fewest occurrences of an entry; rarer words are unknown ones. With 1 a model meets none
            in training, and never learns to expect them.
        punctuation: of `word`: `separate` makes entries of it, but for apostrophes inside of words; `attached` cuts at
            white space alone, for texts that are cut into words already, such as WikiText.
    """

    source: str = "bpe"
    vocab_size: int | None = None
    lowercase: bool = False
    min_count: int = 2
    punctuation: Literal["separate", "attached"] = "separate"

    def __post_init__(self) -> None:
        if self.min_count < 1:
            raise UserError(f"tokenizer.min_count={self.min_count} is out of range; set it to 1 or more")


@dataclass(frozen=True)
class BatchingConfig:
    """How the training text is cut into windows, and in which order these train.

    Args:
        stride: tokens between the starts of two neighbouring windows; null is training.context_length. A smaller one
            makes windows overlap, and one epoch trains each token about training.context_length / stride times.
        within_documents: attention does not look across the eos before a document, where positions begin at 0 again,
            neither in training nor in validation.
        document_rows: each document is a row of its own, which begins with the eos before it, ends with its own and is
            filled up to training.context_length, both in training and in validation; longer ones go on in further rows.
            For many short documents, such as names, and for models that cannot attend within documents.
        carry_state: a recurrent model begins a window with the state that the one before it in the text has left, so
            that its context reaches beyond training.context_length (truncated back-propagation through time). Each row
            of an update is then a stretch of the text of its own, read from front to back in an epoch.
        curriculum: order of the first windows: length from short to long documents, loss from common to rare words
            (nats per token under the frequencies of the training text); null is random.
        curriculum_tokens: the tokens of a run that come in this order, of each source at most one pass; null is the
            first epoch. A run that ends before has seen the easy part alone.
        curriculum_buckets: equal groups from easy to hard; inside each the order is random.
    """

    stride: int | None = None
    within_documents: bool = False
    document_rows: bool = False
    carry_state: bool = False
    curriculum: Literal["length", "loss"] | None = None
    curriculum_tokens: int | None = None
    curriculum_buckets: int = 10

    def __post_init__(self) -> None:
        for name in ("stride", "curriculum_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"batching.{name}={value} is out of range; set it to a number above 0, or null")
        others = {"stride": None, "within_documents": False, "curriculum": None, "carry_state": False}
        for name, value in others.items():
            for whole, reads in (
                ("carry_state", "the text from front to back"),
                ("document_rows", "each document by itself"),
            ):
                if getattr(self, whole) and name != whole and getattr(self, name) != value:
                    raise UserError(
                        f"batching.{whole}=true reads {reads}, and batching.{name}={getattr(self, name)} does not; "
                        "leave one of them out"
                    )
        if self.curriculum_tokens and not self.curriculum:
            raise UserError(
                f"batching.curriculum_tokens={self.curriculum_tokens} has no order while batching.curriculum is null; "
                "set that to length or loss"
            )
        if self.curriculum_buckets < 2:
            raise UserError(
                f"batching.curriculum_buckets={self.curriculum_buckets} sorts nothing; set it to a number above 1"
            )

    def check(self, context_length: int) -> None:
        """Refuses what does not fit windows of this length.

        Raises:
            UserError: naming both values and the fix.
        """
        window = f"training.context_length={context_length}"
        if self.stride is not None and self.stride > context_length:
            raise UserError(
                f"batching.stride={self.stride} would leave tokens out between windows of {window}; lower it"
            )
        if self.curriculum_tokens is not None and self.curriculum_tokens < context_length:
            raise UserError(
                f"batching.curriculum_tokens={self.curriculum_tokens} is less than one window of {window}; raise it"
            )
