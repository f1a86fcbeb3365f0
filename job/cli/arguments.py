"""The words after `thaw` -> the options of one command, or one message that says what is wrong.

The options of a command are a pydantic model: each field is a flag of the same name, or the words without a flag. What
takes settings takes them all, as flags. argparse reads the words, pydantic checks the values.
"""

import argparse
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, NoReturn, TypeVar, get_args, get_origin

from pydantic import AfterValidator, BaseModel, ConfigDict, model_validator
from pydantic.fields import FieldInfo

from job.errors import ExitCode, InvalidSettings
from job.redaction import redacted_value
from job.settings import environment, sweep, vertex
from job.settings.environment import Given, Origin
from job.settings.fields import LocalPath, variable
from job.settings.settings import Settings, group_of
from job.storage.uri import checked_store

PROGRAM = "thaw"
EXIT_CODES = "exit codes:\n" + "\n".join(f"  {int(code):2}  {code.meaning}" for code in ExitCode)
PRECEDENCE = (
    "Each setting is a flag, a variable, and a line of the file: --batch-size is THAW_BATCH_SIZE.\n"
    "Flags win over the row of a sweep, that over variables, and variables over the file."
)


@dataclass(frozen=True)
class Flag:
    """How an option is given and shown; without a metavar it is a switch."""

    help: str
    metavar: str = ""
    name: str = ""
    """By default that of the field."""
    is_word: bool = False
    """Given without a flag's name."""
    default_of: Callable[[Settings], str] | None = None
    """The default, where the settings give it."""
    setting: str = ""
    """The setting whose value is the default."""


class CommandOptions(BaseModel):
    """The options of a command. The docstring of each is its help."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class SettingsOptions(CommandOptions):
    """Options of a command that takes every setting."""

    settings: Settings
    origins: Mapping[str, Origin] = {}
    """Of the settings that are not left at their defaults, by field."""


class AttemptOptions(SettingsOptions):
    """Options of a command that works for a while, and says how it gets on."""

    verbose: Annotated[bool, Flag("on a terminal, every event with all its facts, as elsewhere")] = False
    quiet: Annotated[bool, Flag("only warnings, errors and the result")] = False

    @model_validator(mode="after")
    def _one_of_two(self) -> "AttemptOptions":
        if self.verbose and self.quiet:
            raise ValueError("--verbose: not allowed with --quiet")
        return self


Place = Annotated[str, AfterValidator(checked_store)]
RunPlace = Annotated[
    Place,
    Flag("the run's place [default: the run that THAW_* describes]", metavar="URI/RUN-ID", default_of=Settings.run_uri),
]
CacheDir = Annotated[
    LocalPath | None, Flag("folder for temporary files [default: THAW_CACHE_DIR]", metavar="DIR", setting="cache_dir")
]
AsJson = Annotated[bool, Flag("for programs: JSON on standard output", name="--json")]

Options = TypeVar("Options", bound=CommandOptions)


class Parser(argparse.ArgumentParser):
    """Raises argparse.ArgumentError, where argparse would end the process."""

    def __init__(self, **options: Any) -> None:
        super().__init__(
            formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=34, width=110),
            exit_on_error=False,
            allow_abbrev=False,
            argument_default=argparse.SUPPRESS,
            **options,
        )

    @property
    def actions(self) -> Sequence[argparse.Action]:
        """Every flag and word, in the order of the help."""
        return self._actions

    def error(self, message: str) -> NoReturn:
        raise argparse.ArgumentError(None, message)


def read(parser: Parser, options: type[Options], words: Sequence[str], environ: Mapping[str, str]) -> Options:
    """The options that the words give, and the environment and a file where they are settings.

    Raises InvalidSettings with every problem found, SystemExit(0) after `--help`.
    """
    flags, takes_settings = flags_of(options), issubclass(options, SettingsOptions)
    problems: list[str] = []
    missing = {field: f"{_shown(field, it)}: is missing ({it.help.partition(';')[0]})" for field, it in flags.items()}
    given = _given(parser, words, flags, problems, missing)
    derived = {field: flag.default_of for field, flag in flags.items() if flag.default_of and field not in given}
    # A question about a run that is named does not depend on the variables of another one.
    needs_settings = takes_settings or bool(derived)
    num_problems_of_words = len(problems)
    variables: dict[str, Given] = {}
    for path in given.pop("env_file").value if "env_file" in given else ():
        variables |= environment.from_file(path, problems)
    variables |= environment.from_environment(environ, problems if needs_settings else [])
    chosen = variables | {field: given.pop(field) for field in [*given] if field not in flags}
    given = {field: variables[flag.setting] for field, flag in flags.items() if flag.setting in variables} | given
    values: dict[str, Any] = {}
    if needs_settings:
        chosen = {**vertex.place(environ, chosen, problems), **chosen}
        chosen = dict(sweep.chosen(chosen, environ, problems))
        settings = environment.validated(Settings, chosen, problems)
        values = {field: default_of(settings) if settings else None for field, default_of in derived.items()}
        if takes_settings:
            values |= {"settings": settings, "origins": {field: value.origin for field, value in chosen.items()}}
    has_wrong_settings = len(problems) > num_problems_of_words
    found = environment.validated(options, given, problems, missing=missing, others=values)
    if found is not None and not problems:
        return found
    command = parser.prog.removeprefix(f"{PROGRAM} ")
    lines = "\n".join(f"{command}: {line}" for line in problems)
    message = environment.message_of(problems) if takes_settings else lines
    hint = f"{parser.prog if takes_settings or not has_wrong_settings else PROGRAM} --help"
    if takes_settings or has_wrong_settings:
        hint += " lists every setting with its unit and default"
    raise InvalidSettings(message, hint=hint)


def add_options(parser: Parser, options: type[CommandOptions]) -> None:
    """Add a flag for each option, and for each setting where the command takes them."""
    flags = flags_of(options)
    for field, flag in flags.items():
        text = flag.help.replace("%", "%%")
        if flag.is_word:
            many = "*" if get_origin(options.model_fields[field].annotation) is tuple else "?"
            parser.add_argument(field, nargs=many, metavar=flag.metavar, help=text)
        elif flag.metavar:
            parser.add_argument(_shown(field, flag), dest=field, metavar=flag.metavar, help=text)
        else:
            parser.add_argument(_shown(field, flag), dest=field, action="store_true", help=text)
    takes_settings = issubclass(options, SettingsOptions)
    if takes_settings or any(flag.default_of or flag.setting for flag in flags.values()):
        parser.add_argument(
            "--env-file", action="append", metavar="FILE",
            help="file of settings, one THAW_NAME=value a line; may be repeated, and later files win",
        )  # fmt: skip
    if not takes_settings:
        return
    parser.usage = parser.format_usage().removeprefix("usage: ").rstrip() + " [settings]"
    groups: dict[str, argparse._ArgumentGroup] = {}
    for field, info in Settings.model_fields.items():
        name = group_of(field)
        if name not in groups:
            groups[name] = parser.add_argument_group(name)
        text = info.description or ""
        if "[default:" not in text:
            text += f" [default: {environment.default_text(info)}]"
        groups[name].add_argument(_flag(field), dest=field, metavar=_metavar(info), help=text.replace("%", "%%"))


def flags_of(options: type[CommandOptions]) -> dict[str, Flag]:
    """How each option of a command's own is given, by field."""
    return {
        field: flag for field, info in options.model_fields.items() for flag in info.metadata if isinstance(flag, Flag)
    }


def described(summary: str, options: type[CommandOptions]) -> str:
    """The beginning of a command's help."""
    text = " ".join((options.__doc__ or "").split())
    return textwrap.fill(f"{summary[0].upper()}{summary[1:]}. {text}", width=108)


def _given(
    parser: Parser, words: Sequence[str], flags: Mapping[str, Flag], problems: list[str], missing: dict[str, str]
) -> dict[str, Given]:
    """What the words say, by field; nothing when argparse cannot read them.

    What is given, but wrong, is added to `problems` and removed from `missing`.
    """
    try:
        namespace, unknown = parser.parse_known_intermixed_args(words)
    except argparse.ArgumentError as error:
        # argparse would show the value of a switch that takes none.
        message = "takes no value" if "explicit argument" in error.message else error.message
        problems.append(f"{error.argument_name}: {message}" if error.argument_name else message)
        missing.clear()
        return {}
    names = [name for action in parser.actions for name in action.option_strings if name.startswith("--")]
    previous = ""
    for word in unknown:
        if word.startswith("-"):
            name = word.partition("=")[0]
            field = name.removeprefix("--").replace("-", "_")
            hint = environment.nearest(name, names)
            if field in Settings.model_fields and "--env-file" in names:
                hint = f"; it is a setting: give it as {variable(field)}, or in an --env-file"
            problems.append(f"{name}: no such flag{hint}")
        elif not previous.startswith("-"):
            problems.append(f"{redacted_value(word)!r}: unexpected; options are given as --name value")
        previous = word
    given = {}
    for field, value in vars(namespace).items():
        name = _shown(field, flags[field]) if field in flags else _flag(field)
        if isinstance(value, str) and not value.strip():
            problems.append(f"{name}={value!r}: is empty; expected a value")
            missing.pop(field, None)
        elif value != []:
            given[field] = Given(value, "flag", name)
    return given


def _shown(field: str, flag: Flag) -> str:
    return flag.metavar if flag.is_word else flag.name or _flag(field)


def _flag(field: str) -> str:
    return "--" + field.replace("_", "-")


def _metavar(info: FieldInfo) -> str:
    if texts := environment.choices(info):
        return "|".join(texts)
    types = {kind for kind in (get_args(info.annotation) or (info.annotation,)) if kind is not type(None)}
    names = {int: "INT", float: "NUMBER", bool: "true|false"}
    return next((names[kind] for kind in types if kind in names), "TEXT")
