"""The URIs of places for objects: which there are, their checks, and the store that each one names."""

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

from job.errors import InvalidSettings
from job.paths import checked_name, expanded
from job.storage.local import LocalStore
from job.storage.protocol import ObjectStore, RequestObserver
from job.storage.retrying import RemoteStore, RetryingStore

PLACES = "gs://bucket/prefix, s3://bucket/prefix, az://container/prefix, file:///dir, or a path"
"""What a person can name, for helps and hints."""

_FOLDER = "file://"


class _Bucket(NamedTuple):
    """What the bucket of a scheme is called, and what its name may be: a pattern, and the same in words."""

    word: str
    pattern: str
    rule: str


_BUCKETS = {
    "gs": _Bucket("bucket", "[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]", "3 to 222 lower-case characters"),
    "s3": _Bucket("bucket", "[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", "3 to 63 lower-case characters"),
    "az": _Bucket("container", "(?=.{3,63}(/|$))[a-z0-9](-?[a-z0-9])*", "3 to 63 lower-case characters"),
}
"""The schemes of object stores: https://cloud.google.com/storage/docs/buckets#naming,
https://docs.aws.amazon.com/AmazonS3/latest/userguide/bucketnamingrules.html, and
https://learn.microsoft.com/rest/api/storageservices/naming-and-referencing-containers--blobs--and-metadata."""


def is_bucket(uri: str) -> bool:
    """Whether a place is in a bucket, and not on this machine."""
    scheme, separator, _ = uri.partition("://")
    return bool(separator) and scheme in _BUCKETS


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
    """The URI of a place in a bucket without the slash at its end. Raises ValueError when it names no bucket."""
    scheme, separator, rest = uri.partition("://")
    if not separator or scheme not in _BUCKETS:
        raise ValueError(f"expected a place in a bucket: {', '.join(f'{name}://' for name in _BUCKETS)}")
    word, pattern, rule = _BUCKETS[scheme]
    if not re.match(rf"{pattern}(/|$)", rest):
        raise ValueError(f"expected {scheme}://{word}/prefix with a {word} of {rule}")
    return _without_query(uri).rstrip("/")


def checked_object(uri: str) -> str:
    """The URI of an object in a bucket, whose name can be that of a file. Raises ValueError."""
    uri = checked_bucket(uri)
    scheme, _, rest = uri.partition("://")
    _, _, name = rest.partition("/")
    if not name:
        raise ValueError(f"expected {scheme}://bucket/prefix/object")
    checked_name(name)
    return uri


def open_store(
    uri: str,
    *,
    observer: RequestObserver | None = None,
    timeout_seconds: float = 60.0,
    pause: Callable[[float], None] = time.sleep,
) -> ObjectStore:
    """The store of a place in a bucket, file:///dir, or a path.

    Every request is reported to `observer`. A small request to a bucket that gets no answer in `timeout_seconds` is
    sent again, as others that may then succeed; before that `pause` waits for so many seconds, and may raise to give
    up. Nothing is asked of the store yet, but for the credentials of a bucket. Raises InvalidSettings for a scheme that
    has no store, StorageRefused when there are no credentials.
    """
    folder = local_folder(uri)
    if folder is not None:
        return LocalStore(folder, observer=observer, timeout_seconds=timeout_seconds)
    scheme, _, rest = uri.partition("://")
    if not is_bucket(uri):
        raise InvalidSettings(f"there is no store for {scheme}://", hint=f"give {PLACES}")
    bucket, _, prefix = rest.partition("/")
    if "@" in bucket:
        raise InvalidSettings(
            f"a {scheme}:// URI has a user name in it, expected {scheme}://bucket/prefix",
            hint="leave it out: credentials are those of the process (see docs/storage.md)",
        )
    return RetryingStore(_remote(scheme, bucket, prefix.strip("/"), timeout_seconds), observer=observer, pause=pause)


def _remote(scheme: str, bucket: str, prefix: str, timeout_seconds: float) -> RemoteStore:
    # Imported here: the one takes most of a second, and only runs on a bucket need either.
    if scheme != "gs":
        from job.storage.s3_azure import S3AzureStore

        return S3AzureStore(f"{scheme}://{bucket}/{prefix}", timeout_seconds=timeout_seconds)
    from job.storage.gcs import GcsStore

    return GcsStore(bucket=bucket, prefix=prefix, timeout_seconds=timeout_seconds)


def _without_query(uri: str) -> str:
    """The URI as given. Raises ValueError for a query or a fragment: of a store they mean nothing."""
    if re.search("[?#]", uri):
        raise ValueError("expected a place without ? and #")
    return uri
