"""Which files are taken for images, and what is said of those that are none."""

import io
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from job.data.files import image_files
from job.data.files.image_files import MAX_IMAGE_BYTES, Unreadable
from job.errors import InvalidSettings
from job.storage import MISSING, open_store
from tests.gcs_server import BUCKET, GcsServer


def find(
    *names: str, standard_input: bytes = b"", passed_over: Callable[[str], None] = pytest.fail
) -> list[str | Unreadable]:
    opened = lambda: io.BufferedReader(io.BytesIO(standard_input))  # noqa: E731
    return list(image_files.find(names, standard_input=opened, passed_over=passed_over))


def test_a_folder_gives_its_images_at_any_depth_in_order(tmp_path: Path) -> None:
    """By suffix, in capitals too; what a desktop hides beside them is none."""
    for name in ("b/2.JPG", "b/10.png", "a.webp", "b/c/d.jpeg", "notes.txt", "b/._2.JPG", ".DS_Store"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    assert find(str(tmp_path)) == [str(tmp_path / name) for name in ("a.webp", "b/10.png", "b/2.JPG", "b/c/d.jpeg")]


def test_a_file_that_is_named_is_taken_whatever_it_is_called(tmp_path: Path) -> None:
    """Whether it is an image, and there, is found when it is read. The URI of a file is a path, in quotes."""
    names = ["cat", str(tmp_path / "nothing.jpg"), "x" * 5000]
    assert find(*names) == names
    assert find(f"file://{tmp_path}/a%20b.jpg") == [str(tmp_path / "a b.jpg")]


def test_images_of_formats_that_are_not_read_and_folders_without_one_are_named(tmp_path: Path) -> None:
    """In their place, with what to do."""
    (tmp_path / "empty").mkdir()
    for name in ("a.jpg", "b.HEIC", "empty/notes.txt"):
        (tmp_path / name).write_bytes(b"x")
    first, heic, empty = find(f"file://{tmp_path}", str(tmp_path / "empty"))
    assert first == str(tmp_path / "a.jpg")
    assert heic == Unreadable(str(tmp_path / "b.HEIC"), "HEIC is not read: convert it to JPEG or PNG")
    assert isinstance(empty, Unreadable)
    assert "no image file in this folder" in empty.reason


def test_a_linked_folder_is_passed_over_by_name(tmp_path: Path) -> None:
    """It may lead back to where it is; a linked file is taken."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.jpg").write_bytes(b"x")
    (tmp_path / "folder" / "b.jpg").symlink_to("a.jpg")
    (tmp_path / "folder" / "loop").symlink_to(tmp_path)
    passed_over: list[str] = []
    found = find(str(tmp_path), passed_over=passed_over.append)
    assert found == [str(tmp_path / "folder" / name) for name in ("a.jpg", "b.jpg")]
    assert passed_over == [str(tmp_path / "folder" / "loop")]


def test_a_pipe_in_a_folder_is_not_waited_for(tmp_path: Path) -> None:
    """Nor is a link that leads nowhere left out."""
    os.mkfifo(tmp_path / "a.jpg")
    (tmp_path / "b.jpg").symlink_to("nothing")
    reasons = [row.reason for row in find(str(tmp_path)) if isinstance(row, Unreadable)]
    assert reasons == ["is not a file, or a link to none"] * 2


@pytest.fixture
def bucket(gcs: GcsServer) -> str:
    """A bucket with images, and what lies beside them."""
    store = open_store(f"gs://{BUCKET}")
    for name in ("photos/b/2.JPG", "photos/a#1 ?.png", "photos/c.heic", "photos/notes.txt", "photos-2/d.png", "e"):
        store.write(name, b"x", if_version=MISSING)
    return f"gs://{BUCKET}"


def test_a_folder_in_a_bucket_gives_its_images(bucket: str) -> None:
    """In order, by their URIs, and nothing of another folder whose name begins the same."""
    for uri in (f"{bucket}/photos", f"{bucket}/photos/"):
        *images, heic = find(uri)
        assert images == [f"{bucket}/photos/a#1 ?.png", f"{bucket}/photos/b/2.JPG"]
        assert isinstance(heic, Unreadable)
        assert heic.path == f"{bucket}/photos/c.heic"
    assert len(find(bucket)) == 4


def test_an_object_is_taken_whatever_it_is_called(bucket: str, tmp_path: Path) -> None:
    """If there is one; the name may hold what a URI has a meaning for."""
    for uri in (f"{bucket}/e", f"{bucket}/photos/a#1 ?.png"):
        assert find(uri) == [uri]
        assert image_files.read(uri, tmp_path) == b"x"
    assert find(f"{bucket}/nothing.jpg") == [f"{bucket}/nothing.jpg"]
    with pytest.raises(ValueError, match=r"nothing\.jpg"):
        image_files.read(f"{bucket}/nothing.jpg", tmp_path)
    (found,) = find(f"{bucket}/none/")
    assert isinstance(found, Unreadable)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("uri", ["ftp://bucket/a.jpg", "gs://user:secret@bucket/a.jpg"])
def test_a_uri_that_has_no_store_is_refused(uri: str, tmp_path: Path) -> None:
    """And no password of it is shown."""
    with pytest.raises(InvalidSettings) as caught:
        image_files.read(uri, tmp_path)
    assert "secret" not in caught.value.message


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
        paths = image_files.find(["-"], standard_input=lambda: file, passed_over=pytest.fail)
        assert next(paths) == "first.jpg"
        os.write(writing, b"second.jpg\n")
        assert next(paths) == "second.jpg"
        os.close(writing)
        assert list(paths) == []


@pytest.mark.parametrize(
    ("path", "reason"),
    [("nothing.jpg", "No such file"), ("empty.jpg", "is empty"), ("folder", "Is a directory"), ("a\0b", "null byte"),
     ("/dev/zero", f"larger than {MAX_IMAGE_BYTES >> 20} MiB")],
)  # fmt: skip
def test_a_file_that_cannot_be_read_says_why(tmp_path: Path, path: str, reason: str) -> None:
    """In the words of the operating system. One without end is not read to its end."""
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match=reason):
        image_files.read(str(tmp_path / path), tmp_path)
