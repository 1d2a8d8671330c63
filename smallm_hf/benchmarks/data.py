"""Our preparation of token files against the loop many write: `datasets.map` over tiktoken, into one array on disk."""

import functools
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import datasets
import numpy as np
import tiktoken
from rich.console import Console
from rich.table import Table
from tiktoken.load import data_gym_to_mergeable_bpe_ranks
from tiktoken_ext.openai_public import r50k_pat_str

from smallm_hf.base.environment import environment
from smallm_hf.base.errors import UserError
from smallm_hf.benchmarks.rounds import in_rounds, ratio_text
from smallm_hf.data.configuration import CleaningConfig, DataConfig, SelectionConfig, TokenizerConfig
from smallm_hf.data.prepare import find_or_prepare
from smallm_hf.data.request import DataRequest
from smallm_hf.data.token_files import TokenFiles
from smallm_hf.tokenizing.loading import load_tokenizer
from smallm_hf.training.devices import hardware

ROUNDS, QUICK_ROUNDS = 3, 1
READERS = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv"}  # that `datasets` and we both read
SHARDS = 1024  # in which the loop writes its array
LOOP, OURS = "datasets.map + tiktoken", "ours"


def compare_preparing(
    source: str | Path,
    *,
    tokenizer: str = "gpt2",
    text_column: str = "text",
    workers: int | None = None,
    quick: bool = False,
) -> dict[str, Any]:
    """Times both from one file of documents to token files, with GPT-2's vocabulary, each time anew.

    Ours neither cleans nor leaves documents out here, so that both do the same: read, tokenise, write. (It cuts
    validation off and measures leakage, too.) Each process of both has one thread.

    Args:
        source: a .jsonl, .json, .parquet or .csv file.
        tokenizer: `gpt2`, or the folder of GPT-2's tokenizer.
        text_column: column that holds the text.
        workers: processes of each; None is one for each core.
        quick: one round.

    Returns:
        What can be written as JSON: `ways` with the numbers of `in_rounds` in bytes of text per second, `bytes`,
        `tokens` (the same for both).

    Raises:
        UserError: another kind of file, or what reading and tokenising it raise.
    """
    source = Path(source)
    if source.suffix not in READERS:
        raise UserError(f"{source} is not one of {', '.join(READERS)}; give a file of documents")
    workers = workers or os.cpu_count() or 1
    datasets.disable_progress_bars()  # a dozen for each round
    with tempfile.TemporaryDirectory() as folder:
        encoding = _encoding(tokenizer, Path(folder))
        columns = {"text_column": text_column, "workers": workers}
        first = _prepare(source, tokenizer, Path(folder, "first"), **columns)
        text_bytes = first.meta.train.bytes + first.meta.validation.bytes
        tokens = len(first.train) + len(first.validation)
        found = _loop(source, encoding, Path(folder, "loop"), **columns)
        if found != tokens:  # an eos is a token of both
            raise UserError(f"both ways must find the same tokens in {source}, and found {tokens} and {found}")
        ways = {
            LOOP: functools.partial(_timed, _loop, text_bytes, source, encoding, Path(folder, "loop"), **columns),
            OURS: functools.partial(_timed, _prepare, text_bytes, source, tokenizer, Path(folder, "ours"), **columns),
        }
        with mock.patch.dict(os.environ, {"TOKENIZERS_PARALLELISM": "false"}):
            timed = in_rounds(ways, QUICK_ROUNDS if quick else ROUNDS)
    return {
        **{"source": source.name, "bytes": text_bytes, "tokens": tokens, "workers": workers, "quick": quick},
        **{"ways": timed, "hardware": hardware()},
        **environment(),
    }


def _encoding(tokenizer: str, folder: Path) -> tiktoken.Encoding:
    """GPT-2's tokenizer as tiktoken's own, whose files need no network."""
    loaded = load_tokenizer(tokenizer)
    loaded.backend_tokenizer.model.save(str(folder))
    ranks = data_gym_to_mergeable_bpe_ranks(str(folder / "merges.txt"), str(folder / "vocab.json"))
    special_tokens = {loaded.eos_token: loaded.eos_token_id}
    return tiktoken.Encoding("gpt2", pat_str=r50k_pat_str, mergeable_ranks=ranks, special_tokens=special_tokens)


def _timed(way: Callable[..., Any], text_bytes: int, source: Path, with_what: Any, folder: Path, **columns: Any) -> int:
    way(source, with_what, folder, **columns)
    return text_bytes


def _prepare(source: Path, tokenizer: str, folder: Path, *, text_column: str, workers: int) -> TokenFiles:
    shutil.rmtree(folder, ignore_errors=True)
    request = DataRequest(
        DataConfig(source=str(source), text_column=text_column, workers=workers),
        TokenizerConfig(source=tokenizer),
        50257,
        CleaningConfig(enabled=False),
        SelectionConfig(duplicates="keep", max_leakage=1),
    )
    return find_or_prepare(request, folder, 1024)


def _loop(source: Path, encoding: tiktoken.Encoding, folder: Path, *, text_column: str, workers: int) -> int:
    """Returns how many tokens it wrote."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    data = datasets.load_dataset(
        READERS[source.suffix], data_files=str(source), split="train", cache_dir=str(folder / "cache")
    )

    def encode(example: dict[str, str]) -> dict[str, Any]:
        ids = [*encoding.encode_ordinary(example[text_column]), encoding.eot_token]
        return {"ids": ids, "length": len(ids)}

    encoded = data.map(encode, remove_columns=data.column_names, num_proc=workers).with_format("numpy")
    tokens = int(np.sum(encoded["length"]))
    array = np.memmap(folder / "train.bin", dtype=np.uint16, mode="w+", shape=(tokens,))
    written = 0
    shards = min(SHARDS, len(encoded))
    for index in range(shards):
        ids = np.concatenate(encoded.shard(shards, index, contiguous=True)["ids"])
        array[written : written + len(ids)] = ids
        written += len(ids)
    array.flush()
    return tokens


def print_preparing(results: dict[str, Any], console: Console) -> None:
    """Shows what `compare_preparing` found."""
    table = Table(
        title=f"{results['source']}: {results['bytes'] / 1e6:,.1f} MB of text, {results['tokens']:,} tokens, "
        f"{results['workers']} processes"
    )
    table.add_column("way")
    for column in ("MB/s", f"times {LOOP}"):
        table.add_column(column, justify="right")
    for name, numbers in results["ways"].items():
        table.add_row(name, f"{numbers['rate'] / 1e6:.2f}", ratio_text(numbers["ratio"]))
    console.print(table)
