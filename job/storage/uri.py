"""The URIs of places for objects: which there are, their checks, and the store that each one names."""

import re
from pathlib import Path
from urllib.parse import unquote

from job.errors import InvalidSettings
from job.paths import checked_name, expanded
from job.storage.local import LocalStore
from job.storage.protocol import ObjectStore, Observer

PLACES = "gs://bucket/prefix, file:///dir, or a path"
"""What a person can name, for helps and hints."""

_BUCKET, _FOLDER = "gs://", "file://"


def is_bucket(uri: str) -> bool:
    """Whether a place is in a bucket, and not on this machine."""
    return uri.startswith(_BUCKET)


def local_folder(uri: str) -> Path | None:
    """The folder that a URI or a path names; None for a URI of another scheme. Raises ValueError."""
    if uri.startswith(_FOLDER):
        return Path(unquote(uri.removeprefix(_FOLDER)))
    return None if "://" in uri else expanded(uri)


def checked_store(uri: str) -> str:
    """The URI of a place for objects, without a slash at its end. Raises ValueError."""
    if is_bucket(uri):
        return checked_bucket(uri)
    scheme, separator, _ = uri.partition("://")
    if separator and scheme != "file":
        raise ValueError(f"{scheme}:// is not a store: expected {PLACES}")
    if separator and not _without_query(uri).rstrip("/").startswith(f"{_FOLDER}/"):
        raise ValueError("expected an absolute path: file:///dir")
    local_folder(uri)
    return uri.rstrip("/") or "/"


def checked_bucket(uri: str) -> str:
    """A gs:// URI without the slash at its end. Raises ValueError when it names no bucket."""
    if not re.match(rf"^{_BUCKET}[a-z0-9][a-z0-9._-]{{1,220}}[a-z0-9](/|$)", uri):
        raise ValueError("expected gs://bucket/prefix with a bucket of 3 to 222 lower-case characters")
    return _without_query(uri).rstrip("/")


def checked_object(uri: str) -> str:
    """The gs:// URI of an object, whose name can be that of a file. Raises ValueError."""
    uri = checked_bucket(uri)
    _, _, name = uri.removeprefix(_BUCKET).partition("/")
    if not name:
        raise ValueError("expected gs://bucket/prefix/object")
    checked_name(name)
    return uri


def open_store(uri: str, *, observer: Observer | None = None, timeout_seconds: float = 60.0) -> ObjectStore:
    """The store of gs://bucket/prefix, file:///dir, or a path.

    Every request is reported to `observer`. A small request to a bucket that gets no answer in `timeout_seconds` is
    sent again. Nothing is asked of the store yet, but for the credentials of a bucket. Raises InvalidSettings for a
    scheme that has no store, StorageRefused when there are no credentials.
    """
    folder = local_folder(uri)
    if folder is not None:
        return LocalStore(folder, observer=observer, timeout_seconds=timeout_seconds)
    if not is_bucket(uri):
        raise InvalidSettings(f"there is no store for {uri.partition('://')[0]}://", hint=f"give {PLACES}")
    bucket, _, prefix = uri.removeprefix(_BUCKET).partition("/")
    if "@" in bucket:
        raise InvalidSettings(
            "a gs:// URI has a user name in it, expected gs://bucket/prefix",
            hint="leave it out: credentials are those of the process (see Object storage in docs/operations.md)",
        )
    # Imported here: it takes most of a second, and only runs on a bucket need it.
    from job.storage.gcs import GcsStore

    return GcsStore(bucket=bucket, prefix=prefix.strip("/"), observer=observer, timeout_seconds=timeout_seconds)


def _without_query(uri: str) -> str:
    """The URI as given. Raises ValueError for a query or a fragment: of a store they mean nothing."""
    if re.search("[?#]", uri):
        raise ValueError("expected a place without ? and #")
    return uri
