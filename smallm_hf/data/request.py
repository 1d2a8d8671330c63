"""What token files are asked for: the settings that decide them, and the sources that go in."""

import hashlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from smallm_hf.base.errors import UserError
from smallm_hf.data.configuration import (
    HOW_TO_READ,
    CleaningConfig,
    DataConfig,
    SelectionConfig,
    Source,
    TokenizerConfig,
)
from smallm_hf.data.reading.documents import Document, fingerprint_source, has_splits, read_documents
from smallm_hf.data.reading.files import ReadingReport
from smallm_hf.data.selection.splitting import SIDES, TRAIN, VALIDATION
from smallm_hf.data.token_files import Meta, TokenFiles
from smallm_hf.tokenizing.loading import GPT2, GPT2_FINGERPRINT, load_tokenizer, tokenizer_fingerprint
from smallm_hf.tokenizing.schemes import SCHEMES

NOT_DECIDING = ("folder", "streaming", "workers", "license", "language")  # settings of the data that change no id


@dataclass(frozen=True)
class Input:
    """One stream of documents that goes in: a source, the number of its place in the mixture, and its side.

    A side of None is cut into both; what stands in no place of the mixture is `data.validation_source`.
    """

    source: Source
    place: int | None
    side: int | None


@dataclass
class DataRequest:
    """The settings of token files, and how to read what they ask for.

    `vocab_size` is the number of entries of the tokenizer; where its text decides that, the most there may be.
    """

    data: DataConfig
    tokenizer: TokenizerConfig
    vocab_size: int
    cleaning: CleaningConfig = field(default_factory=CleaningConfig)
    selection: SelectionConfig = field(default_factory=SelectionConfig)

    @cached_property
    def settings(self) -> dict[str, Any]:
        """All that decides the ids, by name."""
        settings = {f"data.{name}": value for name, value in asdict(self.data).items() if name not in NOT_DECIDING}
        for source in settings["data.sources"] or ():
            del source["weight"]  # says how often the ids are trained on
        for keys in (settings, *(settings["data.sources"] or ())):  # what is not stated leaves the name as it was
            for name in [name for name in keys if name.endswith(("source_column", "target_column", "documents"))]:
                if keys[name] is None:
                    del keys[name]
        for section in ("cleaning", "selection"):
            settings |= {f"{section}.{name}": value for name, value in asdict(getattr(self, section)).items()}
        settings |= {f"tokenizer.{name}": value for name, value in self.tokenizer_options.items()}
        return {**settings, "tokenizer.source": self.tokenizer.source, "model.vocab_size": self.vocab_size}

    @property
    def tokenizer_options(self) -> dict[str, Any]:
        """What the tokenizer is trained with beside the text and the number of entries."""
        scheme = SCHEMES.get(self.tokenizer.source)
        return {name: getattr(self.tokenizer, name) for name in scheme.options} if scheme else {}

    @cached_property
    def inputs(self) -> list[Input]:
        """What is read, in the order of the token files."""
        inputs, data = [], self.data
        for place, source in enumerate(data.mixture):
            on_hub = has_splits(source.source, source.columns)
            source = source if on_hub else replace(source, split="")
            has_validation = on_hub and data.validation_split and not data.validation_source
            is_whole = has_validation or data.validation_source
            inputs.append(Input(source, place, SIDES.index(TRAIN) if is_whole else None))
            if has_validation:
                inputs.append(Input(replace(source, split=data.validation_split), place, SIDES.index(VALIDATION)))
        if data.validation_source:
            split = data.validation_split or VALIDATION
            how = {name: getattr(data, name) for name in HOW_TO_READ}
            source = Source(data.validation_source, **how)
            source = replace(source, split=split if has_splits(source.source, source.columns) else "")
            inputs.append(Input(source, None, SIDES.index(VALIDATION)))
        return inputs

    @property
    def weights(self) -> list[float | None]:
        """Of each source of the mixture its share of the training tokens, or None for all."""
        weights = [source.weight for source in self.data.mixture]
        return weights if None in weights else [weight / sum(weights) for weight in weights]

    def read(
        self, source: Source, report: ReadingReport | None = None, run: tuple[int, int] | None = None
    ) -> Iterator[Document]:
        """Reads a source from its beginning, or a run of its files (see `file_runs`)."""
        options = {name: getattr(source, name) for name in HOW_TO_READ}
        options |= {name: getattr(self.data, name) for name in ("streaming", "on_bad_file")}
        return read_documents(source.source, report=report, run=run, **options)

    def source_state(self, contents: bool) -> str:
        """A hash that changes with any of the sources; see `fingerprint_source`."""
        states = [
            fingerprint_source(
                source.source,
                configuration=source.configuration,
                revision=source.revision,
                split=source.split,
                columns=source.columns,
                contents=contents,
            )
            for source in (one.source for one in self.inputs)
        ]
        return hashlib.sha256(json.dumps(states).encode()).hexdigest()

    @cached_property
    def given_tokenizer(self) -> PreTrainedTokenizerFast:
        """The tokenizer that is not trained.

        Raises:
            UserError: it cannot be loaded, or is of another size than the model.
        """
        tokenizer = load_tokenizer(self.tokenizer.source)
        if len(tokenizer) != self.vocab_size:
            raise UserError(
                f"model.vocab_size={self.vocab_size}, but tokenizer.source={self.tokenizer.source} has "
                f"{len(tokenizer)} entries; set model.vocab_size to {len(tokenizer)}"
            )
        return tokenizer

    @cached_property
    def given_tokenizer_sha256(self) -> str | None:
        """The fingerprint of the tokenizer, or None where it will be trained."""
        if self.tokenizer.source in SCHEMES:
            return None
        if self.tokenizer.source == GPT2:  # token files made from it need no vocabulary at hand
            return GPT2_FINGERPRINT
        return tokenizer_fingerprint(self.given_tokenizer)

    def difference(self, meta: Meta) -> str | None:
        """The first difference between token files and what is asked for, with both values; None without one."""
        for name, wanted in self.settings.items():
            if meta.settings.get(name) != wanted:
                return f"{name}={meta.settings.get(name)}, this run wants {wanted}"
        if self.given_tokenizer_sha256 not in (None, meta.tokenizer_sha256):
            wanted = self.given_tokenizer_sha256
            return f"tokenizer {meta.tokenizer_sha256[:12]}, {self.tokenizer.source} is now {wanted[:12]}"
        if self.source_state(contents=False) == meta.source_state:
            return None
        content = self.source_state(contents=True)  # copied or touched files have another time and the same bytes
        if content != meta.content_sha256:
            return f"content {meta.content_sha256[:12]}, {self.data.title} now has {content[:12]}"
        return None

    def weighted(self, files: TokenFiles) -> TokenFiles:
        """Token files with the weights asked for, which may be others than when they were made."""
        shares = [replace(s, weight=weight) for s, weight in zip(files.meta.sources, self.weights, strict=True)]
        return TokenFiles(files.folder, replace(files.meta, sources=shares))


def default_folder(request: DataRequest, root: str | os.PathLike = "data") -> Path:
    """Returns the folder under `root` that belongs to these settings: a readable name and a key of all of them."""
    settings = json.dumps(request.settings, sort_keys=True)
    names = "-".join(Path(source.source).stem for source in request.data.mixture)
    name = re.sub(r"[^a-z0-9]+", "-", names.lower()).strip("-")[:40] or "text"
    return Path(root) / f"{name}-{hashlib.sha256(settings.encode()).hexdigest()[:8]}"
