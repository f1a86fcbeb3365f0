"""Temporary files: in a folder that no other user can write to or block; gone afterwards, swept after a kill."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from job.cli import checks
from job.errors import Interrupted, InvalidSettings, ScratchUnavailable
from job.settings.settings import Settings
from job.storage import MISSING, LocalStore, cache_folder, scratch
from tests.conftest import REPOSITORY
from tests.stores import plant

OTHER_USER = 12345
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")
UNTRUSTED = ["FIFO", "symbolic link", pytest.param("of another", marks=as_root)]

HOLD_A_FOLDER = """
import os, sys
from pathlib import Path
from job.storage import scratch
if len(sys.argv) > 2:
    os.setgroups([])
    os.setgid(int(sys.argv[2]))
    os.setuid(int(sys.argv[2]))
with scratch.folder(Path(sys.argv[1])) as folder:
    (folder / "file").write_text("mine")
    print(folder, flush=True)
    sys.stdin.read()
    assert (folder / "file").read_text() == "mine"
"""


def hold_a_folder(*arguments: object) -> subprocess.Popen[str]:
    """A process that has a folder, and prints it, until its input ends."""
    command = [sys.executable, "-c", HOLD_A_FOLDER, *map(str, arguments)]
    return subprocess.Popen(command, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_a_folder_is_gone_afterwards(tmp_path: Path) -> None:
    """With its files."""
    with scratch.folder(tmp_path / "new" / "cache") as folder:
        (folder / "file").write_text("x")
    assert list(folder.parent.iterdir()) == []


def test_what_a_killed_process_left_is_swept_and_what_a_living_one_holds_is_not(tmp_path: Path) -> None:
    """The lock of a folder is free once its process has ended, however it ended."""
    with hold_a_folder(tmp_path) as holder:
        assert holder.stdout is not None
        held = Path(holder.stdout.readline().strip())
        with scratch.folder(tmp_path):
            assert (held / "file").exists()
        holder.kill()
    with scratch.folder(tmp_path) as folder:
        assert list(folder.parent.iterdir()) == [folder]


@pytest.mark.timeout(60)
@pytest.mark.parametrize("lock", ["none", "FIFO", "behind a link"])
def test_a_sweep_leaves_what_it_cannot_lock(tmp_path: Path, lock: str) -> None:
    """A cache directory may be shared: it waits for no FIFO, and follows no link."""
    outside = tmp_path / "outside"
    outside.mkdir()
    planted = cache_folder.make(tmp_path / "cache") / "attempt-of-another-program"
    if lock == "behind a link":
        (outside / ".alive").write_text("")
        planted.symlink_to(outside)
    else:
        planted.mkdir()
        if lock == "FIFO":
            os.mkfifo(planted / ".alive")
    with scratch.folder(tmp_path / "cache"):
        pass
    assert planted.is_dir()
    assert (outside / ".alive").exists() == (lock == "behind a link")


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder that every user can write to, as /tmp is; a user cannot enter the tests' own."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o1777)
        yield Path(folder)


@as_root
def test_two_users_of_one_folder_do_not_disturb_each_other(shared: Path) -> None:
    """Neither sees the other's files there, nor sweeps them."""
    with hold_a_folder(shared, OTHER_USER) as other:
        assert other.stdout is not None
        theirs = Path(other.stdout.readline().strip())
        with scratch.folder(shared) as ours:
            assert theirs.parent != ours.parent
            assert mode(theirs.parent) == 0o700
        other.communicate("")
    assert other.returncode == 0


def test_a_plan_leaves_the_cache_folder_as_it_is(tmp_path: Path) -> None:
    """It is neither made nor filled."""
    for cache_dir in (tmp_path, tmp_path / "new" / "cache"):
        assert checks.disks(Settings(cache_dir=cache_dir), None, to_fetch=0)[0].outcome == "skipped"
    assert list(tmp_path.iterdir()) == []


def test_the_default_is_the_users_own_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Made with its parents, and closed to others."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    with scratch.folder(None) as folder:
        made = folder.parent
    assert (made.name, made.is_relative_to(tmp_path), mode(made)) == ("thaw", True, 0o700)


@pytest.mark.parametrize("is_default", [True, False])
def test_a_place_that_cannot_be_written_is_an_error_that_names_the_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_default: bool
) -> None:
    """A file is no folder; nor has a container's user always a home."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    cache_dir, match = (None, "cache folder") if is_default else (tmp_path / "file", "THAW_CACHE_DIR=")
    with pytest.raises(InvalidSettings, match=match) as caught, scratch.folder(cache_dir):
        pass
    assert "THAW_CACHE_DIR" in caught.value.hint
    planned = checks.disks(Settings(cache_dir=cache_dir), None, to_fetch=0)[0]
    assert (planned.outcome, planned.exit_code) == ("failed", caught.value.exit_code)
    assert planned.text.partition(": ")[0] == caught.value.message.partition(": ")[0]


def test_the_folder_is_kept_and_closed_again_when_a_volume_opens_it_to_its_group(tmp_path: Path) -> None:
    """Kubernetes does that to a volume with an fsGroup, each time it mounts it."""
    (cache_folder.make(tmp_path) / "file").write_text("kept")
    cache_folder.place(tmp_path).chmod(0o2775)
    assert (cache_folder.make(tmp_path) / "file").read_text() == "kept"
    assert mode(cache_folder.place(tmp_path)) == 0o700


@pytest.mark.timeout(30)
@pytest.mark.parametrize("kind", ["file", "open to all", *UNTRUSTED])
def test_a_folder_that_cannot_be_trusted_is_refused_by_path_kind_and_owner(tmp_path: Path, kind: str) -> None:
    """Another process may have made it under the predictable name; `plan` refuses it as a start does."""
    path = cache_folder.place(tmp_path / "cache")
    path.parent.mkdir()
    if kind in ("file", "FIFO", "symbolic link"):
        plant(path, kind, outside=tmp_path)
    else:
        path.mkdir()
        path.chmod(0o777) if kind == "open to all" else os.chown(path, OTHER_USER, OTHER_USER)
    expected = {"open to all": "every user can write", "of another": f"user {OTHER_USER}"}.get(kind, f"it is a {kind}")
    with pytest.raises(InvalidSettings, match=f"{path}.*{expected}") as caught, scratch.folder(tmp_path / "cache"):
        pass
    planned = checks.disks(Settings(cache_dir=tmp_path / "cache"), None, to_fetch=0)[0]
    assert (planned.text, planned.exit_code) == (caught.value.message, 2)
    assert "THAW_CACHE_DIR" in caught.value.hint


@pytest.mark.timeout(30)
@pytest.mark.parametrize("kind", ["own", "folder", "nothing", *UNTRUSTED])
def test_only_an_own_file_is_opened(tmp_path: Path, kind: str) -> None:
    """Whatever the umask was; and a FIFO without a writer is not waited for."""
    path, target = tmp_path / "file", tmp_path / "target"
    target.write_text("content")
    target.chmod(0o666)
    if kind in ("own", "of another"):
        path = target
        os.chown(path, OTHER_USER if kind == "of another" else -1, -1)
    elif kind != "nothing":
        plant(path, kind, outside=target)
    file = cache_folder.open_own(path)
    assert (file is not None) == (kind == "own")
    if file is not None:
        with file:
            assert file.read() == b"content"


def test_a_temporary_file_that_fails_is_not_a_missing_object(tmp_path: Path) -> None:
    """/dev/full refuses every write, as a full disk does; and another program may have removed a file."""
    store = LocalStore(tmp_path / "store")
    store.write("a", b"x" * 100_000, if_version=MISSING)
    with pytest.raises(ScratchUnavailable, match="No space left"):
        store.download("a", Path("/dev/full"))
    with pytest.raises(ScratchUnavailable, match="nothing"):
        store.upload("b", tmp_path / "nothing", if_version=MISSING)


def test_one_process_has_its_turn_at_a_time(tmp_path: Path) -> None:
    """Another waits for it, and can be stopped meanwhile."""

    def stop() -> None:
        raise Interrupted("now")

    with scratch.turn(tmp_path, tick=stop), pytest.raises(Interrupted), scratch.turn(tmp_path, tick=stop):
        pytest.fail("two have their turn")
    with scratch.turn(tmp_path, tick=stop):
        pass
