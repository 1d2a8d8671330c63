"""The parser of a command: its mistakes are raised, and its help fits on one screen, with sections and examples."""

import re
import types
from argparse import SUPPRESS, Action, HelpFormatter, _HelpAction
from collections.abc import Iterable, Sequence
from dataclasses import fields
from pathlib import Path
from textwrap import fill
from typing import Any, Literal, NoReturn, Union, get_args, get_origin

from jsonargparse import ArgumentParser, DefaultHelpFormatter

from smallm_hf.base.command_line import called
from smallm_hf.base.errors import UserError
from smallm_hf.base.settings import Loading
from smallm_hf.base.wording import nearest

HELP_COLUMN = 27  # where explanations begin
METAVARS = {bool: "true|false", int: "N", float: "X", Path: "PATH"}  # a bool is an int


class CommandParser(ArgumentParser):
    """Reads the line of a command.

    `--help` shows the options of the parser itself, each section as a line, and the examples; `--help SECTION` shows
    the options of a section, `--help_all` those of all.

    Args:
        description: what the command does.
        examples: whole lines, without the name of the program.
        usage: what is shown behind the name.
        given: of the parser of jsonargparse.
    """

    def __init__(self, description: str = "", examples: Sequence[str] = (), usage: str = "[OPTIONS]", **given: Any):
        settings = {"exit_on_error": False, "allow_abbrev": False, "print_config": None, "add_help": False}
        super().__init__(description=description, formatter_class=_Formatter, **settings | given)
        self.examples, self.shown_usage, self.sections = examples, usage, dict[str, Any]()
        self.add_argument("-h", "--help", action=_Help, nargs="?", metavar="SECTION", help="show this help and exit")
        self.add_argument("--help_all", action=_Help, nargs=0, help="show the options of all sections and exit")

    def section(self, name: str, title: str) -> Any:
        """A group of options that `--help` only names."""
        self.sections[name] = self.add_argument_group(title)
        return self.sections[name]

    def add_section(
        self,
        name: str,
        title: str,
        kind: type,
        *,
        nested: bool = False,
        only: Iterable[str] = (),
        skip: Iterable[str] = (),
    ) -> Any:
        """A section with the fields of a dataclass as options.

        Args:
            name: of the section, for `--help NAME`.
            title: what the fields are about.
            kind: the dataclass.
            nested: whether the options are `--NAME.FIELD`.
            only: fields that are taken; none stands for all.
            skip: fields that are left out.
        """
        section, names = self.section(name, title), {field.name for field in fields(kind)}
        left_out = {*skip} | (names - {*only} if only else set())
        section.add_class_arguments(kind, name if nested else None, as_group=False, skip=left_out)
        for action in section._group_actions:
            if action.option_strings[0].endswith(".help"):  # of an inner dataclass
                action.help = SUPPRESS
        return section

    def add_loading(self) -> None:
        """A section with the fields of `Loading`."""
        loading = self.add_section("loading", "How the models are loaded", Loading, skip={"trust_remote_code"})
        loading.add_argument(
            "--trust_remote_code", action="store_true", help="run the modeling code that comes with it"
        )

    @property
    def options(self) -> set[str]:
        """The names of all options."""
        return {word.removeprefix("--") for action in self._actions for word in action.option_strings}

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raises what is wrong with the line, in the names that are written on it."""
        if found := re.search(r"arguments are required: (.+)", message):
            positional = {action.dest for action in self._actions if not action.option_strings}
            names = [
                one.upper() if one in positional else f"--{one.rpartition('.')[2]}" for one in found[1].split(", ")
            ]
            raise UserError(f"{' and '.join(names)} {'are' if names[1:] else 'is'} missing; see --help") from ex
        if found := re.match(r"unrecognized arguments: (--[^\s=]+)", message):
            known = [f"--{one}" for one in self.options]
            raise UserError(f"unknown option {found[1]}{nearest(found[1], known)}") from ex
        message = re.sub(r'Parser key "(\S+)"', r"--\1", re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", message))
        super().error(message, ex)

    def describe(self, section: str | None = None, *, everything: bool = False) -> str:
        """The help: of a section, of everything, or what fits on a screen.

        Raises:
            UserError: there is no such section.
        """
        if section is not None and section not in self.sections:
            known = f"its sections are {', '.join(self.sections)}" if self.sections else "this command has none"
            raise UserError(f"--help {section}: there is no such section; {known}, and --help_all shows all options")
        self.usage = SUPPRESS if section else f"%(prog)s {self.shown_usage}"
        described, groups = self.description, self._action_groups
        if section is not None:
            self.description, self._action_groups = None, [self.sections[section]]
        elif not everything:
            self._action_groups = [group for group in groups if group not in self.sections.values()]
        try:
            text = self.format_help()
        finally:
            self.description, self._action_groups = described, groups
        return text if section or everything else text + self._end()

    def _end(self) -> str:
        """What `--help` shows behind the options: the sections and the examples."""
        lines = []
        if self.sections:
            lines += ["", "more options, by --help SECTION, or --help_all for all:"]
        for name, group in self.sections.items():
            first, later = f"  {name:<{HELP_COLUMN - 2}}", " " * HELP_COLUMN
            lines.append(fill(group.title, HelpFormatter("")._width, initial_indent=first, subsequent_indent=later))
        if self.examples:
            lines += ["", "examples:"]
        for example in self.examples:
            name, _, words = example.partition(" ")
            lines.append(f"  {called(name)} {words}")
        return "".join(f"{line}\n" for line in lines)


class _Help(_HelpAction):
    """Prints the help that its word, or its name, asks for."""

    def __init__(self, *given: Any, nargs: int | str, metavar: str | None = None, **others: Any):
        super().__init__(*given, **others)
        self.nargs, self.metavar = nargs, metavar

    def __call__(self, parser: CommandParser, namespace: Any, values: Any, option_string: str | None = None) -> None:
        print(parser.describe(values or None, everything=self.nargs == 0), end="")
        parser.exit()


class _Formatter(DefaultHelpFormatter):
    """Says what a value is by the name it has in the help, and its default where there is one worth telling."""

    def __init__(self, prog: str, **given: Any):
        super().__init__(prog, max_help_position=HELP_COLUMN, **given)

    def _get_help_string(self, action: Action) -> str:
        text, default = (action.help or "").rstrip("."), action.default
        told = "%(default)" not in text and "(default" not in text
        if told and default not in (None, SUPPRESS, "", [], {}) and (default is not False or action.nargs != 0):
            shown = " ".join(map(str, default)) if isinstance(default, list | tuple) else str(default)
            text += f" (default: {shown.lower() if isinstance(default, bool) else shown})"
        return text + " (required)" * bool(action.required and action.option_strings)

    def _format_args(self, action: Action, default_metavar: str) -> str:
        if action.nargs is None and action.metavar is None:
            return _metavar(action)
        return super()._format_args(action, default_metavar)

    def _get_default_metavar_for_optional(self, action: Action) -> str:
        return _metavar(action)


def _metavar(action: Action) -> str:
    """What stands for the value of an option: its kind, or the last word of its name."""
    if isinstance(action.metavar, str):
        return action.metavar
    return _kind(getattr(action, "_typehint", action.type)) or action.dest.rpartition(".")[2].rpartition("_")[2].upper()


def _kind(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return "|".join(map(str, get_args(hint)))
    if get_origin(hint) in (Union, types.UnionType):
        kinds = [_kind(one) for one in get_args(hint)]
        return "" if str in get_args(hint) else "|".join(filter(None, kinds))
    return next((name for kind, name in METAVARS.items() if isinstance(hint, type) and issubclass(hint, kind)), "")
