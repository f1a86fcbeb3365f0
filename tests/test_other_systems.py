"""What only Linux has is used where it is, and not needed elsewhere: macOS has none of it."""

import os
import resource
from pathlib import Path

import numpy as np
import pytest

from job.data import images
from job.errors import InvalidSettings


def test_images_are_kept_on_disk_without_posix_fallocate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of the file's space is reserved: a disk that is full is an error then, and no crash later."""
    monkeypatch.delattr(os, "posix_fallocate")
    shape = (10, 1000, 1000, 3)
    pixels = images.allocate(shape, "disk", tmp_path)
    assert isinstance(pixels, np.memmap)
    pixels[-1] = 7
    assert (pixels.shape, pixels[0].max(), pixels[-1].min()) == (shape, 0, 7)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000_000, hard))
    try:
        with pytest.raises(InvalidSettings, match="THAW_CACHE=disk needs 29 MiB"):
            images.allocate(shape, "disk", tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
