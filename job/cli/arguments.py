"""The words after `python -m job` -> one command with its arguments, or one message that says what is wrong.

Without a command's name the words are settings of `run`. Commands that take settings take them all, as flags; the
others name a run by its place, which is by default the one that THAW_* describes.
"""

import argparse
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from job.errors import ExitCode, InvalidSettings
from job.redaction import redacted_value
from job.settings.environment import Origin, Parser, Resolved, nearest, problems_of_words, read_settings, resolve
from job.settings.settings import PREFIX, Settings
from job.storage.uri import PLACES, checked_store

PROGRAM = "python -m job"

SUMMARIES = {
    "run": "make one attempt at the run that the settings describe (the default)",
    "plan": "say what a start with these settings would do, and try what it needs; nothing is changed",
    "status": "say how a run is doing",
    "list": "list the runs of a store",
    "predict": "label images with the model of a finished run",
    "verify": "read every object of a run, and compare it with the record",
    "repair": "rebuild the record of a run, run.json, from the checkpoints",
    "mirror": "put the data and weights of the settings into object storage",
}

EXIT_CODES = "exit codes:\n" + "\n".join(f"  {int(code):2}  {code.meaning}" for code in ExitCode)
FLAGS = "Each flag is also an environment variable: --batch-size is THAW_BATCH_SIZE. Flags win."


@dataclass(frozen=True)
class Run:
    """One attempt at a run."""

    settings: Settings


@dataclass(frozen=True)
class Mirror:
    """Fill a mirror at a URI."""

    settings: Settings
    to: str


@dataclass(frozen=True)
class Plan:
    """What a start would do."""

    settings: Settings
    origins: Mapping[str, Origin]
    as_json: bool


@dataclass(frozen=True)
class Status:
    """How the run at a URI is doing."""

    run: str
    watch: bool
    as_json: bool


@dataclass(frozen=True)
class ListRuns:
    """The runs under a URI."""

    storage_uri: str
    as_json: bool


@dataclass(frozen=True)
class Predict:
    """Label images: paths or URIs of files and folders, or `-` for those on standard input.

    Without `batch_size` it is that of the run.
    """

    run: str
    images: tuple[str, ...]
    batch_size: int | None
    cache_dir: Path | None
    as_json: bool


@dataclass(frozen=True)
class Verify:
    """Compare every object of the run at a URI with its record."""

    run: str
    cache_dir: Path | None
    as_json: bool


@dataclass(frozen=True)
class Repair:
    """Rebuild the record of the run at a URI; without `is_confirmed` only what that would do is shown.

    `fingerprint` chooses where checkpoints are of several; empty where nothing is chosen.
    """

    run: str
    is_confirmed: bool
    fingerprint: str
    cache_dir: Path | None
    as_json: bool


Command = Run | Mirror | Plan | Status | ListRuns | Predict | Verify | Repair


def read_command(argv: Sequence[str], environ: Mapping[str, str]) -> Command:
    """The command that `argv` names, with its arguments. Raises InvalidSettings, SystemExit(0) after `--help`."""
    name, words = "run", list(argv)
    if words and not words[0].startswith("-"):
        name = words.pop(0)
    if name not in SUMMARIES:
        raise InvalidSettings(
            f"{redacted_value(name)!r}: no such command{nearest(name, [*SUMMARIES, '--help'])}",
            hint=f"the commands are {', '.join(SUMMARIES)}; {PROGRAM} --help says what they do",
        )
    readers: dict[str, Callable[[Sequence[str], Mapping[str, str]], Command]] = {
        "run": _run, "plan": _plan, "status": _status, "list": _list, "predict": _predict, "verify": _verify,
        "repair": _repair, "mirror": _mirror,
    }  # fmt: skip
    return readers[name](words, environ)


def _run(words: Sequence[str], environ: Mapping[str, str]) -> Run:
    commands = "\n".join(f"  {name:8}  {summary}" for name, summary in SUMMARIES.items())
    parser = Parser(
        prog=PROGRAM,
        usage=f"{PROGRAM} [command] [settings]",
        description="Fine-tune a pre-trained image classifier: one run, safe to start any number of times.\n\n"
        f"commands, each with a --help of its own:\n{commands}\n\nsettings of run, plan and mirror:",
        epilog=f"{FLAGS}\n\n{EXIT_CODES}",
    )
    return Run(resolve(words, environ, parser).settings)


def _mirror(words: Sequence[str], environ: Mapping[str, str]) -> Mirror:
    parser = _parser("mirror", "--to URI [settings]", "What is not here is downloaded first.", epilog=FLAGS)
    parser.add_argument("--to", metavar="URI", default="", help=f"where to: {PLACES}")
    resolved = resolve(words, environ, parser)
    if not resolved.options.to:
        raise InvalidSettings(
            "mirror: it is not said where to",
            hint=f"{PROGRAM} mirror --to gs://bucket/prefix, with settings as flags",
        )
    return Mirror(resolved.settings, _place(resolved.options.to, "--to="))


def _plan(words: Sequence[str], environ: Mapping[str, str]) -> Plan:
    parser = _parser(
        "plan", "[--json] [settings]",
        "The exit code is that of a start that ends at once; 0 when a start would begin, carry on, or find the run "
        "complete. Memory and disk are estimates, and only warned about.",
        epilog=f"{FLAGS}\n\n{EXIT_CODES}",
    )  # fmt: skip
    _add_json(parser)
    resolved: Resolved = resolve(words, environ, parser)
    return Plan(resolved.settings, resolved.origins, resolved.options.json)


def _status(words: Sequence[str], environ: Mapping[str, str]) -> Status:
    parser = _parser("status", "[--run URI/RUN-ID] [--watch | --json]", "State, progress, attempts, and time left.")
    _add_run(parser)
    ways = parser.add_mutually_exclusive_group()
    ways.add_argument("--watch", action="store_true", help="stay, and show what changes until the run is done")
    _add_json(ways)
    options = _read(parser, words)
    return Status(_run_of(options.run, environ), options.watch, options.json)


def _list(words: Sequence[str], environ: Mapping[str, str]) -> ListRuns:
    parser = _parser("list", "[--json] [STORAGE-URI]", "The newest comes first.")
    parser.add_argument(
        "storage_uri",
        nargs="?",
        metavar="STORAGE-URI",
        help=f"{PLACES} [default: THAW_STORAGE_URI]",
    )
    _add_json(parser)
    options = _read(parser, words)
    return ListRuns(_place(options.storage_uri or read_settings((), environ).storage_uri), options.json)


def _predict(words: Sequence[str], environ: Mapping[str, str]) -> Predict:
    parser = _parser(
        "predict", "[--run URI/RUN-ID] [--json] IMAGE|DIR|URI|- [...]",
        "A table of label and probability on a terminal, and JSON lines elsewhere: one for each image, in order. An "
        "image that cannot be read is one with an error; the others go on, and the exit code is then 4.",
    )  # fmt: skip
    parser.add_argument(
        "images", nargs="*", metavar="IMAGE|DIR|URI|-",
        help="image files; folders, also in buckets, searched for image files at any depth; - for paths and URIs on "
        "standard input, one a line or each ended by a zero byte as `find -print0` does",
    )  # fmt: skip
    _add_run(parser)
    parser.add_argument(
        "--batch-size", type=int, metavar="INT", help="images at a time [default: that of the run, at most 64]"
    )
    _add_cache_dir(parser, "folder for the model's copy")
    _add_json(parser)
    options = _read(parser, words)
    if not options.images:
        raise InvalidSettings("predict: no image is named", hint=f"{parser.prog} --run URI/RUN-ID IMAGE|DIR|- [...]")
    if options.batch_size is not None and not 1 <= options.batch_size <= 4096:
        raise InvalidSettings(f"--batch-size={options.batch_size}: must be 1 to 4096", hint=f"{parser.prog} --help")
    return Predict(
        run=_run_of(options.run, environ),
        images=tuple(options.images),
        batch_size=options.batch_size,
        cache_dir=_cache_dir(options, environ),
        as_json=options.json,
    )


def _verify(words: Sequence[str], environ: Mapping[str, str]) -> Verify:
    parser = _parser(
        "verify", "[--run URI/RUN-ID] [--json]",
        "Tells what is missing, damaged, or beside model, report and logs without being named by the record: the exit "
        "code is then 4. Checkpoints that were set aside, or that nothing names any more, are only told.",
    )  # fmt: skip
    _add_run(parser)
    _add_cache_dir(parser, "folder for the copy of an object")
    _add_json(parser)
    options = _read(parser, words)
    return Verify(_run_of(options.run, environ), _cache_dir(options, environ), options.json)


def _repair(words: Sequence[str], environ: Mapping[str, str]) -> Repair:
    parser = _parser(
        "repair", "[--run URI/RUN-ID] [--yes] [--fingerprint HEX] [--json]",
        "Every checkpoint is read and verified, and what would be done is shown; with --yes it is done. A damaged "
        "run.json is kept under another name, and no checkpoint is changed or deleted. Nothing is lost by a kill.",
    )  # fmt: skip
    _add_run(parser)
    parser.add_argument("--yes", action="store_true", help="do it")
    parser.add_argument(
        "--fingerprint", default="", metavar="HEX", help="which settings, where checkpoints of several are there"
    )
    _add_cache_dir(parser, "folder for the copy of a checkpoint")
    _add_json(parser)
    options = _read(parser, words)
    return Repair(
        run=_run_of(options.run, environ),
        is_confirmed=options.yes,
        fingerprint=options.fingerprint,
        cache_dir=_cache_dir(options, environ),
        as_json=options.json,
    )


def _add_cache_dir(parser: Parser, text: str) -> None:
    parser.add_argument("--cache-dir", metavar="DIR", help=f"{text} [default: THAW_CACHE_DIR]")


def _cache_dir(options: argparse.Namespace, environ: Mapping[str, str]) -> Path | None:
    place = options.cache_dir or environ.get(f"{PREFIX}CACHE_DIR")
    return Path(place).expanduser() if place else None


def _parser(command: str, usage: str, description: str, epilog: str = "") -> Parser:
    summary = SUMMARIES[command]
    return Parser(
        prog=f"{PROGRAM} {command}",
        usage=f"{PROGRAM} {command} {usage}",
        description=_filled(f"{summary[0].upper()}{summary[1:]}. {description}"),
        epilog=epilog,
    )


def _filled(text: str) -> str:
    return textwrap.fill(text, width=108)


def _add_run(parser: Parser) -> None:
    parser.add_argument("--run", metavar="URI/RUN-ID", help="the run's place [default: the run that THAW_* describes]")


def _add_json(parser: "Parser | argparse._MutuallyExclusiveGroup") -> None:
    parser.add_argument("--json", action="store_true", help="for programs: JSON on standard output")


def _read(parser: Parser, words: Sequence[str]) -> argparse.Namespace:
    """The options of a command that takes no settings; every problem with its words in one message."""
    try:
        options, unknown = parser.parse_known_intermixed_args(words)
        flags = [f"--{name.replace('_', '-')}" for name in vars(options)]
        problems = list(problems_of_words(unknown, flags, f"see {parser.prog} --help"))
    except argparse.ArgumentError as error:
        problems = [str(error)]
    if problems:
        command = parser.prog.rpartition(" ")[2]
        raise InvalidSettings("\n".join(f"{command}: {line}" for line in problems), hint=f"{parser.prog} --help")
    return options


def _run_of(given: str | None, environ: Mapping[str, str]) -> str:
    if given is not None:
        return _place(given, "--run=")
    settings = read_settings((), environ)
    return f"{settings.storage_uri}/{settings.resolved_run_id()}"


def _place(uri: str, name: str = "") -> str:
    """A URI as given, once it can be one."""
    hint = f"give {PLACES}"
    if not uri.strip():
        raise InvalidSettings(f"{name}{uri!r}: an empty URI names no place", hint=hint)
    try:
        return checked_store(uri)
    except ValueError as error:
        raise InvalidSettings(f"{name}{redacted_value(uri)!r}: {error}", hint=hint) from error
