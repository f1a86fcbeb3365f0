"""The manifest of a mirror: its files by name, with the size and digest of each.

It names every file before the first one is sent. So a mirror that has all files of its manifest, each with the digest
there, is complete, and one that was cut short is never taken for complete.

The names in a bucket may be chosen by an attacker. What is not safe, or not in the manifest, is refused here.
"""

import contextlib
from collections.abc import Collection, Iterable, Iterator, Mapping

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from job.errors import InputError, ObjectMissing
from job.paths import UnsafeName, check_names, checked_name
from job.storage import MISSING, Digest, ObjectStore

MANIFEST = "thaw-mirror.json"


class Entry(BaseModel):
    """A file as it was when it was sent or fetched: its content, and the version of its object."""

    model_config = ConfigDict(frozen=True)

    size: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    version: str = MISSING

    @property
    def digest(self) -> Digest:
        return Digest(self.size, self.sha256)


Entries = dict[str, Entry | str]
"""The files of a mirror by name, with what its manifest says of each; the version where there is no manifest."""


class Manifest(BaseModel):
    """The files of a mirror by name."""

    files: dict[str, Entry] = {}

    @field_validator("files")
    @classmethod
    def _names_are_safe(cls, files: dict[str, Entry]) -> dict[str, Entry]:
        return {checked_name(name): entry for name, entry in files.items()}

    @classmethod
    def read(cls, store: ObjectStore) -> tuple["Manifest", str]:
        """The manifest of a mirror, empty when there is none, and its version. Raises InputError."""
        try:
            stored = store.read(MANIFEST)
        except ObjectMissing:
            return cls(), MISSING
        try:
            return cls.model_validate_json(stored.data), stored.version
        except ValidationError as error:
            raise InputError(
                f"{store.uri}/{MANIFEST} is not the manifest of a mirror: {error.errors()[0]['msg']}",
                hint="delete it, and fill the mirror again with thaw mirror",
            ) from error

    def write(self, store: ObjectStore, version: str) -> str:
        """Write it, sorted by name, in place of `version`; returns the new one."""
        content = Manifest(files=dict(sorted(self.files.items())))
        return store.write(MANIFEST, content.model_dump_json(indent=1).encode(), if_version=version)


def entries(store: ObjectStore, found: Mapping[str, str], *, wanted: Collection[str] | None) -> Entries:
    """What the manifest says of each object of `found`; without a manifest its version, which `found` has.

    Raises InputError for names that cannot be those of files in one folder, for an object that the manifest lacks, and
    for a `wanted` file that the manifest has and `found` lacks; None stands for all that the manifest names.
    """
    check_names_of(store, found)
    manifest, version = Manifest.read(store)
    if version == MISSING:
        return dict(found)
    for name in found:
        if name not in manifest.files:
            raise InputError(
                f"{store.uri}/{name} is not in the manifest of the mirror, and nothing was fetched: filling the mirror "
                "was cut short, or somebody else put it there",
                hint="fill the mirror again, with thaw mirror; if it is still refused then, delete it",
            )
    for name in manifest.files if wanted is None else wanted:
        if name in manifest.files and name not in found:
            raise InputError(
                f"{store.uri}/{name} is in the manifest of the mirror and does not exist, and nothing was fetched: "
                "filling the mirror was cut short, or somebody deleted it",
                hint="fill the mirror again, with thaw mirror",
            )
    return {name: manifest.files[name] for name in found}


def check_names_of(store: ObjectStore, names: Iterable[str]) -> None:
    """Raise InputError unless the names of objects can be those of files in one folder, each as it is."""
    with named(store):
        check_names(names)


@contextlib.contextmanager
def named(store: ObjectStore) -> Iterator[None]:
    """Turn an unsafe name into an error that says in which store it is."""
    try:
        yield
    except UnsafeName as error:
        raise InputError(
            f"{store.uri} has an object whose name cannot be that of a file here, and nothing was fetched: {error}",
            hint="find out why it is there, and delete it",
        ) from error
