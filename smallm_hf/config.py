"""The configuration of a run: sections defined beside the code they configure, read from YAML, a command line or dicts.

Recipes lie over each other, and what is stated beside them (on the line, in the arguments of `smallm_hf.train`) over
all of them: of a key, the last value counts.
"""

import dataclasses
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

import yaml
from jsonargparse import ArgumentError, ArgumentParser, Namespace
from jsonargparse.typing import PositiveInt

from smallm_hf.base.command_line import called
from smallm_hf.base.errors import UserError, one_line, printable
from smallm_hf.base.folders import write_whole
from smallm_hf.base.parser import CommandParser
from smallm_hf.base.recipes import check_word, load_word, read_recipe
from smallm_hf.base.wording import nearest
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
# The type of each `section.key`; those of `model` are fields of the class that model_type names, but for these two.
TYPES: dict[str, Any] = {
    **{f"{name}.{key}": hint for name, section in SECTIONS.items() for key, hint in get_type_hints(section).items()},
    **dict.fromkeys(("model.model_type", "model.init_from"), str | None),
}
# Of an encoder-decoder; by default they are those of one vocabulary, which may lie outside of another.
SPECIAL_IDS = tuple(f"{name}_token_id" for name in ("bos", "eos", "pad", "decoder_start", "forced_eos"))
# The sections that decide what is in token files.
PREPARED = ("data", "cleaning", "selection", "tokenizer")
# Of two keys that exclude each other, the one stated last counts.
EXCLUDED = {"data.source": "data.sources", "data.sources": "data.source"}
MODEL_HELP = (
    "model_type (default: smallm) and that type's own config fields, checked by name and type, "
    "for example --model.hidden_size 256; or init_from, the folder or Hub id of a language model to train "
    "further, with its own tokenizer: other model keys of the same file or line then change its config, and earlier "
    "ones are ignored"
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
        """The pretrained model that the run starts from."""
        return self.model.get("init_from")

    def as_yaml(self) -> str:
        """A recipe that `--config` reads back as this config."""
        return yaml.safe_dump(dataclasses.asdict(self), sort_keys=False, allow_unicode=True)

    def save(self, path: Path) -> None:
        """Writes `as_yaml` to a file."""
        write_whole(path, self.as_yaml())


@dataclass(frozen=True)
class CommandOptions:
    """What is asked for beside the config: where the results go and what to do.

    `output_dir` is None where `prepare.py` is given none: the token files then choose their own folder. `preview` is a
    number of documents to show in place of preparing them.
    """

    output_dir: Path | None
    resume: bool = False
    dry_run: bool = False
    probe: bool = False
    preview: int | None = None


def parse_command_line(
    description: str, arguments: Sequence[str], *, training: bool, examples: Sequence[str] = ()
) -> tuple[RunConfig, CommandOptions]:
    """Reads `--config FILE`, `--section.key VALUE` and the options of a script.

    Files are applied first, in their order and wherever they stand on the line; keys given on the line win.

    Args:
        description: what the script does, for `--help`.
        arguments: the words after the script's name.
        training: whether the script also knows `--resume` and `--dry_run`, and its default folder is `runs/NAME`.
        examples: lines for `--help`.

    Raises:
        UserError: an unknown key (the nearest valid one is named), a value of the wrong type, an unreadable file, or
            sections that contradict each other.
        SystemExit: after `--help` and `--print_config`.
    """
    if wrong := [word for word in arguments if printable(word) != word]:
        raise UserError(f"{wrong[0]} is not UTF-8; rename the file or folder, or give one that it lies in")
    parser = _option_parser(description, training, examples)
    recipes, keys, others = split_line(arguments, parser.options)
    if {"-h", "--help", "--help_all"} & {*others}:
        _add_keys(parser, SECTIONS if training else PREPARED)
    options = parser.parse_args(others).as_dict()
    print_config, output_dir = options.pop("print_config"), options.pop("output_dir")
    config, folder = read_run(recipes, keys, output_dir, options.get("resume", False))
    if print_config:
        print(config.as_yaml(), end="")
        raise SystemExit(0)
    return config, CommandOptions(folder if training or output_dir else None, **options)


def split_line(arguments: Sequence[str], options: Container[str]) -> tuple[list[str], list[tuple[str, Any]], list[str]]:
    """The recipes on a line, its keys with their values, and the words of other options.

    Raises:
        UserError: an unknown key (the nearest valid one is named), or one without a value.
    """
    recipes, stated, others, words = [], [], [], list(arguments)
    while words:
        word = words.pop(0)
        key, equals, value = word.removeprefix("--").partition("=")
        name = key.removesuffix("+")  # which adds to a list
        if not word.startswith("--") or key in options:
            others.append(word)
            continue
        if name not in (*TYPES, *SECTIONS, "config", "model") and not name.startswith("model."):
            raise UserError(f"unknown option --{key}{nearest(key, [*TYPES, *options, 'config'], '--')}")
        if not equals and (not words or words[0].startswith("--")):
            lacking = "names no file; give one, or the name of a recipe, for example quickstart"
            raise UserError(f"--{key} {lacking if key == 'config' else 'has no value; give one'}")
        value = value if equals else words.pop(0)
        if key == "config":
            recipes.append(value)
        elif key in (*SECTIONS, "model"):  # a whole section, in one word or in a file
            content = load_word(value)
            stated += keys_of({key: read_recipe(content, {}) if isinstance(content, str) else content})
        elif key == name:
            check_word(key, value, TYPES.get(key))
            stated.append((key, load_word(value) if key.startswith("model.") else value))
        else:
            stated.append((key, value))
    return recipes, stated, others


def read_run(
    recipes: Sequence[str | Path | Mapping[str, Any]],
    stated: Iterable[tuple[str, Any]],
    output_dir: str | Path | None,
    resume: bool,
) -> tuple[RunConfig, Path]:
    """Reads the config of a run and finds its folder.

    Without a folder, a run goes to `runs/NAME` after its last recipe; without a recipe, one that is resumed takes the
    config in its folder. Arguments and errors are those of `read_config`.
    """
    names = [Path(recipe).stem for recipe in recipes if not isinstance(recipe, Mapping)]
    folder = Path(output_dir or Path("runs", names[-1] if names else "run"))
    written, stated = folder / "config.yaml", list(stated)
    if resume and not recipes and output_dir and written.is_file():
        recipes = [written]
    elif resume and not recipes and not stated:
        missing = f"{folder} holds no run (no config.yaml)" if output_dir else "--output_dir names no run"
        raise UserError(f"there is nothing to resume: {missing}; give --output_dir RUN, or --config to begin one")
    return read_config(recipes, stated), folder


def read_config(recipes: Sequence[str | Path | Mapping[str, Any]], stated: Iterable[tuple[str, Any]] = ()) -> RunConfig:
    """Reads what a run is to do.

    Args:
        recipes: files, or their sections as dicts.
        stated: keys and values that win over those of recipes; text is read as on the command line.

    Raises:
        UserError: as `parse_command_line`.
    """
    values: dict[str, Any] = {}
    for recipe in recipes:
        is_file = not isinstance(recipe, Mapping)
        content = read_recipe(recipe, TYPES) if is_file else recipe
        if not content:
            raise UserError(f"--config {recipe}: holds no sections; see configs/quickstart.yaml")
        values = _lay_over(values, keys_of(content, f"{recipe}: " if is_file else ""))
    values = _lay_over(values, stated)
    if values.get("training.batch_size") == "auto" and values.get("training.global_batch_size") is None:
        accumulation = values.get("training.accumulation_steps", TrainingConfig.accumulation_steps)
        values["training.global_batch_size"] = values["last batch size"] * accumulation
    # All that can be refused without transformers and torch comes first.
    sections = {name: section(**_section(values, name)) for name, section in SECTIONS.items()}
    model = _section(values, "model")
    _refuse_options(sections["tokenizer"])
    if model.get("init_from"):
        model, sections["tokenizer"] = _pretrained_sections(model, sections["tokenizer"])
    else:
        model, sections["tokenizer"] = _complete_model(model, sections["tokenizer"])
    config = RunConfig(model=model, **sections)
    check_sections(config)
    return config


def keys_of(content: Mapping[str, Any], where: str = "", whole_model: bool = True) -> Iterator[tuple[str, Any]]:
    """Yields `section.key` and value for each key of sections.

    Before a model that is stated as a whole, and not only changed, it yields `model`.

    Raises:
        UserError: an unknown key, or one that stands twice; `where` begins the message.
    """
    seen = set()
    if whole_model and "model" in content:
        yield "model", None
    for section, keys in content.items():
        if section in (*SECTIONS, "model") and not isinstance(keys, Mapping):
            raise UserError(f"{where}section {section} holds {keys!r}, not keys with values; fill it or leave it out")
        for name, value in keys.items() if isinstance(keys, Mapping) else [("", keys)]:
            key = f"{section}.{name}".removesuffix(".")
            if key not in TYPES and section != "model":
                raise UserError(f"{where}unknown key {key}{nearest(key, TYPES)}")
            if key in seen:
                raise UserError(f"{where}{key} stands twice, inside of its section and outside; leave one out")
            seen.add(key)
            yield key, str(value) if isinstance(value, Path) else value


def check_sections(config: RunConfig) -> None:
    """Refuses a config whose sections contradict each other, before any costly work.

    Raises:
        UserError: naming both values and the fix.
    """
    from smallm_hf.families import family_of

    training, model = config.training, model_config(config.model)
    if family_of(model).counted:
        _check_counted(config)
    elif not (training.max_steps or training.max_seconds or training.epochs):
        raise UserError("the run has no end; set training.max_steps, training.max_seconds or training.epochs")
    positions = getattr(model, "max_position_embeddings", None)
    if positions is not None and training.context_length > positions:
        raise UserError(
            f"training.context_length={training.context_length} exceeds model.max_position_embeddings={positions}; "
            "lower the first or raise the second"
        )
    read = getattr(model, "context_size", 0)
    if read > training.context_length:
        stated = f"model.order={model.order}" if hasattr(model, "order") else f"model.context_size={read}"
        raise UserError(
            f"{stated} reads {read} tokens, and windows of training.context_length={training.context_length} hold "
            "fewer; lower the first, or raise the second"
        )
    stated = config.model.get("trained_context_length")
    if stated not in (None, training.context_length):
        raise UserError(
            f"model.trained_context_length={stated} is not for a recipe: a run writes it from its "
            f"training.context_length={training.context_length}; leave it out"
        )
    config.batching.check(training.context_length)
    for name in ("carry_state", "document_rows"):
        if getattr(config.batching, name):
            _check_whole(config, f"batching.{name}=true")
    if config.batching.carry_state:
        _check_state(model)
    _check_pairs(config, model)


def _check_state(model: "PreTrainedConfig") -> None:
    """Refuses to carry a state that there is none of."""
    from smallm_hf.families import family_of

    if not family_of(model).recurrent:
        raise UserError(
            f"batching.carry_state=true needs a recurrent state, and model.model_type={model.model_type} has none; set "
            "that to recurrent, or batching.carry_state=false"
        )


def _check_whole(config: RunConfig, name: str) -> None:
    """Refuses a mixture, and shorter rows, for what reads one text or document as it is."""
    weights = [source.weight for source in config.data.sources or [] if source.weight is not None]
    if weights:
        raise UserError(
            f"{name} reads one text as it is, and data.sources with weights {weights} are a mixture; leave the weights "
            "out, or set that to false"
        )
    if len(config.training.row_lengths) > 1:
        raise UserError(
            f"{name} reads its rows whole, and training.length_warmup={config.training.length_warmup} cuts them into "
            "shorter ones; leave one of them out"
        )


def _check_pairs(config: RunConfig, model: "PreTrainedConfig") -> None:
    """Refuses pairs for a model that does not read them, and what is made for windows beside them."""
    data, name = config.data, config.model.get("init_from") or f"model.model_type={model.model_type}"
    if model.is_encoder_decoder != data.is_pairs:
        if data.is_pairs:
            raise UserError(
                f"{name} trains on texts, and data.target_column={data.mixture[0].target_column} asks for pairs; leave "
                "out data.source_column and data.target_column, or take an encoder-decoder such as marian, bart, t5"
            )
        raise UserError(
            f"{name} is an encoder-decoder and trains on pairs, and data.target_column is null; set "
            "data.source_column and data.target_column, for example to de and en"
        )
    if not data.is_pairs:
        return
    if data.validation_source and not data.target_column:
        raise UserError(
            f"data.validation_source={data.validation_source} has no columns of its own; set data.source_column and "
            "data.target_column"
        )
    for_windows = {f"batching.{field.name}": field.default for field in dataclasses.fields(config.batching)}
    for key, default in [*for_windows.items(), ("training.length_warmup", []), ("training.compile", "auto")]:
        section, field = key.split(".")
        if (value := getattr(getattr(config, section), field)) not in (default, False):
            raise UserError(f"{key}={value} is for windows of one length, and pairs have many; leave it out")
    if weighted := [source.source for source in data.mixture if source.weight is not None]:
        raise UserError(f"{weighted[0]} has a weight, and pairs train by their number; leave the weights out")


def _check_counted(config: RunConfig) -> None:
    """Refuses what would change how a model is trained and has no meaning for one that is counted.

    Raises:
        UserError: naming the key.
    """
    weighted = any(source.weight is not None for source in config.data.sources or ())
    for key, stated, fix in (
        ("model.init_from", config.init_from, "state model.model_type and model.order in its place"),
        ("hub.push_every", config.hub.push_every, f"publish the finished run with {called('publish')}"),
        ("batching.curriculum", config.batching.curriculum, "leave it out: the order of a text changes no count"),
        ("training.cooldown_from", config.training.cooldown_from, "leave it out"),
        ("training.label_smoothing", config.training.label_smoothing, "leave it out: its smoothing is Kneser-Ney's"),
        ("training.scheduled_sampling", config.training.scheduled_sampling, "leave it out"),
        ("data.sources with weights", weighted, "leave the weights out: each text is counted once"),
    ):
        if stated:
            raise UserError(f"{key} is for models that are trained step by step, and this one is counted; {fix}")


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
        raise UserError(f"model.model_type={model_type} is unknown{nearest(model_type, CONFIG_MAPPING.keys())}")
    try:
        if source:
            config = pretrained_config(source, fields, partial(_check_fields, fields))
        else:
            _check_fields(fields, CONFIG_MAPPING[model_type])
            unknown = dict.fromkeys(SPECIAL_IDS, 0) if _has_encoder(CONFIG_MAPPING[model_type]) else {}
            config = CONFIG_MAPPING[model_type](**{**unknown, **token_ids, **fields})
    except (StrictDataclassError, ValueError, TypeError) as error:
        if isinstance(error, UserError):
            raise
        message = _innermost(error)
        quote = "; if text is meant, quote it, as in 'no'" if "expected str, got" in message else ""
        raise UserError(f"model: {message}{quote}") from error
    name = f"model.init_from={source}, a {config.model_type}," if source else f"model.model_type={model_type}"
    require_trainable(config, name)
    return config


def _has_encoder(config_class: "type[PreTrainedConfig]") -> bool:
    return any(
        field.name == "is_encoder_decoder" and field.default is True for field in dataclasses.fields(config_class)
    )


def _check_fields(fields: Mapping[str, Any], config_class: "type[PreTrainedConfig]") -> None:
    """Refuses fields that the class does not have."""
    model_type = config_class.model_type
    valid = {f.name for f in dataclasses.fields(config_class)} | set(config_class.attribute_map)
    for name in fields:
        if name not in valid:
            raise UserError(f"unknown key model.{name} for model_type {model_type}{nearest(name, valid, 'model.')}")


def _option_parser(description: str, training: bool, examples: Sequence[str]) -> CommandParser:
    parser = CommandParser(description, examples, usage="--config RECIPE [--section.key VALUE ...] [OPTIONS]")
    flag = partial(parser.add_argument, action="store_true")
    flag("--print_config", help="print the config that this line makes, and exit")
    if training:
        parser.add_argument("--output_dir", metavar="DIR", help="the run folder; left out, runs/NAME_OF_THE_RECIPE")
        flag("--resume", help="continue the newest checkpoint of --output_dir")
        flag("--dry_run", help="print sizes, tokens, FLOPs and memory of the plan; needs no data")
        flag("--probe", help="with --dry_run: time 20 updates on made-up tokens, and estimate the whole run")
    else:
        folder = "where the token files go; left out, data.folder, or a name below data/"
        parser.add_argument("--output_dir", metavar="DIR", help=folder)
        preview = "show this many documents before and after cleaning; writes nothing"
        parser.add_argument("--preview", type=PositiveInt, help=preview)
    return parser


def _add_keys(parser: CommandParser, sections: Iterable[str]) -> None:
    """Adds what `--help` says of recipes and keys, which `split_line` takes out of the line."""
    recipe = "a file, or the name of a recipe that comes with smallm_hf (`smallm recipes` lists them); a later one wins"
    parser.add_argument("--config", metavar="RECIPE", help=recipe)
    for name in sections:
        title = (SECTIONS[name].__doc__ or "").splitlines()[0].rstrip(".")
        parser.add_section(name, title, SECTIONS[name], nested=True)
    if "training" in sections:
        model = parser.section("model", "The architecture: model_type, and the fields of that type's own config")
        model.add_argument("--model.FIELD", metavar="VALUE", help=MODEL_HELP)
    else:
        size = "entries of the tokenizer; other keys of a recipe may stand there and change nothing"
        parser.add_argument("--model.vocab_size", type=int, help=size)


def _lay_over(values: dict[str, Any], stated: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """The values with others over them, each of the type of its key; `key+` adds to a list."""
    new: dict[str, Any] = {}
    for key, value in stated:
        name = key.removesuffix("+")
        below = new.get(name, values.get(name)) if key != name else None
        if name == "model":
            values, new = _without(values, "model."), _without(new, "model.")
        else:
            new[name] = value if name.startswith("model.") else _typed(key, value, TYPES[name], below)
    if new.get("model.init_from"):  # a model from scratch and its tokenizer are set aside
        values = _without(values, "model.", "tokenizer.")
    for key, other in EXCLUDED.items():
        if new.get(key) is not None and new.get(other) is None:
            values = {name: value for name, value in values.items() if name != other}
    size = values.get("training.batch_size", TrainingConfig.batch_size)
    if size != "auto":  # which keeps the update that the last number made
        new["last batch size"] = size
    return values | new


def _without(values: dict[str, Any], *beginnings: str) -> dict[str, Any]:
    return {key: value for key, value in values.items() if not key.startswith(beginnings)}


def _section(values: dict[str, Any], name: str) -> dict[str, Any]:
    return {key.removeprefix(f"{name}."): value for key, value in values.items() if key.startswith(f"{name}.")}


def _typed(key: str, value: Any, wanted: Any, below: Any = None) -> Any:
    """A value as jsonargparse reads it for a type: text is taken as YAML where the type is not text.

    Raises:
        UserError: it is not of this type.
    """
    if key in ("data.sources", "data.sources+"):
        entries = load_word(value) if isinstance(value, str) else value
        entries = entries if isinstance(entries, list | None) else [entries]
        return None if entries is None else [*(below or []), *map(_source, entries)]
    try:
        added = {"value+" if key.endswith("+") else "value": value}
        return _reader(wanted).parse_object(added, Namespace(value=below) if below else None, defaults=False).value
    except ArgumentError as error:
        name = wanted.__name__ if isinstance(wanted, type) else str(wanted)
        name = name.replace("typing.", "").replace("None", "null")
        raise UserError(f"{key}={one_line(value)} is not of type {name}; see --help") from error


@cache
def _reader(wanted: Any) -> ArgumentParser:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--value", type=wanted)
    return parser


def _source(entry: Any) -> Source:
    """One of data.sources."""
    if not isinstance(entry, Mapping) or "source" not in entry:
        raise UserError(
            f"data.sources: {entry} is not a source with its name; write them as "
            """'[{"source": "books", "weight": 2}, {"source": "a.jsonl", "weight": 1}]'"""
        )
    types = get_type_hints(Source)
    for name in entry:
        if name not in types:
            raise UserError(f"unknown key {name} in data.sources{nearest(name, types)}")
    return Source(**{name: _typed(f"data.sources.{name}", value, types[name]) for name, value in entry.items()})


def _innermost(error: BaseException) -> str:
    """The message of the first cause."""
    while error.__cause__ is not None:
        error = error.__cause__
    return one_line(error)


def _refuse_options(tokenizer: TokenizerConfig) -> None:
    """Refuses options that the source of the tokenizer does not have."""
    from smallm_hf.tokenizing.schemes import SCHEMES

    known = SCHEMES[tokenizer.source].options if tokenizer.source in SCHEMES else ()
    for option in dataclasses.fields(tokenizer):
        value = getattr(tokenizer, option.name)
        if option.name not in ("source", "vocab_size", *known) and value != option.default:
            owners = ", ".join(name for name, scheme in SCHEMES.items() if option.name in scheme.options)
            raise UserError(
                f"tokenizer.{option.name}={value} is an option of tokenizer.source={owners}, not of "
                f"{tokenizer.source}; leave it out"
            )


def _pretrained_sections(model: dict[str, Any], tokenizer: TokenizerConfig) -> tuple[dict[str, Any], TokenizerConfig]:
    """The `model` and `tokenizer` of a run that starts from a pretrained model, and so takes its tokenizer."""
    from smallm_hf.pretrained import pretrained_config
    from smallm_hf.tokenizing.loading import load_tokenizer

    source = model["init_from"]
    pretrained_config(source)  # a model that is missing is refused in its own name, not its tokenizer's
    if tokenizer.source not in (TokenizerConfig.source, source):
        raise UserError(
            f"tokenizer.source={tokenizer.source} is not the tokenizer of model.init_from={source}; leave it out"
        )
    return model, TokenizerConfig(source, tokenizer.vocab_size or len(load_tokenizer(source)))


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
            model_config(fields)  # which refuses a vocab_size that is not a number
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
