"""Token files: the corpus as two long rows of ids on disk, memory-mapped, with all that says what they hold.

    train.bin validation.bin   little-endian uint16 (up to 65,536 entries) or uint32, eos after each document
    train.npy validation.npy   tokens (with the eos) and bytes (without) of each document, (D, 2) int64
    *.hidden.npy               unknown tokens of each document, and the nats to spell what they hide, (D, 2) float64;
                               of a tokenizer that has an unknown token
    *.hidden.jsonl             what each unknown token stands for, in their order, a line each
    meta.json                  `Meta`: what they were made from, counts and hashes
    tokenizer/                 the tokenizer that made them, as `AutoTokenizer` loads it
    report.json                the same for people, with what was cleaned away and why, and examples
    report.md                  the same to read

Of pairs, each source and each target is a document, in turns. `prepare` makes such folders.
"""

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from smallm_hf.base.command_line import called
from smallm_hf.base.errors import UserError
from smallm_hf.base.folders import file_sha256
from smallm_hf.base.plain_json import json_text
from smallm_hf.data.reading.documents import Document
from smallm_hf.data.selection.splitting import SIDES, TRAIN, VALIDATION
from smallm_hf.tokenizing.loading import tokenizer_fingerprint
from smallm_hf.tokenizing.spelling import Speller

FORMAT = 3  # of the folder; a change makes older ones unreadable
UINT16_ENTRIES = 1 << 16
EXAMPLES = 3  # documents of each side and part that are kept for the report


def id_type(entries: int) -> np.dtype:
    """The type of the ids of a tokenizer of that many entries."""
    return np.dtype("<u2" if entries <= UINT16_ENTRIES else "<u4")


@dataclass(frozen=True)
class Side:
    """What one token file holds.

    Args:
        tokens: ids, one eos per document included.
        bytes: UTF-8 length of the text that went in, eos not counted.
        documents: number of documents, which is the number of eos.
        empty_documents: left out for having no text.
        sha256: of the file.
    """

    tokens: int
    bytes: int
    documents: int
    empty_documents: int
    sha256: str


@dataclass(frozen=True)
class SourceShare:
    """What one of the sources that train has in the token files; its documents lie together, in their order.

    Args:
        source: as it was given.
        split: of a Hub data set; otherwise empty.
        weight: its share of the tokens to train on, all shares together 1; None where all train by their size.
        first_token: where it begins in train.bin.
        tokens: in train.bin, all of them from there on.
        documents: in train.bin.
        bytes: of their text.
        validation_tokens: in validation.bin.
        validation_documents: in validation.bin.
        validation_bytes: of their text.
    """

    source: str
    split: str
    weight: float | None
    first_token: int
    tokens: int
    documents: int
    bytes: int
    validation_tokens: int
    validation_documents: int
    validation_bytes: int


@dataclass(frozen=True)
class Meta:
    """What token files hold and what they were made from (`meta.json`).

    Args:
        format: version of this layout.
        settings: the data and tokenizer settings that decide the ids.
        vocab_size: entries of the tokenizer.
        dtype: NumPy name of the ids' type, which is little-endian on disk.
        eos_token_id: closes every document.
        tokenizer_sha256: `tokenizer_fingerprint`.
        source_state: names, sizes and times of the source's files, hashed.
        content_sha256: names and contents of the source's files, hashed.
        train: the training side.
        validation: the validation side.
        sources: those that train, in the order of train.bin.
        versions: of Python and the libraries that had a part in it.
    """

    format: int
    settings: dict[str, Any]
    vocab_size: int
    dtype: str
    eos_token_id: int
    tokenizer_sha256: str
    source_state: str
    content_sha256: str
    train: Side
    validation: Side
    sources: list[SourceShare]
    versions: dict[str, str]


class Unfit(UserError):
    """Token files that another version has made, or that are not those asked for."""


@dataclass(frozen=True)
class TokenFiles:
    """An open folder of token files; the ids are memory-mapped and read-only."""

    folder: Path
    meta: Meta

    @property
    def is_pairs(self) -> bool:
        """Whether the documents are sources and targets in turns."""
        settings = self.meta.settings
        return any("target_column" in key for keys in (settings, *(settings.get("data.sources") or ())) for key in keys)

    @cached_property
    def train(self) -> np.memmap:
        """The training ids, one-dimensional."""
        return self._map(TRAIN)

    @cached_property
    def validation(self) -> np.memmap:
        """The validation ids, one-dimensional."""
        return self._map(VALIDATION)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """The tokenizer that made the ids.

        Raises:
            UserError: the one in the folder is another.
        """
        try:
            tokenizer = AutoTokenizer.from_pretrained(self.folder / "tokenizer", local_files_only=True)
        except (OSError, ValueError) as error:
            raise UserError(
                f"{self.folder}/tokenizer cannot be loaded; remove {self.folder} and prepare it again"
            ) from error
        self.check_tokenizer(tokenizer)
        return tokenizer

    def document_sizes(self, side: str) -> np.ndarray:
        """Tokens, with the eos, and bytes, without it, of each document of a side, (D, 2) int64.

        Raises:
            UserError: they do not add up to what is in the token file.
        """
        path, whole = self.folder / f"{side}.npy", getattr(self.meta, side)
        try:
            sizes = np.load(path)
        except (OSError, ValueError, EOFError):
            sizes = np.zeros((0, 2), np.int64)
        if sizes.shape != (whole.documents, 2) or sizes.sum(axis=0).tolist() != [whole.tokens, whole.bytes]:
            raise UserError(f"{path} is damaged or of other token files; remove {self.folder} and prepare it again")
        return sizes

    def hidden(self, side: str) -> np.ndarray | None:
        """Unknown tokens of each document, and the nats to spell what they hide, (D, 2); None where none can be.

        Raises:
            UserError: an older version did not write them.
        """
        path = self.folder / f"{side}.hidden.npy"
        if path.is_file():
            return np.load(path)
        if Speller.of(self.tokenizer) is None:
            return None
        raise UserError(f"{self.folder} does not say what its unknown tokens stand for; remove it and prepare it again")

    def hidden_pieces(self, side: str) -> Iterator[str]:
        """Yields what each unknown token of a side stands for; nothing where an older version did not write it."""
        path = self.folder / f"{side}.hidden.jsonl"
        if path.is_file():
            with path.open(encoding="utf-8") as file:
                yield from map(json.loads, file)

    def verify(self) -> None:
        """Reads both files and makes sure that they are what was written.

        Raises:
            UserError: one is not, with both fingerprints.
        """
        for name in SIDES:
            found, written = file_sha256(self.folder / f"{name}.bin"), getattr(self.meta, name).sha256
            if found != written:
                raise UserError(
                    f"{self.folder}/{name}.bin has sha256 {found[:12]}, its meta.json says {written[:12]}: it was "
                    f"changed after it was made; remove {self.folder} and prepare it again"
                )

    def check_tokenizer(self, tokenizer: PreTrainedTokenizerFast) -> None:
        """Makes sure that a tokenizer, such as that of a pretrained model, is the one that made the ids.

        Raises:
            UserError: it is another.
        """
        found = tokenizer_fingerprint(tokenizer)
        if found != self.meta.tokenizer_sha256:
            raise UserError(
                f"the token files in {self.folder} were made by tokenizer {self.meta.tokenizer_sha256[:12]} "
                f"({self.meta.vocab_size} entries), not by {found[:12]} ({len(tokenizer)} entries); "
                "prepare them again in another data.folder"
            )

    def _map(self, side: str) -> np.memmap:
        return np.memmap(self.folder / f"{side}.bin", dtype=np.dtype(self.meta.dtype).newbyteorder("<"), mode="r")


def open_token_files(folder: str | os.PathLike) -> TokenFiles:
    """Opens a finished folder of token files.

    Raises:
        UserError: no meta.json, one of another format (`Unfit`), or token files that are not as long as it says.
    """
    folder = Path(folder)
    try:
        content = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{folder} holds no token files (no meta.json); make them with {called('prepare')}") from None
    except ValueError as error:
        raise UserError(f"{folder}/meta.json is damaged ({error}); remove {folder} and prepare it again") from error
    if content.get("format") != FORMAT:
        raise Unfit(
            f"{folder} holds token files of format {content.get('format')}, this version reads {FORMAT}; "
            "remove it and prepare it again"
        )
    sides = {side: Side(**content[side]) for side in SIDES}
    meta = Meta(**{**content, **sides, "sources": [SourceShare(**share) for share in content["sources"]]})
    for side in SIDES:
        path = folder / f"{side}.bin"
        expected = sides[side].tokens * np.dtype(meta.dtype).itemsize
        found = path.stat().st_size if path.exists() else 0
        if found != expected:
            raise UserError(
                f"{path} has {found} bytes, its meta.json says {expected}: it is truncated or of another run; "
                f"remove {folder} and prepare it again"
            )
    return TokenFiles(folder, meta)


class SideWriter:
    """Appends documents to one file of ids, counting what goes in.

    Args:
        path: of the file, without `.bin`; beside it, in `.npy`, come the tokens and bytes of each document, and with a
            speller, in `.hidden.npy` and `.hidden.jsonl`, what its unknown tokens stand for.
        entries: of the tokenizer.
        eos_token_id: closes each document.
        speller: of a tokenizer that may have unknown tokens.
    """

    def __init__(self, path: Path, entries: int, eos_token_id: int, speller: Speller | None = None):
        self.path, self.file = path, path.with_suffix(".bin").open("wb")
        self.dtype = id_type(entries)
        self.eos = np.array([eos_token_id], self.dtype)
        self.entries = np.zeros(entries, np.int64)  # how often each was written
        self.counts = {"tokens": 0, "bytes": 0, "documents": 0, "empty_documents": 0}
        self.examples = []
        self.sizes = [[0, 0]]  # tokens and bytes of each document, the last of which is not through yet
        self.speller, self.hidden = speller, [[0, 0.0]]  # unknown tokens and nats to spell them, in the same way
        self.pieces = path.with_suffix(".hidden.jsonl").open("w", encoding="utf-8") if speller else None

    def add(self, batch: list[tuple[Document, Iterable[int]]]) -> None:
        """Writes documents, or pieces of them, and their ids."""
        ids = []
        for document, found in batch:
            if not document.text:
                self.counts["empty_documents"] += 1
                continue
            ids.append(np.asarray(found, self.dtype))
            size = len(document.text.encode())
            self.sizes[-1][0] += len(ids[-1]) + document.is_last
            self.sizes[-1][1] += size
            if self.speller:
                pieces = self.speller.hidden(document.text, ids[-1])
                self.hidden[-1][0] += len(pieces)
                self.hidden[-1][1] += np.sum([*map(self.speller.cost, pieces)])
                self.pieces.writelines(f"{json_text(piece)}\n" for piece in pieces)
            if document.is_last:
                ids.append(self.eos)
                self.sizes.append([0, 0])
                self.hidden.append([0, 0.0])
            self.counts["bytes"] += size
            self.counts["documents"] += document.is_last
            if len(self.examples) < EXAMPLES and document.piece == 0:
                self.examples.append({"id": document.id, "begins": document.text[:200]})
        if ids:
            joined = np.concatenate(ids)
            self.file.write(joined.tobytes())
            self.entries += np.bincount(joined, minlength=len(self.entries))
            self.counts["tokens"] += len(joined)

    def close(self) -> dict[str, Any]:
        """Ends the file and returns the counts."""
        self.file.close()
        np.save(self.path.with_suffix(".npy"), np.array(self.sizes[:-1], np.int64).reshape(-1, 2))
        if self.speller:
            self.pieces.close()
            np.save(self.path.with_suffix(".hidden.npy"), np.array(self.hidden[:-1], np.float64).reshape(-1, 2))
        return {**self.counts, "examples": self.examples}
