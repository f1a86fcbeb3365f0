"""Real disks that are full, read-only, or of another user: an error with path and exit code, and nothing is lost."""

import contextlib
import errno
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from job.data.mirror import Fetcher
from job.errors import ExitCode, InvalidSettings, ScratchUnavailable, StorageError, ThawError
from job.observe import events
from job.storage import MISSING, LocalStore, scratch
from tests.conftest import Recorder
from tests.gcs_server import BUCKET, GcsServer
from tests.runs import ONE_PHASE, Small, Undisturbed, Whole, record_of, result_of, start

OTHER_USER = 65534


class Disk:
    """A small file system of its own, in memory, with a folder that is there from the start."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.place = root / "place"
        self._filler = root / "filler"
        self._mount("-t", "tmpfs", "-o", "size=64m", "thaw-test")
        self.place.mkdir()

    def fill(self) -> None:
        """Until it stays full: another writer may take space meanwhile, and free it again."""
        with self._filler.open("wb") as file:
            for _ in range(3):
                while (free := shutil.disk_usage(self.root).free) >= 4096:
                    with contextlib.suppress(OSError):
                        os.posix_fallocate(file.fileno(), os.fstat(file.fileno()).st_size, free)
                time.sleep(0.02)
        assert shutil.disk_usage(self.root).free < 4096

    def make_read_only(self) -> None:
        self._mount("-o", "remount,ro")

    def mend(self) -> None:
        self._mount("-o", "remount,rw")
        self._filler.unlink(missing_ok=True)

    def unmount(self) -> None:
        subprocess.run(["umount", "--lazy", self.root], check=True)

    def _mount(self, *options: str) -> None:
        done = subprocess.run(["mount", *options, self.root], capture_output=True, text=True)
        if done.returncode != 0:
            raise OSError(done.stderr.strip())


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    (tmp_path / "disk").mkdir()
    try:
        disk = Disk(tmp_path / "disk")
    except OSError as error:
        pytest.skip(f"no disk can be mounted here, which takes root: {error}")
    yield disk
    disk.unmount()


class HarmsAtACommit(Recorder):
    """Damages a disk right after the first commit."""

    def __init__(self, harm: Callable[[], None]) -> None:
        super().__init__()
        self._harm = harm

    def event(self, event: events.Event) -> None:
        if isinstance(event, events.Committed) and events.Committed not in self.kinds():
            self._harm()
        super().event(event)


HARMS = {
    "full": (Disk.fill, errno.ENOSPC, "larger volume"),
    "read-only": (Disk.make_read_only, errno.EROFS, ""),
}


@pytest.mark.slow
@pytest.mark.parametrize("harm", HARMS)
def test_a_store_on_a_disk_that_fails_ends_a_run_with_44_and_loses_nothing(
    disk: Disk, small: Small, whole: Whole, harm: str
) -> None:
    """What was committed stands; once the disk is mended, the run ends as if nothing had happened."""
    store, (do_harm, number, hint) = LocalStore(disk.place), HARMS[harm]
    with pytest.raises(StorageError, match=f"{disk.place}.*{os.strerror(number)}") as caught:
        start(small(**ONE_PHASE), store, observer=HarmsAtACommit(lambda: do_harm(disk)))
    assert caught.value.exit_code == ExitCode.STORAGE_UNAVAILABLE
    assert "THAW_STORAGE_URI" in caught.value.hint
    assert hint in caught.value.hint
    assert [entry.step for entry in record_of(store).checkpoints] == [3]
    disk.mend()
    assert start(small(**ONE_PHASE), store).of(events.Restored)[0].step == 3
    assert result_of(store) == result_of(whole(**ONE_PHASE)[0])


@pytest.mark.slow
def test_temporary_files_on_a_disk_that_fills_up_end_a_run_with_44_and_lose_nothing(
    disk: Disk, small: Small, store: LocalStore, undisturbed_run: Undisturbed
) -> None:
    """The error names the setting of the temporary files. (A disk that holds a lock cannot be made read-only.)"""
    with pytest.raises(ScratchUnavailable, match=str(disk.place)) as caught:
        start(small(cache_dir=disk.place), store, observer=HarmsAtACommit(disk.fill))
    assert os.strerror(errno.ENOSPC) in caught.value.message
    assert caught.value.exit_code == record_of(store).attempts[-1].exit_code == ExitCode.STORAGE_UNAVAILABLE
    assert "larger volume" in caught.value.hint
    assert "THAW_CACHE_DIR" in caught.value.hint
    disk.mend()
    start(small(cache_dir=disk.place), store)
    assert result_of(store) == result_of(undisturbed_run[0])


def test_fetching_to_a_full_disk_is_an_error_and_goes_on_once_there_is_space(gcs: GcsServer, disk: Disk) -> None:
    """Complete files stay, no half file has a name, and the space of the half is freed."""
    weights = os.urandom(8 << 20)
    for name in ("first.h5", "second.h5"):
        gcs.put(name, weights, None)

    def fetch(name: str) -> Path:
        with scratch.folder(disk.place) as folder:
            fetcher = Fetcher(disk.place, scratch=folder, observer=Recorder(), check_stop=lambda: None)
            return fetcher.weights(f"gs://{BUCKET}/{name}")

    first = fetch("first.h5")
    space = disk.root / "space"
    space.write_bytes(bytes(4 << 20))
    disk.fill()
    space.unlink()
    with pytest.raises(ScratchUnavailable, match=f"{disk.place}.*{os.strerror(errno.ENOSPC)}") as caught:
        fetch("second.h5")
    assert caught.value.exit_code == ExitCode.STORAGE_UNAVAILABLE
    assert "THAW_CACHE_DIR" in caught.value.hint
    assert sorted(path.name for path in disk.place.rglob("*.h5")) == ["first.h5"]
    assert shutil.disk_usage(disk.root).free > 3 << 20
    disk.mend()
    assert fetch("second.h5").read_bytes() == first.read_bytes() == weights


def test_a_cache_that_is_read_only_ends_with_2(disk: Disk) -> None:
    """It was so before the run began: a setting to correct."""
    disk.make_read_only()
    with pytest.raises(InvalidSettings, match=r"THAW_CACHE_DIR=.*Read-only"), scratch.folder(disk.place):
        pass


@contextlib.contextmanager
def as_another_user() -> Iterator[None]:
    """Without root's right to write anywhere."""
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(OTHER_USER)
    try:
        yield
    finally:
        if is_root:
            os.seteuid(0)


@pytest.fixture
def not_ours(disk: Disk) -> Iterator[Path]:
    """A folder that this user may read."""
    disk.root.chmod(0o755)
    disk.place.chmod(0o555)
    before = {}
    for folder in disk.root.parents:
        mode = folder.stat().st_mode
        if mode & 0o005 != 0o005 and folder.owner() == disk.root.owner():
            before[folder] = mode
            folder.chmod(mode | 0o005)
    yield disk.place
    for folder, mode in before.items():
        folder.chmod(mode)


def write_to_the_store(place: Path) -> None:
    LocalStore(place).write("run.json", b"", if_version=MISSING)


def make_a_temporary_folder(place: Path) -> None:
    with scratch.folder(place):
        pass


@pytest.mark.parametrize(
    ("act", "exit_code", "variable"),
    [
        (write_to_the_store, ExitCode.BAD_INPUT, "THAW_STORAGE_URI"),
        (make_a_temporary_folder, ExitCode.INVALID_SETTINGS, "THAW_CACHE_DIR"),
    ],
)
def test_a_folder_of_another_user_is_an_error_with_a_hint(
    not_ours: Path, act: Callable[[Path], None], exit_code: ExitCode, variable: str
) -> None:
    """As for a pod that does not run as root."""
    with pytest.raises(ThawError, match=f"{not_ours}.*{os.strerror(errno.EACCES)}") as caught, as_another_user():
        act(not_ours)
    assert caught.value.exit_code == exit_code
    assert variable in caught.value.hint
