"""A session on the terminal: each line is continued, answered, or a turn of a chat; `/help` lists the commands."""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import docstring_parser
from jinja2 import TemplateError

from smallm_hf.base.allocation import keep_freed_memory
from smallm_hf.base.errors import UserError, one_line
from smallm_hf.base.settings import Sampling
from smallm_hf.base.terminal import print_piece
from smallm_hf.generation.configuration import Asked
from smallm_hf.generation.engine import Engine
from smallm_hf.generation.printing import longest_text, note_on_length, print_records, print_texts, requests_for
from smallm_hf.generation.request import encode_chat
from smallm_hf.generation.steps import lay_out_for_decoding
from smallm_hf.pretrained import load_writer

KEPT_LINES = 1000  # of the history
GREETING = "Each line is {}. /help lists the commands, Ctrl-C stops a text, Ctrl-D leaves.\n"


class Command(NamedTuple):
    """What a line such as `/NAME GIVEN` does.

    Attributes:
        run: is called with what is given, "" for nothing.
        help: one line.
        takes: what can be given, in a word.
    """

    run: Callable[[str], None]
    help: str
    takes: str = ""


class Session:
    """Answers lines with texts, or does what their commands say, until there are no more.

    A tokenizer with a chat template makes it a chat, whose turns are kept; an answer that Ctrl-C stops is kept as far
    as it went. Without a template each line is a prompt of its own, or the source of an encoder-decoder.

    Args:
        engine: writes the texts.
        sampling: how it does at first.
        read: gives the next line, as `input` does, for the mark that it shows.
        write: is given each piece of what is shown.
    """

    def __init__(
        self, engine: Engine, sampling: Sampling, read: Callable[[str], str], write: Callable[[str], None]
    ) -> None:
        self.engine, self.sampling, self.initial, self.read, self.write = engine, sampling, sampling, read, write
        self.is_chat = bool(engine.tokenizer.chat_template) and not engine.answers
        self.system, self.turns = "", list[dict[str, str]]()
        self.prompt: str | None = None  # the newest
        self.is_open, self.has_noted_length = True, False
        self.commands = self._settings() | {
            "retry": Command(self._retry, "the newest prompt once more, with the next seed"),
            "show": Command(self._show, "all settings"),
            "reset": Command(self._reset, "the settings that the session began with"),
            "help": Command(self._help, "this list"),
            "quit": Command(self._quit, "leave, as Ctrl-D does"),
        }
        if self.is_chat:
            self.commands["system"] = Command(self._instruct, "what the model reads before all turns", "TEXT")
            self.commands["clear"] = Command(self._clear, "start anew, without the turns so far")

    def run(self) -> None:
        """Reads lines and answers them; what cannot be done is told in a line."""
        kind = "answered" if self.engine.answers else "a turn of a chat" if self.is_chat else "continued"
        self.write(GREETING.format(kind))
        while self.is_open:
            try:
                self.answer(self.read("> "))
            except UserError as error:
                self.write(f"{error}\n")
            except UnicodeError:
                self.write("this line is not UTF-8; set LC_ALL to the encoding of the terminal\n")
            except KeyboardInterrupt:
                self.write("\n")
            except EOFError:
                self.write("\n")
                self.is_open = False

    def answer(self, line: str) -> None:
        """Does what a line asks for; an empty one asks for nothing.

        Raises:
            UserError: that cannot be done, and nothing has changed.
        """
        line = line.encode("utf-8", "surrogateescape").decode("utf-8")  # where the locale is C
        if not line.strip():
            return
        if not line.startswith("/"):
            return self._write(line, self.turns)
        if line.startswith("//"):
            return self._write(line[1:], self.turns)
        name, _, given = line[1:].partition(" ")
        if name not in self.commands:
            raise UserError(f"/{name} is not a command; /help lists them, and //{name} begins a prompt with /")
        self.commands[name].run(given.strip())

    def _write(self, prompt: str, turns: Sequence[dict[str, str]]) -> None:
        """Writes a text behind a prompt, which is the newest now; in a chat, behind the turns before it too."""
        (request,) = requests_for(self.engine, [prompt], self.sampling)
        if self.is_chat:
            system = [{"role": "system", "content": self.system}] if self.system else []
            turns = [*turns, {"role": "user", "content": prompt}]
            try:
                request = replace(request, prompt=encode_chat(self.engine.tokenizer, [*system, *turns]))
            except TemplateError as error:
                raise UserError(f"the model's chat template does not take this turn: {one_line(error)}") from error
        note = note_on_length(self.engine, longest_text(self.engine, [request]))
        if note and not self.has_noted_length:
            self.write(f"{note}\n")
            self.has_noted_length = True
        self.prompt, written = prompt, ""
        if not self.is_chat:
            self.write(request.prompt)
        with suppress(KeyboardInterrupt):
            for token in self.engine.stream(request):
                written += token.text
                self.write(token.text)
        self.write("\n")
        self.turns = [*turns, {"role": "assistant", "content": written}]

    def _settings(self) -> dict[str, Command]:
        """A command for each field of `Sampling`, with the help of its docstring."""
        described = {
            one.arg_name: one.description.rstrip(".") for one in docstring_parser.parse(Sampling.__doc__).params
        }
        return {
            field.name: Command(partial(self._set, field.name, field.type), described[field.name], "NUMBER")
            for field in fields(Sampling)
        }

    def _set(self, name: str, kind: type, given: str) -> None:
        if given:
            try:
                value = kind(given)
            except ValueError as error:
                wanted = f"a {'whole ' if kind is int else ''}number, {self.sampling.ranges[name][1]}"
                raise UserError(f"{name}={one_line(given)} is out of range; give {wanted}") from error
            self.sampling = replace(self.sampling, **{name: value})
        self._tell(name)

    def _tell(self, name: str) -> None:
        self.write(f"/{name} {getattr(self.sampling, name)}\n")

    def _retry(self, given: str) -> None:
        if self.prompt is None:
            raise UserError("there is nothing to retry yet; write a prompt first")
        self.sampling = replace(self.sampling, seed=self.sampling.seed + 1)
        self._tell("seed")
        self._write(self.prompt, self.turns[:-2])

    def _show(self, given: str) -> None:
        for name in asdict(self.sampling):
            self._tell(name)
        if self.is_chat:
            self.write(f"/system {self.system}\n{len(self.turns)} turns so far\n")

    def _reset(self, given: str) -> None:
        self.sampling = self.initial
        self._show(given)

    def _instruct(self, given: str) -> None:
        self.system = given
        self.write(f"/system {given}\n")

    def _clear(self, given: str) -> None:
        self.turns, self.prompt = [], None

    def _help(self, given: str) -> None:
        shown = {f"/{name} {command.takes}".rstrip(): command.help for name, command in self.commands.items()}
        width = max(map(len, shown))
        self.write("".join(f"{usage:{width}}  {help}\n" for usage, help in shown.items()))
        self.write("//...".ljust(width) + "  a prompt that begins with /\n")

    def _quit(self, given: str) -> None:
        self.is_open = False


def write_on_terminal(
    model: str,
    loading: dict[str, Any],
    prompts: Sequence[str] | None,
    sampling: Sampling,
    asked: Asked,
    *,
    compile: bool,
) -> None:
    """Continues prompts on standard output as scripts/generate.py does, or holds a session where they are None.

    Args:
        model: a folder or Hub id.
        loading: fields of `Loading`.
        prompts: one or more.
        sampling: how each text is written, the first of a prompt with this seed.
        asked: how many, and how they are shown.
        compile: whether the step that writes is compiled.

    Raises:
        UserError: the model cannot be loaded, or begin with one of the prompts.
    """
    keep_freed_memory()  # logits of each token would else take new pages
    loaded, tokenizer = load_writer(model, **loading)
    engine = Engine(lay_out_for_decoding(loaded), tokenizer, compile=compile)
    if prompts is None:
        with line_history():
            return Session(engine, sampling, input, print_piece).run()
    requests = requests_for(engine, prompts, sampling, num_samples=asked.num_samples, logprobs=asked.logprobs)
    if note := note_on_length(engine, longest_text(engine, requests)):
        print(note, file=sys.stderr)
    show = print_records if asked.json else print_texts
    show(engine, requests, print_piece, together=asked.batch_size if len(prompts) > 1 else 1)


@contextmanager
def line_history() -> Iterator[None]:
    """Inside the block, `input` edits its line and knows those of earlier sessions.

    They are kept in the user's folder for state, see the XDG Base Directory Specification; where that cannot be written
    to, each session knows its own. Without readline, as on Windows, lines are edited as the console does.
    """
    try:
        import readline
    except ImportError:
        yield
        return
    stated = Path(os.environ.get("XDG_STATE_HOME", ""))  # has to be absolute
    file = (stated if stated.is_absolute() else Path.home() / ".local" / "state") / "smallm_hf" / "history"
    readline.set_history_length(KEPT_LINES)
    with suppress(OSError):
        readline.read_history_file(file)
    try:
        yield
    finally:
        with suppress(OSError):
            file.parent.mkdir(parents=True, exist_ok=True)
            readline.write_history_file(file)
