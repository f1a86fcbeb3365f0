"""Commits and restores: complete or not at all, and never without the digest."""

import hashlib
import json
import os
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from job.errors import CheckpointDamaged, StorageError, TrainingDiverged
from job.run import checkpoint
from job.run.checkpoint import Checkpoints
from job.run.record import RECORD_NAME, RunRecord
from job.schema import CHECKPOINTS, CheckpointName, EpochResult, Holder
from job.storage import MISSING, Digest, LocalStore, ObjectStore, StoredObject, digest_of
from tests.recorded import INPUTS, epoch
from tests.stores import BrokenStore, MemoryStore


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


HOLDER = Holder(host="me", pid=1, started=0.0)


def open_run(store: ObjectStore, scratch: Path, *, keep: int = 2) -> Checkpoints:
    record = RunRecord.open(store, run_id="run", fingerprint="f", settings={})
    record.take(HOLDER, lease_seconds=60)
    return Checkpoints(store, record, keep=keep, scratch=scratch)


def commit(
    checkpoints: Checkpoints,
    step: int,
    *,
    phase: str = "head",
    value: float = 0.0,
    history: Sequence[EpochResult] = (),
) -> str:
    arrays = {"w": np.full(3, value, np.float32), "n": np.array(step)}
    return checkpoints.commit(arrays, state="head", phase=phase, step=step, history=history).name


def restore(checkpoints: Checkpoints) -> tuple[int | None, list[str]]:
    damaged: list[str] = []
    restored = checkpoints.restore(lambda entry, error: damaged.append(entry.name))
    return (None if restored is None else int(restored[1]["n"])), damaged


def test_what_is_committed_is_restored_bit_for_bit(store: MemoryStore, tmp_path: Path) -> None:
    """Every type and shape, odd values included."""
    arrays = {
        "a": np.array([[1.5, -0.0], [np.finfo(np.float32).tiny, 3e38]], np.float32),
        "b": np.array(7, np.int64),
        "c": np.arange(6, dtype=np.float64).reshape(2, 3).T,
    }
    open_run(store, tmp_path).commit(arrays, state="head", phase="head", step=1, history=())
    restored = open_run(store, tmp_path).restore(lambda *_: None)
    assert restored is not None
    for name, array in arrays.items():
        assert restored[1][name].dtype == array.dtype
        assert restored[1][name].shape == array.shape
        assert restored[1][name].tobytes() == array.tobytes()


def test_nothing_committed_is_nothing_restored(store: MemoryStore, tmp_path: Path) -> None:
    """A new run begins at the beginning."""
    assert restore(open_run(store, tmp_path)) == (None, [])


def test_the_newest_checkpoint_is_restored(store: MemoryStore, tmp_path: Path) -> None:
    """Later commits replace earlier ones."""
    run = open_run(store, tmp_path)
    for step in (1, 2, 3):
        commit(run, step)
    assert restore(open_run(store, tmp_path)) == (3, [])


@pytest.mark.parametrize("harm", ["missing", "truncated", "altered", "emptied"])
def test_a_damaged_checkpoint_is_named_and_the_next_older_is_used(
    store: MemoryStore, tmp_path: Path, harm: str
) -> None:
    """Whatever happened to it."""
    run = open_run(store, tmp_path)
    commit(run, 1)
    newest = commit(run, 2)
    data, generation = store.objects[newest].data, store.objects[newest].generation
    if harm == "missing":
        store.delete(newest)
    else:
        flipped = data[:-1] + bytes([data[-1] ^ 1])
        damaged = {"truncated": data[:-5], "altered": flipped, "emptied": b""}[harm]
        store.objects[newest] = StoredObject(damaged, generation)
    assert restore(open_run(store, tmp_path)) == (1, [newest])


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", ["folder", "FIFO", "link to nothing", "behind a file"])
def test_what_is_no_file_where_a_checkpoint_should_be_is_damage(tmp_path: Path, kind: str) -> None:
    """It is set aside, and nothing waits for it."""
    store = LocalStore(tmp_path / "run")
    run = open_run(store, tmp_path)
    names = [commit(run, step) for step in (1, 2)]
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
    assert restore(open_run(store, tmp_path)) == expected


def test_when_every_checkpoint_is_damaged_the_run_begins_again(store: MemoryStore, tmp_path: Path) -> None:
    """Down to the pre-trained weights; each one is named."""
    run = open_run(store, tmp_path)
    names = [commit(run, step) for step in (1, 2)]
    for name in names:
        store.delete(name)
    assert restore(open_run(store, tmp_path)) == (None, names[::-1])


def test_what_is_damaged_is_set_aside_and_kept(store: MemoryStore, tmp_path: Path) -> None:
    """The next commit takes it out of the index; nobody deletes it, and nobody tries it again."""
    run = open_run(store, tmp_path)
    commit(run, 1)
    newest = commit(run, 2)
    store.objects[newest] = StoredObject(b"damaged", store.objects[newest].generation)
    again = open_run(store, tmp_path)
    restore(again)
    for step in (3, 4, 5):
        commit(again, step)
    assert newest in store.list(CHECKPOINTS)
    assert [
        entry.name for entry in RunRecord.open(store, run_id="run", fingerprint="f", settings={}).content.set_aside
    ] == [newest]
    assert restore(open_run(store, tmp_path)) == (5, [])


class DamagesOneDownload(MemoryStore):
    """The first copy that it gives out arrives damaged."""

    is_done = False

    def download(self, name: str, target: Path) -> Digest:
        super().download(name, target)
        if not self.is_done:
            self.is_done = True
            target.write_bytes(b"damaged")
        return digest_of(target)


def test_a_copy_that_was_damaged_on_its_way_is_fetched_again(tmp_path: Path) -> None:
    """Only what is damaged where it is kept is set aside."""
    store = DamagesOneDownload()
    commit(open_run(store, tmp_path), 1)
    assert restore(open_run(store, tmp_path)) == (1, [])


def test_a_state_that_is_not_finite_is_never_uploaded(store: MemoryStore, tmp_path: Path) -> None:
    """The error names the array; the last commit stands."""
    run = open_run(store, tmp_path)
    commit(run, 1)
    before = dict(store.objects)
    with pytest.raises(TrainingDiverged, match="w is not finite after step 2"):
        commit(run, 2, value=float("nan"))
    assert store.objects == before


def test_a_checkpoint_of_the_same_step_is_not_uploaded_twice(store: MemoryStore, tmp_path: Path) -> None:
    """When only the history is new, only the record changes."""
    run = open_run(store, tmp_path)
    name = commit(run, 1)
    assert commit(run, 1, history=[epoch("head", 0)]) == name
    record = RunRecord.open(store, run_id="run", fingerprint="f", settings={}).content
    assert [entry.num_epochs for entry in record.checkpoints] == [1]
    assert len(record.history) == 1


def test_a_commit_is_tried_again_after_the_record_could_not_be_written(store: MemoryStore, tmp_path: Path) -> None:
    """Its object is there already: the second try has a name of its own."""
    run = open_run(store, tmp_path)
    commit(run, 1)
    broken = BrokenStore(store, "write")
    run._record._store = broken
    with pytest.raises(StorageError):
        commit(run, 2)
    run._record._store = store
    commit(run, 2)
    assert restore(open_run(store, tmp_path)) == (2, [])


def test_old_checkpoints_are_pruned_and_phase_boundaries_kept(store: MemoryStore, tmp_path: Path) -> None:
    """The newest two, and the last of the phase before."""
    run = open_run(store, tmp_path, keep=2)
    names = [commit(run, step, phase="head") for step in (1, 2, 3)]
    names += [commit(run, step, phase="fine_tune") for step in (1, 2, 3)]
    assert set(store.list(CHECKPOINTS)) == {names[2], names[4], names[5]}


def test_one_checkpoint_can_be_kept(store: MemoryStore, tmp_path: Path) -> None:
    """The least that a setting allows still restores."""
    run = open_run(store, tmp_path, keep=1)
    commit(run, 1)
    name = commit(run, 2)
    assert store.list(CHECKPOINTS) == [name]
    assert restore(open_run(store, tmp_path)) == (2, [])


def test_orphans_of_earlier_attempts_are_swept_and_those_of_later_ones_are_not(
    store: MemoryStore, tmp_path: Path
) -> None:
    """A later attempt may have uploaded a checkpoint that it has not committed yet."""
    run = open_run(store, tmp_path)
    (lineage,) = run._record.content.lineages
    for attempt in (1, 2):
        store.write(str(CheckpointName("head", 9, attempt, 7, lineage)), b"", if_generation=MISSING)
    kept = commit(run, 1)
    assert store.list(CHECKPOINTS) == [kept, str(CheckpointName("head", 9, 2, 7, lineage))]


def test_what_another_record_wrote_is_not_deleted(store: MemoryStore, tmp_path: Path) -> None:
    """Nothing else may be left of its run; nor is what has a name that is not ours."""
    others = [
        str(CheckpointName("head", 9, 1, 1, "0123abcd")),
        str(CheckpointName("head", 9, 1, 1, "")),
        f"{CHECKPOINTS}notes.txt",
    ]
    run = open_run(store, tmp_path)
    for name in others:
        store.write(name, b"", if_generation=MISSING)
    kept = commit(run, 1)
    assert store.list(CHECKPOINTS) == sorted([kept, *others])


def test_a_record_of_an_earlier_version_deletes_what_has_names_of_that_version(
    store: MemoryStore, tmp_path: Path
) -> None:
    """It has no lineage, nor have its names."""
    run = open_run(store, tmp_path, keep=1)
    run._record.update(lineages=())
    of_another = str(CheckpointName("head", 9, 1, 1, "0123abcd"))
    store.write(of_another, b"", if_generation=MISSING)
    commit(run, 1)
    assert commit(run, 2) == f"{CHECKPOINTS}head-00000002-a1-2.safetensors"
    assert store.list(CHECKPOINTS) == [f"{CHECKPOINTS}head-00000002-a1-2.safetensors", of_another]


def test_a_checkpoint_says_what_it_is_of(store: MemoryStore, tmp_path: Path) -> None:
    """All that a lost record can be rebuilt from; each byte of it is verified."""
    run = open_run(store, tmp_path)
    run._record.update(inputs=INPUTS)
    name = commit(run, 10, history=[epoch("head", 0)])
    found = checkpoint.inspect(store, name, scratch=tmp_path)
    content = run._record.content
    assert found.entry() == content.checkpoints[0]
    said = found.description
    assert said is not None
    assert (said.run_id, said.fingerprint, said.settings, said.inputs, said.history) == (
        content.run_id, content.fingerprint, content.settings, content.inputs, content.history
    )  # fmt: skip


def test_any_flipped_bit_is_found_without_a_record(store: MemoryStore, tmp_path: Path) -> None:
    """Of the arrays, of their shapes, of what the checkpoint says of itself."""
    name = commit(open_run(store, tmp_path), 1, value=1.0)
    data, generation = store.objects[name].data, store.objects[name].generation
    for bit in range(0, 8 * len(data), 7):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        store.objects[name] = StoredObject(bytes(flipped), generation)
        found = checkpoint.inspect(store, name, scratch=tmp_path)
        # A blank more or less in the padding of the header is the same file.
        assert found.problem or (found.entry().step == 1 and chr(data[bit // 8]) == " "), bit


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
    "nothing": b"",
}  # fmt: skip


@pytest.mark.parametrize("data", HOSTILE.values(), ids=list(HOSTILE))
def test_a_hostile_file_is_a_damaged_checkpoint(store: MemoryStore, tmp_path: Path, data: bytes) -> None:
    """With the right digest, as a record would have it, and without a record."""
    run = open_run(store, tmp_path)
    commit(run, 1)
    newest = commit(run, 2)
    entry = run._entries[-1].model_copy(update={"size": len(data), "sha256": hashlib.sha256(data).hexdigest()})
    store.objects[newest] = StoredObject(data, store.objects[newest].generation)
    run._entries[-1] = entry
    assert restore(run) == (1, [newest])
    found = checkpoint.inspect(store, newest, scratch=tmp_path)
    assert found.description is None
    assert len(found.problem) < 1000


def test_a_position_that_is_not_the_checkpoints_own_is_damage(store: MemoryStore, tmp_path: Path) -> None:
    """The record's word against the file's, whose digest is right."""
    run = open_run(store, tmp_path)
    commit(run, 1)
    newest = commit(run, 2)
    run._entries[-1] = run._entries[-1].model_copy(update={"step": 3})
    assert restore(run) == (1, [newest])


@pytest.mark.parametrize("method", ["upload", "write"])
def test_a_commit_that_fails_leaves_the_last_one(store: MemoryStore, tmp_path: Path, method: str) -> None:
    """Before the record is swapped nothing has happened for a reader."""
    run = open_run(store, tmp_path)
    commit(run, 1)
    record = store.read(RECORD_NAME)
    run._store = run._record._store = BrokenStore(store, method)
    with pytest.raises(StorageError, match="unavailable"):
        commit(run, 2)
    assert store.read(RECORD_NAME) == record
    assert restore(open_run(store, tmp_path)) == (1, [])


def test_a_checkpoint_of_the_right_digest_that_is_no_checkpoint_is_damaged(store: MemoryStore, tmp_path: Path) -> None:
    """The digest proves the bytes, not their meaning."""
    run = open_run(store, tmp_path)
    commit(run, 1)
    entry = run._entries[0]
    content = tmp_path / "content"
    content.write_bytes(b"not a checkpoint")
    digest = store.upload("checkpoints/other", content, if_generation=MISSING)
    wrong = entry.model_copy(update={"name": "checkpoints/other", "size": digest.size, "sha256": digest.sha256})
    with pytest.raises(CheckpointDamaged, match="is not a checkpoint"):
        checkpoint.load(store, wrong, scratch=tmp_path)
