"""The one text of a ladder: cleaned and split once, so that every rung trains and is scored on the same bytes."""

import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from smallm_hf.base.folders import replacing, write_whole
from smallm_hf.base.plain_json import json_text
from smallm_hf.config import RunConfig
from smallm_hf.data.configuration import CleaningConfig, DataConfig, SelectionConfig, TokenizerConfig
from smallm_hf.data.prepare import find_or_prepare
from smallm_hf.data.request import DataRequest
from smallm_hf.evaluation.texts import decode_documents
from smallm_hf.evaluation.word_loss import SPACED_WORD
from smallm_hf.tokenizing.schemes import SMALLEST_BPE

TRAIN_FILE, VALIDATION_FILE, SIZES_FILE = "train.jsonl", "validation.jsonl", "sizes.json"


@dataclass(frozen=True)
class Texts:
    """The text of a ladder in a folder.

    Attributes:
        folder: with a file of documents for each side, and one for each smaller training text.
        sizes: `documents`, `words` and `bytes` of each file, by its name.
    """

    folder: Path
    sizes: dict[str, dict[str, int]]

    @property
    def validation(self) -> Path:
        """The file of the validation documents."""
        return self.folder / VALIDATION_FILE

    def reach(self, words: int) -> bool:
        """Whether the training text has so many words."""
        return words <= self.sizes[TRAIN_FILE]["words"]

    def recipe(self, config: RunConfig, words: int | None = None) -> RunConfig:
        """A recipe that trains on this text as it is, or on its first words, in place of its own."""
        name = TRAIN_FILE if words is None else _name(words)
        sources = {"source": str(self.folder / name), "validation_source": str(self.validation)}
        data = DataConfig(**sources, workers=config.data.workers, language=config.data.language)
        selection = SelectionConfig(duplicates="keep", max_leakage=1.0)
        return replace(config, data=data, cleaning=CleaningConfig(enabled=False), selection=selection)


def make_texts(config: RunConfig, sizes: Sequence[int], folder: Path, say: Callable[[str], None]) -> Texts:
    """Cleans, selects and splits the text of a recipe, or finds that done.

    Args:
        config: its `data`, `cleaning` and `selection` decide.
        sizes: words of the smaller training texts, from the beginning of the training documents; those that the text
            does not reach are left out.
        folder: for the files; it is there whole or not at all.
        say: hears of the work.

    Raises:
        UserError: what `find_or_prepare` raises.
    """
    written = folder / SIZES_FILE
    if not written.is_file():
        with replacing(folder) as fresh:
            # The tokenizer whose entries are bytes keeps every text as it is.
            data, bytewise = replace(config.data, folder=None), TokenizerConfig("bpe", SMALLEST_BPE)
            request = DataRequest(data, bytewise, SMALLEST_BPE, config.cleaning, config.selection)
            files = find_or_prepare(request, fresh / "bytes", 0, say)
            for name, tokens in ((TRAIN_FILE, files.train), (VALIDATION_FILE, files.validation)):
                _write(fresh / name, decode_documents(tokens, files.tokenizer))
            shutil.rmtree(files.folder)
            _count(fresh, (TRAIN_FILE, VALIDATION_FILE))
    texts = Texts(folder, json.loads(written.read_text(encoding="utf-8")))
    for words in sizes:
        if not texts.reach(words):
            most = texts.sizes[TRAIN_FILE]["words"]
            say(f"sizes_in_words: {words:,} is left out, the training text has {most:,} words")
        elif _name(words) not in texts.sizes:
            _write(folder / _name(words), first_words(read_documents(folder / TRAIN_FILE), words))
            texts = Texts(folder, _count(folder, (_name(words),)))
    return texts


def read_documents(path: Path) -> Iterator[str]:
    """Yields the documents of a file of these."""
    with path.open(encoding="utf-8") as lines:
        yield from (json.loads(line)["text"] for line in lines)


def first_words(documents: Iterable[str], words: int) -> Iterator[str]:
    """Yields documents up to a number of words, runs between white space, the last one cut behind its last word."""
    for text in documents:
        found = list(islice(SPACED_WORD.finditer(text), words))
        words -= len(found)
        yield text if words else text[: found[-1].end()]
        if not words:
            return


def _name(words: int) -> str:
    return f"train-{words}-words.jsonl"


def _write(path: Path, documents: Iterable[str]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json_text({"text": text}) + "\n" for text in documents)


def _count(folder: Path, names: Iterable[str]) -> dict[str, Any]:
    """Adds what files hold to the list of sizes, and returns all of it."""
    written = folder / SIZES_FILE
    sizes = json.loads(written.read_text(encoding="utf-8")) if written.is_file() else {}
    for name in names:
        sizes[name] = {"documents": 0, "words": 0, "bytes": 0}
        for text in read_documents(folder / name):
            for fact, amount in (("documents", 1), ("words", len(text.split())), ("bytes", len(text.encode()))):
                sizes[name][fact] += amount
    write_whole(written, json_text(sizes, indent=2) + "\n")
    return sizes
