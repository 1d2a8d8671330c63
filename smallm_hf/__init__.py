"""Small language models, trained from scratch and shipped the Hugging Face way.

The classes are imported when they are first asked for, so that a script answers `--help` without torch. transformers
knows them all the same, whichever of the two is imported first.
"""

from typing import TYPE_CHECKING, Any

# First, before the seconds that importing torch takes: it notes the process that started this one.
from smallm_hf.training import stopping as _stopping  # noqa: F401  # isort: skip
from smallm_hf.base.registering import when_imported as _when_imported

if TYPE_CHECKING:
    from smallm_hf.models import SmaLLMConfig, SmaLLMForCausalLM, SmaLLMModel

__version__ = "0.1.0"

__all__ = ["SmaLLMConfig", "SmaLLMForCausalLM", "SmaLLMModel"]

_when_imported("transformers", then="smallm_hf.families")


def __getattr__(name: str) -> Any:
    if name in __all__:
        from smallm_hf import models

        return getattr(models, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
