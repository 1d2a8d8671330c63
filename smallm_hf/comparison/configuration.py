"""The `comparison` section of a run config, and the prompts."""

from dataclasses import dataclass
from pathlib import Path

from smallm_hf.errors import UserError, one_line
from smallm_hf.recipes import read_recipe

PROMPTS = ("the cat sat", "The dog", "Neural networks are", "How to implement", "Once upon a time")


@dataclass(frozen=True)
class ComparisonConfig:
    """What the model of a run is compared with.

    Args:
        benchmark_model: folder or Hub id of a pretrained model, such as distilgpt2, gpt2, gpt2-medium,
            EleutherAI/gpt-neo-125M, or albert-base-v2, which can only fill in; scripts/compare.py --config takes it
            from here.
    """

    benchmark_model: str | None = None

    def __post_init__(self) -> None:
        if self.benchmark_model is not None and not self.benchmark_model.strip():
            raise UserError("comparison.benchmark_model is empty; name a folder or a Hub id, or set it to null")


def read_prompts(path: Path | None) -> list[str]:
    """The prompts of a file, one per line, or our own; white space around them would be a token of its own and goes.

    Raises:
        UserError: a file that cannot be read or holds none.
    """
    if path is None:
        return list(PROMPTS)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--prompts {path}: cannot be read ({one_line(error)}); give a text file") from error
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise UserError(f"--prompts {path}: holds no prompt; write one per line")
    return prompts


def read_benchmark(path: Path) -> str:
    """The `comparison.benchmark_model` of a recipe or of a run's config.yaml.

    Raises:
        UserError: a file that cannot be read or does not name one.
    """
    content = read_recipe(path, {"comparison": ComparisonConfig})
    try:
        section = ComparisonConfig(**content["comparison"])
    except UserError as error:
        raise UserError(f"--config {path}: {error}") from error
    except (KeyError, TypeError):
        section = ComparisonConfig()
    if section.benchmark_model is None:
        raise UserError(
            f"--config {path}: names no comparison.benchmark_model; set it, gpt2 for example, or give --models alone"
        )
    return section.benchmark_model
