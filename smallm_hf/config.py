"""The configuration of a run: sections defined beside the code they configure, read from YAML and the command line."""

import dataclasses
import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

import yaml
from jsonargparse import ArgumentError, ArgumentParser
from jsonargparse.typing import PositiveInt

from smallm_hf.base.errors import UserError, one_line, printable
from smallm_hf.base.folders import write_whole
from smallm_hf.base.recipes import check_word, read_recipe
from smallm_hf.comparison.configuration import ComparisonConfig
from smallm_hf.data.configuration import (
    BatchingConfig,
    CleaningConfig,
    DataConfig,
    SelectionConfig,
    Source,
    TokenizerConfig,
)
from smallm_hf.hub.configuration import HubConfig
from smallm_hf.training.configuration import LoggingConfig, TrainingConfig

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

SECTIONS = {
    "data": DataConfig,
    "cleaning": CleaningConfig,
    "selection": SelectionConfig,
    "tokenizer": TokenizerConfig,
    "batching": BatchingConfig,
    "training": TrainingConfig,
    "logging": LoggingConfig,
    "hub": HubConfig,
    "comparison": ComparisonConfig,
}
MODEL_HELP = (
    "model_type (default: smallm) and that type's own config fields, checked by name and type, "
    "for example --model.hidden_size 256; or init_from, the folder or Hub id of a causal language model to go on "
    "training with its tokenizer: other model keys of the same file or line then change its config, earlier ones are "
    "set aside"
)


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides what a run does; written to `config.yaml` of its folder."""

    data: DataConfig
    cleaning: CleaningConfig
    selection: SelectionConfig
    tokenizer: TokenizerConfig
    batching: BatchingConfig
    training: TrainingConfig
    logging: LoggingConfig
    hub: HubConfig
    comparison: ComparisonConfig
    model: dict[str, Any] = field(default_factory=dict)

    @property
    def vocab_size(self) -> int:
        """Entries of the tokenizer, or how many it may have where the text decides.

        The model has as many, unless it came with more of them.
        """
        return self.tokenizer.vocab_size or self.model["vocab_size"]

    @property
    def init_from(self) -> str | None:
        """The pretrained model that the run goes on with."""
        return self.model.get("init_from")

    def save(self, path: Path) -> None:
        """Writes the config as a YAML file that `--config` reads back."""
        content = yaml.safe_dump(dataclasses.asdict(self), sort_keys=False, allow_unicode=True)
        write_whole(path, content)


@dataclass(frozen=True)
class CommandOptions:
    """What the command line says beside the config: where the results go and what to do.

    `output_dir` is None where `prepare.py` was told nothing: the token files then choose their own folder. `preview` is
    a number of documents that it only shows.
    """

    output_dir: Path | None
    resume: bool
    dry_run: bool
    preview: int | None = None
    probe: bool = False


def parse_command_line(
    description: str, arguments: Sequence[str], *, training: bool
) -> tuple[RunConfig, CommandOptions]:
    """Reads `--config FILE`, `--section.key VALUE` and the options of a script.

    Files are applied first, in their order and wherever they stand on the line; keys given on the line win.

    Args:
        description: what the script does, for `--help`.
        arguments: the words after the script's name.
        training: whether the script also knows `--resume` and `--dry_run`, and its default folder is `runs/NAME`.

    Raises:
        UserError: an unknown key (the nearest valid one is named), a value of the wrong type, an unreadable file, or
            sections that contradict each other.
    """
    if wrong := [word for word in arguments if printable(word) != word]:
        raise UserError(f"{wrong[0]} is not UTF-8; rename the file or folder, or give one that it lies in")
    parser = _parser(description, training)
    arguments = _config_files_first(list(arguments))
    if "--resume" in arguments and "--config" not in arguments:
        arguments = _config_of_run(arguments) + arguments
    _check_keys(parser, arguments)
    try:
        values = parser.parse_args(arguments)
    except ArgumentError as error:
        raise UserError(_wrong_type(error)) from error
    if values.training.batch_size == "auto" and values.training.global_batch_size is None:
        values.training.global_batch_size = _stated_windows(parser, arguments)
    if values.data.sources and values.data.source:  # what stands on the line takes the place of the recipe's
        on_line = {word.partition("=")[0] for word in arguments} & {"--data.source", "--data.sources"}
        if on_line == {"--data.source"}:
            values.data.sources = None
        elif on_line == {"--data.sources"}:
            values.data.source = None
    sections = parser.instantiate(values)  # all that can be refused without transformers and torch
    if values.model.get("init_from"):
        model, sections.tokenizer = _pretrained_sections(parser, arguments)
    else:
        model, sections.tokenizer = _complete_model(values.model, sections.tokenizer)
    config = RunConfig(model=model, **{name: sections[name] for name in SECTIONS})
    check_sections(config)
    output_dir = Path(values.output_dir) if values.output_dir else None
    if training and output_dir is None:
        output_dir = Path("runs") / (Path(str(values.config[-1])).stem if values.config else "run")
    return config, CommandOptions(
        output_dir=output_dir,
        resume=bool(training and values.resume),
        dry_run=bool(training and values.dry_run),
        preview=None if training else values.preview,
        probe=bool(training and values.probe),
    )


def check_sections(config: RunConfig) -> None:
    """Refuses a config whose sections contradict each other, before anything costly.

    Raises:
        UserError: naming both values and the fix.
    """
    training, model = config.training, model_config(config.model)
    if not (training.max_steps or training.max_seconds or training.epochs):
        raise UserError("the run has no end; set training.max_steps, training.max_seconds or training.epochs")
    positions = getattr(model, "max_position_embeddings", None)
    if positions is not None and training.context_length > positions:
        raise UserError(
            f"training.context_length={training.context_length} exceeds model.max_position_embeddings={positions}; "
            "lower the first or raise the second"
        )
    stated = config.model.get("trained_context_length")
    if stated not in (None, training.context_length):
        raise UserError(
            f"model.trained_context_length={stated} is what a run writes down of its training.context_length="
            f"{training.context_length}; leave it out"
        )
    config.batching.check(training.context_length)


def model_config(fields: Mapping[str, Any], **token_ids: int | None) -> "PreTrainedConfig":
    """Builds the config class that `model_type` names from its own fields.

    Args:
        fields: `model_type` and fields of that class.
        token_ids: `bos_token_id` and its like, known once there is a tokenizer; stated fields win, and a pretrained
            model has its own.

    Raises:
        UserError: an unknown type or field (the nearest valid one is named), a wrong type, or what the class refuses; a
            pretrained model that cannot be found or does not fit; a model that cannot be trained here.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import CONFIG_MAPPING

    from smallm_hf.families import require_trainable
    from smallm_hf.pretrained import pretrained_config

    fields = dict(fields)
    model_type, source = fields.pop("model_type", "smallm"), fields.pop("init_from", None)
    if not source and model_type not in CONFIG_MAPPING:
        raise UserError(f"model.model_type={model_type} is unknown{_nearest(model_type, CONFIG_MAPPING.keys())}")
    try:
        if source:
            config = pretrained_config(source, fields, partial(_check_fields, fields))
        else:
            _check_fields(fields, CONFIG_MAPPING[model_type])
            config = CONFIG_MAPPING[model_type](**{**token_ids, **fields})
    except (StrictDataclassError, ValueError, TypeError) as error:
        if isinstance(error, UserError):
            raise
        message = _innermost(error)
        quote = "; if text is meant, quote it, as in 'no'" if "expected str, got" in message else ""
        raise UserError(f"model: {message}{quote}") from error
    require_trainable(config, f"model.init_from={source}" if source else f"model.model_type={model_type}")
    return config


def _check_fields(fields: Mapping[str, Any], config_class: "type[PreTrainedConfig]") -> None:
    """Refuses fields that the class does not have."""
    model_type = config_class.model_type
    valid = {f.name for f in dataclasses.fields(config_class)} | set(config_class.attribute_map)
    for name in fields:
        if name not in valid:
            raise UserError(f"unknown key model.{name} for model_type {model_type}{_nearest(name, valid, 'model.')}")


def _parser(description: str, training: bool) -> ArgumentParser:
    options = "[--output_dir DIR] [--resume] [--dry_run [--probe]]" if training else "[--output_dir DIR] [--preview N]"
    parser = ArgumentParser(
        exit_on_error=False,
        allow_abbrev=False,
        description=description,
        usage=f"%(prog)s --config FILE [--section.key VALUE ...] {options} [--print_config]",
    )
    parser.add_argument("--config", action="config", help="a recipe, for example configs/quickstart.yaml")
    if training:
        parser.add_argument("--output_dir", help="the run folder (default: runs/NAME_OF_THE_RECIPE)")
        parser.add_argument("--resume", action="store_true", help="continue the newest checkpoint of --output_dir")
        parser.add_argument(
            "--dry_run", action="store_true", help="print sizes, tokens, FLOPs and memory of the plan; needs no data"
        )
        parser.add_argument(
            "--probe", action="store_true", help="with --dry_run: time 20 updates on made-up tokens, and say the whole"
        )
    else:
        parser.add_argument(
            "--output_dir", help="where the token files go (default: data.folder, or a name below data/)"
        )
        parser.add_argument(
            "--preview", type=PositiveInt, help="show this many documents before and after cleaning; writes nothing"
        )
    for name, section in SECTIONS.items():
        parser.add_class_arguments(section, name)
    parser.add_argument("--model", type=dict[str, Any], default={}, help=MODEL_HELP)
    return parser


def _config_files_first(arguments: list[str]) -> list[str]:
    files, rest = [], []
    while arguments:
        word = arguments.pop(0)
        if word == "--config" and arguments:
            files += ["--config", arguments.pop(0)]
        elif word == "--config":
            raise UserError("--config names no file; give one, for example configs/quickstart.yaml")
        elif word.startswith("--config="):
            files += ["--config", word.removeprefix("--config=")]
        else:
            rest.append(word)
    return files + rest


def _config_of_run(arguments: list[str]) -> list[str]:
    """`--resume --output_dir RUN` alone continues with the config that RUN holds."""
    for index, word in enumerate(arguments):
        folder = word.removeprefix("--output_dir=") if word.startswith("--output_dir=") else None
        if word == "--output_dir" and index + 1 < len(arguments):
            folder = arguments[index + 1]
        if folder and (Path(folder) / "config.yaml").is_file():
            return ["--config", str(Path(folder) / "config.yaml")]
    return []


def _check_keys(parser: ArgumentParser, arguments: list[str]) -> None:
    """Names the nearest valid key for one that is unknown, in the files and on the line, and refuses lost values."""
    valid = {*parser.get_defaults().keys(), *SECTIONS, "help", "print_config"}
    for word, following in zip(arguments, [*arguments, ""][1:], strict=True):
        if word == "--config":
            _check_file_keys(following, valid)
        elif word.startswith("--") and len(word) > 2:
            key = word[2:].split("=")[0].rstrip("+")
            if key not in valid and not key.startswith("model."):
                raise UserError(f"unknown option --{key}{_nearest(key, valid, '--')}")
            if not word.split("=")[0].endswith("+"):  # which adds one entry to a list
                check_word(key, word.partition("=")[2] if "=" in word else following, SECTIONS)


def _check_file_keys(path: str, valid: Iterable[str]) -> None:
    content, stated = read_recipe(path, SECTIONS), set()
    if not content:
        raise UserError(f"--config {path}: holds no sections; see configs/quickstart.yaml")
    for section, keys in content.items():
        if section in (*SECTIONS, "model") and not isinstance(keys, dict):
            raise UserError(f"{path}: section {section} holds {keys!r}, not keys with values; fill it or leave it out")
        names = [f"{section}.{key}" for key in keys] if isinstance(keys, dict) and section != "model" else [section]
        for name in map(str, names):
            if name not in valid:
                raise UserError(f"{path}: unknown key {name}{_nearest(name, valid)}")
            if name in stated:
                raise UserError(f"{path}: {name} stands twice, inside of its section and outside; leave one out")
            stated.add(name)


def _nearest(name: str, valid: Iterable[str], prefix: str = "") -> str:
    """The end of an error line: the valid name that looks most like `name`."""
    found = difflib.get_close_matches(name, list(valid), n=1, cutoff=0.6)
    return f"; did you mean {prefix}{found[0]}?" if found else ""


def _wrong_type(error: ArgumentError) -> str:
    """jsonargparse's account of a wrong type, as one line."""
    text = " ".join(str(error).split())
    if 'key "data.sources"' in text:
        return _wrong_sources(text)
    key = re.search(r'key "(\w+)\.(\w+)"', text)
    given = re.search(r"(?:Given value:|Got value:) (\S+)", text)
    if key is None or given is None or key[1] not in SECTIONS:
        return text
    expected = get_type_hints(SECTIONS[key[1]])[key[2]]
    expected = expected.__name__ if isinstance(expected, type) else str(expected)
    expected = expected.replace("typing.", "").replace("None", "null")
    return f"{key[1]}.{key[2]}={given[1]} is not of type {expected}; see --help"


def _wrong_sources(text: str) -> str:
    if unknown := re.search(r"Option '(\w+)' is not accepted", text):
        names = [field.name for field in dataclasses.fields(Source)]
        return f"unknown key {unknown[1]} in data.sources{_nearest(unknown[1], names)}"
    if wrong := re.search(r'Parser key "(\w+)": .*?Given value: (\S+)', text.partition("Errors:")[2]):
        return f"{wrong[1]}={wrong[2]} in data.sources is of the wrong type; see --help"
    return (
        "data.sources is no list of sources with their names; write it as "
        """'[{"source": "books", "weight": 2}, {"source": "a.jsonl", "weight": 1}]'"""
    )


def _innermost(error: BaseException) -> str:
    """The message of the first cause."""
    while error.__cause__ is not None:
        error = error.__cause__
    return one_line(error)


def _pretrained_sections(parser: ArgumentParser, arguments: list[str]) -> tuple[dict[str, Any], TokenizerConfig]:
    """The `model` and `tokenizer` of a run that goes on with a pretrained model.

    What was stated before `init_from`, in a recipe for a model from scratch, is set aside; the tokenizer is its own.
    """
    from smallm_hf.pretrained import pretrained_config
    from smallm_hf.tokenizing.loading import load_tokenizer

    start = 0
    for index, word in enumerate(arguments):
        if word == "--config" and "init_from" in (read_recipe(arguments[index + 1], SECTIONS).get("model") or {}):
            start = index
        elif re.match(r"--model\.init_from\b", word):
            start = arguments.index("--config") + 2 * arguments.count("--config") if "--config" in arguments else 0
    stated = parser.parse_args(arguments[start:])
    source, tokenizer = stated.model["init_from"], stated.tokenizer
    pretrained_config(source)  # a model that is missing is refused in its own name, not its tokenizer's
    if tokenizer.source not in (TokenizerConfig.source, source):
        raise UserError(
            f"tokenizer.source={tokenizer.source} is not the tokenizer of model.init_from={source}; leave it out"
        )
    return stated.model, TokenizerConfig(source, tokenizer.vocab_size or len(load_tokenizer(source)))


def _stated_windows(parser: ArgumentParser, arguments: list[str]) -> int:
    """The windows of an update where `--training.batch_size auto` on the line has replaced the recipe's number."""
    key = "--training.batch_size"
    words = iter(arguments)
    others = [w for w in words if not (w.startswith(f"{key}=") or (w == key and next(words)))]
    training = parser.parse_args(others).training
    size = TrainingConfig.batch_size if training.batch_size == "auto" else training.batch_size
    return size * training.accumulation_steps


def _complete_model(fields: Mapping[str, Any], tokenizer: TokenizerConfig) -> tuple[dict[str, Any], TokenizerConfig]:
    """The model mapping with what is known of it before there is a tokenizer, and the section `tokenizer`.

    Where the text decides how many entries there are, as with `char`, the latter states how many it may have, and the
    former how many came of it, or nothing yet.
    """
    from smallm_hf.tokenizing.loading import count_entries
    from smallm_hf.tokenizing.schemes import SCHEMES

    fields = {"model_type": "smallm", **fields}
    stated, limit, scheme = fields.get("vocab_size"), tokenizer.vocab_size, SCHEMES.get(tokenizer.source)
    if scheme and scheme.units:
        if limit is None:
            model_config(fields)  # which refuses a limit that is no number
            fields.pop("vocab_size", None)
        return fields, dataclasses.replace(tokenizer, vocab_size=limit or stated or scheme.default_limit)
    if None not in (stated, limit) and stated != limit:
        raise UserError(
            f"tokenizer.vocab_size={limit} differs from model.vocab_size={stated}; they are one number: "
            f"state model.vocab_size alone"
        )
    if stated is None:
        fields["vocab_size"] = limit or (model_config(fields).vocab_size if scheme else count_entries(tokenizer.source))
    return fields, tokenizer
