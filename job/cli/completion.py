"""`thaw completion`: a script for a shell, made from the options of every command."""

import shlex
import sys
from pathlib import Path
from typing import Annotated, Literal

import shtab

from job import cli
from job.cli.arguments import PROGRAM, CommandOptions, Flag, Parser
from job.cli.tables import writing
from job.errors import ExitCode
from job.model.backbones import BACKBONES

ROOT = Path(__file__).parents[2]


class Options(CommandOptions):
    """To use it: eval "$(bin/thaw completion bash)", or in fish: bin/thaw completion fish | source. The shell then has
    the command thaw, which is this program, and completes its commands and flags.
    """

    shell: Annotated[Literal["bash", "zsh", "fish"], Flag("bash, zsh or fish", metavar="bash|zsh|fish", is_word=True)]


def answer(options: Options) -> ExitCode:
    """Print the script."""
    root = _with_values(cli.parser_of("run"))
    root.prog = PROGRAM
    commands = root.add_subparsers()
    for name, summary in cli.COMMANDS.items():
        commands.add_parser(name, parents=[_with_values(cli.parser_of(name))], help=summary, add_help=False)
    with writing():
        program = f"env PYTHONPATH={shlex.quote(str(ROOT))} {shlex.quote(sys.executable)} -P -m job"
        if options.shell == "fish":
            print(f"function {PROGRAM}; {program} $argv; end")
        else:
            print(f'{PROGRAM}() {{ {program} "$@"; }}')
        print(shtab.complete(root, shell=options.shell), flush=True)
    return ExitCode.COMPLETE


def _with_values(parser: Parser) -> Parser:
    """The same parser, with what completes the value of each option, as its name and its metavar say."""
    for action in parser.actions:
        metavar = str(action.metavar)
        if any(part in f"{action.dest.upper()} {metavar}" for part in ("DIR", "FILE", "URI")):
            action.complete = shtab.FILE  # type: ignore[attr-defined]
        elif action.dest == "backbone":
            action.choices = list(BACKBONES)
        elif "|" in metavar:
            action.choices = metavar.split("|")
    return parser
