"""Environment and flags -> Settings, or one message that lists every problem.

pydantic-settings reads and checks the values. This room adds what it leaves out: names that nobody reads
(a misspelt variable is otherwise ignored), empty values, and one answer to all problems at once.
"""

import argparse
import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails
from pydantic_settings import CliSettingsSource

from job.backbones import BACKBONES
from job.errors import InvalidSettings
from job.settings import PREFIX, Settings, checked_store, group_of, variable

NOT_SETTINGS = frozenset({f"{PREFIX}TEST_DATA", f"{PREFIX}TEST_GCS"})
"""Variables of the test suite; a person who has exported them may still start a run."""

_RULES = {
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_parsing": "must be a number",
    "finite_number": "must be a finite number",
    "bool_parsing": "must be true or false",
}


@dataclass(frozen=True)
class Command:
    """What the program was asked to do: one attempt at a run, or to fill a mirror."""

    settings: Settings
    mirror_to: str | None = None


def read_command(argv: Sequence[str], environ: Mapping[str, str]) -> Command:
    """The command and its settings. Raises InvalidSettings, SystemExit(0) after `--help`."""
    if list(argv[:1]) != ["mirror"]:
        return Command(read_settings(argv, environ))
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--to", default="")
    try:
        namespace, rest = parser.parse_known_args(argv[1:])
    except argparse.ArgumentError as error:
        raise InvalidSettings(str(error), hint="python -m job mirror --to gs://bucket/prefix") from error
    settings = read_settings(rest, environ)
    if not namespace.to:
        raise InvalidSettings(
            "mirror: it is not said where to",
            hint="python -m job mirror --to gs://bucket/prefix, with settings as flags",
        )
    try:
        return Command(settings, mirror_to=checked_store(namespace.to))
    except ValueError as error:
        raise InvalidSettings(f"--to={namespace.to!r}: {error}") from error


def read_settings(argv: Sequence[str], environ: Mapping[str, str]) -> Settings:
    """The settings of flags over environment over defaults.

    `environ` is looked at for names and empty values; pydantic-settings reads the values themselves.
    Raises InvalidSettings with every problem found, SystemExit(0) after `--help`.
    """
    problems = list(_problems_of_names(environ))
    settings: Settings | None = None
    source: CliSettingsSource[Any] | None = None
    given: Mapping[str, Any] = {}
    try:
        source = _flags(argv, problems)
        given = source()
    except argparse.ArgumentError as error:
        problems.append(str(error))
    problems += [f"{_flag(field)}='': is empty; leave it out" for field, text in given.items() if text == ""]
    try:
        settings = Settings(_cli_settings_source=source)  # type: ignore[call-arg]
    except ValidationError as error:
        problems += [_problem_of_value(details, given) for details in error.errors() if _has_value(details)]
    if settings is None or problems:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise InvalidSettings(
            f"{count} with the settings; nothing was started.\n" + "\n".join(f"  {line}" for line in problems),
            hint="python -m job --help lists every setting with its unit and default",
        )
    return settings


def _flags(argv: Sequence[str], problems: list[str]) -> CliSettingsSource[Any]:
    """The flags as a source of settings; unknown ones are appended to `problems`."""
    parser = argparse.ArgumentParser(
        prog="python -m job",
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=34, width=110),
        usage="python -m job [mirror --to URI] [settings]",
        description="Fine-tune a pre-trained image classifier: one run, safe to start any number of times. "
        "`mirror --to gs://bucket/prefix` puts its data and weights into object storage instead.",
        epilog="Each flag is also an environment variable: --batch-size is THAW_BATCH_SIZE. Flags win. "
        "Exit codes: 0 complete, 2 settings, 3 other run, 4 data or weights, 5 diverged, 6 quality gate, "
        "42 interrupted, 43 superseded, 44 storage.",
        exit_on_error=False,
        allow_abbrev=False,
    )
    groups: dict[str, argparse._ArgumentGroup] = {}

    def add_argument(_: argparse._ActionsContainer, *names: str, **options: Any) -> argparse.Action:
        field = names[0].lstrip("-").replace("-", "_")
        group = group_of(field)
        container = groups.setdefault(group, parser.add_argument_group(group))
        return container.add_argument(*names, **options | _help_of(field))

    def parse(_: argparse.ArgumentParser, words: Sequence[str] | None = None) -> argparse.Namespace:
        namespace, unknown = parser.parse_known_args(words)
        problems.extend(_problems_of_flags(unknown))
        return namespace

    return CliSettingsSource(
        Settings,
        cli_parse_args=list(argv),
        cli_prog_name="python -m job",
        cli_kebab_case=True,
        cli_avoid_json=True,
        cli_hide_none_type=True,
        cli_exit_on_error=False,
        root_parser=parser,
        parse_args_method=parse,
        add_argument_method=add_argument,
    )


def _problems_of_flags(unknown: Sequence[str]) -> Iterator[str]:
    flags = [_flag(field) for field in Settings.model_fields]
    previous = ""
    for word in unknown:
        if word.startswith("-"):
            yield f"{word}: no such flag{_nearest(word.partition('=')[0], flags)}"
        elif not previous.startswith("-"):
            yield f"{word!r}: unexpected; settings are given as --name value"
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
                way_out = _nearest(name.upper(), known)
            yield f"{name}={value!r}: no such setting{way_out}"
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
        rule = str(details["ctx"]["error"])
    elif kind == "string_pattern_mismatch":
        rule = f"must match {details['ctx']['pattern']} ({Settings.model_fields[field].description})"
    else:
        rule = _RULES.get(kind, details["msg"].replace("Input should be", "must be"))
    choices: Sequence[str] = list(BACKBONES) if field == "backbone" else _choices(field)
    return f"{shown}={str(details['input'])!r}: {rule}{_nearest(str(details['input']), choices)}"


def _choices(field: str) -> list[str]:
    return [choice for choice in get_args(Settings.model_fields[field].annotation) if isinstance(choice, str)]


def _nearest(word: str, candidates: Sequence[str]) -> str:
    by_folded = {candidate.lower(): candidate for candidate in candidates}
    matches = difflib.get_close_matches(word.lower(), list(by_folded), n=1, cutoff=0.5)
    return f"; did you mean {by_folded[matches[0]]}?" if matches else ""
