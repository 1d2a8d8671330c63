"""Small language models, trained from scratch and shipped the Hugging Face way.

`prepare`, `train`, `score`, `score_minimal_pairs`, `generate` and `load` do in Python what the scripts do, see
`smallm_hf.api`. They and the classes are imported when they are first asked for, so that a script answers `--help`
without torch; transformers knows the classes all the same, whichever of the two packages is imported first.
"""

import importlib
from typing import TYPE_CHECKING, Any

# First, before the seconds that importing torch takes: it notes the process that started this one.
from smallm_hf.training import stopping as _stopping  # noqa: F401  # isort: skip
from smallm_hf.base.errors import UserError
from smallm_hf.base.registering import when_imported as _when_imported

if TYPE_CHECKING:
    from smallm_hf.api import generate, load, prepare, score, score_minimal_pairs, train
    from smallm_hf.models import (
        FeedForwardConfig,
        FeedForwardForCausalLM,
        FeedForwardModel,
        NgramConfig,
        NgramForCausalLM,
        RecurrentConfig,
        RecurrentForCausalLM,
        RecurrentModel,
        SmaLLMConfig,
        SmaLLMForCausalLM,
        SmaLLMModel,
    )

__version__ = "0.1.0"

__all__ = [
    "FeedForwardConfig",
    "FeedForwardForCausalLM",
    "FeedForwardModel",
    "NgramConfig",
    "NgramForCausalLM",
    "RecurrentConfig",
    "RecurrentForCausalLM",
    "RecurrentModel",
    "SmaLLMConfig",
    "SmaLLMForCausalLM",
    "SmaLLMModel",
    "UserError",
    "generate",
    "load",
    "prepare",
    "score",
    "score_minimal_pairs",
    "train",
]

_when_imported("transformers", then="smallm_hf.families")


def __getattr__(name: str) -> Any:
    if name in __all__:
        home = "models" if name[0].isupper() else "api"
        return getattr(importlib.import_module(f"smallm_hf.{home}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
