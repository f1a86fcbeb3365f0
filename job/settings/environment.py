"""Environment and flags -> Settings, or one message that lists every problem.

pydantic-settings reads and checks the values. This room adds what it leaves out: names that nobody reads
(a misspelt variable is otherwise ignored), empty values, one answer to all problems at once, and where each value
came from.
"""

import argparse
import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NoReturn, get_args

from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails
from pydantic_settings import CliSettingsSource

from job.errors import InvalidSettings
from job.model.backbones import BACKBONES
from job.redaction import redacted_value
from job.settings.settings import PREFIX, Settings, group_of, variable

NOT_SETTINGS = frozenset({f"{PREFIX}TEST_DATA", f"{PREFIX}TEST_GCS"})
"""Variables of the test suite; a person who has exported them may still start a run."""

_RULES = {
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_parsing": "must be a number",
    "finite_number": "must be a finite number",
    "bool_parsing": "must be true or false",
}


Origin = Literal["default", "environment", "flag"]


@dataclass(frozen=True)
class Resolved:
    """Settings, the origin of each by field, and what the parser's own options were given."""

    settings: Settings
    origins: Mapping[str, Origin]
    options: argparse.Namespace


class Parser(argparse.ArgumentParser):
    """Raises argparse.ArgumentError, where argparse would end the process."""

    def __init__(self, **options: Any) -> None:
        super().__init__(
            formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=34, width=110),
            exit_on_error=False,
            allow_abbrev=False,
            **options,
        )

    def error(self, message: str) -> NoReturn:
        raise argparse.ArgumentError(None, message)


def read_settings(argv: Sequence[str], environ: Mapping[str, str]) -> Settings:
    """The settings of flags over environment over defaults. Raises as `resolve` does."""
    return resolve(argv, environ, Parser(prog="python -m job")).settings


def resolve(argv: Sequence[str], environ: Mapping[str, str], parser: Parser) -> Resolved:
    """Read flags over environment over defaults; `parser` may bring options of its own, which are no settings.

    Nothing else is read: what is not in `environ` is not set.
    Raises InvalidSettings with every problem found, SystemExit(0) after `--help`.
    """
    problems = list(_problems_of_names(environ))
    settings: Settings | None = None
    source: CliSettingsSource[Any] | None = None
    given: Mapping[str, Any] = {}
    options = argparse.Namespace()
    try:
        source = _flags(argv, parser, options, problems)
        given = source()
    except argparse.ArgumentError as error:
        problems.append(str(error))
    problems += [f"{_flag(field)}='': is empty; leave it out" for field, text in given.items() if text == ""]
    try:
        values = {field: environ[variable(field)] for field in Settings.model_fields if variable(field) in environ}
        settings = Settings(_cli_settings_source=source, **values)  # type: ignore[call-arg, arg-type]
    except ValidationError as error:
        problems += [_problem_of_value(details, given) for details in error.errors() if _has_value(details)]
    if settings is None or problems:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise InvalidSettings(
            f"{count} with the settings; nothing was started.\n" + "\n".join(f"  {line}" for line in problems),
            hint=f"{parser.prog} --help lists every setting with its unit and default",
        )
    return Resolved(settings, {field: _origin(field, given, environ) for field in Settings.model_fields}, options)


def _origin(field: str, given: Mapping[str, Any], environ: Mapping[str, str]) -> Origin:
    if field in given:
        return "flag"
    return "environment" if variable(field) in environ else "default"


def _flags(
    argv: Sequence[str], parser: Parser, options: argparse.Namespace, problems: list[str]
) -> CliSettingsSource[Any]:
    """The flags as a source of settings; the parser's own go to `options`, unknown ones to `problems`."""
    groups: dict[str, argparse._ArgumentGroup] = {}
    fields = {_flag(field) for field in Settings.model_fields}

    def add_argument(_: argparse._ActionsContainer, *names: str, **settings: Any) -> argparse.Action:
        field = names[0].lstrip("-").replace("-", "_")
        group = group_of(field)
        container = groups.setdefault(group, parser.add_argument_group(group))
        return container.add_argument(*names, **settings | _help_of(field))

    def parse(_: argparse.ArgumentParser, words: Sequence[str] | None = None) -> argparse.Namespace:
        namespace, unknown = parser.parse_known_args(words)
        for name in [name for name in vars(namespace) if _flag(name) not in fields]:
            setattr(options, name, vars(namespace).pop(name))
        known = fields | {_flag(name) for name in vars(options)}
        problems.extend(problems_of_words(unknown, known, "settings are given as --name value"))
        return namespace

    return CliSettingsSource(
        Settings,
        cli_parse_args=list(argv),
        cli_prog_name=parser.prog,
        cli_kebab_case=True,
        cli_avoid_json=True,
        cli_hide_none_type=True,
        cli_exit_on_error=False,
        root_parser=parser,
        parse_args_method=parse,
        add_argument_method=add_argument,
    )


def problems_of_words(unknown: Sequence[str], flags: Iterable[str], expected: str) -> Iterator[str]:
    """What is wrong with the words that a parser did not know."""
    candidates, previous = list(flags), ""
    for word in unknown:
        if word.startswith("-"):
            flag = word.partition("=")[0]
            yield f"{flag}: no such flag{nearest(flag, candidates)}"
        elif not previous.startswith("-"):
            yield f"{redacted_value(word)!r}: unexpected; {expected}"
        previous = word


def _flag(field: str) -> str:
    return "--" + field.lower().replace("_", "-")


def _help_of(field: str) -> dict[str, str]:
    info = Settings.model_fields[field]
    text = info.description or ""
    if "[default:" not in text:
        text += f" [default: {_default(info)}]"
    return {"help": text.replace("%", "%%"), "metavar": _metavar(info)}


def _metavar(info: FieldInfo) -> str:
    choices = [choice for choice in get_args(info.annotation) if isinstance(choice, str)]
    if choices:
        return "|".join(choices)
    types = {kind for kind in (get_args(info.annotation) or (info.annotation,)) if kind is not type(None)}
    names = {int: "INT", float: "NUMBER", bool: "true|false"}
    return next((names[kind] for kind in types if kind in names), "TEXT")


def _default(info: FieldInfo) -> str:
    return str(info.default).lower() if isinstance(info.default, bool) else f"{info.default}"


def _problems_of_names(environ: Mapping[str, str]) -> Iterator[str]:
    known = [variable(field) for field in Settings.model_fields]
    for name, value in sorted(environ.items()):
        if not name.upper().startswith(PREFIX) or name in NOT_SETTINGS:
            continue
        if name not in known:
            if name.startswith((f"{PREFIX}PORT", f"{PREFIX}SERVICE_")):
                way_out = "; Kubernetes adds it for a Service: set enableServiceLinks: false in the pod"
            else:
                way_out = nearest(name.upper(), known)
            # Without its value: what it means is not known, and it may be a secret.
            yield f"{name}: no such setting{way_out}"
        elif not value.strip():
            default = _default(Settings.model_fields[name.removeprefix(PREFIX).lower()])
            yield f"{name}={value!r}: is empty; give a value, or unset it to get the default ({default})"


def _has_value(details: ErrorDetails) -> bool:
    """Empty values are already reported by name."""
    return not (isinstance(details["input"], str) and not details["input"].strip())


def _problem_of_value(details: ErrorDetails, given: Mapping[str, Any]) -> str:
    field = str(details["loc"][0])
    shown = _flag(field) if field in given else variable(field)
    kind = details["type"]
    if kind == "value_error":
        rule = redacted_value(str(details["ctx"]["error"]))
    elif kind == "string_pattern_mismatch":
        rule = f"must match {details['ctx']['pattern']} ({Settings.model_fields[field].description})"
    else:
        rule = _RULES.get(kind, details["msg"].replace("Input should be", "must be"))
    choices: Sequence[str] = list(BACKBONES) if field == "backbone" else _choices(field)
    given_value = str(details["input"])
    return f"{shown}={redacted_value(given_value)!r}: {rule}{nearest(given_value, choices)}"


def _choices(field: str) -> list[str]:
    return [choice for choice in get_args(Settings.model_fields[field].annotation) if isinstance(choice, str)]


def nearest(word: str, candidates: Iterable[str]) -> str:
    """The end of a sentence that proposes the candidate most like a word, or nothing when none is."""
    by_folded = {candidate.lower(): candidate for candidate in candidates}
    matches = difflib.get_close_matches(word.lower(), list(by_folded), n=1, cutoff=0.5)
    return f"; did you mean {by_folded[matches[0]]}?" if matches else ""
