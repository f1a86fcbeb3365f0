"""Errors of the Cloud Storage client, turned into ours: what was asked, of which object, why it failed, and a hint."""

import contextlib
from collections.abc import Iterator
from http.client import HTTPException

import requests
import urllib3
from google.api_core import exceptions as api
from google.auth.exceptions import GoogleAuthError, TransportError
from google.cloud.storage.exceptions import DataCorruption, InvalidResponse

from job.errors import (
    AccessDenied,
    AnswerMalformed,
    ObjectDamaged,
    ObjectMissing,
    PreconditionFailed,
    StorageError,
    StorageRefused,
)
from job.redaction import redacted
from job.storage.retrying import NO_BUCKET, PASSING

PERMISSIONS = {
    "read": "storage.objects.get",
    "write": "storage.objects.create, and storage.objects.delete to overwrite",
    "list": "storage.objects.list",
    "delete": "storage.objects.delete",
}
"""What each action needs. The role Storage Object User has them all."""
TIMEOUT, GONE, TOO_MANY = 408, 410, 429
_CREDENTIALS = "give this process credentials: Workload Identity, or gcloud auth application-default login"

NETWORK_ERRORS = (requests.RequestException, urllib3.exceptions.HTTPError, HTTPException, ConnectionError, TimeoutError)
FOREIGN_ERRORS = (api.GoogleAPIError, GoogleAuthError, DataCorruption, InvalidResponse, *NETWORK_ERRORS)
MALFORMED = (AttributeError, KeyError, TypeError, ValueError)
"""What the client and `gcs` raise on an answer that lacks a field or has a wrong one. Some foreign errors are these."""


@contextlib.contextmanager
def explained(action: str, uri: str, *, malformed: tuple[type[Exception], ...] = MALFORMED) -> Iterator[None]:
    """Turn the errors of the client and of its libraries into ours; `malformed` are those of an answer."""
    try:
        yield
    except FOREIGN_ERRORS as error:
        ours = explain(error, action, uri)
        ours.code = str(status_of(error) or ours.code)
        raise ours from error
    except malformed as error:
        failed = f"cannot {action} {uri}: the answer is not understood: {_reason(error)}"
        raise AnswerMalformed(failed, hint=PASSING) from error


def explain(error: BaseException, action: str, uri: str) -> StorageError:
    """Our error for one of the client's."""
    failed = f"cannot {action} {uri}: {_reason(error)}"
    code = status_of(error)
    if isinstance(error, DataCorruption) or (code == 400 and "CRC32C" in str(error)):
        return ObjectDamaged(failed, hint=PASSING)
    if code == 404 and "bucket does not exist" not in str(error):
        return ObjectMissing(f"there is no object {uri}")
    if code == 412:
        return PreconditionFailed(f"{uri} is not of the expected generation: another process wrote it")
    if code == 401 or (isinstance(error, GoogleAuthError) and not _is_out_of_reach(error)):
        return AccessDenied(failed, hint=_CREDENTIALS)
    if code == 403:
        return AccessDenied(failed, hint=_permissions(action, uri))
    if code == 404:
        return StorageRefused(failed, hint=NO_BUCKET)
    if code is not None and 400 <= code < 500 and code not in (TIMEOUT, GONE, TOO_MANY):
        return StorageRefused(failed, hint="check THAW_STORAGE_URI and the settings of the bucket")
    return StorageError(failed, hint=PASSING)


def _permissions(action: str, uri: str) -> str:
    bucket = uri.removeprefix("gs://").partition("/")[0]
    return (
        f"to {action} needs {PERMISSIONS.get(action, 'a permission')} on bucket {bucket}: grant the account of this "
        "process the role Storage Object User (roles/storage.objectUser) there; a new grant works after some minutes"
    )


def _is_out_of_reach(error: GoogleAuthError) -> bool:
    """Whether the source of the credentials, in a cluster the metadata server, did not answer: that passes."""
    return error.retryable or isinstance(error, TransportError) or isinstance(error.__cause__, TransportError)


def status_of(error: BaseException | None) -> int | None:
    if isinstance(error, api.GoogleAPICallError) and error.code is not None:
        return int(error.code)
    if isinstance(error, InvalidResponse):
        return int(error.response.status_code)
    return None


def _reason(error: BaseException) -> str:
    # Before it is cut: half a secret is not recognised.
    text = redacted(str(error)).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:300]}" if text else type(error).__name__
