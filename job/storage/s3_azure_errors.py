"""Errors of obstore, turned into ours: what was asked, of which object, why it failed, and a hint.

obstore states the status and the body of an answer only in its text, so both are read from there. Its text also has the
URL of the request, which is left out.
"""

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass

from obstore.exceptions import BaseError, InvalidPathError, PreconditionError

from job.errors import AccessDenied, ObjectDamaged, ObjectMissing, PreconditionFailed, StorageError, StorageRefused
from job.storage.retrying import NO_BUCKET, PASSING

FOREIGN_ERRORS = (BaseError, FileNotFoundError, ValueError)

_STATUS = re.compile(r"Server returned non-2xx status code: (\d{3})|\(code: (\d{3})\)")
_BODY = re.compile(r"<Code>(\w+)</Code>\s*(?:<Message>([^<\n]*))?")
_KIND = re.compile(r"\bkind: (Connect|Timeout|Interrupted|Decode)\b")
_SYSTEM = re.compile(r'\bmessage: "([^"]+)"')

_NO_BUCKET = ("NoSuchBucket", "ContainerNotFound")
_NO_BUCKET_OF_A_BATCH = "The specified container does not exist"
_ALTERED = ("BadDigest", "InvalidDigest", "XAmzContentSHA256Mismatch", "XAmzContentChecksumMismatch", "Md5Mismatch")
"""The server received other bytes than were sent."""
_PASSING = ("RequestTimeout", "IncompleteBody", "OperationTimedOut")
"""Of status 400, and another try may help."""
_EXPIRED = ("ExpiredToken", "InvalidToken", "TokenRefreshRequired")
"""Of status 400, and about the credentials."""
_PASSING_STATUS = (408, 409, 429)
_NOT_IMPLEMENTED = 501
_WRONG_ADDRESS = ("redirect without LOCATION", "builder error")
_CERTIFICATE = re.compile(r"\bInvalidCertificate\(\s*(\w+)")
_NO_FILE = re.compile(r"\(os error (2|13)\)")
"""A file of credentials is not there, or cannot be read."""


@dataclass(frozen=True)
class Hints:
    """What a person does about a refusal of this provider; `permissions` names `{action}` and `{bucket}`."""

    credentials: str
    permissions: str
    address: str


@contextlib.contextmanager
def explained(action: str, uri: str, hints: Hints) -> Iterator[None]:
    """Turn the errors of obstore into ours."""
    try:
        yield
    except FOREIGN_ERRORS as error:
        ours = explain(error, action, uri, hints)
        ours.code = str(_status(str(error)) or ours.code)
        raise ours from error


def explain(error: Exception, action: str, uri: str, hints: Hints) -> StorageError:
    """Our error for one of obstore's."""
    text = str(error)
    failed = f"cannot {action} {uri}: {reason(error)}"
    status, code = _status(text), _code(text)
    if code in _NO_BUCKET or _NO_BUCKET_OF_A_BATCH in text:
        return StorageRefused(failed, hint=NO_BUCKET)
    if isinstance(error, FileNotFoundError):
        return ObjectMissing(f"there is no object {uri}")
    if isinstance(error, InvalidPathError | ValueError):
        return StorageRefused(failed, hint="rename or remove that object: no part of a name may be empty, . or ..")
    # S3 also answers 409 to a conditional write: two of them met, and this one was not judged.
    if status == 412 or isinstance(error, PreconditionError) or code == "BlobAlreadyExists":
        return PreconditionFailed(f"{uri} is not of the expected version: another process wrote it")
    if code in _ALTERED:
        return ObjectDamaged(failed, hint=PASSING)
    if _CERTIFICATE.search(text):
        return StorageRefused(
            failed, hint="name the file of your own authority's certificate in AWS_CA_BUNDLE or SSL_CERT_FILE"
        )
    if any(sign in text for sign in _WRONG_ADDRESS):
        return StorageRefused(failed, hint=hints.address)
    if status == 401 or code in _EXPIRED or _NO_FILE.search(text):
        return AccessDenied(failed, hint=hints.credentials)
    if status == 403:
        permissions = hints.permissions.format(action=action, bucket=uri.partition("://")[2].partition("/")[0])
        return AccessDenied(failed, hint=f"{permissions}; {hints.credentials}")
    is_refusal = 400 <= status < 500 and status not in _PASSING_STATUS and code not in _PASSING
    if is_refusal or status == _NOT_IMPLEMENTED:
        return StorageRefused(failed, hint=hints.address)
    return StorageError(failed, hint=PASSING)


def reason(error: BaseException) -> str:
    """Why a request failed, in a line that has no URL."""
    text = str(error)
    if body := _BODY.search(text):
        return f"HTTP {_status(text)} {body[1]}: {body[2] or ''}".rstrip(": ")
    summary, _, details = text.partition("\n\nDebug source")
    line = summary.partition("\n")[0].partition(" - ")
    more = [found[1] for pattern in (_KIND, _SYSTEM) if (found := pattern.search(details))]
    if found := _CERTIFICATE.search(details):
        more = [f"invalid certificate: {found[1]}"]
    return (line[2] or line[0])[:300] + (f" ({', '.join(more)})" if more else "")


def _status(text: str) -> int:
    """The HTTP status in the text of an error; 0 where it has none."""
    found = _STATUS.search(text)
    return int(found[1] or found[2]) if found else 0


def _code(text: str) -> str:
    found = _BODY.search(text)
    return found[1] if found else ""
