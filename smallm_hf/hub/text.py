"""The text a run was trained on, as a data set, read back from its token files."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from huggingface_hub import DatasetCard, DatasetCardData

from smallm_hf.base.errors import UserError
from smallm_hf.base.plain_json import write_json
from smallm_hf.card import license_metadata, resolve_statements, task_of, without_paths
from smallm_hf.data.selection.splitting import SIDES
from smallm_hf.data.token_files import TokenFiles
from smallm_hf.evaluation.texts import decode_blocks, token_files_of
from smallm_hf.hub.configuration import Statements
from smallm_hf.hub.repository import MARK_FILES

TEXT_COLUMNS, PAIR_COLUMNS = ("text",), ("source", "target")
SHARD_BYTES = 500_000_000  # of text in one parquet file


def find_token_files(results: dict[str, Any]) -> TokenFiles | None:
    """The token files a run was trained on, or None where they are gone or have changed."""
    try:
        return token_files_of(results)
    except UserError:
        return None


def stage_text(results: dict[str, Any], folder: Path, statements: Statements, repo: str) -> None:
    """Writes the text that a run was trained and validated on as a data set, read back from its token files.

    That is what the model has seen, as cleaning left it, each document, or pair, on the side it was on.

    Raises:
        UserError: a text that is on the Hub already or has no stated licence, token files that are gone, or a tokenizer
            that does not reproduce the text.
    """
    public, source = without_paths(results), results["data"]["source"]
    facts = resolve_statements(public, statements)
    if results["data"].get("on_hub"):
        raise UserError(f"data.source={source} is on the Hub already, and the card names it; leave out --data_repo")
    if not facts["data_license"]:
        raise UserError(f"nobody has stated the licence of {source}, which --data_repo gives away; add --data_license")
    files = find_token_files(results)
    if files is None:
        raise UserError(
            f"the token files of the run are no longer in {results['data']['folder']}; leave out --data_repo"
        )
    columns = PAIR_COLUMNS if files.is_pairs else TEXT_COLUMNS
    (folder / "data").mkdir(parents=True)
    for side in SIDES:
        texts = decode_blocks(getattr(files, side), files.tokenizer, files.hidden_pieces(side))
        written = write_text(texts, folder / "data", side, columns)
        recorded = getattr(files.meta, side)
        if written != (recorded.documents, recorded.bytes):
            raise UserError(
                f"the tokenizer does not reproduce the {side} text: {written[0]} documents of {written[1]} bytes, "
                f"{recorded.documents} of {recorded.bytes} went in; leave out --data_repo"
            )
    write_json(folder / MARK_FILES["dataset"], without_paths(asdict(files.meta)))
    metadata = DatasetCardData(
        language=facts["language"].split(",") if facts["language"] else None,
        **license_metadata(facts["data_license"]),
        task_categories=["translation" if task_of(facts, files.is_pairs) == "translation" else "text-generation"],
        tags=["smallm"],
        configs=[
            {"config_name": "default", "data_files": [{"split": s, "path": f"data/{s}-*.parquet"} for s in SIDES]}
        ],
    )
    values = {**public, **facts, "name": repo.split("/")[-1], "repo": repo, "columns": columns}
    card = DatasetCard.from_template(metadata, str(Path(__file__).with_name("data_card.md")), **values)
    (folder / "README.md").write_text(f"{card}\n", encoding="utf-8")


def write_text(
    texts: Iterable[list[str]], folder: Path, side: str, columns: Sequence[str] = TEXT_COLUMNS
) -> tuple[int, int]:
    """Writes documents, given in lists, which fill the columns in turns, as `SIDE-00000.parquet` ...

    Returns:
        The number of documents and of their UTF-8 bytes.
    """
    import pyarrow  # takes a second, which all else is spared
    from pyarrow import parquet

    schema = pyarrow.schema([(column, pyarrow.string()) for column in columns])
    blocks, documents, size = _whole_rows(texts, len(columns)), 0, 0
    for shard, first in enumerate(blocks):
        full = size + SHARD_BYTES
        with parquet.ParquetWriter(folder / f"{side}-{shard:05}.parquet", schema) as writer:
            for texts in itertools.chain([first], blocks):
                rows = {column: texts[place :: len(columns)] for place, column in enumerate(columns)}
                writer.write_table(pyarrow.table(rows, schema=schema))
                documents += len(texts)
                size += sum(len(text.encode()) for text in texts)
                if size >= full:
                    break
    return documents, size


def _whole_rows(blocks: Iterable[list[str]], width: int) -> Iterator[list[str]]:
    """The same texts in lists of whole rows of so many."""
    held = []
    for texts in blocks:
        held += texts
        whole = len(held) // width * width
        yield held[:whole]
        held = held[whole:]
