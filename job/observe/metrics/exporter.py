"""Serving the series of an attempt while it goes on, and pushing its outcome when it ends."""

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app, pushadd_to_gateway
from prometheus_client.exposition import ThreadingWSGIServer

from job.observe import events

ADDRESS = "0.0.0.0"
JOB = "thaw"
POLL_SECONDS = 0.05
"""Also how long the end of a run waits for the server to stop."""

Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


@contextlib.contextmanager
def serving(registry: CollectorRegistry, port: int, observer: events.Observer) -> Iterator[None]:
    """Answer GET /metrics and /healthz on a thread of its own inside; port 0 is none.

    A port that cannot be had is a warning, and the run goes on without.
    """
    try:
        server = make_server(ADDRESS, port, _application(registry), ThreadingWSGIServer, _Silent) if port else None
    except OSError as error:
        hint = "give another THAW_METRICS_PORT, or 0 for none; the run goes on without"
        observer.event(events.MetricsUnavailable(port, reason=error.strerror or str(error), hint=hint))
        server = None
    if server is None:
        yield
        return
    with server:
        threading.Thread(target=server.serve_forever, args=(POLL_SECONDS,), daemon=True, name="metrics").start()
        try:
            yield
        finally:
            server.shutdown()


def push(
    registry: CollectorRegistry,
    url: str,
    *,
    grouping: dict[str, str],
    timeout_seconds: float,
    observer: events.Observer,
) -> None:
    """Send the outcome to a Pushgateway; series that it does not have stay as they are there.

    A gateway that does not take it is a warning: the run has ended as it has.
    """
    try:
        pushadd_to_gateway(url, job=JOB, registry=registry, grouping_key=grouping, timeout=timeout_seconds)
    except Exception as error:
        # Whatever a gateway or what stands before it answers, it must not change how the run ends.
        hint = "check THAW_PUSHGATEWAY_URL; the run has ended all the same"
        observer.event(events.PushFailed(url, reason=f"{type(error).__name__}: {error}", hint=hint))


def _application(registry: CollectorRegistry) -> Application:
    metrics = make_wsgi_app(registry)

    def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "")
        if path == "/metrics":
            return metrics(environ, start_response)
        status, body = ("200 OK", b"ok\n") if path == "/healthz" else ("404 Not Found", b"/metrics and /healthz\n")
        start_response(status, [("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(body)))])
        return [body]

    return answer


class _Silent(WSGIRequestHandler):
    """A scrape is no line of the log."""

    def log_message(self, format: str, *args: Any) -> None:
        pass
