"""The curves of a run for TensorBoard, while it trains: after each epoch the event files are written anew.

When the run is exported they are written once more, with the same content, and the record names them. An attempt that
has lost the run may still write them before that: then `artefacts` finds that they changed, and writes over them.
Afterwards it cannot, because it states the version that it saw last.
"""

import contextlib
from collections.abc import Sequence
from pathlib import Path

from job.errors import PreconditionFailed, StorageError
from job.report import tensorboard
from job.run.record import RunRecord
from job.schema import EpochResult
from job.storage import ObjectStore


class Curves:
    """Writes the curves of one attempt, which holds the run when this is made. `folder` is for temporary files."""

    def __init__(self, store: ObjectStore, record: RunRecord, folder: Path) -> None:
        self._store = store
        self._record = record
        self._folder = folder
        self._versions = {name: store.version(name) for name in tensorboard.NAMES}

    def write(self, history: Sequence[EpochResult]) -> None:
        """Write those of all epochs so far; if the store or the disk fails, the next epoch does. Raises Superseded."""
        with contextlib.suppress(StorageError):
            for name, path in tensorboard.event_files(history, self._folder):
                try:
                    self._versions[name] = self._store.write(name, path.read_bytes(), if_version=self._versions[name])
                except PreconditionFailed:
                    # By an attempt that has lost the run to this one, or the other way round, which is an error here.
                    self._record.update()
                    self._versions[name] = self._store.version(name)
