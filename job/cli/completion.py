"""`python -m job completion`: a script for a shell, made from the options of every command."""

import shlex
import sys
from typing import Annotated, Literal

from job import cli
from job.cli.arguments import CommandOptions, Flag, Parser
from job.cli.tables import writing
from job.errors import ExitCode
from job.model.backbones import BACKBONES

NAME = "thaw"


class Options(CommandOptions):
    """To use it: eval "$(python -m job completion bash)". The shell then has the command thaw, which is this program,
    and completes its commands and flags.
    """

    shell: Annotated[Literal["bash", "zsh"], Flag("bash or zsh", metavar="bash|zsh", is_word=True)]


def answer(options: Options) -> ExitCode:
    """Print the script."""
    import shtab

    root = _with_values(cli.parser_of("run"))
    root.prog = NAME
    commands = root.add_subparsers()
    for name, summary in cli.COMMANDS.items():
        commands.add_parser(name, parents=[_with_values(cli.parser_of(name))], help=summary, add_help=False)
    with writing():
        print(f'{NAME}() {{ {shlex.quote(sys.executable)} -m job "$@"; }}')
        print(shtab.complete(root, shell=options.shell), flush=True)
    return ExitCode.COMPLETE


def _with_values(parser: Parser) -> Parser:
    """The same parser, with what completes the value of each option, as its name and its metavar say."""
    import shtab

    for action in parser.actions:
        metavar = str(action.metavar)
        if any(part in f"{action.dest.upper()} {metavar}" for part in ("DIR", "FILE", "URI")):
            action.complete = shtab.FILE  # type: ignore[attr-defined]
        elif action.dest == "backbone":
            action.choices = list(BACKBONES)
        elif "|" in metavar:
            action.choices = metavar.split("|")
    return parser
