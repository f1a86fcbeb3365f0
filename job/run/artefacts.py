"""The results of a finished run: model, logs and report, under names that every attempt shares.

They are the only objects that a later attempt writes again, so an attempt that has lost the run could overwrite
those of the new holder. This order prevents it:

1. Read the version of each name.
2. Compare-and-swap the record: from here on, another attempt that takes the run is noticed.
3. Write each name on the condition of its version. A refusal means that another process wrote it in between. If a
   compare-and-swap then proves that the run is still ours, that process has lost the run, and we write again.

An attempt that takes the run after step 2 read the versions later than we did, or its write is refused because of
ours; it then proves that it holds the run, and overwrites ours. So the files of the attempt that finishes are those
that stay, and its record names each with size and SHA-256. A reader verifies a file against the record before use.

This module does not know what the files contain (see `job.report.export`), and imports no TensorFlow, so that the
commands that verify files stay quick.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from job.errors import InputError, ObjectDamaged, ObjectMissing, PreconditionFailed, StorageError
from job.run.record import RunRecord
from job.schema import CheckpointEntry, Record, StoredFile, problem_of
from job.storage import ObjectStore

CURVES = "logs/"
PREFIXES = ("model/", "report/", CURVES)
WRITE_TRIES = 5
READ_TRIES = 2
MAX_BYTES = 256 << 20
"""Of a file that is read as a whole."""


class Artefacts:
    """Writes the files of a finished run; created before the record's state is `export`. `files`: those written."""

    def __init__(self, store: ObjectStore, record: RunRecord, *, names: Sequence[str]) -> None:
        self._store = store
        self._record = record
        self._versions = {name: store.version(name) for name in names}
        self.files: dict[str, StoredFile] = {}

    def write(self, name: str, path: Path) -> None:
        """Put a file where readers expect it. Raises Superseded when another attempt holds the run."""
        for _ in range(WRITE_TRIES):
            try:
                digest = self._store.upload(name, path, if_version=self._versions[name])
            except PreconditionFailed:
                self._record.update()
                self._versions[name] = self._store.version(name)
            else:
                self.files[name] = StoredFile(size=digest.size, sha256=digest.sha256)
                return
        raise StorageError(
            f"{self._store.uri}/{name} was written by others {WRITE_TRIES} times in a row",
            hint="stop whatever else writes there, and start the run again: nothing is lost",
        )


class Problem(NamedTuple):
    """What is wrong with an object that the record names."""

    condition: Literal["missing", "damaged"]
    text: str


def problem_with(store: ObjectStore, name: str, expected: StoredFile | CheckpointEntry, path: Path) -> Problem | None:
    """Download an object that the record names to `path`; None when every byte is as recorded."""
    problem = None
    # Twice: an object counts as damaged only when it is damaged in the store, and not on its way here.
    for _ in range(READ_TRIES):
        try:
            digest = store.download(name, path)
        except ObjectMissing as error:
            return Problem("missing", error.message)
        except ObjectDamaged as error:
            problem = Problem("damaged", error.message)
            continue
        if (digest.size, digest.sha256) == (expected.size, expected.sha256):
            return None
        problem = Problem(
            "damaged",
            f"{store.uri}/{name} is not what the run wrote: {digest.size} bytes with SHA-256 {digest.sha256[:12]}, "
            f"expected {expected.size} bytes with {expected.sha256[:12]}",
        )
    return problem


def verified_file(store: ObjectStore, record: Record, name: str, path: Path) -> Path:
    """Download a file of a finished run to `path`, and return that. Raises InputError unless it is as recorded."""
    if name not in record.files:
        raise InputError(
            f"the record of run {record.run_id!r} has no digest of {name}, so it cannot be verified: the run was "
            "finished by a version that kept none",
            hint="train it again under another THAW_RUN_ID",
        )
    problem = problem_with(store, name, record.files[name], path)
    if problem is not None:
        raise InputError(problem.text, hint="restore the object, or train the run again under another THAW_RUN_ID")
    return path


def content_of(store: ObjectStore, record: Record, name: str, folder: Path) -> bytes:
    """The content of a file of a finished run; `folder` is for a copy of it.

    Raises InputError when it is not as recorded, or larger than MAX_BYTES; such a one is not fetched.
    """
    if name in record.files and record.files[name].size > MAX_BYTES:
        raise InputError(f"{store.uri}/{name} is larger than {MAX_BYTES:,} bytes")
    return verified_file(store, record, name, folder / Path(name).name).read_bytes()


def said(name: str, error: Exception) -> str:
    """Why the content of a file is of no use, in a line that names it."""
    return error.message if isinstance(error, InputError) else f"{name}: {problem_of(error)}"
