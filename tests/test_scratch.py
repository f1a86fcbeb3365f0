"""Temporary files: gone afterwards, swept after a kill, and told apart from the store when they fail."""

import subprocess
import sys
from pathlib import Path

import pytest

from job.errors import InvalidSettings, ScratchUnavailable
from job.storage import MISSING, LocalStore, cache_folder, scratch
from tests.conftest import REPOSITORY

HOLD_A_FOLDER = """
import sys, time
from pathlib import Path
from job import scratch
with scratch.folder(Path(sys.argv[1])) as folder:
    (folder / "big").write_bytes(b"x" * 1000)
    print(folder, flush=True)
    time.sleep(60)
"""


def test_a_folder_is_gone_afterwards(tmp_path: Path) -> None:
    """With all it held."""
    with scratch.folder(tmp_path / "new" / "cache") as folder:
        (folder / "file").write_text("x")
    assert [path for path in (tmp_path / "new" / "cache").rglob("*") if path != folder.parent] == []


def test_what_a_killed_process_left_is_swept_and_what_a_living_one_holds_is_not(tmp_path: Path) -> None:
    """The lock of a folder is free once its process is no more, however that ended."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD_A_FOLDER, str(tmp_path)], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        held = Path(holder.stdout.readline().strip())
        with scratch.folder(tmp_path):
            assert (held / "big").exists()
        holder.kill()
    with scratch.folder(tmp_path) as folder:
        assert list(folder.parent.iterdir()) == [folder]


def test_folders_of_others_are_left_alone(tmp_path: Path) -> None:
    """A cache directory may be shared."""
    (cache_folder.make(tmp_path) / "attempt-of-somebody-else").mkdir()
    with scratch.folder(tmp_path) as folder:
        pass
    assert [path.name for path in folder.parent.iterdir()] == ["attempt-of-somebody-else"]


def test_a_place_that_cannot_be_written_is_told_by_the_variable(tmp_path: Path) -> None:
    """A file is no folder."""
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidSettings, match="THAW_CACHE_DIR"), scratch.folder(tmp_path / "file"):
        pass


def test_a_download_to_a_full_disk_is_not_a_missing_object(tmp_path: Path) -> None:
    """/dev/full refuses every write, as a full disk does."""
    store = LocalStore(tmp_path)
    store.write("a", b"x" * 100_000, if_generation=MISSING)
    with pytest.raises(ScratchUnavailable, match="No space left"):
        store.download("a", Path("/dev/full"))


def test_an_upload_of_a_file_that_is_gone_is_not_a_missing_object(tmp_path: Path) -> None:
    """Somebody cleaned the temporary folder."""
    with pytest.raises(ScratchUnavailable, match="nothing"):
        LocalStore(tmp_path / "store").upload("a", tmp_path / "nothing", if_generation=MISSING)
