"""Which files are taken for images, and what is said of those that are none."""

import io
import os
from pathlib import Path

import pytest

from job import image_files
from job.errors import InvalidSettings
from job.image_files import MAX_IMAGE_BYTES, Unreadable


def find(*names: str, standard_input: bytes = b"") -> list[str | Unreadable]:
    return list(image_files.find(names, standard_input=lambda: io.BufferedReader(io.BytesIO(standard_input))))


def test_a_folder_gives_its_images_at_any_depth_in_order(tmp_path: Path) -> None:
    """By suffix, in capitals too; what a desktop hides beside them is none."""
    for name in ("b/2.JPG", "b/10.png", "a.webp", "b/c/d.jpeg", "notes.txt", "b/._2.JPG", ".DS_Store"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    assert find(str(tmp_path)) == [str(tmp_path / name) for name in ("a.webp", "b/10.png", "b/2.JPG", "b/c/d.jpeg")]


def test_a_file_that_is_named_is_taken_whatever_it_is_called(tmp_path: Path) -> None:
    """Whether it is an image, and there, is told when it is read."""
    assert find("cat", str(tmp_path / "nothing.jpg"), "x" * 5000) == ["cat", str(tmp_path / "nothing.jpg"), "x" * 5000]


def test_a_folder_without_an_image_is_told(tmp_path: Path) -> None:
    """It was named, so somebody expected one."""
    (tmp_path / "notes.txt").write_bytes(b"x")
    (found,) = find(str(tmp_path))
    assert isinstance(found, Unreadable)
    assert "no image file in this folder" in found.reason


def test_standard_input_is_a_list_of_paths(tmp_path: Path) -> None:
    """One a line, of files and folders; lines of Windows and empty ones do no harm; names need not be UTF-8."""
    (tmp_path / "a.jpg").write_bytes(b"x")
    lines = [os.fsencode(tmp_path), b"cat.jpg\r", b"", b"d\xff.png"]
    assert find("-", standard_input=b"\n".join(lines)) == [
        str(tmp_path / "a.jpg"),
        "cat.jpg",
        os.fsdecode(b"d\xff.png"),
    ]


def test_paths_may_end_with_a_zero_byte() -> None:
    """As `find -print0` writes them, however many: then they may hold new lines."""
    names = [f"a\n{number}.jpg" for number in range(20_000)]
    assert find("-", standard_input="".join(f"{name}\0" for name in names).encode()) == names


@pytest.mark.parametrize("begin", [b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n"])
def test_an_image_on_standard_input_is_told_from_paths(begin: bytes) -> None:
    """With the name under which it can be read."""
    with pytest.raises(InvalidSettings, match="an image came") as caught:
        find("-", standard_input=begin + b"\0" * 100)
    assert "/dev/stdin" in caught.value.hint


def test_what_is_on_standard_input_is_read_as_it_comes() -> None:
    """The first path is taken before the second one is written."""
    reading, writing = os.pipe()
    with open(reading, "rb") as file:  # noqa: PTH123  a descriptor
        os.write(writing, b"first.jpg\n")
        paths = image_files.find(["-"], standard_input=lambda: file)
        assert next(paths) == "first.jpg"
        os.write(writing, b"second.jpg\n")
        assert next(paths) == "second.jpg"
        os.close(writing)
        assert list(paths) == []


@pytest.mark.parametrize(
    ("path", "reason"),
    [("nothing.jpg", "No such file"), ("empty.jpg", "is empty"), ("folder", "Is a directory"), ("a\0b", "null byte")],
)
def test_a_file_that_cannot_be_read_says_why(tmp_path: Path, path: str, reason: str) -> None:
    """In the words of the operating system."""
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match=reason):
        image_files.read(str(tmp_path / path))


def test_a_file_without_end_is_not_read_to_its_end() -> None:
    """/dev/zero is larger than any image."""
    with pytest.raises(ValueError, match=f"larger than {MAX_IMAGE_BYTES >> 20} MiB"):
        image_files.read("/dev/zero")
