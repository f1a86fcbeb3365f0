"""Serving the series of an attempt while it goes on, and pushing its outcome when it ends."""

import contextlib
import threading
from collections.abc import Iterable, Iterator
from wsgiref.simple_server import WSGIServer
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from prometheus_client import CollectorRegistry, make_wsgi_app, pushadd_to_gateway, start_http_server

from job.observe import events
from job.observe.observer import Observer

JOB = "thaw"


@contextlib.contextmanager
def serving(registry: CollectorRegistry, port: int, observer: Observer) -> Iterator[None]:
    """Serve /metrics and /healthz inside; port 0 is off.

    A port that is not available is a warning, and the run goes on without.
    """
    server = None
    if port:
        try:
            server = _listening(registry, port)
            server.set_app(_with_health(make_wsgi_app(registry)))
        except OSError as error:
            hint = "give another THAW_METRICS_PORT, or 0 for none; the run goes on without"
            observer.event(events.MetricsUnavailable(port, reason=error.strerror or str(error), hint=hint))
    try:
        yield
    finally:
        if server is not None:
            # It checks twice a second whether it must end; the end of a run does not wait for that.
            threading.Thread(target=_close, args=(server,), daemon=True).start()


def _listening(registry: CollectorRegistry, port: int) -> WSGIServer:
    try:
        # Of IPv6 and, on Linux and macOS, of IPv4 too.
        return start_http_server(port, addr="::", registry=registry)[0]
    except OSError:
        # A machine may have no IPv6; a port that is taken is found again.
        return start_http_server(port, registry=registry)[0]


def _with_health(metrics: WSGIApplication) -> WSGIApplication:
    """Answers /healthz without collecting the series: that reads disks, and a volume may hang."""

    def answer(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if environ["PATH_INFO"] != "/healthz":
            return metrics(environ, start_response)
        start_response("200 OK", [("Content-Type", "text/plain; charset=utf-8")])
        return [b"ok\n"]

    return answer


def _close(server: WSGIServer) -> None:
    server.shutdown()
    server.server_close()


def push(
    registry: CollectorRegistry,
    url: str,
    *,
    grouping: dict[str, str],
    timeout_seconds: float,
    observer: Observer,
) -> None:
    """Send the outcome to a Pushgateway; it keeps those of its series that are not sent.

    A push that fails is a warning: it does not change how the run ends.
    """
    try:
        pushadd_to_gateway(url, job=JOB, registry=registry, grouping_key=grouping, timeout=timeout_seconds)
    except Exception as error:  # of many kinds: a gateway, or a proxy before it, may answer anything
        hint = "check THAW_PUSHGATEWAY_URL; the run has ended all the same"
        observer.event(events.PushFailed(url, reason=f"{type(error).__name__}: {error}", hint=hint))
