"""A lost or damaged record, rebuilt from the checkpoints: shown first, nothing lost by a kill, and the run goes on."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from job.cli.repair import Options, answer, mend
from job.errors import ExitCode, Interrupted, RecordDamaged, RunUnavailable, Superseded
from job.observe import events
from job.run.checkpoint import Checkpoints, Snapshot
from job.run.description import CheckpointName
from job.run.record import RECORD_NAME, Identity, RunRecord, read
from job.schema import CHECKPOINTS, Holder, Record
from job.storage import MISSING, LocalStore, ObjectStore
from job.storage.retrying import RetryingStore
from job.storage.s3_azure import S3AzureStore
from tests.conftest import REPOSITORY, job
from tests.fault_proxy import CORRUPT, FaultProxy, flipped
from tests.processes import Environment
from tests.recorded import INPUTS, epoch
from tests.runs import ONE_PHASE, Small, StopAtStep, Whole, record_of, result_of, start
from tests.servers import Azurite
from tests.stores import Crash, CrashingStore

HISTORY = [epoch("head", 0), epoch("head", 1)]


def open_run(store: ObjectStore, folder: Path, *, fingerprint: str = "f", **settings: Any) -> Checkpoints:
    identity = Identity(run_id="run", fingerprint=fingerprint, settings={"BATCH_SIZE": 10} | settings)
    record = RunRecord.open(store, identity)
    record.take(Holder(host="me", pid=1, started=0.0), lease_seconds=60)
    if not record.content.inputs:
        record.update(inputs=INPUTS)
    return Checkpoints(store, record, keep=3, folder=folder)


def commit(run: Checkpoints, step: int, num_epochs: int) -> str:
    arrays = {"w": np.full(3, step, np.float32)}
    return run.commit(Snapshot(arrays=arrays, phase="head", step=step, history=tuple(HISTORY[:num_epochs]))).name


@pytest.fixture
def run(store: LocalStore, tmp_path: Path) -> Record:
    """Four commits of two attempts; three checkpoints are kept."""
    first = open_run(store, tmp_path)
    for step, num_epochs in ((5, 0), (10, 1), (15, 1)):
        commit(first, step, num_epochs)
    commit(open_run(store, tmp_path), 20, 2)
    found = read(store)
    assert found is not None
    assert len(found.checkpoints) == 3
    return found


def mended(store: ObjectStore, tmp_path: Path, *, fingerprint: str = "", is_confirmed: bool = True) -> dict[str, Any]:
    with pytest.raises(RecordDamaged) as caught:
        read(store)
    return mend(store, caught.value, fingerprint=fingerprint, is_confirmed=is_confirmed, scratch=tmp_path)


def content_of(store: ObjectStore) -> dict[str, bytes]:
    return {name: store.read(name).data for name in store.list("")}


@pytest.fixture
def lost(run: Record, store: LocalStore) -> LocalStore:
    """The store of the same run, without its record."""
    store.delete(RECORD_NAME)
    return store


def test_the_rebuilt_record_has_what_the_lost_one_had(run: Record, lost: LocalStore, tmp_path: Path) -> None:
    """But for what only it knew: holders, times and ends of attempts. Until it is confirmed, it is only shown."""
    before = content_of(lost)
    shown = mended(lost, tmp_path, is_confirmed=False)
    assert shown["checkpoints"] == [entry.name for entry in run.checkpoints]
    assert (shown["phase"], shown["step"], shown["num_epochs"], shown["num_attempts"]) == ("head", 20, 2, 2)
    assert "--yes" in shown["action"]
    assert content_of(lost) == before
    mended(lost, tmp_path)
    rebuilt = record_of(lost)
    for field in ("run_id", "fingerprint", "settings", "inputs", "checkpoints", "history", "state", "set_aside"):
        assert getattr(rebuilt, field) == getattr(run, field), field
    assert [attempt.number for attempt in rebuilt.attempts] == [1, 2]
    assert rebuilt.lineages[:-1] == run.lineages
    assert rebuilt.lineages[-1] not in run.lineages


def test_a_rebuilt_record_deletes_in_its_turn_what_it_names(lost: LocalStore, tmp_path: Path) -> None:
    """It has adopted what it was rebuilt from, and nothing else."""
    of_another = str(CheckpointName("head", 1, 1, 1, "0123abcd"))
    lost.write(of_another, b"", if_version=MISSING)
    mended(lost, tmp_path)
    again = open_run(lost, tmp_path)
    names = [commit(again, step, 2) for step in (21, 22, 23)]
    assert set(lost.list(CHECKPOINTS)) == {*names, of_another}
    assert all(name.endswith(f"{record_of(lost).lineages[-1]}.safetensors") for name in names)


def test_a_damaged_record_is_kept_under_another_name(run: Record, store: LocalStore, tmp_path: Path) -> None:
    """Whatever it holds may be of use."""
    for data in (b"", b"{", b"hello"):
        (store.root / RECORD_NAME).write_bytes(data)
        shown = mended(store, tmp_path)
        assert store.read(shown["damaged_record_kept_as"]).data == data
        assert read(store) is not None


def test_damaged_checkpoints_are_set_aside_and_never_deleted(run: Record, lost: LocalStore, tmp_path: Path) -> None:
    """The newest good one is where the run goes on."""
    newest = run.checkpoints[-1].name
    data = bytearray((lost.root / newest).read_bytes())
    data[-1] ^= 1
    (lost.root / newest).write_bytes(data)
    shown = mended(lost, tmp_path)
    assert shown["set_aside"] == {newest: "does not have the checksum that it says"}
    assert (shown["step"], shown["num_epochs"]) == (15, 1)
    again = open_run(lost, tmp_path)
    for step in (16, 17, 18, 19):
        commit(again, step, 1)
    assert (lost.root / newest).read_bytes() == data


def test_checkpoints_of_other_settings_are_not_mixed(run: Record, lost: LocalStore, tmp_path: Path) -> None:
    """One is chosen by its fingerprint; the others stay where they are, unnamed."""
    other = LocalStore(tmp_path / "other/run")
    name = commit(open_run(other, tmp_path, fingerprint="g", SEED=5), 20, 0)
    shutil.copy(other.root / name, lost.root / name)
    with pytest.raises(RecordDamaged, match=r"of these fingerprints: .*f \(3 checkpoints\)") as caught:
        mended(lost, tmp_path)
    assert "--fingerprint" in caught.value.hint
    with pytest.raises(RecordDamaged, match="of these fingerprints"):
        mended(lost, tmp_path, fingerprint="h")
    shown = mended(lost, tmp_path, fingerprint="f")
    assert shown["left_alone"] == {name: "is of another run than the newest: fingerprint differ"}
    assert shown["checkpoints"] == [entry.name for entry in run.checkpoints]
    assert (lost.root / name).exists()


def test_checkpoints_that_give_no_record_are_left_as_they_are(run: Record, lost: LocalStore, tmp_path: Path) -> None:
    """Copied under another name; with an attempt that would fill the memory; written by an earlier version."""
    shutil.copytree(lost.root, tmp_path / "renamed")
    with pytest.raises(RecordDamaged, match="they are of run 'run', and this place is of 'renamed'"):
        mended(LocalStore(tmp_path / "renamed"), tmp_path)
    huge = str(CheckpointName("head", 1, 999_999_999, 1, run.lineages[0]))
    lost.write(huge, b"", if_version=MISSING)
    with pytest.raises(RecordDamaged, match="attempt 999999999 is named"):
        mended(lost, tmp_path)
    lost.delete(huge)
    for name in lost.list(CHECKPOINTS):
        (lost.root / name).write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    before = content_of(lost)
    with pytest.raises(RecordDamaged, match=r"none of the 3 checkpoints .* does not say what it is of"):
        mended(lost, tmp_path)
    assert content_of(lost) == before


def test_a_record_that_can_be_read_is_left_as_it_is(
    run: Record, store: LocalStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """There is nothing to repair, and no run is no damage."""
    before = content_of(store)
    assert answer(Options(run=store.uri, is_confirmed=True, cache_dir=tmp_path, as_json=True)) == 0
    assert json.loads(capsys.readouterr().out)["action"] == "nothing: the record can be read"
    assert content_of(store) == before
    with pytest.raises(RunUnavailable):
        answer(Options(run=str(tmp_path / "no"), cache_dir=tmp_path))


class WritesMeanwhile(LocalStore):
    """Another process restores the record while the checkpoints are read."""

    def list(self, prefix: str) -> list[str]:
        names = super().list(prefix)
        (self.root / RECORD_NAME).write_bytes(b"restored")
        return names


def test_a_record_that_is_written_meanwhile_stays(run: Record, store: LocalStore, tmp_path: Path) -> None:
    """Before the checkpoints are read, or while they are: it is swapped only for what was looked at."""
    before = content_of(store)
    with pytest.raises(Superseded, match="written by another process"):
        mend(store, RecordDamaged("a moment ago"), fingerprint="", is_confirmed=True, scratch=tmp_path)
    assert content_of(store) == before
    (store.root / RECORD_NAME).write_bytes(b"{")
    with pytest.raises(Superseded, match="written by another process"):
        mended(WritesMeanwhile(store.root), tmp_path)
    assert store.read(RECORD_NAME).data == b"restored"


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("data", [None, b'{"run_id'], ids=["lost", "damaged"])
def test_a_kill_at_any_moment_of_a_repair_loses_nothing(
    run: Record, store: LocalStore, tmp_path: Path, data: bytes | None, after: bool
) -> None:
    """The next one does it: the same record each time, every checkpoint as it was, the damaged record kept."""
    store.delete(RECORD_NAME)
    if data is not None:
        store.write(RECORD_NAME, data, if_version=MISSING)
    damage = RecordDamaged("as a start says")
    num_calls = 0
    while True:
        copied = LocalStore(tmp_path / f"copies/{num_calls}/run")
        shutil.copytree(store.root, copied.root)
        crashing = CrashingStore(copied, at_call=num_calls + 1, after=after)
        try:
            mend(crashing, damage, fingerprint="", is_confirmed=True, scratch=tmp_path)
            break
        except Crash:
            num_calls += 1
        for name in store.list(CHECKPOINTS):
            assert copied.read(name) == store.read(name)
        kept = [copied.read(name).data for name in copied.list("") if name.startswith(RECORD_NAME)]
        try:
            assert read(copied) is not None
        except RecordDamaged:
            assert data is None or data in kept
            mended(copied, tmp_path)
        found = read(copied)
        assert found is not None
        assert (found.checkpoints, found.history) == (run.checkpoints, run.history)
        assert data is None or data in [copied.read(name).data for name in copied.list("") if ".damaged-" in name]
    assert num_calls >= 5


WRITES = """
import sys
from job.storage.s3_azure import S3AzureStore
_, uri, name, version = sys.argv
S3AzureStore(uri).write(name, sys.stdin.buffer.read(), if_version=version)
"""


@pytest.mark.parametrize("is_altered", [False, True])
def test_azure_keeps_a_record_whose_writer_is_killed_before_it_has_looked(
    azurite: Azurite, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, is_altered: bool
) -> None:
    """Whole, or as it was altered on its way: then it is rebuilt, and what arrived is kept."""
    store = RetryingStore(S3AzureStore(f"{azurite.uri}/{tmp_path.name}/run"), first_delay_seconds=0.01)
    name = commit(open_run(store, tmp_path), 5, 0)
    data, version = store.read(RECORD_NAME).data + b" ", store.version(RECORD_NAME)
    with FaultProxy(azurite.url) as proxy:
        monkeypatch.setenv("AZURE_STORAGE_ENDPOINT", f"{proxy.url}/{azurite.account}")
        command = [sys.executable, "-c", WRITES, store.uri, RECORD_NAME, version]
        writer = subprocess.Popen(command, stdin=subprocess.PIPE, cwd=REPOSITORY)
        if is_altered:
            proxy.fail(CORRUPT, method="PUT")
        proxy.fail(writer.kill, method="GET")
        writer.communicate(data)
        assert (writer.returncode, [method for method, _ in proxy.requests]) == (-signal.SIGKILL, ["PUT", "GET"])
    if not is_altered:
        assert store.read(RECORD_NAME).data == data
        assert read(store) is not None
        return
    with pytest.raises(RecordDamaged, match="is damaged") as caught:
        read(store)
    assert "thaw repair" in caught.value.hint
    shown = mended(store, tmp_path)
    assert store.read(shown["damaged_record_kept_as"]).data == flipped(data)
    assert [entry.name for entry in record_of(store).checkpoints] == [name]


@pytest.mark.slow
@pytest.mark.parametrize(("phase", "step"), [("head", 4), ("fine_tune", 2)])
def test_a_run_whose_record_was_lost_ends_with_the_bits_of_an_undisturbed_one(
    whole: Whole, small: Small, environment: Environment, tmp_path: Path, phase: str, step: int
) -> None:
    """A start refuses, the command rebuilds, and the next start carries on where the last commit was."""
    changes = ONE_PHASE if phase == "head" else {}
    store = LocalStore(tmp_path / "runs/small")
    reader = StopAtStep(phase, step)
    with pytest.raises(Interrupted):
        start(small(**changes), store, observer=reader, check_stop=reader.check_stop)
    lost = record_of(store)
    store.delete(RECORD_NAME)
    with pytest.raises(RecordDamaged):
        start(small(**changes), store)
    done = job("repair", "--yes", env=environment(**changes))
    assert done.returncode == ExitCode.COMPLETE, done.stderr
    assert f"{phase}" in done.stdout
    assert record_of(store).checkpoints == lost.checkpoints
    again = start(small(**changes), store)
    (restored,), begun = again.of(events.Restored), again.of(events.PhaseStarted)[0]
    assert (restored.phase, restored.step) == (begun.phase, begun.step) == (phase, step + 1)
    assert begun.epoch == step // 3
    assert result_of(store) == result_of(whole(**changes)[0])
