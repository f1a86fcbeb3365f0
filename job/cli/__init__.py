"""The commands: each is a module of its own, with its options and its answer, imported only when it is asked for.

A new command is a module and a row here.
"""

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

from job import __version__
from job.errors import ExitCode, InvalidSettings
from job.redaction import redacted_value

if TYPE_CHECKING:
    from job.cli.arguments import Parser

COMMANDS = {
    "run": "make one attempt at the run that the settings describe (the default)",
    "plan": "show what a start with these settings would do, and try what it needs; nothing is changed",
    "inspect": "look at every one of your own images before a run: classes, sizes, damaged files, copies",
    "status": "show how a run is doing",
    "list": "list the runs of a store",
    "compare": "show finished runs side by side, and test whether their models differ",
    "predict": "label images with the model of a finished run",
    "evaluate": "test the model of a finished run on other labelled images",
    "verify": "read every object of a run, and compare it with the record",
    "repair": "rebuild the record of a run, run.json, from the checkpoints",
    "mirror": "put the data and weights of the settings into object storage",
    "completion": "print a script that completes commands and flags in a shell",
}
"""By name, in the order of the help: what each does."""

QUESTIONS = COMMANDS.keys() - {"run", "mirror"}
"""They answer on standard output, and can be ended anywhere: they change no run, and `repair` loses nothing."""


def split(argv: Sequence[str]) -> tuple[str, Sequence[str]]:
    """The name of a command and its words; words without a name are settings of `run`."""
    return (argv[0], argv[1:]) if argv and not argv[0].startswith("-") else ("run", argv)


def read(name: str, words: Sequence[str], environ: Mapping[str, str]) -> Any:
    """The options of a command, of its own class `Options`. Raises InvalidSettings, SystemExit(0) after `--help`."""
    from job.cli import arguments

    if name not in COMMANDS:
        from job.settings.environment import nearest

        raise InvalidSettings(
            f"{redacted_value(name)!r}: no such command{nearest(name, [*COMMANDS, '--help'])}",
            hint=f"the commands are {', '.join(COMMANDS)}; {arguments.PROGRAM} --help shows what they do",
        )
    return arguments.read(parser_of(name), import_module(f"job.cli.{name}").Options, words, environ)


def parser_of(name: str) -> "Parser":
    """The parser of a command's words, with its help."""
    from job.cli.arguments import EXIT_CODES, PRECEDENCE, PROGRAM, Parser, SettingsOptions, add_options, described

    options = import_module(f"job.cli.{name}").Options
    takes_settings = issubclass(options, SettingsOptions)
    parser = Parser(
        prog=PROGRAM if name == "run" else f"{PROGRAM} {name}",
        description=described(COMMANDS[name], options),
        epilog=f"{PRECEDENCE}\n\n{EXIT_CODES}" if takes_settings else "",
    )
    if name == "run":
        commands = "\n".join(f"  {command:10}  {summary}" for command, summary in COMMANDS.items())
        parser.description = f"{options.__doc__}\n\ncommands, each with a --help of its own:\n{commands}"
        parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    add_options(parser, options)
    if name == "run":
        parser.usage = f"{PROGRAM} [command] [settings]"
    return parser


def answer(name: str, words: Sequence[str], environ: Mapping[str, str]) -> ExitCode:
    """Print the answer to a question; returns what it says in short. Raises ThawError when there is none."""
    options = read(name, words, environ)
    return ExitCode(import_module(f"job.cli.{name}").answer(options))
