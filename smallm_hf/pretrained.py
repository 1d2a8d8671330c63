"""Loads models of folders and Hub ids: to use them as they are, or to go on training them."""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from smallm_hf.base.arithmetic import multiplies_well, slow_dtype
from smallm_hf.base.command_line import is_main_process
from smallm_hf.base.errors import UserError, one_line
from smallm_hf.base.hub_access import require_hub
from smallm_hf.base.settings import Dtype, Loading, is_model_folder
from smallm_hf.models import SmaLLMConfig, SmaLLMForCausalLM

Loaded = TypeVar("Loaded")


def load_causal_lm(model: str, **loading: Any) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Loads a causal language model and its tokenizer, to be used and not trained.

    Args:
        model: a folder written by `save_pretrained`, such as RUN/best, or a Hub id (looked for in the cache first).
        loading: fields of `Loading`.

    Raises:
        UserError: no such folder, no config, tokenizer or weights in it, not a causal model, the Hub out of reach, an
            unknown dtype, no such device.
    """
    asked = Loading(**loading)
    found_device = existing_device(asked.device)

    def load(**options: bool) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        options["trust_remote_code"] = asked.trust_remote_code
        tokenizer = AutoTokenizer.from_pretrained(model, **options)
        if len(tokenizer) <= len(tokenizer.all_special_ids):  # what transformers makes up where the cache has none
            raise OSError("there is no tokenizer with it")
        return load_for_use(AutoModelForCausalLM, model, asked.dtype, found_device, **options), tokenizer

    return find_model(model, load)


def load_for_use(model_class: type, source: str, dtype: Dtype, device: torch.device, **options: Any) -> PreTrainedModel:
    """A model to be used on a device, in the dtype that `load_causal_lm` promises; a slow one is said on stderr."""
    loaded = load_all_weights(model_class, source, dtype=dtype, **options)
    if dtype == "auto" and not multiplies_well(loaded.dtype, device):
        loaded = loaded.float()
    elif dtype != "auto" and is_main_process() and (note := slow_dtype(loaded.dtype, device)):
        print(f"{note}; leave out --dtype to be faster", file=sys.stderr)
    return loaded.to(device).eval()


def pretrained_config(
    source: str,
    changes: Mapping[str, Any] | None = None,
    check: Callable[[type[PreTrainedConfig]], None] = lambda config_class: None,
) -> PreTrainedConfig:
    """The config of a model to go on training, of our own class where the model is ours.

    Args:
        source: a folder or a Hub id.
        changes: fields to set otherwise, such as dropout.
        check: is given the class before any change is made, to refuse it.

    Raises:
        UserError: no such model or none that predicts the next token, or a change that its weights do not fit.
    """

    def load(**options: bool) -> PreTrainedConfig:
        written, _ = PreTrainedConfig.get_config_dict(source, **options)
        config_class = SmaLLMConfig if is_ours(written) else AutoConfig
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
    """The float32 model of a folder, of the class that `config` belongs to; raises what `load_all_weights` does."""
    # The flagless Auto classes would load the native twin of ours.
    model_class = SmaLLMForCausalLM if isinstance(config, SmaLLMConfig) else AutoModelForCausalLM
    return load_all_weights(model_class, source, exact=exact, config=config, dtype=torch.float32, **options)


def fresh_model(config: PreTrainedConfig, device: str = "cpu") -> PreTrainedModel:
    """A model of this config with initial weights, float32; on `meta` it takes no memory."""
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def is_ours(written: Mapping[str, Any]) -> bool:
    """Whether a `config.json`, which may name a native class, is of a model of ours."""
    return "SmaLLM" in str(written.get("auto_map", "")) or written.get("model_type") == SmaLLMConfig.model_type


def _shapes(config: PreTrainedConfig) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in fresh_model(config, "meta").state_dict().items()}


def load_all_weights(model_class: type, source: str | Path, *, exact: bool = False, **options: Any) -> PreTrainedModel:
    """The model of a folder or Hub id; what the libraries raise is raised.

    Raises:
        UserError: a tensor is missing or, where it has to be `exact`, there is one more than the model has.
    """
    loaded, loading = model_class.from_pretrained(source, output_loading_info=True, **options)
    if loading["missing_keys"]:  # transformers would fill them with random numbers and warn
        missing = min(loading["missing_keys"])
        raise UserError(f"{source} lacks weights of {type(loaded).__name__}, {missing} for one; give a language model")
    if exact and loading["unexpected_keys"]:
        extra = min(loading["unexpected_keys"])
        raise UserError(f"{source} holds weights that {type(loaded).__name__} has not, {extra} for one; give its model")
    return loaded


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


def existing_device(name: str | None) -> torch.device:
    """The device of this name, or by default the accelerator where there is one.

    Raises:
        UserError: it is not here.
    """
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    try:
        return torch.empty(0, device=name or accelerator or "cpu").device
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device {name!r} cannot be used here ({one_line(error)}); give cpu, or none") from error
