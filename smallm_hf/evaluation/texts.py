"""The texts that models are scored on: from files and data sets, or what a run was validated on."""

import functools
import itertools
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from smallm_hf.base.command_line import is_main_process
from smallm_hf.base.errors import UserError
from smallm_hf.data.batches.pairs import TokenPairs
from smallm_hf.data.reading.documents import read_documents, read_texts
from smallm_hf.data.reading.files import local_files
from smallm_hf.data.selection.splitting import SIDES, VALIDATION
from smallm_hf.data.token_files import TokenFiles, open_token_files
from smallm_hf.tokenizing.encoding import added_around
from smallm_hf.tokenizing.loading import is_lossless

TOKEN_FILE, RUN_FILE = "validation.bin", "metrics.jsonl"  # mark a folder of token files, and a run
TOKENS_AT_A_TIME = 2**20  # of a token file, held in memory


@dataclass(frozen=True)
class Example:
    """A text to score, and of a pair, whose target it is, the source and all targets."""

    text: str
    source: str = ""
    targets: Sequence[str] = ()


@dataclass(frozen=True)
class ScoredTexts:
    """The texts of a source, found once and read any number of times.

    Args:
        source: as it was given.
        files: token files whose validation documents these are; None where `read_texts` reads the source.
        limit: how many of their tokens count; None takes all.
        columns: of source and target, where it holds pairs.
        longest: pairs of token files with more tokens in source or target are left out; None takes all.
    """

    source: str
    files: TokenFiles | None = None
    limit: int | None = None
    columns: tuple[str, ...] = ()
    longest: int | None = None

    @property
    def is_pairs(self) -> bool:
        """Whether it holds pairs, of which the targets are scored."""
        return self.files.is_pairs if self.files else bool(self.columns)

    def read_examples(self, **how: Any) -> Iterator[Example]:
        """Yields the documents, or the pairs; arguments and errors are those of `read`."""
        if not self.is_pairs:
            yield from map(Example, self.read(**how))
        elif self.files:
            halves = self.read()
            pairs = itertools.compress(zip(halves, halves, strict=True), self._fits())
            yield from (Example(target, source, [target]) for source, target in pairs)
        else:
            source_column, target_column = self.columns
            for pair in read_documents(self.source, source_column=source_column, target_column=target_column):
                yield Example(pair.target, pair.text, pair.metadata["targets"])

    def _fits(self) -> Iterable[bool]:
        """Whether each pair of token files is short enough; how many are not is said."""
        if self.longest is None:
            return itertools.repeat(True)
        fits = pairs_of(self.files, VALIDATION).fits(self.longest)
        if not fits.all():
            warn_once(
                f"left out {(~fits).sum():,} of {len(fits):,} pairs, whose source or target has more than "
                f"{self.longest} tokens, as {self.source} has done"
            )
        return fits

    def read(self, **how: Any) -> Iterator[str]:
        """Yields the documents, each whole.

        Args:
            how: options of `read_texts`, such as text_column; of no effect on token files.

        Raises:
            UserError: what `read_texts` raises, or a tokenizer that does not give a text back as it was.
        """
        if self.files is None:
            yield from read_texts(self.source, **how)
            return
        files = self.files
        texts = decode_documents(files.validation[: self.limit], files.tokenizer, files.hidden_pieces(VALIDATION))
        sizes = files.document_sizes(VALIDATION)[:, 1]
        for number, (text, stated) in enumerate(zip(texts, sizes, strict=False), start=1):  # a limit cuts the texts
            if (size := len(text.encode())) != stated:
                raise UserError(
                    f"the tokenizer of {files.folder} gives back {size} of {stated} bytes of validation document "
                    f"{number}; give the text itself"
                )
            yield text


def require_texts(source: str, columns: tuple[str, ...] = ()) -> ScoredTexts:
    """Finds the texts of a source, so that a wrong path is an error before any model is loaded.

    Args:
        source: what `read_texts` takes; or a run folder, for the validation documents that the run scored; or a folder
            of token files, for all its validation documents. Both are as cleaning left them.
        columns: of source and target, where it holds pairs; token files know.

    Raises:
        UserError: a path without texts, or a run whose token files are gone.
    """
    folder = Path(source).expanduser()
    if (folder / "meta.json").is_file() and (folder / TOKEN_FILE).is_file():
        return ScoredTexts(source, open_token_files(folder))
    if not (folder / RUN_FILE).is_file() or not (folder / "config.yaml").is_file():
        local_files(source, columns)
        return ScoredTexts(source, columns=columns)
    if not (folder / "results.json").is_file():
        raise UserError(
            f"{source} is a run that has not ended (it has no results.json); give the folder of its token files"
        )
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    files = token_files_of(results, [VALIDATION])
    if files is None:
        raise UserError(
            f"{results['data']['folder']} no longer holds the text that {source} was validated on; give a text"
        )
    training = results["config"]["training"]
    if files.is_pairs:
        return ScoredTexts(source, files, longest=training["context_length"])
    return ScoredTexts(source, files, training["validation_tokens"])


def read_scored_texts(source: str, **how: Any) -> Iterator[str]:
    """Yields the documents of a source; arguments and errors are those of `require_texts` and `ScoredTexts.read`."""
    yield from require_texts(source).read(**how)


def token_files_of(results: Mapping[str, Any], sides: Iterable[str] = SIDES) -> TokenFiles | None:
    """The token files of a run, by its `results.json`; None if one of these sides has changed since.

    Raises:
        UserError: they are gone.
    """
    files = open_token_files(results["data"]["folder"])
    same = all(getattr(files.meta, side).sha256 == results["data"][side]["sha256"] for side in sides)
    return files if same else None


def pairs_of(files: TokenFiles, side: str) -> TokenPairs:
    """All pairs of one side of token files, as a model reads them."""
    around = added_around(files.tokenizer)
    return TokenPairs.of_documents(getattr(files, side), files.document_sizes(side), around, files.hidden(side))


def source_name(source: str) -> str:
    """What a page calls a source; an absolute path would tell where its owner keeps it."""
    name = Path(source).name if Path(source).is_absolute() else source
    made_of_tokens = any((Path(source) / file).is_file() for file in (TOKEN_FILE, RUN_FILE))
    return f"the validation text of {name}" if made_of_tokens else name


def decode_documents(
    tokens: np.ndarray, tokenizer: PreTrainedTokenizerBase, hidden: Iterable[str] = ()
) -> Iterator[str]:
    """Yields the documents of a token file, each closed by eos; a last one without eos is left out.

    Args:
        tokens: from the front of the file.
        tokenizer: that made them.
        hidden: what its unknown tokens stand for, by `TokenFiles.hidden_pieces`; they are named where nothing says it.
    """
    return itertools.chain.from_iterable(decode_blocks(tokens, tokenizer, hidden))


def decode_blocks(
    tokens: np.ndarray, tokenizer: PreTrainedTokenizerBase, hidden: Iterable[str] = ()
) -> Iterator[list[str]]:
    """`decode_documents` in lists; about `TOKENS_AT_A_TIME` tokens are held.

    A tokenizer that may not give a text back as it was is named on stderr.
    """
    pieces = itertools.chain(hidden, itertools.repeat(tokenizer.unk_token))
    if not is_lossless(tokenizer):
        warn_once(f"{tokenizer.name_or_path} is not lossless: its documents are read as it gives them back")
    held = np.empty(0, tokens.dtype)
    for start in range(0, len(tokens), TOKENS_AT_A_TIME):
        held = np.concatenate((held, tokens[start : start + TOKENS_AT_A_TIME]))
        *documents, held = np.split(held, np.flatnonzero(held == tokenizer.eos_token_id) + 1)
        if documents:
            yield [_decode(ids[:-1], tokenizer, pieces) for ids in documents]


def _decode(ids: np.ndarray, tokenizer: PreTrainedTokenizerBase, pieces: Iterator[str]) -> str:
    """The text of ids, with the next of the pieces in the place of each unknown token."""
    decode = functools.partial(tokenizer.decode, clean_up_tokenization_spaces=False)
    first, *others = np.split(ids, np.flatnonzero(ids == tokenizer.unk_token_id))
    return decode(first) + "".join(next(pieces) + decode(part[1:]) for part in others)


@functools.cache
def warn_once(line: str) -> None:
    """Says a line on stderr, once in a process and by the main one of a launch."""
    if is_main_process():
        print(line, file=sys.stderr)
