"""One contract that every store passes, and the promises of the store of files."""

import contextlib
import errno
import fcntl
import json
import os
import secrets
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from job.errors import InvalidSettings, ObjectDamaged, ObjectMissing, PreconditionFailed, StorageError, StorageRefused
from job.storage import MISSING, Digest, LocalStore, ObjectStore, digest_of, open_store
from job.storage.files import temporary_file
from job.storage.protocol import Unobserved
from job.storage.s3_azure import S3AzureStore
from tests.conftest import REPOSITORY, job, process_environment, slowly
from tests.stores import MemoryStore, plant


@pytest.fixture(
    params=[
        *("local", "memory", "gcs", *slowly("gcs without crc32c size id")),
        *("minio", "azurite", "named by THAW_TEST_GCS"),
    ]
)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ObjectStore]:
    """The last is a server or bucket of your own: THAW_TEST_GCS=gs://bucket/prefix, with STORAGE_EMULATOR_HOST."""
    if request.param == "local":
        yield LocalStore(tmp_path / "store")
    elif request.param == "memory":
        yield MemoryStore()
    elif request.param.startswith("gcs"):
        gcs = request.getfixturevalue("gcs")
        gcs.omitted = frozenset(request.param.split()[2:])
        yield request.getfixturevalue("gcs_store")
    elif request.param in ("minio", "azurite"):
        yield S3AzureStore(f"{request.getfixturevalue(request.param).uri}/{secrets.token_hex(8)}/runs")
    else:
        uri = os.environ.get("THAW_TEST_GCS")
        if not uri:
            pytest.skip("THAW_TEST_GCS names no bucket")
        store = open_store(f"{uri}/{secrets.token_hex(8)}")
        yield store
        for name in store.list(""):
            store.delete(name)


def test_what_is_written_is_read(store: ObjectStore) -> None:
    """Bytes come back as they went, with the version of the write."""
    version = store.write("a/b", b"\x00bytes", if_version=MISSING)
    stored = store.read("a/b")
    assert (stored.data, stored.version) == (b"\x00bytes", version)
    assert store.version("a/b") == version
    assert store.peek("a/b") == b"\x00bytes"


def test_a_missing_object_is_an_error_and_deleting_it_is_none(store: ObjectStore, tmp_path: Path) -> None:
    """Its version is 0."""
    for ask in (
        lambda: store.read("nope"),
        lambda: store.peek("nope"),
        lambda: store.download("nope", tmp_path / "file"),
    ):
        with pytest.raises(ObjectMissing, match="nope"):
            ask()
    assert store.version("nope") == MISSING
    store.delete("nope")
    assert store.list("") == []


def test_the_age_of_an_object_is_the_time_since_it_was_written(store: ObjectStore) -> None:
    """By the clock of the store, which may keep whole seconds; a folder has none, and says so."""
    with pytest.raises(ObjectMissing):
        store.age_seconds("a")
    began = time.monotonic()
    version = store.write("a", b"", if_version=MISSING)
    if isinstance(store, LocalStore | S3AzureStore):
        assert store.age_seconds("a") is None
        return

    def age_and_time() -> tuple[float, float]:
        return store.age_seconds("a") or 0.0, time.monotonic() - began

    while (age := age_and_time())[0] <= 0.1:
        time.sleep(0.05)
    assert age[0] < age[1] + 1
    began = time.monotonic()
    store.write("a", b"", if_version=version)
    age = age_and_time()
    assert age[0] < age[1] + 1


def test_a_write_on_another_generation_is_refused(store: ObjectStore, tmp_path: Path) -> None:
    """Also one of a file; whether the object is there, changed since it was read, or is deleted."""
    first = store.write("a", b"1", if_version=MISSING)
    second = store.write("a", b"2", if_version=first)
    for old in (MISSING, first):
        with pytest.raises(PreconditionFailed):
            store.write("a", b"3", if_version=old)
        (tmp_path / "file").write_bytes(b"file")
        with pytest.raises(PreconditionFailed):
            store.upload("a", tmp_path / "file", if_version=old, may_move=True)
    assert store.read("a").data == b"2"
    assert store.list("") == ["a"]
    store.delete("a")
    with pytest.raises(PreconditionFailed):
        store.write("a", b"3", if_version=second)
    assert store.version("a") == MISSING


def test_every_write_has_a_new_version(store: ObjectStore) -> None:
    """Also when writes follow each other faster than the clock ticks, and the bytes are the same: but not so on S3."""
    versions = [store.write("a", b"", if_version=MISSING)]
    for number in range(50):
        data = str(number).encode() if store.uri.startswith("s3:") else b""
        versions.append(store.write("a", data, if_version=versions[-1]))
    assert len(set(versions)) == len(versions)


@pytest.mark.parametrize("size", [0, 1 << 20, 9 << 20])
@pytest.mark.parametrize("may_move", [False, True])
def test_files_go_up_and_come_down_with_their_digests(
    store: ObjectStore, tmp_path: Path, size: int, may_move: bool
) -> None:
    """A file that may not be moved stays, and a later change of it does not reach the store."""
    source, target, content = tmp_path / "source", tmp_path / "target", os.urandom(size)
    source.write_bytes(content)
    up = store.upload("a", source, if_version=MISSING, may_move=may_move)
    if not may_move:
        source.write_bytes(b"changed")
    assert up == store.download("a", target) == digest_of(target)
    assert target.read_bytes() == content
    source.write_bytes(b"next")
    store.upload("a", source, if_version=store.version("a"), may_move=may_move)
    assert store.read("a").data == b"next"


@pytest.mark.parametrize("name", ["a b/ü", "100%q?x=1#y+b&c", "%41", "a/%2F", "~*[x]{y}", "..a/b..", "é/é", "'\"<&>"])
def test_names_may_have_odd_characters(store: ObjectStore, name: str) -> None:
    """They are quoted where they must be; nothing is decoded once more, or made the same."""
    store.write(name, b"x", if_version=MISSING)
    assert store.read(name).data == b"x"
    assert store.versions("") == {name: store.version(name)}
    store.delete(name)
    assert store.list("") == []


def test_names_are_listed_by_prefix_and_sorted(store: ObjectStore) -> None:
    """Names are relative to the store in both directions."""
    for name in ("b/2", "b/1", "bb", "a", "b/c/3"):
        store.write(name, b"", if_version=MISSING)
    assert store.list("b/") == ["b/1", "b/2", "b/c/3"]
    assert store.list("b") == ["b/1", "b/2", "b/c/3", "bb"]
    assert store.list("") == ["a", "b/1", "b/2", "b/c/3", "bb"]
    assert store.list("nothing/") == []
    assert store.versions("b/") == {name: store.version(name) for name in ("b/1", "b/2", "b/c/3")}


def test_folders_are_the_first_parts_of_names(store: ObjectStore) -> None:
    """Whatever they hold, and over more than one page of answers; objects at the top are none."""
    runs = [f"run {number:02d}" for number in range(9)]
    for run in runs:
        for name in (f"{run}/run.json", f"{run}/model/labels.json"):
            store.write(name, b"", if_version=MISSING)
    store.write("run 00.json", b"", if_version=MISSING)
    assert store.folders() == runs


INCREMENT = """
import sys
from pathlib import Path
from job.errors import PreconditionFailed
from job.storage import LocalStore
store = LocalStore(Path(sys.argv[1]))
for _ in range(100):
    while True:
        stored = store.read("counter")
        try:
            store.write("counter", str(int(stored.data) + 1).encode(), if_version=stored.version)
            break
        except PreconditionFailed:
            pass
"""


def test_compare_and_swap_holds_between_processes(tmp_path: Path) -> None:
    """Four processes count to a hundred each, and no count is lost."""
    store = LocalStore(tmp_path)
    store.write("counter", b"0", if_version=MISSING)
    processes = [subprocess.Popen([sys.executable, "-c", INCREMENT, str(tmp_path)], cwd=REPOSITORY) for _ in range(4)]
    assert [process.wait(timeout=120) for process in processes] == [0] * 4
    assert store.read("counter").data == b"400"


HOLD_A_HALF_WRITTEN_FILE = """
import sys, time
from pathlib import Path
from job.storage.s3_azure import S3AzureStore
from job.storage.files import temporary_file
with temporary_file(Path(sys.argv[1])) as temporary:
    temporary.path.write_bytes(b"half")
    print(temporary.path, flush=True)
    time.sleep(60)
"""
HOLD_A_LOCK = """
import fcntl, sys, time
with open(sys.argv[1], "ab") as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    print("held", flush=True)
    time.sleep(60)
"""


@contextlib.contextmanager
def another_process(program: str, path: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A program that is given a path, once it has written a line, and the line; killed at the end."""
    command = [sys.executable, "-c", program, str(path)]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process, process.stdout.readline().strip()
        finally:
            process.kill()


def test_a_writer_killed_half_way_leaves_the_old_object_and_no_name(tmp_path: Path) -> None:
    """A temporary file may stay; it is no object. A refused write leaves not even that."""
    store = LocalStore(tmp_path)
    version = store.write("a", b"old", if_version=MISSING)
    with another_process(HOLD_A_HALF_WRITTEN_FILE, tmp_path) as (_, path):
        pass
    with pytest.raises(PreconditionFailed):
        store.write("a", b"x", if_version=MISSING)
    assert sorted(tmp_path.iterdir()) == [tmp_path / ".lock", Path(path), tmp_path / "a"]
    assert store.read("a").data == b"old"
    assert store.list("") == ["a"]
    store.write("a", b"new", if_version=version)


def test_old_temporary_files_are_removed_but_no_young_one_and_none_of_a_living_writer(tmp_path: Path) -> None:
    """A living writer holds a lock, which ends with the process."""
    store, young = LocalStore(tmp_path), tmp_path / ".tmp-young"
    young.write_bytes(b"half")
    with another_process(HOLD_A_HALF_WRITTEN_FILE, tmp_path) as (_, path):
        os.utime(path, (0, 0))
        store.write("a", b"", if_version=MISSING)
        assert Path(path).read_bytes() == b"half"
    store.write("b", b"", if_version=MISSING)
    assert (Path(path).exists(), young.exists()) == (False, True)


def test_a_temporary_file_that_was_swept_before_it_was_locked_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process took it for abandoned: its lock was free."""
    lock, swept = fcntl.flock, set[Path]()

    def sweep_first(descriptor: int, operation: int) -> None:
        if not swept:
            swept.update(tmp_path.iterdir())
            min(swept).unlink()
        lock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", sweep_first)
    with temporary_file(tmp_path) as temporary:
        assert temporary.path.exists()
        assert temporary.path not in swept


def test_a_file_that_was_taken_over_is_locked_too(tmp_path: Path) -> None:
    """It has the name of the temporary file, and another inode."""
    source = tmp_path / "source"
    source.write_bytes(b"content")
    os.utime(source, (0, 0))
    with temporary_file(tmp_path) as first:
        assert first.take_over(source)
        with temporary_file(tmp_path):
            assert first.path.read_bytes() == b"content"


class Observed(Unobserved):
    """Notes each lock that is waited for, and how long."""

    def __init__(self) -> None:
        self.waited: list[tuple[str, float]] = []

    def waiting(self, lock: str, at_most_seconds: float) -> None:
        self.waited.append((lock, at_most_seconds))


@pytest.mark.slow
def test_a_lock_that_a_frozen_process_holds_is_given_up(tmp_path: Path) -> None:
    """After a while, which is reported with the lock's path, and nothing is written."""
    observer, lock = Observed(), tmp_path / ".lock"
    with another_process(HOLD_A_LOCK, lock) as (holder, _):
        holder.send_signal(signal.SIGSTOP)
        with pytest.raises(StorageError, match=rf"{lock} was not free in 1\.1 s") as caught:
            LocalStore(tmp_path, observer=observer, timeout_seconds=1.1).write("a", b"", if_version=MISSING)
    assert not isinstance(caught.value, StorageRefused)
    assert "lslocks" in caught.value.hint
    assert observer.waited == [(str(lock), 1.1)]
    assert LocalStore(tmp_path).list("") == []


@pytest.mark.slow
def test_a_start_says_in_its_log_which_lock_it_waits_for(tmp_path: Path) -> None:
    """And ends with 44."""
    (tmp_path / "small").mkdir()
    env = process_environment({"storage_uri": tmp_path, "run_id": "small", "lease_seconds": 5, "metrics_port": 0})
    with another_process(HOLD_A_LOCK, tmp_path / "small/.lock"):
        done = job(env=env)
    waiting, failed = map(json.loads, done.stdout.splitlines())
    assert (waiting["event"], waiting["lock"]) == ("waiting", f"{tmp_path}/small/.lock")
    assert (failed["event"], failed["exit_code"], done.returncode) == ("run_failed", 44, 44)


@pytest.mark.parametrize("kind", ["FIFO", "folder", "symbolic link"])
def test_a_lock_that_is_no_file_is_refused(tmp_path: Path, kind: str) -> None:
    """It is not waited for, and nothing is made where a link leads."""
    plant(tmp_path / "store" / ".lock", kind, outside=tmp_path / "outside")
    with pytest.raises(StorageRefused, match=rf"\.lock is a {kind}, expected a file"):
        LocalStore(tmp_path / "store").write("a", b"", if_version=MISSING)
    assert not (tmp_path / "outside").exists()


@pytest.mark.parametrize("kind", ["FIFO", "folder", "socket", "symbolic link", "link to a file"])
def test_what_is_no_file_is_a_damaged_object(tmp_path: Path, kind: str) -> None:
    """At once, named with its kind; a listing leaves it out, and a write does not replace it."""
    store, outside = LocalStore(tmp_path / "s"), tmp_path / "outside"
    if kind == "link to a file":
        outside.write_bytes(b"secret")
        kind = "symbolic link"
    plant(store.root / "o/a", kind, outside=outside)
    for ask in (
        lambda: store.read("o/a"),
        lambda: store.download("o/a", tmp_path / "down"),
        lambda: store.version("o/a"),
        lambda: store.age_seconds("o/a"),
        lambda: store.write("o/a", b"", if_version=MISSING),
    ):
        with pytest.raises(ObjectDamaged, match=f"{tmp_path}/s/o/a is a {kind}, expected a file"):
            ask()
    assert store.list("") == store.list("o/") == []


@pytest.mark.parametrize("obstacle", ["file", "link"])
def test_nothing_is_read_or_written_behind_a_file_or_a_linked_folder(tmp_path: Path, obstacle: str) -> None:
    """Behind a file is nothing, so a read finds damage; a link may lead out of the store, so it is refused."""
    store, outside = LocalStore(tmp_path / "store"), tmp_path / "outside"
    outside.mkdir()
    (outside / "a").write_bytes(b"secret")
    plant(store.root / "x", obstacle, outside=outside)
    is_file = obstacle == "file"
    error, text = (ObjectDamaged, "x/a: Not a directory") if is_file else (StorageRefused, "x is a symbolic link")
    for ask in (
        lambda: store.read("x/a"),
        lambda: store.download("x/a", tmp_path / "down"),
        lambda: store.version("x/a"),
    ):
        with pytest.raises(error, match=text):
            ask()
    with pytest.raises(StorageRefused, match=f"{store.root}/x"):
        store.write("x/a", b"", if_version=MISSING)
    for act in (lambda: store.delete("x/a"), lambda: store.list("x/")):
        with contextlib.nullcontext() if is_file else pytest.raises(StorageRefused, match=text):
            act()
    assert store.list("") == (["x"] if is_file else [])
    assert [path.name for path in outside.iterdir()] == ["a"]


def test_errors_of_the_system_that_last_are_refusals_and_those_that_pass_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here each comes from the lock, as some do on network file systems. What was allowed before may be so again."""
    before = LocalStore(tmp_path / "before")
    before.write("a", b"", if_version=MISSING)
    lasting = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOLCK, errno.EOPNOTSUPP)
    for number in (*lasting, errno.EIO, errno.ENOSPC, errno.ESTALE):

        def fail(*_: int, number: int = number) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(fcntl, "flock", fail)
        with pytest.raises(StorageError, match=os.strerror(number)) as caught:
            LocalStore(tmp_path / "new").write("a", b"", if_version=MISSING)
        assert type(caught.value) is (StorageRefused if number in lasting else StorageError), number
        assert caught.value.hint
        assert list((tmp_path / "new").iterdir()) == []
        with pytest.raises(StorageError, match=os.strerror(number)) as caught:
            before.write("b", b"", if_version=MISSING)
        assert type(caught.value) is StorageError, number


@pytest.mark.parametrize("clock", ["set back", "coarse"])
def test_no_clock_repeats_a_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: str) -> None:
    """It only grows from write to write. Some file systems keep whole seconds."""
    real, store = os.utime, LocalStore(tmp_path)
    if clock == "coarse":
        monkeypatch.setattr(os, "utime", lambda path, ns: real(path, ns=(ns[0] // 10**9 * 10**9,) * 2))
    version = store.write("a", b"", if_version=MISSING)
    if clock == "set back":
        monkeypatch.setattr(time, "time_ns", lambda: int(version) - 10**12)
    assert store.write("a", b"", if_version=version) != version


def test_a_file_on_the_same_disk_is_taken_over_with_the_permissions_of_any_file(tmp_path: Path) -> None:
    """Its content is not written a second time, and another user of the volume may read the results."""
    source, store = tmp_path / "source", LocalStore(tmp_path / "store")
    before = os.umask(0o027)
    try:
        store.write("written", b"", if_version=MISSING)
        save_file({"weights": np.zeros(1)}, source)
        inode = source.stat().st_ino
        store.upload("copied", source, if_version=MISSING)
        store.upload("moved", source, if_version=MISSING, may_move=True)
    finally:
        os.umask(before)
    modes = {name: (store.root / name).stat().st_mode & 0o777 for name in store.list("")}
    assert modes == dict.fromkeys(["copied", "moved", "written"], 0o640)
    assert (store.root / "moved").stat().st_ino == inode
    assert not source.exists()


def test_names_stay_inside_the_store(tmp_path: Path) -> None:
    """A name never reaches a file outside."""
    for name in ("../a", "/etc/passwd", "a/../../b", "a//b", "", "a\nb"):
        with pytest.raises(StorageRefused, match="not a safe name"):
            LocalStore(tmp_path).write(name, b"", if_version=MISSING)


def test_a_full_disk_is_explained_with_a_hint_and_leaves_the_old_object(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bytes do not fit when they are synced."""
    store = LocalStore(tmp_path)
    version = store.write("a", b"old", if_version=MISSING)

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(StorageError, match=f"cannot write {tmp_path}/a: No space left") as caught:
            store.write("a", b"new", if_version=version)
    assert "THAW_STORAGE_URI" in caught.value.hint
    assert store.read("a").data == b"old"
    assert store.list("") == ["a"]


def test_what_is_written_survives_a_loss_of_power(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The content is synced before it has its name, and the folder afterwards."""
    synced: list[tuple[bool, bool]] = []

    def note(descriptor: int) -> None:
        synced.append((stat.S_ISDIR(os.fstat(descriptor).st_mode), (tmp_path / "a").exists()))

    monkeypatch.setattr(os, "fsync", note)
    LocalStore(tmp_path).write("a", b"", if_version=MISSING)
    assert synced == [(False, False), (True, True)]


def test_a_file_that_is_not_written_as_it_was_sent_never_gets_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is read back before; here the disk loses the last byte."""
    read_back = Digest.of

    def lossy(path: Path) -> Digest:
        os.truncate(path, path.stat().st_size - 1)
        return read_back(path)

    (tmp_path / "source").write_bytes(b"whole")
    store = LocalStore(tmp_path / "store")
    monkeypatch.setattr(Digest, "of", lossy)
    with pytest.raises(ObjectDamaged, match=f"{tmp_path}/store/a is not what was sent: 4 bytes"):
        store.upload("a", tmp_path / "source", if_version=MISSING)
    assert store.list("") == []


def test_what_only_a_person_can_change_is_refused_with_a_hint(tmp_path: Path) -> None:
    """A name that is too long; a file where the store should be."""
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageRefused, match="File name too long") as caught:
        LocalStore(tmp_path).write("a" * 300, b"", if_version=MISSING)
    assert "THAW_RUN_ID" in caught.value.hint
    with pytest.raises(StorageRefused, match=f"{tmp_path}/file") as caught:
        LocalStore(tmp_path / "file").write("a", b"x", if_version=MISSING)
    assert "move away the file" in caught.value.hint


def test_paths_and_file_uris_name_a_folder_and_any_other_scheme_or_a_password_is_refused() -> None:
    """Credentials are never part of a URI, and no error shows them."""
    for uri, root in (
        ("/runs/a:b", "/runs/a:b"),
        ("file:///runs/a%20b", "/runs/a b"),
        ("runs", Path("runs").absolute()),
    ):
        assert open_store(uri).uri == str(root)
    for uri in ("gs://me:secret@bucket/x", "s3://me:secret@bucket/x", "ftp://h/x?token=secret"):
        with pytest.raises(InvalidSettings, match=f"{uri.split(':')[0]}://") as caught:
            open_store(uri)
        assert "secret" not in caught.value.message + caught.value.hint
