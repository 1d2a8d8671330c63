"""Which model to use, how to load it and how it writes, as a user asks for it: known before torch is imported."""

import glob
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from smallm_hf.base.errors import UserError

# How a command line names a model.
MODEL = "a folder written by save_pretrained, such as RUN/best, or a Hub id (looked for in the cache first)"

Dtype = Literal["auto", "float32", "bfloat16", "float16"]

# The folders of a run that hold a model.
RUN_MODELS = ("best", "final")
# A folder without any of these gets an empty tokenizer from transformers, silently.
TOKENIZER_MARKS = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "vocab.txt", "tokenizer.model")


@dataclass(frozen=True)
class Loading:
    """How to load a model that is used and not trained.

    Args:
        dtype: `auto` keeps the dtype of the weights where the device multiplies it well, and else takes float32.
        device: `cpu`, `cuda`, `cuda:1` or `mps`; by default the accelerator where there is one.
        trust_remote_code: whether to run the modeling code that comes with the model.
    """

    dtype: Dtype = "auto"
    device: str | None = None
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        if self.dtype not in get_args(Dtype):
            raise UserError(f"dtype {self.dtype!r} is unknown; choose from {', '.join(get_args(Dtype))}")


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How a text is continued.

    Args:
        max_new_tokens: tokens to write at most, also beyond the model's context; the text may end earlier, by eos.
        min_new_tokens: tokens before which eos is not allowed; `max_new_tokens` for a text of exactly that length.
        temperature: divides the logits; below 1 safer, above 1 wilder, 0 always takes the most probable token.
        top_k: draw from the k most probable tokens only; 0 for all.
        top_p: draw from the most probable tokens that together hold this probability (Holtzman et al. 2020, 3.1).
        min_p: draw from tokens with this share of the most probable one's probability at least (Nguyen et al. 2024).
        repetition_penalty: above 1 makes tokens that occurred less probable (Keskar et al. 2019, 4.1).
        seed: of the random draw.
    """

    max_new_tokens: int = 200
    min_new_tokens: int = 0
    temperature: float = 0.8
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 42

    def __post_init__(self) -> None:
        for name, (in_range, wanted) in self.ranges.items():
            if not in_range:
                raise UserError(f"{name}={getattr(self, name)} is out of range; give {wanted}")

    @property
    def ranges(self) -> dict[str, tuple[bool, str]]:
        """Of each field, whether its value is in its range, and that range in words."""
        most = self.max_new_tokens
        return {
            "max_new_tokens": (most >= 1, "1 or more"),
            "min_new_tokens": (0 <= self.min_new_tokens <= most, f"0 to max_new_tokens={most}"),
            "temperature": (self.temperature >= 0, "0 or more"),
            "top_k": (self.top_k >= 0, "0 or more"),
            "top_p": (0 < self.top_p <= 1, "above 0 and at most 1"),
            "min_p": (0 <= self.min_p <= 1, "0 to 1"),
            "repetition_penalty": (self.repetition_penalty > 0, "above 0"),
            "seed": (-(1 << 63) <= self.seed < 1 << 64, f"{-(1 << 63)} to {(1 << 64) - 1}"),  # torch takes no others
        }


def require_models(models: Iterable[str]) -> None:
    """Raises what `is_model_folder` raises, before the seconds that importing torch takes; patterns pass."""
    for model in models:
        if not glob.has_magic(model):
            is_model_folder(model)


def expand_models(patterns: Iterable[str]) -> list[str]:
    """The models of a command line, each once; a pattern such as `runs/x-seed*/best` stands for the folders it matches.

    Raises:
        UserError: a pattern that matches no folder.
    """
    models: dict[str, None] = {}
    for pattern in patterns:
        found = sorted(glob.glob(pattern)) if glob.has_magic(pattern) else [pattern]
        if not found:
            raise UserError(f"--model {pattern}: matches no folder; give one that exists, such as runs/quickstart/best")
        models |= dict.fromkeys(found)
    return list(models)


def is_model_folder(source: str) -> bool:
    """True for a folder with a model in it, False for what may be a Hub id.

    Raises:
        UserError: a folder without one, such as that of a run, or a path that does not exist.
    """
    folder = Path(source).expanduser()
    hint = "give a folder that save_pretrained wrote, such as RUN/best, or a Hub id"
    if folder.is_dir():
        held = [name for name in RUN_MODELS if (folder / name / "config.json").is_file()]
        if held and not (folder / "config.json").is_file():
            raise UserError(f"{source} is a run, which holds several models; did you mean {Path(source) / held[0]}?")
        for content, names in (("config", ["config.json"]), ("tokenizer", TOKENIZER_MARKS)):
            if not any((folder / name).is_file() for name in names):
                raise UserError(f"{source} holds no {content} ({', '.join(names)}); {hint}")
        return True
    if folder.exists() or source.startswith((".", "/", "~")) or source.count("/") > 1:
        raise UserError(f"{source} is not a folder; {hint}")
    return False
