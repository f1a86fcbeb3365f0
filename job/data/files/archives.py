"""The files in a zip or tar archive: their names, and the content of any of them.

Nothing is unpacked under its own name. A zip and a tar are read in place, a compressed tar is decompressed once. Every
name is checked, and an archive with one that is not safe, or with a member that is no file or folder, is refused.
"""

import contextlib
import gzip
import re
import secrets
import stat
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol, TypeVar

from job.data.files import image_files
from job.data.files.names import ARCHIVES
from job.errors import DataCorrupt, DataUnavailable, InputError
from job.paths import UnsafeName, checked_name
from job.storage import files, scratch

_GZIP = b"\x1f\x8b"
_BLOCK_BYTES = 512
_COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_ENCRYPTED = 0x1
# tarfile lets what its own parsers raise pass, and zipfile what the decompressor does.
_DAMAGES = (
    tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, IndexError, OverflowError,
    NotImplementedError, RecursionError,
)  # fmt: skip


def open_archive(path: Path, place: str, scratch_folder: Path) -> "Zip | Tar":
    """The archive in a file of this machine, `place` in messages; what must be copied goes to `scratch_folder`.

    Raises DataUnavailable when it is none by its name or cannot be read, DataCorrupt when it is damaged, InputError
    when it is refused, ScratchUnavailable.
    """
    if not path.is_file() or not place.lower().endswith(ARCHIVES):
        raise DataUnavailable(
            f"{place!r} is no folder, archive or table",
            hint=f"expected a folder, {' '.join(ARCHIVES)}, or a table of images",
        )
    with _reading(place):
        with path.open("rb") as file:
            is_compressed = file.read(len(_GZIP)) == _GZIP
        if place.lower().endswith(".zip"):
            return Zip(path, place)
    if is_compressed:
        with _reading(place), gzip.open(path) as packed:
            path = _copied(packed, place, scratch_folder)
    return Tar(path, place)


class Zip:
    """The files of a zip, in the two compressions that programs of today write."""

    def __init__(self, path: Path, place: str) -> None:
        self._place = place
        with _reading(place):
            try:
                # Finder writes UTF-8 and does not say so.
                self._zip = zipfile.ZipFile(path, metadata_encoding="utf-8")
            except UnicodeDecodeError:
                self._zip = zipfile.ZipFile(path)
        self._members = _checked(place, ((info.filename, info) for info in self._zip.infolist()))
        for name, info in self._members.items():
            kind = stat.S_IFMT(info.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise _refused(place, f"{name!r} is {files.kind_of(kind)}, expected files and folders")
            if info.flag_bits & _ENCRYPTED:
                raise _refused(place, f"{name!r} is encrypted")
            if info.compress_type not in _COMPRESSIONS:
                raise _refused(place, f"{name!r} has the compression {info.compress_type}, expected deflate or none")
        self.names = sorted(self._members)
        self.left_out: Counter[str] = Counter()

    def read(self, name: str) -> bytes:
        """The content of a file that is no larger than an image. Raises ValueError."""
        info = self._members[name]
        image_files.check_size(info.file_size)
        try:
            with self._zip.open(info) as member:
                # No further than its size, so it is also no larger than it says; zipfile compares the checksum there.
                data = member.read(info.file_size)
        except _DAMAGES as error:
            raise ValueError(f"is damaged in the archive: {error}") from error
        return _whole(data, info.file_size)

    def file(self, name: str, scratch_folder: Path) -> Path:
        """A copy in `scratch_folder`. Raises DataCorrupt, ScratchUnavailable."""
        with _reading(self._place):
            member = self._zip.open(self._members[name])
        with member:
            return _copied(member, self._place, scratch_folder)


class Tar:
    """The files of a tar that is not compressed, by their places in it."""

    def __init__(self, path: Path, place: str) -> None:
        self._path, self._place = path, place
        members: list[tuple[str, tarfile.TarInfo]] = []
        with _reading(place), tarfile.open(path, "r:") as tar:
            end = 0
            for info in tar:
                # Python before 3.11.14 goes round in a circle when a size is below zero (CVE-2025-8194).
                if info.size < 0 or tar.offset <= end:
                    raise tarfile.ReadError("a member has a size below zero")
                end = tar.offset
                members.append((f"{info.name}/" if info.isdir() else info.name, info))
        with _reading(place), path.open("rb") as file:
            # A header that is damaged or not there looks like the end to tarfile.
            file.seek(end)
            block = file.read(_BLOCK_BYTES)
            if any(block):
                raise tarfile.ReadError(f"there is no header at byte {end:,}")
            if len(block) < _BLOCK_BYTES:
                raise tarfile.ReadError(f"it stops at byte {end + len(block):,}, without the zeros that end a tar")
        self._members = _checked(place, members)
        for name, info in self._members.items():
            if not (info.isdir() or (info.isreg() and not info.issparse())):
                raise _refused(place, f"{name!r} is a link or a device, expected files and folders")
        self.names = sorted(self._members)
        self.left_out: Counter[str] = Counter()

    def read(self, name: str) -> bytes:
        """The content of a file that is no larger than an image. Raises ValueError."""
        info = self._members[name]
        image_files.check_size(info.size)
        try:
            with self._path.open("rb") as file:
                file.seek(info.offset_data)
                data = file.read(info.size)
        except OSError as error:
            raise ValueError(error.strerror or str(error)) from error
        return _whole(data, info.size)

    def file(self, name: str, scratch_folder: Path) -> Path:
        """A copy in `scratch_folder`. Raises DataCorrupt, ScratchUnavailable."""
        with _reading(self._place), tarfile.open(self._path, "r:") as tar:
            member = tar.extractfile(self._members[name])
            assert member is not None, name  # a file, as was checked
            with member:
                return _copied(member, self._place, scratch_folder)


Member = TypeVar("Member")


class _Stream(Protocol):
    def read(self, size: int, /) -> bytes: ...


def _checked(place: str, members: Iterable[tuple[str, Member]]) -> dict[str, Member]:
    """Members by name, with `/` between the parts. Raises InputError for a name that is not safe, or there twice."""
    found: dict[str, Member] = {}
    for member, info in members:
        # Some programs of Windows write its own separator; tar begins with ./ for what is in the current folder.
        name = member.replace("\\", "/").removeprefix("./")
        if name in ("", "."):
            continue
        try:
            # Finder keeps the icon of a folder under a name that cannot be printed.
            checked_name(re.sub(r"Icon\r\Z", "Icon", name.removesuffix("/")))
        except UnsafeName as error:
            raise _refused(place, str(error)) from error
        if name in found and not name.endswith("/"):
            raise _refused(place, f"it has {name!r} twice")
        found[name] = info
    return found


def _refused(place: str, reason: str) -> InputError:
    return InputError(f"{place} is not read: {reason}", hint="make the archive again, from the images alone")


def _whole(data: bytes, size: int) -> bytes:
    if len(data) != size:
        raise ValueError(f"is cut short: {len(data):,} bytes of {size:,}")
    return data


@contextlib.contextmanager
def _reading(place: str) -> Iterator[None]:
    """Turn what is raised for a damaged archive into DataCorrupt, and for one that may not be read, DataUnavailable."""
    try:
        yield
    except _DAMAGES as error:
        if isinstance(error, OSError) and error.errno:
            raise DataUnavailable(f"{place} cannot be read: {error.strerror}") from error
        raise DataCorrupt(
            f"the archive {place} is damaged: {error or type(error).__name__}", hint="download or copy it again"
        ) from error


def _copied(source: _Stream, place: str, folder: Path) -> Path:
    target = folder / secrets.token_hex(8)

    def chunk() -> bytes:
        with _reading(place):
            return source.read(scratch.CHUNK_BYTES)

    with scratch.explained(target), target.open("wb") as file:
        while data := chunk():
            file.write(data)
    return target
