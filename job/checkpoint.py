"""Training state <-> write-once objects.

The order of a commit, and why:

1. Upload under a name that was never used. A crash here leaves an object that no record names: garbage, not harm.
2. Verify: the store compares what it holds with what was sent, and its digest is noted (`ObjectStore.upload`).
3. Compare-and-swap the record. This is the commit: before it the old checkpoint counts, after it the new one.
4. Prune what the record no longer names. A crash before this leaves garbage, which the next prune removes.

A restore goes the other way: from the newest checkpoint that the record names to the oldest, and takes the first
whose bytes have the recorded digest. Those that do not are set aside: named in the record, kept, never used. This
room knows arrays by name; it does not know TensorFlow.
"""

import contextlib
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from job import scratch as temporary
from job.errors import (
    CheckpointDamaged,
    ObjectDamaged,
    ObjectMissing,
    PreconditionFailed,
    StorageError,
    Superseded,
    TrainingDiverged,
)
from job.record import CheckpointEntry, EpochResult, RunRecord, State
from job.storage import MISSING, Digest, ObjectStore

PREFIX = "checkpoints/"

Arrays = Mapping[str, np.ndarray]


class Checkpoints:
    """The checkpoints of one attempt at a run, in step with the record.

    `scratch` is a folder with room for one checkpoint.
    """

    def __init__(self, store: ObjectStore, record: RunRecord, *, keep: int, scratch: Path) -> None:
        self._store = store
        self._record = record
        self._keep = keep
        self._scratch = scratch
        self._entries = list(record.content.checkpoints)
        self._set_aside = list(record.content.set_aside)
        self._num_uploads = 0

    def restore(
        self, on_damaged: Callable[[CheckpointEntry, CheckpointDamaged], None]
    ) -> tuple[CheckpointEntry, dict[str, np.ndarray]] | None:
        """The newest checkpoint that is whole, walking back over damaged ones; None when there is none.

        Damaged ones are set aside: the next commit takes them out of the record's index, and nobody deletes them.
        """
        while self._entries:
            entry = self._entries[-1]
            try:
                arrays = load(self._store, entry, scratch=self._scratch)
            except CheckpointDamaged as error:
                on_damaged(entry, error)
                self._set_aside.append(self._entries.pop())
            else:
                return entry, arrays
        return None

    def commit(
        self,
        arrays: Arrays,
        *,
        state: State,
        phase: str,
        step: int,
        history: Sequence[EpochResult],
    ) -> CheckpointEntry:
        """Make the state after `step` steps of `phase`, and the history so far, what a restart finds.

        When this very step is committed already, nothing is uploaded: only the history is new. Raises TrainingDiverged
        before anything is written, Superseded when another attempt holds the run.
        """
        newest = self._entries[-1] if self._entries else None
        if newest is not None and (newest.phase, newest.step) == (phase, step):
            entry = newest.model_copy(update={"num_epochs": len(history)})
            entries = [*self._entries[:-1], entry]
        else:
            entry = self._upload(arrays, phase, step, num_epochs=len(history))
            entries = retained([*self._entries, entry], keep=self._keep)
        self._record.update(
            state=state,
            checkpoints=tuple(entries),
            set_aside=tuple(self._set_aside),
            history=tuple(history),
        )
        self._entries = entries
        self.prune()
        return entry

    def prune(self) -> None:
        """Delete what the record no longer names. What the store refuses to delete now, a later prune will."""
        with contextlib.suppress(StorageError):
            prune(self._store, [*self._entries, *self._set_aside], attempt=self._record.attempt.number)

    def _upload(self, arrays: Arrays, phase: str, step: int, *, num_epochs: int) -> CheckpointEntry:
        check_finite(arrays, phase, step)
        attempt = self._record.attempt.number
        # The attempt and a count of its uploads make the name one that was never used.
        self._num_uploads += 1
        name = f"{PREFIX}{phase}-{step:08d}-a{attempt}-{self._num_uploads}.safetensors"
        with _temporary_file(self._scratch / "commit.safetensors") as path:
            try:
                save_file({key: np.asarray(array, order="C") for key, array in arrays.items()}, path)
            except SafetensorError as error:
                raise temporary.unavailable(path, str(error), _os_error(error)) from error
            try:
                digest = self._store.upload(name, path, if_generation=MISSING, may_move=True)
            except PreconditionFailed as error:
                raise Superseded(
                    f"{self._store.uri}/{name} exists already: another process writes to this run",
                    hint="nothing is lost: the other attempt carries the run on",
                ) from error
        return CheckpointEntry(
            name=name,
            phase=phase,
            step=step,
            num_epochs=num_epochs,
            size=digest.size,
            sha256=digest.sha256,
            attempt=attempt,
            time=datetime.now(UTC),
        )


def _os_error(error: SafetensorError) -> int | None:
    """The operating system's number of an error, of which safetensors keeps the words alone."""
    match = re.search(r"\(os error (\d+)\)", str(error))
    return int(match[1]) if match else None


def check_finite(arrays: Arrays, phase: str, step: int) -> None:
    """Raise TrainingDiverged when a value of the state is not a finite number."""
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise TrainingDiverged(
                f"{name} is not finite after step {step} of phase {phase}; the last commit stands",
                hint="lower the learning rate of this phase, or set THAW_PRECISION=float32",
            )


def load(store: ObjectStore, entry: CheckpointEntry, *, scratch: Path) -> dict[str, np.ndarray]:
    """The arrays of a checkpoint. Raises CheckpointDamaged unless every byte is as recorded."""
    with _temporary_file(scratch / "restore.safetensors") as path:
        digest = _downloaded(store, entry, path)
        if (digest.size, digest.sha256) != (entry.size, entry.sha256):
            # Once more: what is set aside must be damaged where it is kept, not on its way here.
            digest = _downloaded(store, entry, path)
        if (digest.size, digest.sha256) != (entry.size, entry.sha256):
            raise CheckpointDamaged(
                f"{store.uri}/{entry.name} is damaged: {digest.size} bytes with SHA-256 {digest.sha256[:12]}, "
                f"expected {entry.size} bytes with {entry.sha256[:12]}"
            )
        try:
            return load_file(path)
        except SafetensorError as error:
            raise CheckpointDamaged(f"{store.uri}/{entry.name} is not a checkpoint: {error}") from error


def _downloaded(store: ObjectStore, entry: CheckpointEntry, path: Path) -> Digest:
    try:
        return store.download(entry.name, path)
    except ObjectMissing as error:
        raise CheckpointDamaged(f"{store.uri}/{entry.name} is missing") from error
    except ObjectDamaged as error:
        raise CheckpointDamaged(error.message) from error


@contextlib.contextmanager
def _temporary_file(path: Path) -> Iterator[Path]:
    try:
        with temporary.explained(path):
            yield path
    finally:
        path.unlink(missing_ok=True)


def retained(entries: Sequence[CheckpointEntry], *, keep: int) -> list[CheckpointEntry]:
    """The newest `keep` checkpoints, and the last one of each phase before the newest: a phase boundary."""
    last_of_phase = {entry.phase: entry for entry in entries}
    kept = {entry.name for entry in (*entries[-keep:], *last_of_phase.values())}
    return [entry for entry in entries if entry.name in kept]


def prune(store: ObjectStore, entries: Sequence[CheckpointEntry], *, attempt: int) -> list[str]:
    """Delete the checkpoints of this attempt and earlier ones that the record does not name among `entries`.

    A later attempt's objects are left alone: it may have uploaded one that it has not committed yet.
    """
    named = {entry.name for entry in entries}
    orphans = [name for name in store.list(PREFIX) if name not in named and _attempt_of(name) <= attempt]
    for name in orphans:
        store.delete(name)
    return orphans


def _attempt_of(name: str) -> float:
    """The attempt that wrote an object; infinity for a name that is not ours, which nobody prunes."""
    match = re.search(r"-a(\d+)-\d+\.safetensors$", name)
    return int(match[1]) if match else math.inf
