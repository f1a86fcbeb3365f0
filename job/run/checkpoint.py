"""Training state <-> write-once objects.

The order of a commit, and why:

1. Upload under a name that was never used. A crash here leaves an object that no record names: garbage, not harm.
2. Verify: the store compares what it holds with what was sent, and its digest is noted (`ObjectStore.upload`).
3. Compare-and-swap the record. This is the commit: before it the old checkpoint counts, after it the new one.
4. Prune what the record no longer names. A crash before this leaves garbage, which the next prune removes.

A restore goes the other way: from the newest checkpoint that the record names to the oldest, and takes the first
whose bytes have the recorded digest. Those that do not are set aside: named in the record, kept, never used.

A checkpoint also says of itself what it is, in the metadata of its file, and has a checksum of its arrays there: a lost
record can be rebuilt from that (`commands/repair`). This module knows arrays by name; it does not know TensorFlow.
"""

import contextlib
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from pydantic import ValidationError
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
from job.phases import PhaseName, State
from job.run.record import RunRecord
from job.schema import CHECKPOINTS, CheckpointEntry, CheckpointName, Description, EpochResult, problem_of
from job.storage import MISSING, Digest, ObjectStore
from job.storage import scratch as temporary

DESCRIPTION, CRC32 = "thaw", "crc32"
"""The keys of the metadata of a checkpoint's file: what it is of, and a checksum of that and of the arrays."""

UNUSABLE = (SafetensorError, TypeError, AttributeError, ValueError)
"""What safetensors 0.8 raises of a file that is none, and of types of arrays that NumPy does not have."""

Arrays = Mapping[str, np.ndarray]


class Checkpoints:
    """The checkpoints of one attempt at a run, in step with the record.

    `scratch` is a folder with space for one checkpoint.
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

        Damaged ones are set aside: the next commit takes them out of the record's index, and no prune deletes them.
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
        phase: PhaseName,
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
            entry = self._upload(arrays, phase, step, history)
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
            content = self._record.content
            prune(
                self._store,
                [*self._entries, *self._set_aside],
                attempt=self._record.attempt.number,
                lineages=content.lineages or ("",),
            )

    def _upload(self, arrays: Arrays, phase: PhaseName, step: int, history: Sequence[EpochResult]) -> CheckpointEntry:
        check_finite(arrays, phase, step)
        # The lineage, the attempt and a count of its uploads make the name one that was never used.
        self._num_uploads += 1
        description = self._described(phase, step, history)
        text = description.model_dump_json()
        name = str(CheckpointName(phase, step, description.attempt, self._num_uploads, description.lineage))
        with _temporary_file(self._scratch / "commit.safetensors") as path:
            try:
                save_file(
                    {key: np.asarray(array, order="C") for key, array in arrays.items()},
                    path,
                    metadata={DESCRIPTION: text, CRC32: str(_crc32(text, arrays))},
                )
            except SafetensorError as error:
                raise temporary.unavailable(path, str(error), _os_error(error)) from error
            try:
                digest = self._store.upload(name, path, if_generation=MISSING, may_move=True)
            except PreconditionFailed as error:
                raise Superseded(
                    f"{self._store.uri}/{name} exists already: another process writes to this run",
                    hint="nothing is lost: the other attempt carries the run on",
                ) from error
        return entry_of(description, name, digest)

    def _described(self, phase: PhaseName, step: int, history: Sequence[EpochResult]) -> Description:
        content = self._record.content
        return Description(
            run_id=content.run_id,
            fingerprint=content.fingerprint,
            settings=content.settings,
            inputs=content.inputs,
            lineage=content.lineages[-1] if content.lineages else "",
            attempt=self._record.attempt.number,
            phase=phase,
            step=step,
            time=datetime.now(UTC),
            history=tuple(history),
        )


def entry_of(description: Description, name: str, digest: Digest) -> CheckpointEntry:
    """What a record says of a checkpoint that describes itself so."""
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
    place = f"{store.uri}/{entry.name}"
    with _temporary_file(scratch / "restore.safetensors") as path:
        digest = _downloaded(store, entry.name, path)
        if (digest.size, digest.sha256) != (entry.size, entry.sha256):
            # Once more: what is set aside must be damaged where it is kept, not on its way here.
            digest = _downloaded(store, entry.name, path)
        if (digest.size, digest.sha256) != (entry.size, entry.sha256):
            raise CheckpointDamaged(
                f"{place} is damaged: {digest.size} bytes with SHA-256 {digest.sha256[:12]}, "
                f"expected {entry.size} bytes with {entry.sha256[:12]}"
            )
        description, _, arrays = _read(path, place)
    if description is not None and (description.phase, description.step) != (entry.phase, entry.step):
        raise CheckpointDamaged(
            f"{place} is of {description.phase} step {description.step}, and the record says that it is of "
            f"{entry.phase} step {entry.step}"
        )
    return arrays


@dataclass(frozen=True)
class Inspected:
    """A checkpoint that no record names: what it says of itself, or why it cannot be used; the digest of its bytes."""

    name: str
    digest: Digest | None = None
    description: Description | None = None
    problem: str = ""

    def entry(self) -> CheckpointEntry:
        """What a record says of it, which is usable."""
        assert self.description is not None
        assert self.digest is not None
        return entry_of(self.description, self.name, self.digest)


def inspect(store: ObjectStore, name: str, *, scratch: Path) -> Inspected:
    """Whether a checkpoint is what it says of itself, byte for byte, and what its name says. Raises StorageError."""
    digest = None
    try:
        with _temporary_file(scratch / "inspect.safetensors") as path:
            digest = _downloaded(store, name, path)
            description, metadata, arrays = _read(path, name)
        if description is None:
            raise CheckpointDamaged("does not say what it is of: an earlier version of the program wrote it")
        if metadata.get(CRC32) != str(_crc32(metadata[DESCRIPTION], arrays)):
            raise CheckpointDamaged("does not have the checksum that it says")
        parts = CheckpointName.parse(name)
        said = (description.phase, description.step, description.attempt, description.lineage)
        if parts is None or said != (parts.phase, parts.step, parts.attempt, parts.lineage):
            raise CheckpointDamaged(f"says that it is of {said[0]} step {said[1]}, and has another name")
        if not all(np.isfinite(array).all() for array in arrays.values()):
            raise CheckpointDamaged("has a value that is not finite")
    except CheckpointDamaged as error:
        return Inspected(name, digest, problem=error.message)
    return Inspected(name, digest, description)


def _read(path: Path, place: str) -> tuple[Description | None, dict[str, str], dict[str, np.ndarray]]:
    """What a file says of itself, None when an earlier version wrote it; the metadata that says so; the arrays."""
    try:
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
        text = metadata.get(DESCRIPTION)
        description = None if text is None else Description.model_validate_json(text, strict=True)
        return description, metadata, load_file(path)
    except ValidationError as error:
        raise CheckpointDamaged(f"{place} is not a checkpoint: {problem_of(error.errors())}") from error
    except UNUSABLE as error:
        raise _not_a_checkpoint(place, error) from error


def _not_a_checkpoint(place: str, error: Exception) -> CheckpointDamaged:
    return CheckpointDamaged(f"{place} is not a checkpoint: {str(error)[:300]!r}")


def _downloaded(store: ObjectStore, name: str, path: Path) -> Digest:
    try:
        return store.download(name, path)
    except ObjectMissing as error:
        raise CheckpointDamaged(f"{store.uri}/{name} is missing") from error
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


def prune(
    store: ObjectStore, entries: Sequence[CheckpointEntry], *, attempt: int, lineages: Sequence[str]
) -> list[str]:
    """Delete the checkpoints of these lineages that the record does not name among `entries`.

    A later attempt's objects are left alone: it may have uploaded one that it has not committed yet. So is all that is
    of no lineage of the record, whose name is not ours, or that another record wrote.
    """
    named = {entry.name for entry in entries}
    orphans = []
    for name in store.list(CHECKPOINTS):
        parts = CheckpointName.parse(name)
        if name not in named and parts is not None and parts.attempt <= attempt and parts.lineage in lineages:
            orphans.append(name)
    for name in orphans:
        store.delete(name)
    return orphans
