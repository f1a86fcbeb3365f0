"""Flags, environment and a file of settings -> Settings, or one message that lists every problem.

pydantic checks the values. This module adds names that are no setting (a misspelt variable would otherwise be ignored),
empty values, all problems at once, and where each value came from. What is not a setting is never shown with its value:
it may be a secret.
"""

import difflib
import io
import re
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, TypeVar, get_args

from dotenv.parser import parse_stream
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from job.errors import InvalidSettings
from job.model.backbones import BACKBONES
from job.paths import expanded
from job.redaction import redacted_value
from job.settings.fields import PREFIX, variable
from job.settings.settings import Settings

NOT_SETTINGS = frozenset({f"{PREFIX}TEST_DATA", f"{PREFIX}TEST_GCS"})
"""Variables of the test suite; a person who has exported them may still start a run."""

INDEX = "JOB_COMPLETION_INDEX"
"""Kubernetes sets it in every pod of an Indexed Job."""

MAX_FILE_BYTES = 1_000_000

_RULES = {
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_parsing": "must be a number",
    "finite_number": "must be a finite number",
    "bool_parsing": "must be true or false",
}

Origin = Literal["default", "Vertex AI", "file", "environment", "sweep", "flag"]
"""Later ones win over earlier ones."""
Model = TypeVar("Model", bound=BaseModel)


@dataclass(frozen=True)
class Given:
    """A value as it was given, where, and under which name, for example `--seed` or `a.env:3: THAW_SEED`."""

    value: Any
    origin: Origin
    name: str


def read_settings(environ: Mapping[str, str]) -> Settings:
    """The settings of an environment over defaults. Raises InvalidSettings with every problem found.

    Nothing else is read: what is not in `environ` is not set.
    """
    problems: list[str] = []
    settings = validated(Settings, from_environment(environ, problems), problems)
    if settings is None or problems:
        raise InvalidSettings(message_of(problems), hint="thaw --help lists every setting with unit and default")
    return settings


def message_of(problems: list[str]) -> str:
    """The message that has them all."""
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    return f"{count} with the settings; nothing was started.\n" + "\n".join(f"  {line}" for line in problems)


def from_environment(environ: Mapping[str, str], problems: list[str]) -> dict[str, Given]:
    """The values of THAW_* by field; what is wrong with names is added to `problems`."""
    named = {name: value for name, value in environ.items() if name.upper().startswith(PREFIX)}
    values = named_values(((name, value, name) for name, value in sorted(named.items())), "environment", problems)
    if "workers" in values and "worker" not in values and INDEX in environ:
        # Without workers, the pods of an Indexed Job are runs of their own, of which a sweep may have a row for each.
        values["worker"] = Given(environ[INDEX], "environment", INDEX)
    return values


def from_file(path: str, problems: list[str]) -> dict[str, Given]:
    """The values by field of a file of KEY=value lines; what is wrong with it is added to `problems`.

    Blank lines, comments that begin with #, and quotes round a value are allowed; nothing is expanded.
    """
    try:
        text = text_of(path)
    except ValueError as error:
        problems.append(f"--env-file={redacted_value(path)!r}: {error}")
        return {}
    found: dict[str, tuple[str, str]] = {}
    for binding in parse_stream(io.StringIO(text)):
        lines = binding.original.string
        blank = lines[: len(lines) - len(lines.lstrip())].count("\n")
        place = f"{path}:{binding.original.line + blank}"
        if not lines.strip() or lines.strip().startswith("#"):
            continue
        if binding.key is None or binding.value is None or not re.fullmatch(r"\w+", binding.key):
            problems.append(f"{place}: is not a line of the form KEY=value")
        elif not binding.key.upper().startswith(PREFIX):
            # Not shown: a line of a key in base64 looks like a name too.
            problems.append(f"{place}: no such setting: its name does not begin with {PREFIX}")
        elif binding.key in found:
            problems.append(f"{place}: {binding.key}: was given before, at {found[binding.key][1]}")
        else:
            found[binding.key] = (binding.value, place)
    return named_values(((name, value, f"{place}: {name}") for name, (value, place) in found.items()), "file", problems)


def text_of(path: str) -> str:
    """The text of a small file. Raises ValueError, which says why there is no text."""
    place = expanded(path)
    try:
        # Opening a named pipe would wait for its other end.
        if not stat.S_ISREG(place.stat().st_mode):
            raise ValueError("is not a file")
        with place.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ValueError(error.strerror) from error
    if len(data) > MAX_FILE_BYTES:
        raise ValueError(f"is larger than {MAX_FILE_BYTES:,} bytes")
    if b"\0" in data:
        raise ValueError("is not text")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError("is not text in UTF-8") from None


def named_values(found: Iterable[tuple[str, str, str]], origin: Origin, problems: list[str]) -> dict[str, Given]:
    """The values by field, of variables with their values and the names to show."""
    fields = {variable(field): field for field in Settings.model_fields}
    values = {}
    for name, value, shown in found:
        if name in NOT_SETTINGS:
            continue
        if name not in fields:
            hint = nearest(name.upper(), fields)
            if name.startswith((f"{PREFIX}PORT", f"{PREFIX}SERVICE_")):
                hint = "; Kubernetes adds it for a Service: set enableServiceLinks: false in the pod"
            problems.append(f"{shown}: no such setting{hint}")
        elif not value.strip():
            default = default_text(Settings.model_fields[fields[name]])
            problems.append(
                f"{shown}={value!r}: is empty; give a value, or leave it out to get the default ({default})"
            )
        else:
            values[fields[name]] = Given(value, origin, shown)
    return values


def validated(
    model: type[Model],
    given: Mapping[str, Given],
    problems: list[str],
    *,
    missing: Mapping[str, str] = MappingProxyType({}),
    others: Mapping[str, Any] = MappingProxyType({}),
) -> Model | None:
    """The model of the values given and of others, or None when some are wrong, which is added to `problems`.

    `missing` is, by field, the problem of a value that has no default and is not there; without it there is none.
    """
    try:
        return model.model_validate({field: value.value for field, value in given.items()} | dict(others))
    except ValidationError as error:
        for details in error.errors():
            field = str(details["loc"][0]) if details["loc"] else ""
            if details["type"] == "missing":
                problems += [missing[field]] if field in missing else []
            elif field in given or (field in model.model_fields and field not in others):
                name = given[field].name if field in given else variable(field)
                problems.append(f"{name}={_problem(details, field, model.model_fields[field])}")
            elif not field:
                problems.append(str(details["ctx"]["error"]))
        return None


def _problem(details: ErrorDetails, field: str, info: FieldInfo) -> str:
    kind = details["type"]
    if kind == "value_error":
        rule = redacted_value(str(details["ctx"]["error"]))
    elif kind == "string_pattern_mismatch":
        rule = f"must match {details['ctx']['pattern']} ({info.description})"
    else:
        rule = _RULES.get(kind, details["msg"].replace("Input should be", "must be"))
    value = str(details["input"])
    known = BACKBONES if field == "backbone" else choices(info)
    return f"{redacted_value(value)!r}: {rule}{'' if value in known else nearest(value, known)}"


def choices(info: FieldInfo) -> list[str]:
    """The texts that a field takes, when they are few."""
    return [choice for choice in get_args(info.annotation) if isinstance(choice, str)]


def default_text(info: FieldInfo) -> str:
    """The default of a field as a person would write it."""
    return str(info.default).lower() if isinstance(info.default, bool) else f"{info.default}"


def nearest(word: str, candidates: Iterable[str]) -> str:
    """The end of a sentence that proposes the candidate most like a word, or nothing when none is."""
    by_folded = {candidate.lower(): candidate for candidate in candidates}
    matches = difflib.get_close_matches(word.lower(), list(by_folded), n=1, cutoff=0.5)
    return f"; did you mean {by_folded[matches[0]]}?" if matches else ""
