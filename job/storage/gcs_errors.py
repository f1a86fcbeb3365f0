"""What the client of Cloud Storage raises, in our words: what was asked, of what, why it failed, and the way out."""

import re
from http.client import HTTPException

import requests
import urllib3
from google.api_core import exceptions as api
from google.auth.exceptions import GoogleAuthError, TransportError
from google.cloud.storage.exceptions import DataCorruption, InvalidResponse

from job.errors import ObjectDamaged, ObjectMissing, PreconditionFailed, StorageError, StorageRefused

PERMISSIONS = (
    "storage.objects.create",
    "storage.objects.delete",
    "storage.objects.get",
    "storage.objects.list",
)
GONE = 410
_SECRET = re.compile(r"(?<=//)[^/\s@]+(?=@)|(?<=upload_id=)[^&\s)]+")
"""In an address: a user name and password, and the right to go on with an upload."""

NETWORK_ERRORS = (
    requests.RequestException,
    urllib3.exceptions.HTTPError,
    HTTPException,
    ConnectionError,
    TimeoutError,
)
MALFORMED = (AttributeError, KeyError, TypeError, ValueError)
"""What the client raises, and what is raised here, on an answer that lacks a field or has something else in it."""

FOREIGN_ERRORS = (api.GoogleAPIError, GoogleAuthError, DataCorruption, InvalidResponse, *NETWORK_ERRORS)


PASSING = "it may pass: start the run again, nothing is lost"


def explain(error: BaseException, action: str, uri: str) -> StorageError:
    """Our error for one of the client's: what was asked, of what, why it failed, and the way out."""
    failed = f"cannot {action} {uri}: {_reason(error)}"
    code = status_of(error)
    if isinstance(error, api.RetryError):
        return StorageError(failed, hint=PASSING)
    if isinstance(error, DataCorruption) or (code == 400 and "CRC32C" in str(error)):
        return ObjectDamaged(failed, hint=PASSING)
    if code == 404 and "bucket does not exist" not in str(error):
        return ObjectMissing(f"there is no object {uri}")
    if code == 404:
        return StorageRefused(
            failed, hint="create the bucket, or correct its name: in THAW_STORAGE_URI, or wherever it was given"
        )
    if code == 412:
        return PreconditionFailed(f"{uri} is not of the expected generation: another process wrote it")
    if code == 403:
        return StorageRefused(
            failed,
            hint=f"the account of this process needs {', '.join(PERMISSIONS)} on the bucket (Storage Object User)",
        )
    if code == 401 or (isinstance(error, GoogleAuthError) and not _is_out_of_reach(error)):
        return StorageRefused(
            failed,
            hint="give this process credentials: Workload Identity, or gcloud auth application-default login",
        )
    if code is not None and 400 <= code < 500 and code not in (408, GONE, 429):
        return StorageRefused(failed, hint="check THAW_STORAGE_URI and the settings of the bucket")
    return StorageError(failed, hint=PASSING)


def not_understood(error: Exception, action: str, uri: str) -> StorageError:
    """Our error for an answer that lacks a field, or has something else in it than it should."""
    return StorageError(f"cannot {action} {uri}: the answer is not understood: {_reason(error)}", hint=PASSING)


def is_of_the_moment(error: StorageError) -> bool:
    """Whether asking again may help where the client does not: see `Requests.ask`."""
    cause = error.__cause__
    if isinstance(error, ObjectDamaged) or isinstance(cause, NETWORK_ERRORS):
        return True
    # Some of google.auth's errors are ValueErrors too, and last.
    is_malformed = isinstance(cause, MALFORMED) and not isinstance(cause, FOREIGN_ERRORS)
    return is_malformed or (cause is not None and status_of(cause) == GONE)


def _is_out_of_reach(error: GoogleAuthError) -> bool:
    """Whether no answer came from where credentials are had, in a cluster the metadata server: that passes."""
    return error.retryable or isinstance(error, TransportError) or isinstance(error.__cause__, TransportError)


def status_of(error: BaseException) -> int | None:
    if isinstance(error, api.GoogleAPICallError) and error.code is not None:
        return int(error.code)
    if isinstance(error, InvalidResponse):
        return int(error.response.status_code)
    return None


def _reason(error: BaseException) -> str:
    if isinstance(error, api.RetryError) and error.cause is not None:
        return f"tried until the deadline, at last {_reason(error.cause)}"
    text = _SECRET.sub("***", str(error)).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:300]}" if text else type(error).__name__
