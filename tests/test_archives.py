"""The images in an archive are read in place, and nothing in one is trusted."""

import gzip
import io
import stat
import tarfile
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from job.data.files.image_files import MAX_IMAGE_BYTES
from job.data.files.listing import Listing
from job.data.files.places import open_place
from job.errors import DataCorrupt, InputError

NAMES = [f"{label}/{number}.jpg" for label in ("Cat", "Dog") for number in range(4)]
CONTENT = {name: f"{name[:3]}{name[4]}".encode() * 1000 for name in NAMES}
KINDS = ["zip", "tar", "tar.gz", "tgz"]


def written(path: Path, members: dict[str, bytes]) -> Path:
    """An archive of the kind that its suffix says; a member whose name ends with a slash is a folder."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in members.items():
                archive.writestr(name, data)
        return path
    with tarfile.open(path, "w:gz" if path.name.endswith("gz") else "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name.rstrip("/"))
            info.type = tarfile.DIRTYPE if name.endswith("/") else tarfile.REGTYPE
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def summed(header: bytearray) -> bytearray:
    """A header of a tar that was changed, with its checksum."""
    header[148:156] = b" " * 8
    header[148:156] = f"{sum(header):06o}\0 ".encode()
    return header


def opened(path: Path) -> Listing:
    scratch = path.parent / "scratch"
    scratch.mkdir(exist_ok=True)
    return open_place(str(path), scratch=scratch)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("above", ["", "./", "Pets\\"])
def test_an_archive_is_listed_and_read_by_many_threads(tmp_path: Path, kind: str, above: str) -> None:
    """As the folder that it was made of. Only a compressed tar leaves a file, which has a name of ours."""
    members = {above: b""} if above == "./" else {}
    members |= {above + name: data for name, data in CONTENT.items()} | {"Bird/": b"", "Cat/notes.txt": b"x"}
    listing = opened(written(tmp_path / f"pets.{kind}", members))
    root = "Pets/" if above == "Pets\\" else ""
    assert [image.name for image in listing.images] == [root + name for name in CONTENT]
    with ThreadPoolExecutor(8) as threads:
        read = list(threads.map(listing.read, [*range(8)] * 50))
    assert read == [*CONTENT.values()] * 50
    if not root:
        assert (listing.class_names, listing.empty_classes) == (("Cat", "Dog"), ("Bird",))
        assert listing.left_out == {".txt": 1}
    assert len(list((tmp_path / "scratch").iterdir())) == (0 if kind in ("zip", "tar") else 1)
    assert {path.name for path in tmp_path.iterdir()} == {f"pets.{kind}", "scratch"}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["../a.jpg", "Cat/../../a.jpg", "/etc/a.jpg", "Cat//a.jpg", "..\\a.jpg", "Cat/a\n.jpg",
                                  "..", "Cat/.", "../.hidden"])  # fmt: skip
def test_an_archive_with_a_name_that_is_not_safe_is_refused(tmp_path: Path, kind: str, name: str) -> None:
    """Whatever else is in it."""
    with pytest.raises(InputError, match="is not a safe name"):
        opened(written(tmp_path / f"pets.{kind}", CONTENT | {name: b"x"}))


@pytest.mark.parametrize("kind", ["zip", "tar"])
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_archive_that_has_a_name_twice_is_refused(tmp_path: Path, kind: str) -> None:
    with pytest.raises(InputError, match=r"it has 'Cat/0\.jpg' twice"):
        opened(written(tmp_path / f"pets.{kind}", CONTENT | {"./Cat/0.jpg": b"x"}))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_and_devices_in_an_archive_are_refused(tmp_path: Path, kind: bytes) -> None:
    with tarfile.open(tmp_path / "pets.tar", "w") as tar:
        info = tarfile.TarInfo("Cat/passwd.jpg")
        info.type, info.linkname = kind, "/etc/passwd"
        tar.addfile(info)
    with pytest.raises(InputError, match=r"'Cat/passwd\.jpg' is a link or a device"):
        opened(tmp_path / "pets.tar")


def a_link(info: zipfile.ZipInfo) -> None:
    info.external_attr = (stat.S_IFLNK | 0o777) << 16


def an_old_compression(info: zipfile.ZipInfo) -> None:
    info.compress_type = zipfile.ZIP_BZIP2


@pytest.mark.parametrize(
    ("change", "says"), [(a_link, "is a symbolic link"), (an_old_compression, "has the compression 12")]
)
def test_members_of_a_zip_that_are_no_plain_files_are_refused(
    tmp_path: Path, change: Callable[[zipfile.ZipInfo], None], says: str
) -> None:
    with zipfile.ZipFile(tmp_path / "pets.zip", "w") as archive:
        info = zipfile.ZipInfo("Cat/1.jpg")
        change(info)
        archive.writestr(info, b"x")
    with pytest.raises(InputError, match=rf"'Cat/1\.jpg' {says}"):
        opened(tmp_path / "pets.zip")


def test_an_encrypted_zip_is_refused(tmp_path: Path) -> None:
    """By the flag of a member in the directory of the zip."""
    path = written(tmp_path / "pets.zip", {"Cat/1.jpg": b"x"})
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\1\2") + 8] |= 1
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"'Cat/1\.jpg' is encrypted"):
        opened(path)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0.0, 0.5, 0.9])
def test_an_archive_that_is_cut_short_is_damaged(tmp_path: Path, kind: str, share: float) -> None:
    """One error, with what to do."""
    path = written(tmp_path / f"pets.{kind}", CONTENT)
    path.write_bytes(path.read_bytes()[: int(share * 20_000 if kind == "tar" else share * path.stat().st_size)])
    with pytest.raises(DataCorrupt, match=f"the archive .*pets.{kind} is damaged") as caught:
        opened(path)
    assert "again" in caught.value.hint


@pytest.mark.parametrize("kind", ["tar", "tar.gz"])
@pytest.mark.parametrize("extra", [0, 100])
def test_a_tar_that_is_cut_between_two_members_is_damaged(tmp_path: Path, kind: str, extra: int) -> None:
    """Half of the images would be missing in silence; also where the cut tar was compressed later."""
    data = written(tmp_path / "whole.tar", CONTENT).read_bytes()
    data = data[: data.index(b"Dog/0.jpg")] + bytes(extra)
    path = tmp_path / f"pets.{kind}"
    path.write_bytes(gzip.compress(data) if kind == "tar.gz" else data)
    with pytest.raises(DataCorrupt, match=f"damaged: it stops at byte {len(data):,}, without the zeros"):
        opened(path)


def test_a_sparse_file_in_a_tar_is_refused(tmp_path: Path) -> None:
    """By its name, though it says a size that the tar does not have."""
    info = tarfile.TarInfo("Cat/1.jpg")
    info.type, info.size = tarfile.GNUTYPE_SPARSE, 512
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[386:410], header[483:495] = b"%011o\0%011o\0" % (1 << 20, 512), b"%011o\0" % ((1 << 20) + 512)
    sparse, other = summed(header) + bytes(512), tarfile.TarInfo("Cat/2.jpg").tobuf()
    for members in (sparse, sparse + other):
        (tmp_path / "pets.tar").write_bytes(members + bytes(1024))
        with pytest.raises(InputError, match=r"'Cat/1\.jpg' is a link or a device"):
            opened(tmp_path / "pets.tar")


def test_a_damaged_header_in_a_tar_is_not_taken_for_its_end(tmp_path: Path) -> None:
    """Half of the images would be missing in silence."""
    path = written(tmp_path / "pets.tar", CONTENT)
    data = bytearray(path.read_bytes())
    data[data.index(b"Dog/0.jpg")] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(DataCorrupt, match="there is no header at byte"):
        opened(path)


def test_damage_in_one_member_of_a_zip_is_that_images(tmp_path: Path) -> None:
    """The others are read."""
    path = tmp_path / "pets.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in CONTENT.items():
            archive.writestr(name, data)
    data = bytearray(path.read_bytes())
    data[data.index(b"Cat1Cat1")] ^= 0xFF
    path.write_bytes(data)
    listing = opened(path)
    with pytest.raises(ValueError, match="is damaged in the archive: Bad CRC-32"):
        listing.read(1)
    assert listing.read(2) == CONTENT["Cat/2.jpg"]


@pytest.mark.parametrize(
    ("real", "said", "reason"),
    [(5000, MAX_IMAGE_BYTES + 1, "is larger than 256 MiB"), (5000, 100, "Bad CRC-32"), (100, 5000, "cut short|damaged"),
     (0, 0, "is empty")],
)  # fmt: skip
def test_a_member_is_read_no_further_than_the_size_that_it_says(
    tmp_path: Path, real: int, said: int, reason: str
) -> None:
    """And not at all beyond the size of an image."""
    path = written(tmp_path / "pets.zip", {"Cat/1.jpg": b"x" * real})
    data = bytearray(path.read_bytes())
    place = data.index(b"PK\1\2") + 24
    data[place : place + 4] = said.to_bytes(4, "little")
    path.write_bytes(data)
    listing = opened(path)
    with pytest.raises(ValueError, match=reason):
        listing.read(0)


def test_a_tar_that_leads_back_is_damaged(tmp_path: Path) -> None:
    """Python 3.11.7 would read it without end."""
    header = bytearray(tarfile.TarInfo("Cat/1.jpg").tobuf())
    header[124:136] = (-1024).to_bytes(12, "big", signed=True)
    (tmp_path / "pets.tar").write_bytes(summed(header) + bytes(10_240))
    with pytest.raises(DataCorrupt, match="is damaged"):
        opened(tmp_path / "pets.tar")


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_the_icons_of_finder_are_passed_over(tmp_path: Path, kind: str) -> None:
    """Their names cannot be printed; those of other files must be."""
    icons = dict.fromkeys(["Icon\r", "Cat/Icon\r", "Cat/._Icon\r", "__MACOSX/Cat/._Icon\r"], b"")
    listing = opened(written(tmp_path / f"pets.{kind}", CONTENT | icons))
    assert [image.name for image in listing.images] == [*CONTENT]
    assert listing.left_out == {"hidden": 4}
    with pytest.raises(InputError, match="is not a safe name"):
        opened(written(tmp_path / f"pets.{kind}", CONTENT | {"Cat/Icon\r.jpg": b"x"}))


def test_names_in_a_zip_are_utf_8_also_when_it_does_not_say_so(tmp_path: Path) -> None:
    """As Finder writes it; what is no UTF-8 has the old encoding of zip."""
    for name, expected in (("猫".encode(), "猫"), (b"Caf\x82", "Café")):
        path = written(tmp_path / "pets.zip", {"x" * len(name) + "/1.jpg": b"x"})
        path.write_bytes(path.read_bytes().replace(b"x" * len(name), name))
        assert opened(path).class_names == (expected,)
