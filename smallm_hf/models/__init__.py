"""The model families, the only code that travels with weights; `families.py` tells the rest of the package of them."""

# First, and whole: once it is imported, `families.py` follows, and imports the files below.
import transformers  # noqa: F401  # isort: skip

from .configuration_feedforward import FeedForwardConfig
from .configuration_ngram import NgramConfig
from .configuration_recurrent import RecurrentConfig
from .configuration_smallm import SmaLLMConfig
from .modeling_feedforward import FeedForwardForCausalLM, FeedForwardModel, FeedForwardPreTrainedModel
from .modeling_ngram import NgramForCausalLM
from .modeling_recurrent import RecurrentForCausalLM, RecurrentModel, RecurrentPreTrainedModel
from .modeling_smallm import SmaLLMForCausalLM, SmaLLMModel, SmaLLMPreTrainedModel

__all__ = [
    "FeedForwardConfig",
    "FeedForwardForCausalLM",
    "FeedForwardModel",
    "FeedForwardPreTrainedModel",
    "NgramConfig",
    "NgramForCausalLM",
    "RecurrentConfig",
    "RecurrentForCausalLM",
    "RecurrentModel",
    "RecurrentPreTrainedModel",
    "SmaLLMConfig",
    "SmaLLMForCausalLM",
    "SmaLLMModel",
    "SmaLLMPreTrainedModel",
]
