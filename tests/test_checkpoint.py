"""Commits and restores: complete or not at all, and never without the digest."""

import hashlib
import json
import os
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from job.errors import StorageError, TrainingDiverged
from job.run import checkpoint
from job.run.checkpoint import Checkpoints, Snapshot
from job.run.description import CheckpointName
from job.run.record import RECORD_NAME, RunRecord
from job.schema import CHECKPOINTS, EpochResult, Holder
from job.storage import MISSING, Digest, LocalStore, ObjectStore, StoredObject, digest_of
from tests.recorded import INPUTS, epoch
from tests.runs import IDENTITY, record_of
from tests.stores import BrokenStore, MemoryStore


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


class Run:
    """An attempt at a run, with its record and its checkpoints."""

    def __init__(self, store: ObjectStore, folder: Path, *, keep: int = 2) -> None:
        self.record = RunRecord.open(store, IDENTITY)
        self.record.take(Holder(host="me", pid=1, started=0.0), lease_seconds=60)
        self.checkpoints = Checkpoints(store, self.record, keep=keep, folder=folder)

    def commit(self, step: int, *, phase: str = "head", value: float = 0.0, history: Sequence[EpochResult] = ()) -> str:
        arrays = {"w": np.full(3, value, np.float32), "n": np.array(step)}
        return self.checkpoints.commit(Snapshot(arrays=arrays, phase=phase, step=step, history=tuple(history))).name

    def restore(self) -> tuple[int | None, list[str]]:
        """The step that is restored, and the names of the checkpoints that were damaged."""
        damaged: list[str] = []
        restored = self.checkpoints.restore(lambda entry, error: damaged.append(entry.name))
        return (None if restored is None else int(restored[1]["n"])), damaged


def test_what_is_committed_is_restored_bit_for_bit(store: MemoryStore, tmp_path: Path) -> None:
    """Every type and shape, odd values included; of a new run nothing."""
    assert Run(store, tmp_path).restore() == (None, [])
    arrays = {
        "a": np.array([[1.5, -0.0], [np.finfo(np.float32).tiny, 3e38]], np.float32),
        "b": np.array(7, np.int64),
        "c": np.arange(6, dtype=np.float64).reshape(2, 3).T,
    }
    Run(store, tmp_path).checkpoints.commit(Snapshot(arrays=arrays, phase="head", step=1, history=()))
    restored = Run(store, tmp_path).checkpoints.restore(lambda *_: None)
    assert restored is not None
    for name, array in arrays.items():
        found = restored[1][name]
        assert (found.dtype, found.shape, found.tobytes()) == (array.dtype, array.shape, array.tobytes())


@pytest.mark.parametrize("harm", ["missing", "truncated", "altered", "emptied"])
def test_a_damaged_checkpoint_is_named_and_the_next_older_is_used(
    store: MemoryStore, tmp_path: Path, harm: str
) -> None:
    """The next commit takes it out of the index: it is kept, and not tried again."""
    run = Run(store, tmp_path)
    run.commit(1)
    newest = run.commit(2)
    data, version = store.objects[newest].data, store.objects[newest].version
    if harm == "missing":
        store.delete(newest)
    else:
        flipped = data[:-1] + bytes([data[-1] ^ 1])
        store.objects[newest] = StoredObject(
            {"truncated": data[:-5], "altered": flipped, "emptied": b""}[harm], version
        )
    again = Run(store, tmp_path)
    assert again.restore() == (1, [newest])
    for step in (3, 4, 5):
        again.commit(step)
    assert harm == "missing" or newest in store.list(CHECKPOINTS)
    assert [entry.name for entry in record_of(store).set_aside] == [newest]
    assert Run(store, tmp_path).restore() == (5, [])


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", ["folder", "FIFO", "link to nothing", "behind a file"])
def test_what_is_no_file_where_a_checkpoint_should_be_is_damage(tmp_path: Path, kind: str) -> None:
    """It is set aside, and nothing waits for it; when all are damaged, nothing is restored."""
    store = LocalStore(tmp_path / "run")
    run = Run(store, tmp_path)
    names = [run.commit(step) for step in (1, 2)]
    path = store.root / names[1]
    path.unlink()
    match kind:
        case "folder":
            path.mkdir()
        case "FIFO":
            os.mkfifo(path)
        case "link to nothing":
            path.symlink_to("nothing")
        case _:
            (store.root / names[0]).unlink()
            path.parent.rmdir()
            path.parent.write_bytes(b"")
    expected = (None, names[::-1]) if kind == "behind a file" else (1, [names[1]])
    assert Run(store, tmp_path).restore() == expected


class DamagesOneDownload(MemoryStore):
    is_done = False

    def download(self, name: str, target: Path) -> Digest:
        super().download(name, target)
        if not self.is_done:
            self.is_done = True
            target.write_bytes(b"damaged")
        return digest_of(target)


def test_a_copy_that_was_damaged_on_its_way_is_fetched_again(tmp_path: Path) -> None:
    """Only what is damaged in the store is set aside."""
    store = DamagesOneDownload()
    Run(store, tmp_path).commit(1)
    assert Run(store, tmp_path).restore() == (1, [])


def test_a_state_that_is_not_finite_is_never_uploaded(store: MemoryStore, tmp_path: Path) -> None:
    """The error names the array; the last commit stands."""
    run = Run(store, tmp_path)
    run.commit(1)
    before = dict(store.objects)
    with pytest.raises(TrainingDiverged, match="w is not finite after step 2"):
        run.commit(2, value=float("nan"))
    assert store.objects == before


def test_a_checkpoint_of_the_same_step_is_not_uploaded_twice(store: MemoryStore, tmp_path: Path) -> None:
    """When only the history is new, only the record changes."""
    run = Run(store, tmp_path)
    name = run.commit(1)
    assert run.commit(1, history=[epoch("head", 0)]) == name
    record = record_of(store)
    assert ([entry.num_epochs for entry in record.checkpoints], len(record.history)) == ([1], 1)


@pytest.mark.parametrize("method", ["upload", "write"])
def test_a_commit_that_fails_leaves_the_last_one_and_can_be_tried_again(
    store: MemoryStore, tmp_path: Path, method: str
) -> None:
    """Before the record is swapped nothing has happened for a reader, and nothing that it names is pruned."""
    broken = BrokenStore(store, "none")
    run = Run(broken, tmp_path, keep=1)
    kept = run.commit(1)
    record = store.read(RECORD_NAME)
    broken.method = method
    with pytest.raises(StorageError, match="unavailable"):
        run.commit(2)
    assert store.read(RECORD_NAME) == record
    assert kept in store.list(CHECKPOINTS)
    broken.method = "none"
    run.commit(2)
    assert Run(store, tmp_path).restore() == (2, [])


def test_old_checkpoints_are_pruned_and_phase_boundaries_kept(store: MemoryStore, tmp_path: Path) -> None:
    """The newest two, and the last of the phase before; at least one can be kept."""
    run = Run(store, tmp_path, keep=2)
    names = [run.commit(step, phase=phase) for phase in ("head", "fine_tune") for step in (1, 2, 3)]
    assert set(store.list(CHECKPOINTS)) == {names[2], names[4], names[5]}
    run = Run(store, tmp_path, keep=1)
    assert run.restore()[0] == 3
    newest = run.commit(4, phase="fine_tune")
    assert set(store.list(CHECKPOINTS)) == {names[2], newest}


def test_what_may_be_of_another_writer_is_not_pruned(store: MemoryStore, tmp_path: Path) -> None:
    """A later attempt, another record, a name that is not ours; an orphan of this lineage is deleted."""
    run = Run(store, tmp_path)
    (lineage,) = run.record.content.lineages
    orphan = str(CheckpointName("head", 9, 1, 7, lineage))
    others = [
        str(CheckpointName("head", 9, 2, 7, lineage)),
        str(CheckpointName("head", 9, 1, 1, "0123abcd")),
        f"{CHECKPOINTS}notes.txt",
    ]
    for name in (orphan, *others):
        store.write(name, b"", if_version=MISSING)
    kept = run.commit(1)
    assert store.list(CHECKPOINTS) == sorted([kept, *others])


# Without a record


def test_a_checkpoint_describes_itself(store: MemoryStore, tmp_path: Path) -> None:
    """All that a lost record can be rebuilt from."""
    run = Run(store, tmp_path)
    run.record.update(inputs=INPUTS)
    name = run.commit(10, history=[epoch("head", 0)])
    found, content = checkpoint.inspect(store, name, folder=tmp_path), run.record.content
    assert found.entry == content.checkpoints[0]
    assert found.description is not None
    for field in ("run_id", "fingerprint", "settings", "inputs", "history"):
        assert getattr(found.description, field) == getattr(content, field)


def test_any_flipped_bit_is_found_without_a_record(store: MemoryStore, tmp_path: Path) -> None:
    """Of the arrays, of their shapes, of the description."""
    name = Run(store, tmp_path).commit(1, value=1.0)
    data, version = store.objects[name].data, store.objects[name].version
    for bit in range(0, 8 * len(data), 7):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        store.objects[name] = StoredObject(bytes(flipped), version)
        found = checkpoint.inspect(store, name, folder=tmp_path)
        # A blank more or less in the padding of the header is the same file.
        assert found.problem or (found.entry.step == 1 and chr(data[bit // 8]) == " "), bit


def hostile(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


HOSTILE = {
    "a length that lies": struct.pack("<Q", 2**60) + b"{}",
    "a deep header": hostile(b"[" * 100_000),
    "metadata that are a number": hostile({"__metadata__": 5}),
    "a description that is none": hostile({"__metadata__": {"thaw": "{" * 1000, "crc32": "0"}}),
    "a huge description": hostile({"__metadata__": {"thaw": '"' + "x" * 10_000_000 + '"', "crc32": "0"}}),
    "a type that numpy does not have": hostile({"a": {"dtype": "F8_E4M3", "shape": [1], "data_offsets": [0, 1]}}, b"1"),
    "a shape beyond memory": hostile({"a": {"dtype": "F32", "shape": [2**40] * 2, "data_offsets": [0, 4]}}, b"4444"),
    "no checkpoint": b"not a checkpoint",
    "nothing": b"",
}  # fmt: skip


@pytest.mark.parametrize("data", HOSTILE.values(), ids=list(HOSTILE))
def test_a_hostile_file_is_a_damaged_checkpoint(store: MemoryStore, tmp_path: Path, data: bytes) -> None:
    """With the right digest, as a record would have it, and without a record."""
    run = Run(store, tmp_path)
    run.commit(1)
    newest = run.commit(2)
    older, entry = record_of(store).checkpoints
    entry = entry.model_copy(update={"size": len(data), "sha256": hashlib.sha256(data).hexdigest()})
    run.record.update(checkpoints=(older, entry))
    store.objects[newest] = StoredObject(data, store.objects[newest].version)
    assert Run(store, tmp_path).restore() == (1, [newest])
    found = checkpoint.inspect(store, newest, folder=tmp_path)
    assert found.description is None
    assert len(found.problem) < 1000


def test_a_position_that_is_not_the_checkpoints_own_is_damage(store: MemoryStore, tmp_path: Path) -> None:
    """The record against the file, whose digest is right."""
    run = Run(store, tmp_path)
    run.commit(1)
    newest = run.commit(2)
    older, entry = record_of(store).checkpoints
    run.record.update(checkpoints=(older, entry.model_copy(update={"step": 3})))
    assert Run(store, tmp_path).restore() == (1, [newest])
