"""Small language models, trained from scratch and shipped the Hugging Face way."""

# First, before the seconds that importing torch takes: it notes the process that started this one.
from smallm_hf.training import stopping as _stopping  # noqa: F401  # isort: skip
from smallm_hf.models import SmaLLMConfig, SmaLLMForCausalLM, SmaLLMModel

__version__ = "0.1.0"

__all__ = ["SmaLLMConfig", "SmaLLMForCausalLM", "SmaLLMModel"]
