"""What all processes of pytest-xdist need, made by the first of them that asks."""

import fcntl
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

Made = TypeVar("Made")

folders: list[Path] = []
"""One folder for all processes; tests/conftest.py names it before the first test."""


def made_once(name: str, make: Callable[[Path], Made]) -> tuple[Path, Made]:
    """A folder of this name, and what `make` has returned for it; the others wait until it is made."""
    folder = folders[0] / name
    returned = folder / "returned.pickle"
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not returned.exists():
            shutil.rmtree(folder, ignore_errors=True)  # what a process left that failed to make it
            folder.mkdir()
            returned.write_bytes(pickle.dumps(make(folder)))
        return folder, pickle.loads(returned.read_bytes())
