"""The model families, the only code that travels with weights. Importing them tells the Auto classes of them."""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from .configuration_smallm import SmaLLMConfig
from .modeling_smallm import SmaLLMForCausalLM, SmaLLMModel, SmaLLMPreTrainedModel

__all__ = ["SmaLLMConfig", "SmaLLMForCausalLM", "SmaLLMModel", "SmaLLMPreTrainedModel"]

AutoConfig.register(SmaLLMConfig.model_type, SmaLLMConfig, exist_ok=True)
AutoModel.register(SmaLLMConfig, SmaLLMModel, exist_ok=True)
AutoModelForCausalLM.register(SmaLLMConfig, SmaLLMForCausalLM, exist_ok=True)

# `save_pretrained` copies the files of a class that is registered here into the folder.
SmaLLMConfig.register_for_auto_class()
SmaLLMModel.register_for_auto_class("AutoModel")
SmaLLMForCausalLM.register_for_auto_class("AutoModelForCausalLM")
