"""The texts that models are scored on: those of files and data sets, or what a run was validated on."""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from smallm_hf.data.documents import read_texts
from smallm_hf.data.files import local_files
from smallm_hf.data.packing import TokenFiles, open_token_files
from smallm_hf.errors import UserError

TOKEN_FILE, RUN_FILE = "validation.bin", "metrics.jsonl"  # tell a folder of token files and a run
TOKENS_AT_A_TIME = 2**20  # of a token file that are held


def require_texts(source: str) -> None:
    """Tells of a wrong path before any model is loaded.

    Raises:
        UserError: a path without texts, or a run whose token files are gone.
    """
    _find_validation(source) or local_files(source)


def read_scored_texts(source: str, *, text_column: str = "text") -> Iterator[str]:
    """The documents of a source, each whole.

    Args:
        source: what `read_texts` takes; or a run folder, whose validation documents these are, as many as it scored; or
            a folder of token files, of which these are all validation documents. Both are as cleaning left them.
        text_column: column that holds the text, in all but text files.

    Raises:
        UserError: what `require_texts` refuses, or a tokenizer that does not give a text back as it was.
    """
    if (found := _find_validation(source)) is None:
        yield from read_texts(source, text_column=text_column)
        return
    files, limit = found
    stated, size = files.meta.validation, 0
    for text in decode_documents(files.validation[:limit], files.tokenizer):
        size += len(text.encode())
        yield text
    if (limit is None or limit >= stated.tokens) and size != stated.bytes:
        raise UserError(
            f"the tokenizer of {files.folder} gives back {size} of {stated.bytes} bytes of the validation text; "
            "give the text itself"
        )


def source_name(source: str) -> str:
    """What a page calls a source: a path that begins at the root would say where somebody keeps it."""
    name = Path(source).name if Path(source).is_absolute() else source
    made_of_tokens = any((Path(source) / file).is_file() for file in (TOKEN_FILE, RUN_FILE))
    return f"the validation text of {name}" if made_of_tokens else name


def _find_validation(source: str) -> tuple[TokenFiles, int | None] | None:
    """The token files that a folder holds or a run was made from, and how many tokens count; None for other sources."""
    folder = Path(source).expanduser()
    if (folder / "meta.json").is_file() and (folder / TOKEN_FILE).is_file():
        return open_token_files(folder), None
    if not (folder / RUN_FILE).is_file() or not (folder / "config.yaml").is_file():
        return None
    if not (folder / "results.json").is_file():
        raise UserError(f"{source} is a run that has not ended (no results.json); give the folder of its token files")
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    files = open_token_files(results["data"]["folder"])
    if files.meta.validation.sha256 != results["data"]["validation"]["sha256"]:
        raise UserError(f"{files.folder} no longer holds the text that {source} was validated on; give a text")
    return files, results["config"]["training"]["validation_tokens"]


def decode_documents(tokens: np.ndarray, tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    """The documents of a token file, each closed by eos; one without it at the end is left out."""
    return itertools.chain.from_iterable(decode_blocks(tokens, tokenizer))


def decode_blocks(tokens: np.ndarray, tokenizer: PreTrainedTokenizerBase) -> Iterator[list[str]]:
    """`decode_documents` in lists; about `TOKENS_AT_A_TIME` tokens are held."""
    held = np.empty(0, tokens.dtype)
    for start in range(0, len(tokens), TOKENS_AT_A_TIME):
        held = np.concatenate((held, tokens[start : start + TOKENS_AT_A_TIME]))
        *documents, held = np.split(held, np.flatnonzero(held == tokenizer.eos_token_id) + 1)
        if documents:
            yield [tokenizer.decode(ids[:-1], clean_up_tokenization_spaces=False) for ids in documents]
