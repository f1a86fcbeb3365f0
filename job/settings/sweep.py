"""A sweep: a file with a row of settings for each of several runs, and an index that picks the row of this process.

    # two learning rates, each with two seeds
    THAW_FINE_TUNE_LEARNING_RATE=1e-5 THAW_SEED=0
    THAW_FINE_TUNE_LEARNING_RATE=1e-5 THAW_SEED=1
    THAW_FINE_TUNE_LEARNING_RATE=3e-5 THAW_SEED=0
    THAW_FINE_TUNE_LEARNING_RATE=3e-5 THAW_SEED=1

A line is a row, counted from 0, as it would stand in front of a command in a shell; blank lines and comments are none.
Each row is a run. Its name has the fingerprint of its settings, and not the number of the row: rows can be added,
removed and moved, and those that are done stay done. Every start checks all rows, so that a wrong one is refused before
any trains.
"""

import io
import itertools
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from job.redaction import redacted_value
from job.settings import environment
from job.settings.environment import INDEX, Given
from job.settings.fields import PREFIX, variable
from job.settings.settings import Settings, changes_result

MAX_ROWS = 1024
FIELDS = frozenset({"run_id", "data_dir"} | {field for field in Settings.model_fields if changes_result(field)})
"""What a row may have: the recipe, and where it differs from others. Operation is that of the whole sweep."""

Row = Mapping[str, Given]


@dataclass(frozen=True)
class Run:
    """A row with what the sweep has in common: its values as they were given, and the settings that they make."""

    given: Row
    settings: Settings


def rows(text: str, place: str, problems: list[str]) -> list[Row]:
    """The values of each row by field; what is wrong is added to `problems`, with its line at `place`."""
    found: list[Row] = []
    num_problems = len(problems)
    for number, line in enumerate(io.StringIO(text), 1):
        try:
            words = _words(line)
        except ValueError as error:
            problems.append(f"{place}:{number}: {str(error).lower()}")
            continue
        if words:
            found.append(_row(words, f"{place}:{number}", problems))
    if not found and len(problems) == num_problems:
        problems.append(f"{place}: has no row")
    if len(found) > MAX_ROWS:
        problems.append(f"{place}: has {len(found):,} rows, expected at most {MAX_ROWS:,}")
    return found


def _words(line: str) -> list[str]:
    """As a shell takes them; a comment begins with a word that begins with #. Raises ValueError."""
    if line.lstrip().startswith("#"):
        return []
    lexer = shlex.shlex(line, posix=True)
    # The lexer's own comments would also begin inside a word, and cut a value off.
    lexer.whitespace_split, lexer.commenters = True, ""
    return list(itertools.takewhile(lambda word: not word.startswith("#"), lexer))


def _row(words: Sequence[str], place: str, problems: list[str]) -> Row:
    named: dict[str, str] = {}
    for word in words:
        name, separator, value = word.partition("=")
        if not separator or not name.startswith(PREFIX):
            problems.append(f"{place}: expected THAW_NAME=value, and values with spaces in quotes")
            break
        if name in named:
            problems.append(f"{place}: {name}: was given before in this row")
        named[name] = value
    values = environment.named_values(((name, it, f"{place}: {name}") for name, it in named.items()), "sweep", problems)
    for field in values.keys() - FIELDS:
        problems.append(f"{values[field].name}: is not of a row, but of the whole sweep: set it outside of the file")
    return {field: value for field, value in values.items() if field in FIELDS}


def runs(common: Row, found: Sequence[Row], problems: list[str]) -> list[Run | None]:
    """The run of each row; None, and a problem, where its settings are wrong or those of an earlier row.

    A row wins over `common`, unless that is a flag. Where only `common` has a run id, the fingerprint is added to it.
    What is wrong with `common` alone is no problem here.
    """
    of_all: list[str] = []
    environment.validated(Settings, common, of_all)
    made: list[Run | None] = []
    first: dict[str, int] = {}
    for number, row in enumerate(found):
        given = {**common, **row, **{field: value for field, value in common.items() if value.origin == "flag"}}
        wrong: list[str] = []
        settings = environment.validated(Settings, given, wrong)
        if settings is not None and settings.run_id is not None and "run_id" not in row:
            name = f"{settings.run_id}-{settings.fingerprint()}"
            given["run_id"] = Given(name, "sweep", f"{given['run_id'].name} with the fingerprint of the row")
            settings = environment.validated(Settings, given, wrong)
        for key in () if settings is None else (settings.fingerprint(), settings.resolved_run_id()):
            if first.setdefault(key, number) != number:
                wrong.append(f"is the same run as row {first[key]}: {key}")
                break
        problems += [f"row {number}: {problem}" for problem in wrong if problem not in of_all]
        made.append(None if settings is None or wrong else Run(given, settings))
    return made


def read(path: str, problems: list[str]) -> list[Row]:
    """The rows of a file. What is wrong is added to `problems`."""
    try:
        text = environment.text_of(path)
    except ValueError as error:
        problems.append(f"{variable('sweep')}={redacted_value(path)!r}: {error}")
        return []
    return rows(text, path, problems)


def chosen(given: Row, environ: Mapping[str, str], problems: list[str]) -> Row:
    """What is given, with the row of this process where it is of a sweep; what is wrong is added to `problems`."""
    if "sweep" not in given:
        if "sweep_index" in given:
            problems.append(f"{given['sweep_index'].name}: is the row of a file that {variable('sweep')} must name")
        return given
    num_problems = len(problems)
    if "sweep_index" not in given and INDEX in environ:
        given = {**given, "sweep_index": Given(environ[INDEX], "environment", INDEX)}
    index = given.get("sweep_index")
    if index is None:
        problems.append(
            f"{given['sweep'].name}: {variable('sweep_index')} does not say which row is that of this start; the pods "
            "of an Indexed Job know it by themselves"
        )
    if has_workers(given):
        problems.append(
            f"{given['workers'].name}={given['workers'].value}: with {variable('sweep')} the index of a pod is that of "
            "its row, and cannot be that of a worker too: a row is a run of one pod"
        )
    found = read(str(given["sweep"].value), problems)
    if len(problems) > num_problems or index is None:
        return given
    made = runs(given, found, problems)
    number = str(index.value)
    # One that is no whole number is refused with the other settings.
    if len(problems) > num_problems or not re.fullmatch("[0-9]{1,9}", number):
        return given
    if int(number) >= len(made):
        problems.append(f"{index.name}={number!r}: must be a row from 0 to {len(made) - 1}")
        return given
    run = made[int(number)]
    return given if run is None else run.given


def has_workers(given: Row) -> bool:
    """Whether several workers are asked for that have nothing but the index of a pod to know which they are."""
    workers, worker = given.get("workers"), given.get("worker")
    is_several = workers is not None and str(workers.value).strip() != "1"
    return is_several and (worker is None or worker.name == INDEX)
