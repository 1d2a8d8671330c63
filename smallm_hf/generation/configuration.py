"""What scripts/generate.py is asked for, and the prompts of it: known before torch is imported."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TextIO

from jsonargparse.typing import NonNegativeInt, PositiveInt

from smallm_hf.base.errors import UserError, one_line

PROMPT = (
    'the beginning of a text, or what an encoder reads; several are continued side by side, "" lets the model begin by '
    "itself. Without any, a terminal gets a session, and whatever else standard input is gives the prompt"
)
STDIN = "-"
ROWS = 'objects such as {"prompt": "The list"}'


@dataclass(frozen=True)
class Asked:
    """Which texts are written, and how they are shown.

    Args:
        prompt: the prompts; what `PROMPT` says.
        prompt_file: a file that is one prompt, or a .jsonl or .json of objects whose "prompt" is one each; - is
            standard input. A line break at the very end is not part of the prompt.
        num_samples: texts for each prompt, each with the next seed.
        batch_size: how many of several prompts are continued side by side; 1 repeats each text to the bit.
        json: whether each text is printed as an object of prompt, text, tokens, seed and finish_reason.
        logprobs: with --json, tell the log-probability of each token, and so many of the most probable in its place.
        compile: the step that writes a token, which takes 10 to 20 s on a CPU; auto does where 10,000 tokens or more
            are asked for.
    """

    prompt: Sequence[str] | None = None
    prompt_file: str | None = None
    num_samples: PositiveInt = 1
    batch_size: PositiveInt = 16
    json: bool = False
    logprobs: NonNegativeInt | None = None
    compile: bool | Literal["auto"] = "auto"

    def __post_init__(self) -> None:
        if self.prompt is not None and self.prompt_file is not None:
            raise UserError(f"--prompt and --prompt_file {self.prompt_file} both give prompts; leave out one")
        if self.logprobs is not None and not self.json:
            raise UserError(f"--logprobs {self.logprobs} is told in JSON alone; add --json")

    def read_prompts(self) -> list[str] | None:
        """The prompts; None where a session is asked for, by none on a terminal.

        Raises:
            UserError: they cannot be read, there are none in a file, or a session has no use for an option.
        """
        if self.prompt is not None:
            return list(self.prompt)
        if self.prompt_file is not None:
            return read_prompt_file(self.prompt_file)
        if not _is_terminal(sys.stdin):
            hint = '--prompt "" lets the model begin by itself'
            print(f"the prompt is what comes on standard input, to its end; {hint}", file=sys.stderr)
            return [_without_last_break(_read(STDIN))]
        if not _is_terminal(sys.stdout):  # nobody would see what to type
            return [""]
        for option, given in (("--json", self.json), (f"--num_samples {self.num_samples}", self.num_samples > 1)):
            if given:
                raise UserError(f'{option} needs a prompt; give --prompt, "" to let the model begin by itself')
        return None


def _is_terminal(stream: TextIO | None) -> bool:
    return stream is not None and stream.isatty()


def read_prompt_file(file: str) -> list[str]:
    """The prompts of a file, at least one, as `Asked.prompt_file` has it.

    Raises:
        UserError: it cannot be read as UTF-8, or as the JSON that its name promises, or holds no prompt.
    """
    text, suffix = _read(file), Path(file).suffix.lower()
    try:
        if suffix == ".json":
            rows = json.loads(text)
        elif suffix == ".jsonl":
            rows = [json.loads(line) for line in text.split("\n") if line.strip()]
        else:
            rows = [{"prompt": _without_last_break(text)}] if text else []
    except (ValueError, RecursionError) as error:
        raise UserError(f"--prompt_file {file}: is not JSON ({one_line(error)}); give {ROWS}") from error
    if not isinstance(rows, list):
        raise UserError(f"--prompt_file {file}: holds no list; give a list of {ROWS}, or name it .jsonl")
    if not rows:
        raise UserError(f'--prompt_file {file}: holds no prompt; --prompt "" lets the model begin by itself')
    return [_prompt_of(row, f"--prompt_file {file}: number {number}") for number, row in enumerate(rows, start=1)]


def _prompt_of(row: Any, where: str) -> str:
    prompt = row.get("prompt") if isinstance(row, dict) else None
    if not isinstance(prompt, str):
        raise UserError(f"{where} has no prompt that is text, being {one_line(row)}; give {ROWS}")
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{where} holds half of a character (a lone surrogate), {prompt!a}; give whole ones") from error
    return prompt


def _read(file: str) -> str:
    """The text of a file or of standard input, UTF-8 whatever the locale is."""
    try:
        if file != STDIN:
            content = Path(file).expanduser().read_bytes()
        else:
            content = sys.stdin.buffer.read() if sys.stdin else b""
        return content.decode("utf-8-sig").replace("\r\n", "\n")
    except (OSError, UnicodeDecodeError) as error:
        name = "standard input" if file == STDIN else f"--prompt_file {file}"
        raise UserError(f"{name}: cannot be read ({one_line(error)}); give text in UTF-8") from error


def _without_last_break(text: str) -> str:
    """A text as `echo` and editors end it, without what they add; a model would begin a paragraph behind it."""
    return text.removesuffix("\n")
