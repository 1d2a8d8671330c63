"""Small language models, trained from scratch and shipped the Hugging Face way."""

from smallm_hf.models import SmaLLMConfig, SmaLLMForCausalLM, SmaLLMModel

__version__ = "0.1.0"

__all__ = ["SmaLLMConfig", "SmaLLMForCausalLM", "SmaLLMModel"]
