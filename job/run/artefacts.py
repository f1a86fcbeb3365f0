"""What a finished run leaves for its readers: model and report, under names that every attempt shares.

They are the only objects that a later attempt writes again, so an attempt that has lost the run could write over
the winner's. The order prevents it:

1. Read the generation of each name.
2. Compare-and-swap the record: from here on a rival's claim shows.
3. Write each name on the condition of its generation. A refusal means that somebody wrote it in between: if a
   compare-and-swap proves that the run is still ours, it was a process that has lost it, and we write again.

A rival that takes the run after step 2 read its own generations later than we did, or finds our write in its way,
proves the run its own, and writes over ours. So what the attempt that finishes wrote is what stays, and its record
names each file with size and SHA-256. A reader verifies a file against the record before it looks inside.

This module does not know what the files contain.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from job.errors import InputError, ObjectDamaged, ObjectMissing, PreconditionFailed, StorageError
from job.run.record import RunRecord
from job.schema import CheckpointEntry, Record, StoredFile
from job.storage import ObjectStore

PREFIXES = ("model/", "report/", "logs/")
WRITE_TRIES = 5
READ_TRIES = 2


class Artefacts:
    """The files of a finished run, for an attempt that holds it; made before the record says `export`.

    `files` are those that were written, by name.
    """

    def __init__(self, store: ObjectStore, record: RunRecord, *, names: Sequence[str]) -> None:
        self._store = store
        self._record = record
        self._generations = {name: store.generation(name) for name in names}
        self.files: dict[str, StoredFile] = {}

    def write(self, name: str, path: Path) -> None:
        """Put a file where readers expect it. Raises Superseded when another attempt holds the run."""
        for _ in range(WRITE_TRIES):
            try:
                digest = self._store.upload(name, path, if_generation=self._generations[name])
            except PreconditionFailed:
                self._record.update()
                self._generations[name] = self._store.generation(name)
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
    # More than once: what is called damaged must be damaged where it is kept, not on its way here.
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
