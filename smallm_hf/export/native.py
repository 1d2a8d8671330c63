"""A folder of a class that `transformers` ships: no code of ours, no mention of it."""

import dataclasses
from pathlib import Path

from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from smallm_hf.export.parity import Runtime, torch_runtime
from smallm_hf.tokenizing.loading import save_tokenizer


def plain_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """The config with the fields of its class only: neither our `auto_map` nor what rode along for our class.

    Keys are added that its class does not read and others do.
    """
    plain = type(config)(**{field.name: getattr(config, field.name) for field in dataclasses.fields(config)})
    if trained := getattr(config, "trained_context_length", None):
        plain.trained_context_length = trained
    if config.model_type == "gpt2":
        plain.n_ctx = config.n_positions  # GGUF converters
    elif config.rope_parameters:
        plain.rope_theta = config.rope_parameters["rope_theta"]  # transformers 4, which else takes 10,000
    return plain


def write_native(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> Runtime:
    """Writes weights, configs and tokenizer, and returns the folder as anybody would load it."""
    model.config = plain_config(model.config)
    model.save_pretrained(folder)
    save_tokenizer(tokenizer, folder, tokenizer.model_max_length)
    return torch_runtime(folder)
