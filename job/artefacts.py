"""What a finished run leaves for its readers: model and report, under names that every attempt shares.

They are the only objects that a later attempt writes again, so an attempt that has lost the run could write over
the winner's. The order prevents it:

1. Read the generation of each name.
2. Compare-and-swap the record: from here on a rival's claim shows.
3. Write each name on the condition of its generation. A refusal means that somebody wrote it in between: if a
   compare-and-swap proves that the run is still ours, it was a process that has lost it, and we write again.

A rival that takes the run after step 2 read its own generations later than we did, or finds our write in its way,
proves the run its own, and writes over ours. This room does not know what the files contain.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from job import scratch
from job.errors import PreconditionFailed, StorageError
from job.record import RunRecord
from job.storage import ObjectStore

WRITE_TRIES = 5


class Artefacts:
    """The files of a finished run, for an attempt that holds it; made before the record says `export`."""

    def __init__(self, store: ObjectStore, record: RunRecord, *, names: Sequence[str]) -> None:
        self._store = store
        self._record = record
        self._generations = {name: store.generation(name) for name in names}

    def write(self, name: str, path: Path) -> None:
        """Put a file where readers expect it. Raises Superseded when another attempt holds the run."""
        for _ in range(WRITE_TRIES):
            try:
                self._store.upload(name, path, if_generation=self._generations[name])
            except PreconditionFailed:
                self._record.update()
                self._generations[name] = self._store.generation(name)
            else:
                return
        raise StorageError(
            f"{self._store.uri}/{name} was written by others {WRITE_TRIES} times in a row",
            hint="stop whatever else writes there, and start the run again: nothing is lost",
        )


def save_json(content: Any, path: Path) -> Path:
    """Write JSON, in which every number is finite, to a temporary file."""
    with scratch.explained(path):
        path.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")
    return path


def save(save_to: Callable[[Path], Any], path: Path) -> Path:
    """Have a temporary file written by a library. Raises ScratchUnavailable when the disk does not take it."""
    with scratch.explained(path):
        save_to(path)
    return path
