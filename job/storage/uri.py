"""From a URI to the store that it names."""

from pathlib import Path
from urllib.parse import unquote, urlsplit

from job.errors import InvalidSettings
from job.storage.local import LocalStore
from job.storage.protocol import ObjectStore, Observer


def open_store(uri: str, *, observer: Observer | None = None, timeout_seconds: float = 60.0) -> ObjectStore:
    """The store of gs://bucket/prefix, file:///dir, or a path.

    `observer` hears of every request. A small request to a bucket that gets no answer in `timeout_seconds` is sent
    again. Nothing is asked of the store yet, but for the credentials of a bucket. Raises InvalidSettings for a scheme
    that has no store, StorageRefused when there are no credentials.
    """
    if "://" not in uri:
        return LocalStore(Path(uri).expanduser(), observer=observer, timeout_seconds=timeout_seconds)
    parts = urlsplit(uri)
    if parts.scheme == "file":
        return LocalStore(Path(unquote(parts.path)), observer=observer, timeout_seconds=timeout_seconds)
    if parts.scheme == "gs":
        # Imported here: it takes most of a second, and only runs on a bucket need it.
        from job.storage.gcs import GcsStore

        if "@" in parts.netloc:
            raise InvalidSettings(
                "a gs:// URI has a user name in it, expected gs://bucket/prefix",
                hint="leave it out: credentials are those of the process (see Object storage in the README)",
            )

        return GcsStore(
            bucket=parts.netloc, prefix=parts.path.strip("/"), observer=observer, timeout_seconds=timeout_seconds
        )
    raise InvalidSettings(
        f"there is no store for {parts.scheme}://", hint="give gs://bucket/prefix, file:///dir, or a path"
    )
