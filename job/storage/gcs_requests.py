"""Requests to Cloud Storage: sent again where that may help, explained where not, and reported to the observer."""

import contextlib
import functools
import itertools
import threading
import time
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

import requests

from job.errors import StorageError
from job.storage.gcs_errors import NETWORK_ERRORS, explained, is_of_the_moment
from job.storage.protocol import Observer

T = TypeVar("T")

TRIES = 3


class Requests:
    """Those of one store, from any thread. `clock_skew_seconds` is how far the server's clock is ahead of this one."""

    def __init__(self, uri: str, observer: Observer) -> None:
        self._uri = uri
        self._observer = observer
        self._current = threading.local()
        self.clock_skew_seconds = 0.0

    def ask(self, action: str, name: str, request: Callable[[], T]) -> T:
        """Make a request, which the client sends again after most failures; here after the four that are left.

        Bytes that arrived with another checksum than they were sent with; an answer that cannot be understood; a
        resumable upload that the server has forgotten; and an error whose body broke off: the client reads that one
        where it does not try again (google-cloud-storage 3.17; tests/test_gcs.py shows it).
        """
        for tries_left in reversed(range(TRIES)):
            self._current.operation = action
            try:
                with self.explained(action, name):
                    return request()
            except StorageError as error:
                if tries_left == 0 or not is_of_the_moment(error):
                    raise
                self._observer.retry(action)
        raise AssertionError("unreachable")

    def explained(self, action: str, name: str) -> contextlib.AbstractContextManager[None]:
        """Turn the errors of the client into ours."""
        return explained(action, f"{self._uri}/{name}".rstrip("/"))

    def observed(self, retry: Callable[[Callable[..., T]], Callable[..., T]]) -> Callable[..., Callable[..., T]]:
        """The same policy, which reports each try after the first, and each that got no answer."""

        def policy(send: Callable[..., T], *policy_options: Any, **more_options: Any) -> Callable[..., T]:
            tries = itertools.count()

            @functools.wraps(send)
            def observed(*arguments: Any, **options: Any) -> T:
                if next(tries):
                    self._observer.retry(self._current.operation)
                began = time.monotonic()
                try:
                    return send(*arguments, **options)
                except NETWORK_ERRORS:
                    self._observer.request(self._current.operation, "error", time.monotonic() - began)
                    raise

            return retry(observed, *policy_options, **more_options)

        return policy

    def answered(self, response: requests.Response, *_: Any, **__: Any) -> None:
        """Report an answer; each has a status, and the server's time in whole seconds."""
        self._observer.request(
            getattr(self._current, "operation", "read"), str(response.status_code), response.elapsed.total_seconds()
        )
        with contextlib.suppress(KeyError, ValueError):
            self.clock_skew_seconds = parsedate_to_datetime(response.headers["Date"]).timestamp() - time.time()
