"""Training state <-> write-once objects.

The order of a commit, with reasons:

1. Upload under a name that was never used. A crash here leaves an object that no record names, which harms nothing.
2. Verify: the store compares what it holds with what was sent, and returns the digest (`ObjectStore.upload`).
3. Compare-and-swap the record. This is the commit: before it the old checkpoint counts, after it the new one.
4. Prune what the record no longer names. A crash before this leaves garbage, which the next prune removes.

A restore tries the checkpoints of the record from the newest to the oldest, and takes the first whose bytes have the
recorded digest. The others are set aside: named in the record, kept, never used.

A checkpoint also describes itself in the metadata of its file, with a checksum of its arrays: a lost record can be
rebuilt from that (`job.cli.repair`). This module knows arrays by name; it does not know TensorFlow.
"""

import contextlib
import re
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file

from job.errors import (
    CheckpointDamaged,
    ObjectDamaged,
    ObjectMissing,
    PreconditionFailed,
    StorageError,
    Superseded,
    TrainingDiverged,
)
from job.run.artefacts import problem_with
from job.run.description import CheckpointName, Description
from job.run.record import OTHER_CARRIES_ON, RunRecord
from job.schema import CHECKPOINTS, CheckpointEntry, EpochResult, Record, problem_of
from job.storage import MISSING, Digest, ObjectStore, scratch
from job.train import schedule

DESCRIPTION, CRC32 = "thaw", "crc32"
"""The keys of the metadata of a checkpoint's file: its description, and a checksum of that and of the arrays."""

UNUSABLE = (SafetensorError, TypeError, AttributeError, ValueError)
"""What safetensors 0.8 raises for another kind of file, and for types of arrays that NumPy does not have."""

Arrays = Mapping[str, np.ndarray]
Restored = tuple[CheckpointEntry, dict[str, np.ndarray]]
OnDamaged = Callable[[CheckpointEntry, CheckpointDamaged], None]


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """The state after `step` steps of a phase, as it was then, with the history so far."""

    arrays: Arrays = field(repr=False)
    phase: str
    step: int
    history: tuple[EpochResult, ...]


class Checkpoints:
    """The checkpoints of one attempt at a run, in step with the record.

    `folder` has space for one checkpoint.
    """

    def __init__(self, store: ObjectStore, record: RunRecord, *, keep: int, folder: Path) -> None:
        self._store = store
        self._record = record
        self._keep = keep
        self._folder = folder
        self._entries = list(record.content.checkpoints)
        self._set_aside = list(record.content.set_aside)
        self._num_uploads = 0

    def restore(self, on_damaged: OnDamaged) -> Restored | None:
        """The newest checkpoint that is whole, walking back over damaged ones; None when there is none.

        Damaged ones are set aside: the next commit takes them out of the record's index, and no prune deletes them.
        """
        while self._entries:
            entry = self._entries[-1]
            try:
                arrays = load(self._store, entry, folder=self._folder)
            except CheckpointDamaged as error:
                on_damaged(entry, error)
                self._set_aside.append(self._entries.pop())
            else:
                return entry, arrays
        return None

    def commit(self, snapshot: Snapshot) -> CheckpointEntry:
        """From now on a restart finds this state and history.

        When this very step is committed already, nothing is uploaded: only the history is new. Raises TrainingDiverged
        before anything is written, Superseded when another attempt holds the run.
        """
        newest = self._entries[-1] if self._entries else None
        if newest is not None and (newest.phase, newest.step) == (snapshot.phase, snapshot.step):
            entry = newest.model_copy(update={"num_epochs": len(snapshot.history)})
            entries = [*self._entries[:-1], entry]
        else:
            entry = self._upload(snapshot)
            entries = [*self._entries, entry]
        best = best_steps(self._record.content, snapshot.history)
        self._update_record(snapshot.phase, retained(entries, keep=self._keep, best=best), snapshot.history)
        self.prune()
        return entry

    def best_entry(self, phase: str, step: int) -> CheckpointEntry:
        """The checkpoint after the best epoch of a phase, which ended with this step; it was committed."""
        for entry in self._entries:
            if (entry.phase, entry.step) == (phase, step):
                return entry
        raise self._train_again_from(phase, step, f"the record has no checkpoint of {phase} step {step}")

    def load_best(self, entry: CheckpointEntry) -> dict[str, np.ndarray]:
        """The arrays of that checkpoint.

        Raises StorageError when it is damaged: from now on the run goes on from the one before it, so that the next
        attempt comes to the same best epoch again.
        """
        try:
            return load(self._store, entry, folder=self._folder)
        except CheckpointDamaged as error:
            self._set_aside.append(entry)
            raise self._train_again_from(entry.phase, entry.step, error.message) from error

    def _train_again_from(self, phase: str, step: int, problem: str) -> StorageError:
        """Forget the checkpoints of a phase from a step on; returns the error that says so."""
        record = self._record.content
        names = [one.name for one in record.phases()]
        entries = [one for one in self._entries if (names.index(one.phase), one.step) < (names.index(phase), step)]
        newest = entries[-1] if entries else None
        history = record.history[: newest.num_epochs if newest else 0]
        self._update_record(newest.phase if newest else "prepare", entries, history)
        return StorageError(
            f"{problem}; it was the best of its phase",
            hint=f"nothing else is lost: the next attempt trains again from {newest.name if newest else 'the start'}",
        )

    def prune(self) -> None:
        """Delete what the record no longer names. What the store fails to delete now, a later prune deletes.

        Three kinds stay: objects of a later attempt, which may have uploaded one that it has not committed yet; those
        of another lineage, which another record wrote; and those whose names are not ours.
        """
        record, attempt = self._record.content, self._record.attempt.number
        named, lineages = {entry.name for entry in (*self._entries, *self._set_aside)}, record.lineages
        with contextlib.suppress(StorageError):
            for name in self._store.list(CHECKPOINTS):
                parts = CheckpointName.parse(name)
                if name not in named and parts is not None and parts.attempt <= attempt and parts.lineage in lineages:
                    self._store.delete(name)

    def _update_record(self, state: str, entries: list[CheckpointEntry], history: tuple[EpochResult, ...]) -> None:
        self._record.update(state=state, checkpoints=tuple(entries), set_aside=tuple(self._set_aside), history=history)
        self._entries = entries

    def _upload(self, snapshot: Snapshot) -> CheckpointEntry:
        arrays, record = snapshot.arrays, self._record.content
        for key, array in arrays.items():
            if not np.isfinite(array).all():
                raise TrainingDiverged(
                    f"{key} is not finite after step {snapshot.step} of phase {snapshot.phase}; the last commit stands",
                    hint="lower the learning rate of this phase, or set THAW_PRECISION=float32",
                )
        description = Description(
            run_id=record.run_id,
            fingerprint=record.fingerprint,
            settings=record.settings,
            inputs=record.inputs,
            lineage=record.lineages[-1],
            attempt=self._record.attempt.number,
            phase=snapshot.phase,
            step=snapshot.step,
            time=datetime.now(UTC),
            history=snapshot.history,
        )
        text = description.model_dump_json()
        self._num_uploads += 1
        # The lineage, the attempt and a count of its uploads: this name was never used.
        name = str(
            CheckpointName(snapshot.phase, snapshot.step, description.attempt, self._num_uploads, description.lineage)
        )
        with _temporary_file(self._folder / "commit.safetensors") as path:
            try:
                save_file(
                    {key: np.asarray(array, order="C") for key, array in arrays.items()},
                    path,
                    metadata={DESCRIPTION: text, CRC32: str(_crc32(text, arrays))},
                )
            except SafetensorError as error:
                raise scratch.unavailable(path, str(error), _os_error(error)) from error
            try:
                digest = self._store.upload(name, path, if_version=MISSING, may_move=True)
            except PreconditionFailed as error:
                raise Superseded(
                    f"{self._store.uri}/{name} exists already: another process writes to this run",
                    hint=OTHER_CARRIES_ON,
                ) from error
        return entry_of(description, name, digest)


def entry_of(description: Description, name: str, digest: Digest) -> CheckpointEntry:
    """The entry in the record of a checkpoint with this description."""
    return CheckpointEntry(
        name=name,
        phase=description.phase,
        step=description.step,
        num_epochs=len(description.history),
        size=digest.size,
        sha256=digest.sha256,
        attempt=description.attempt,
        time=description.time,
    )


def _crc32(text: str, arrays: Arrays) -> int:
    checksum = zlib.crc32(text.encode())
    for name in sorted(arrays):
        array = np.asarray(arrays[name], order="C")
        checksum = zlib.crc32(f"{name} {array.dtype.str} {array.shape}".encode(), checksum)
        checksum = zlib.crc32(array.reshape(-1).view(np.uint8).data, checksum)
    return checksum


def _os_error(error: SafetensorError) -> int | None:
    """The operating system's number of an error, which safetensors keeps only in its text."""
    match = re.search(r"\(os error (\d+)\)", str(error))
    return int(match[1]) if match else None


def load(store: ObjectStore, entry: CheckpointEntry, *, folder: Path) -> dict[str, np.ndarray]:
    """The arrays of a checkpoint. Raises CheckpointDamaged unless every byte is as recorded."""
    place = f"{store.uri}/{entry.name}"
    with _temporary_file(folder / "restore.safetensors") as path:
        problem = problem_with(store, entry.name, entry, path)
        if problem is not None:
            raise CheckpointDamaged(problem.text)
        description, _, arrays = _read(path, place)
    if (description.phase, description.step) != (entry.phase, entry.step):
        raise CheckpointDamaged(
            f"{place} is of {description.phase} step {description.step}, and the record says that it is of "
            f"{entry.phase} step {entry.step}"
        )
    return arrays


@dataclass(frozen=True)
class Inspected:
    """A checkpoint that no record names: what it is, or why it cannot be used; the digest of its bytes."""

    name: str
    digest: Digest | None = None
    description: Description | None = None
    entry: CheckpointEntry | None = None
    problem: str = ""


def inspect(store: ObjectStore, name: str, *, folder: Path) -> Inspected:
    """Compare a checkpoint with its own description, its checksum and its name. Raises StorageError."""
    digest = None
    try:
        with _temporary_file(folder / "inspect.safetensors") as path:
            digest = store.download(name, path)
            description, metadata, arrays = _read(path, name)
        if metadata.get(CRC32) != str(_crc32(metadata[DESCRIPTION], arrays)):
            raise CheckpointDamaged("does not have the checksum that it says")
        parts = CheckpointName.parse(name)
        said = (description.phase, description.step, description.attempt, description.lineage)
        if parts is None or said != (parts.phase, parts.step, parts.attempt, parts.lineage):
            raise CheckpointDamaged(f"says that it is of {said[0]} step {said[1]}, and has another name")
        if not all(np.isfinite(array).all() for array in arrays.values()):
            raise CheckpointDamaged("has a value that is not finite")
    except ObjectMissing:
        return Inspected(name, problem=f"{store.uri}/{name} is missing")
    except (CheckpointDamaged, ObjectDamaged) as error:
        return Inspected(name, digest, problem=error.message)
    return Inspected(name, digest, description, entry_of(description, name, digest))


def _read(path: Path, place: str) -> tuple[Description, dict[str, str], dict[str, np.ndarray]]:
    """The description in a file, all its metadata, and its arrays."""
    try:
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
        if DESCRIPTION not in metadata:
            raise ValueError("it does not say what it is of")
        return Description.model_validate_json(metadata[DESCRIPTION], strict=True), metadata, load_file(path)
    except UNUSABLE as error:
        raise CheckpointDamaged(f"{place} is not a checkpoint: {problem_of(error)}") from error


@contextlib.contextmanager
def _temporary_file(path: Path) -> Iterator[Path]:
    try:
        with scratch.explained(path):
            yield path
    finally:
        path.unlink(missing_ok=True)


def best_steps(record: Record, history: Sequence[EpochResult]) -> set[tuple[str, int]]:
    """Phase and step of the best epoch so far of each phase that keeps it."""
    found = set()
    for phase in record.phases():
        epochs = schedule.history_of(phase, history)
        if phase.keep == "best" and epochs:
            found.add((phase.name, epochs[schedule.best(phase, epochs)].step))
    return found


def retained(
    entries: Sequence[CheckpointEntry], *, keep: int, best: Collection[tuple[str, int]]
) -> list[CheckpointEntry]:
    """The newest `keep` checkpoints, the last one of each phase before the newest, and those of the `best` epochs.

    The last one of a phase is where the next phase begins, if its best one is not.
    """
    last_of_phase = {entry.phase: entry for entry in entries}
    kept = {entry.name for entry in (*entries[-keep:], *last_of_phase.values())}
    return [entry for entry in entries if entry.name in kept or (entry.phase, entry.step) in best]
