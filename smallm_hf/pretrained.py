"""Loads models of folders and Hub ids: to use them as they are, or to go on training them."""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar, enable_progress_bar, is_progress_bar_enabled

from smallm_hf.base.arithmetic import multiplies_well, slow_dtype
from smallm_hf.base.command_line import is_main_process
from smallm_hf.base.errors import UserError, one_line
from smallm_hf.base.hub_access import require_hub
from smallm_hf.base.settings import Loading, is_model_folder
from smallm_hf.families import AUTO_CLASSES, Family, Kind, family_of, family_of_file

Loaded = TypeVar("Loaded")


def load_causal_lm(model: str, **loading: Any) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Loads a causal language model and its tokenizer, to be used and not trained.

    A model of ours is loaded as anybody would load it: as its native twin where there is one.

    Args:
        model: a folder written by `save_pretrained`, such as RUN/best, or a Hub id (looked for in the cache first).
        loading: fields of `Loading`.

    Raises:
        UserError: no such folder, no config, tokenizer or weights in it, not a causal model, the Hub out of reach, an
            unknown dtype, no such device.
    """
    if find_kind(model) == "seq2seq":
        raise UserError(f"{model} is an encoder-decoder and goes on with no text; give a causal model")
    return _load_for_use(model, "causal", Loading(**loading))


def load_writer(model: str, **loading: Any) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Loads a model that writes, causal or seq2seq, and its tokenizer; arguments and errors as of `load_causal_lm`."""
    return load_scorable(model, **loading) if find_kind(model) == "seq2seq" else load_causal_lm(model, **loading)


def load_scorable(model: str, **loading: Any) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Loads a model of any kind and its tokenizer; arguments and errors are those of `load_causal_lm`."""
    return _load_for_use(model, find_kind(model), Loading(**loading))


def find_kind(model: str) -> Kind:
    """The kind of a folder or Hub id, by its config.

    Raises:
        UserError: it cannot be found.
    """
    return find_model(model, partial(_family, model)).kind


def _family(source: str, **options: bool) -> Family:
    return family_of_file(PreTrainedConfig.get_config_dict(source, **options)[0])


def _load_for_use(source: str, kind: Kind, asked: Loading) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    try:
        device = torch.empty(0, device=asked.device or accelerator or "cpu").device
    except (RuntimeError, AssertionError) as error:
        raise UserError(
            f"device {asked.device!r} cannot be used here ({one_line(error)}); give cpu, or none"
        ) from error

    def load(**options: bool) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        options["trust_remote_code"] = asked.trust_remote_code
        tokenizer = AutoTokenizer.from_pretrained(source, **options)
        if len(tokenizer) <= len(tokenizer.all_special_ids):  # what transformers makes up where the cache has none
            raise OSError("there is no tokenizer with it")
        return _load_all_weights(AUTO_CLASSES[kind], source, dtype=asked.dtype, **options), tokenizer

    loaded, tokenizer = find_model(source, load)
    if asked.dtype == "auto" and not multiplies_well(loaded.dtype, device):
        loaded = loaded.float()
    elif asked.dtype != "auto" and is_main_process() and (note := slow_dtype(loaded.dtype, device)):
        print(f"{note}; leave out --dtype to be faster", file=sys.stderr)
    return loaded.to(device).eval(), tokenizer


def pretrained_config(
    source: str,
    changes: Mapping[str, Any] | None = None,
    check: Callable[[type[PreTrainedConfig]], None] = lambda config_class: None,
) -> PreTrainedConfig:
    """The config of a model to go on training, of the class that was trained.

    Args:
        source: a folder or a Hub id.
        changes: fields to set otherwise, such as dropout.
        check: is given the class before any change is made, to refuse it.

    Raises:
        UserError: no such model or none that predicts the next token, or a change that its weights do not fit.
    """

    def load(**options: bool) -> PreTrainedConfig:
        config_class = _family(source, **options).config_class
        config = config_class.from_pretrained(source, **options)
        shapes = _shapes(config)
        check(type(config))
        for name, value in (changes or {}).items():
            changed = config_class.from_pretrained(source, **{name: value}, **options)
            if _shapes(changed) != shapes:
                raise UserError(
                    f"model.{name}={value} does not fit the weights of model.init_from={source}, which has "
                    f"{getattr(config, name)}; leave it out"
                )
        return config_class.from_pretrained(source, **(changes or {}), **options)

    return find_model(source, load)


def pretrained_model(source: str, config: PreTrainedConfig) -> PreTrainedModel:
    """The model of a folder or Hub id, to go on training it: float32, of the class that `config` belongs to.

    Raises:
        UserError: no such model, or weights that do not fit the config.
    """
    return find_model(source, lambda **options: load_weights(source, config, **options))


def load_weights(
    source: str | Path, config: PreTrainedConfig, *, exact: bool = False, **options: Any
) -> PreTrainedModel:
    """The float32 model of a folder, of the class that `config` belongs to; what the libraries raise is raised.

    What its class does not train, such as the sines of Marian's positions, is not trained here either: transformers
    forgets that when it loads.

    Raises:
        UserError: a tensor is missing or, where it has to be `exact`, there is one more than the model has.
    """
    model_class = family_of(config).model_class
    loaded = _load_all_weights(model_class, source, exact=exact, config=config, dtype=torch.float32, **options)
    for name, parameter in fresh_model(config, "meta").named_parameters():
        loaded.get_parameter(name).requires_grad_(parameter.requires_grad)
    return loaded


def fresh_model(config: PreTrainedConfig, device: str = "cpu") -> PreTrainedModel:
    """A model of this config with initial weights, float32; on `meta` it takes no memory.

    Raises:
        UserError: its class, which may be any of transformers, knows no such activation, or cannot be of such sizes.
        ValueError: it has no class that writes text.
    """
    auto_class = AUTO_CLASSES[family_of(config).kind]
    try:
        with torch.device(device):
            return auto_class.from_config(config, dtype=torch.float32)
    except KeyError as error:
        fields = config.to_dict().items()
        stated = next((f"{name}={value}" for name, value in fields if str(value).endswith(str(error.args[0]))), error)
        raise UserError(
            f"model.{stated} is not a name that model.model_type={config.model_type} knows; set it to another, such as "
            "relu or gelu for an activation"
        ) from error
    except (ArithmeticError, RuntimeError, ValueError) as error:
        if type(config) not in auto_class._model_mapping:
            raise
        raise UserError(
            f"no model of model.model_type={config.model_type} can have these sizes ({one_line(error)}); change them"
        ) from error


def _shapes(config: PreTrainedConfig) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in fresh_model(config, "meta").state_dict().items()}


def _load_all_weights(model_class: type, source: str | Path, *, exact: bool = False, **options: Any) -> PreTrainedModel:
    with _without_bars():
        loaded, loading = model_class.from_pretrained(source, output_loading_info=True, **options)
    name, missing, extra = type(loaded).__name__, loading["missing_keys"], loading["unexpected_keys"]
    if missing:  # transformers would fill them with random numbers and warn
        raise UserError(f"{source} lacks weights of {name}, {min(missing)} for one; give a language model")
    if exact and extra:
        raise UserError(f"{source} holds weights that {name} does not have, {min(extra)} for one; give its model")
    return loaded


@contextmanager
def _without_bars() -> Iterator[None]:
    """Inside the block transformers shows no bars: each model would leave one, even where it loads at once."""
    shown = is_progress_bar_enabled()
    disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            enable_progress_bar()


def find_model(source: str, load: Callable[..., Loaded]) -> Loaded:
    """Loads from a folder, the cache or, last and only if it answers, the Hub.

    Args:
        source: a folder or a Hub id.
        load: loads, given `local_files_only`.

    Raises:
        UserError: in place of what the libraries raise.
    """
    is_folder = is_model_folder(source)
    try:
        try:
            return load(local_files_only=True)
        except OSError:
            if is_folder:
                raise
            require_hub(f"model {source}", "give the folder of a local model")
            return load(local_files_only=False)
    except UserError:
        raise
    except (OSError, ValueError, SafetensorError) as error:
        closed = isinstance(error, PermissionError | NotADirectoryError)  # the cache: the folder itself was looked at
        hint = "; set HF_HOME to a folder that can be written to" if closed else ""
        raise UserError(f"{source} cannot be loaded as a language model: {one_line(error)}{hint}") from error
