"""What only Linux has is used where it is, and not needed elsewhere: macOS has none of it."""

import os
from pathlib import Path

import numpy as np
import pytest

from job.data import images
from job.observe.log import without_native_notes


def test_standard_error_is_captured_without_files_in_memory(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """`os.memfd_create` is Linux's."""
    monkeypatch.delattr(os, "memfd_create")
    with without_native_notes():
        os.write(2, b"I0000 port.cc:153] a note\nW0000 x.cc:1] a warning\n")
    assert capfd.readouterr().err == "W0000 x.cc:1] a warning\n"


def test_images_are_kept_on_disk_without_posix_fallocate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of the file's space is reserved, also the last part of it."""
    monkeypatch.delattr(os, "posix_fallocate")
    monkeypatch.setattr(images, "ZEROS_BYTES", 1000)
    pixels = images.allocate((3, 30, 30, 3), "disk", tmp_path)
    assert isinstance(pixels, np.memmap)
    pixels[-1] = 7
    assert (pixels.shape, int(pixels.sum())) == ((3, 30, 30, 3), 7 * 2700)


def test_a_full_disk_is_an_error_without_posix_fallocate(monkeypatch: pytest.MonkeyPatch) -> None:
    """And not a crash when the images are written later."""
    monkeypatch.delattr(os, "posix_fallocate")
    with pytest.raises(OSError, match="No space left"), open("/dev/full", "wb") as file:  # noqa: PTH123
        images._reserve(file, 100)
