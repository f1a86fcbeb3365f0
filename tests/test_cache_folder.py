"""The user's folder for temporary files: open to no other user, and no other user is in its way."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from job.cli import checks
from job.errors import InvalidSettings
from job.settings.settings import Settings
from job.storage import LocalStore, cache_folder, scratch
from tests.conftest import REPOSITORY

OTHER_USER = 12345
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_the_default_is_the_users_own_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Made with its parents, and closed to others."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    made = cache_folder.make(None)
    assert (made.name, made.is_relative_to(tmp_path), mode(made)) == ("thaw", True, 0o700)
    with scratch.folder(None) as folder:
        assert folder.parent == made


def test_a_home_that_cannot_be_written_is_told_with_the_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a container whose user has none."""
    (tmp_path / "home").write_text("no folder")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    with pytest.raises(InvalidSettings, match="cache folder") as caught, scratch.folder(None):
        pass
    assert "THAW_CACHE_DIR" in caught.value.hint


def test_the_same_user_finds_the_same_folder_again(tmp_path: Path) -> None:
    """With what was fetched into it."""
    (cache_folder.make(tmp_path) / "file").write_text("kept")
    assert (cache_folder.make(tmp_path) / "file").read_text() == "kept"
    assert mode(cache_folder.place(tmp_path)) == 0o700


def test_what_a_volume_opens_to_its_group_is_closed_again(tmp_path: Path) -> None:
    """Kubernetes does that to a volume with an fsGroup, each time it mounts it."""
    cache_folder.make(tmp_path).chmod(0o2775)
    assert mode(cache_folder.make(tmp_path)) == 0o700


@pytest.mark.timeout(30)
@pytest.mark.parametrize("kind", ["link", "file", "pipe", "open to all", pytest.param("of another", marks=as_root)])
def test_a_folder_that_cannot_be_trusted_is_refused_by_path_kind_and_owner(tmp_path: Path, kind: str) -> None:
    """Whoever came first under the predictable name; by `plan` as by a start."""
    path = cache_folder.place(tmp_path / "cache")
    path.parent.mkdir()
    if kind == "link":
        path.symlink_to(tmp_path)
    elif kind == "file":
        path.write_text("")
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.mkdir()
        path.chmod(0o777) if kind == "open to all" else os.chown(path, OTHER_USER, OTHER_USER)
    expected = {"open to all": "every user can write", "of another": f"user {OTHER_USER}", "pipe": "a named pipe"}
    with pytest.raises(InvalidSettings) as caught, scratch.folder(tmp_path / "cache"):
        pass
    planned = checks.disks(Settings(cache_dir=tmp_path / "cache"), None, LocalStore(tmp_path))[0]
    assert (planned.text, planned.exit_code) == (caught.value.message, 2)
    assert str(path) in caught.value.message
    assert expected.get(kind, f"a {kind}") in caught.value.message
    assert "THAW_CACHE_DIR" in caught.value.hint


@pytest.mark.timeout(30)
@pytest.mark.parametrize("kind", ["pipe", "link", "folder", "nothing", pytest.param("of another", marks=as_root)])
def test_a_file_that_cannot_be_trusted_is_not_opened(tmp_path: Path, kind: str) -> None:
    """And a named pipe without a writer keeps nobody waiting."""
    path, target = tmp_path / "file", tmp_path / "target"
    target.write_text("poison")
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "link":
        path.symlink_to(target)
    elif kind == "folder":
        path.mkdir()
    elif kind == "of another":
        path = target
        os.chown(path, OTHER_USER, OTHER_USER)
    assert cache_folder.open_own(path) is None


def test_an_own_file_is_opened(tmp_path: Path) -> None:
    """Whatever the umask was."""
    (tmp_path / "file").write_text("content")
    (tmp_path / "file").chmod(0o666)
    file = cache_folder.open_own(tmp_path / "file")
    assert file is not None
    with file:
        assert file.read() == b"content"


@pytest.mark.timeout(60)
def test_a_sweep_does_not_wait_for_a_pipe_that_stands_for_a_lock(tmp_path: Path) -> None:
    """Nor does it remove what it cannot lock."""
    planted = cache_folder.make(tmp_path) / "attempt-planted"
    planted.mkdir()
    os.mkfifo(planted / ".alive")
    with scratch.folder(tmp_path):
        assert planted.is_dir()


def test_a_sweep_does_not_follow_a_link(tmp_path: Path) -> None:
    """What lies elsewhere stays."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / ".alive").write_text("")
    (cache_folder.make(tmp_path) / "attempt-link").symlink_to(outside)
    with scratch.folder(tmp_path):
        assert (outside / ".alive").exists()


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder that every user can write to, as /tmp is; a user cannot enter the tests' own."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o1777)
        yield Path(folder)


HOLD = """
import os, sys
from pathlib import Path
from job import scratch
os.setgroups([])
os.setgid(int(sys.argv[2]))
os.setuid(int(sys.argv[2]))
with scratch.folder(Path(sys.argv[1])) as folder:
    (folder / "file").write_text("mine")
    print(folder, flush=True)
    sys.stdin.read()
    assert (folder / "file").read_text() == "mine"
"""


@as_root
def test_two_users_of_one_folder_are_not_in_each_others_way(shared: Path) -> None:
    """Neither sees what the other has there, nor sweeps it."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(shared), str(OTHER_USER)], cwd=REPOSITORY, stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, text=True,
    ) as other:  # fmt: skip
        assert other.stdout is not None
        theirs = Path(other.stdout.readline().strip())
        with scratch.folder(shared) as ours:
            assert theirs.parent != ours.parent
            assert mode(theirs.parent) == 0o700
        other.communicate("")
    assert other.returncode == 0
