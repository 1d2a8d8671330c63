"""The `comparison` section of a run config, what is asked of models that are compared, and the prompts."""

from dataclasses import dataclass
from pathlib import Path

from smallm_hf.base.errors import UserError, one_line
from smallm_hf.base.recipes import read_recipe
from smallm_hf.evaluation.configuration import Rules, require_at_least

PROMPTS = ("the cat sat", "The dog", "Neural networks are", "How to implement", "Once upon a time")


@dataclass(frozen=True)
class ComparisonConfig:
    """What the model of a run is compared with.

    Args:
        benchmark_model: folder or Hub id of a pretrained model, such as distilgpt2, gpt2, gpt2-medium,
            EleutherAI/gpt-neo-125M, or albert-base-v2, which can only fill in; `compare --config` takes it
            from here.
    """

    benchmark_model: str | None = None

    def __post_init__(self) -> None:
        if self.benchmark_model is not None and not self.benchmark_model.strip():
            raise UserError("comparison.benchmark_model is empty; name a folder or a Hub id, or set it to null")


@dataclass(frozen=True)
class SideBySide(Rules):
    """What is asked of every model, in the same way; how a text is scored is said by `Rules`.

    Args:
        top_k: next words shown for each prompt, the most probable ones.
        max_new_tokens: tokens of a continuation at most.
        num_samples: continuations drawn for each prompt, each with the next seed, beside the greedy one.
        temperature: of the drawn continuations.
        seed: what the seed of each prompt's first draw is made of, beside the prompt.
        speed_tokens: tokens written each time that speed is measured.
        repetitions: times that it is measured, after one that does not count.
        text_column: column of the data that holds the text, in all but text files; of pairs the target.
        source_column: column that encoder-decoders read; the data then are pairs, of which the targets are scored.
        max_documents: score only this many of the data, from the beginning.
    """

    top_k: int = 8
    max_new_tokens: int = 60
    num_samples: int = 2
    temperature: float = 0.8
    seed: int = 42
    speed_tokens: int = 64
    repetitions: int = 5
    text_column: str = "text"
    source_column: str | None = None
    max_documents: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(self, top_k=1, max_new_tokens=1, num_samples=1, speed_tokens=1, repetitions=1, max_documents=1)
        if self.temperature <= 0:
            raise UserError(
                f"temperature={self.temperature} draws nothing; give more than 0, the greedy text is always there"
            )

    @property
    def columns(self) -> tuple[str, ...]:
        """Of source and target, where pairs are scored."""
        return (self.source_column, self.text_column) if self.source_column else ()


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
    content = read_recipe(path, {"comparison.benchmark_model": str | None})
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
