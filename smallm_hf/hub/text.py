"""The text a run was trained on, as a data set, read back from its token files."""

import itertools
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from smallm_hf.base.errors import UserError
from smallm_hf.card import render_data_card, resolve_statements, without_paths
from smallm_hf.data.selection.splitting import SIDES
from smallm_hf.data.token_files import TokenFiles
from smallm_hf.evaluation.texts import decode_blocks, token_files_of
from smallm_hf.hub.configuration import Statements
from smallm_hf.hub.repository import MARKS
from smallm_hf.hub.staging import write_json

SHARD_BYTES = 500_000_000  # of text in one parquet file


def find_token_files(results: dict[str, Any]) -> TokenFiles | None:
    """The token files a run was trained on, or None where they are gone or have become others."""
    try:
        return token_files_of(results)
    except UserError:
        return None


def stage_text(results: dict[str, Any], folder: Path, statements: Statements, repo: str) -> None:
    """Writes the text that a run was trained and validated on as a data set, read back from its token files.

    What is published is what the model has seen, whatever was cleaned, and which side each document was on.

    Raises:
        UserError: a text that is on the Hub already or has no stated licence, token files that are gone, or a tokenizer
            that does not give the text back as it was.
    """
    facts, source = resolve_statements(without_paths(results), statements), results["data"]["source"]
    if results["data"].get("on_hub"):
        raise UserError(f"data.source={source} is on the Hub already, and the card names it; leave out --data_repo")
    if not facts["data_license"]:
        raise UserError(f"nobody has stated the licence of {source}, which --data_repo gives away; add --data_license")
    files = find_token_files(results)
    if files is None:
        raise UserError(
            f"the token files of the run are no longer in {results['data']['folder']}; leave out --data_repo"
        )
    (folder / "data").mkdir()
    for side in SIDES:
        written = write_text(getattr(files, side), files.tokenizer, folder / "data", side)
        recorded = getattr(files.meta, side)
        if written != (recorded.documents, recorded.bytes):
            raise UserError(
                f"the tokenizer does not give the {side} text back: {written[0]} documents of {written[1]} bytes, "
                f"{recorded.documents} of {recorded.bytes} went in; leave out --data_repo"
            )
    write_json(folder / MARKS["dataset"], without_paths(asdict(files.meta)))
    card = render_data_card(without_paths(results), facts, repo)
    (folder / "README.md").write_text(card, encoding="utf-8")


def write_text(tokens: np.ndarray, tokenizer: PreTrainedTokenizerBase, folder: Path, side: str) -> tuple[int, int]:
    """Writes the documents of a token file as parquet files `SIDE-00000.parquet` ... with one column, `text`.

    Returns:
        The number of documents and of their UTF-8 bytes.
    """
    import pyarrow  # a second of import that all else can do without
    from pyarrow import parquet

    schema, writer, documents, size = pyarrow.schema([("text", pyarrow.string())]), None, 0, 0
    shards = itertools.count()
    for texts in decode_blocks(tokens, tokenizer):
        if writer is None:
            writer, written = parquet.ParquetWriter(folder / f"{side}-{next(shards):05}.parquet", schema), 0
        writer.write_table(pyarrow.table({"text": texts}, schema=schema))
        new = sum(len(text.encode()) for text in texts)
        documents, size, written = documents + len(texts), size + new, written + new
        if written >= SHARD_BYTES:
            writer.close()
            writer = None
    if writer:
        writer.close()
    return documents, size
