"""A proxy of HTTP in front of a real server of objects, which fails when a test asks for it.

It passes the Host header on, so that signatures of the client stay right.
"""

import http.client
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from urllib.parse import urlsplit

from tests.gcs_server import QuietServer

FAULTS = ("503 before", "503 after", "429", "reset before", "reset after", "stall")
SLOW = "slow"
"""The answer comes late."""
TRICKLE = "trickle"
"""Its body comes in five parts, with pauses; all in the same time."""
TRUNCATED = "truncated"
CORRUPT = "corrupt"
"""One bit is wrong: of what is sent, in a PUT; of what is received, in a GET."""
OTHER_ETAG = "other ETag"
WITHOUT_ETAG = "without ETag"
HOP_BY_HOP = ("connection", "transfer-encoding", "content-length")


@dataclass(frozen=True)
class Canned:
    """An answer in place of the server's."""

    status: int
    body: str = ""


Fault = str | Canned | Callable[[], object]
"""A function is called between the request and its answer."""


class FaultProxy:
    """The proxy, on a free port, for as long as a `with` block; it notes the method and path of each request.

    With a `certificate`, a file in PEM that also has its key, it speaks HTTPS.
    """

    def __init__(self, upstream: str, *, stall_seconds: float = 3.0, certificate: Path | None = None) -> None:
        self.upstream = urlsplit(upstream).netloc
        self.stall_seconds = stall_seconds
        self.requests: list[tuple[str, str]] = []
        self._faults: list[tuple[str, Fault, int]] = []
        self._lock = threading.Lock()
        self._http = QuietServer(("127.0.0.1", 0), type("BoundHandler", (Handler,), {"proxy": self}))
        self.url = f"{'https' if certificate else 'http'}://127.0.0.1:{self._http.server_address[1]}"
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self._http.socket = context.wrap_socket(self._http.socket, server_side=True, do_handshake_on_connect=False)

    def __enter__(self) -> "FaultProxy":
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()

    def fail(self, kind: Fault, *, method: str = "", times: int = 1, after: int = 0) -> None:
        """Affect the next requests of a method, or of any; not before so many others were made."""
        with self._lock:
            self._faults += [(method, kind, len(self.requests) + after)] * times

    def noted(self, method: str, path: str) -> Fault:
        """Note a request; returns the fault that affects it."""
        with self._lock:
            self.requests.append((method, path))
            for number, (affected, kind, first) in enumerate(self._faults):
                if affected in ("", method) and len(self.requests) > first:
                    del self._faults[number]
                    return kind
        return ""


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    proxy: FaultProxy

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fault = self.proxy.noted(self.command, self.path)
        if fault in ("stall", SLOW):
            time.sleep(self.proxy.stall_seconds)
        if fault in ("stall", "reset before"):
            return self._reset()
        if fault == CORRUPT and self.command == "PUT":
            body = flipped(body)
        if fault in ("503 before", "429"):
            fault = Canned(int(str(fault)[:3]))
        if isinstance(fault, Canned):
            return self._answer(fault.status, [], fault.body.encode())
        status, headers, content = self._forwarded(body)
        if callable(fault):
            fault()
        if fault == "reset after":
            return self._reset()
        if fault == "503 after":
            return self._answer(503, [], b"")
        if fault in (OTHER_ETAG, WITHOUT_ETAG):
            headers = [(key, value) for key, value in headers if key.lower() != "etag"]
            headers += [("ETag", '"0123456789abcdef0123456789abcdef"')] if fault == OTHER_ETAG else []
        if fault == CORRUPT and self.command == "GET":
            content = flipped(content)
        if fault == TRICKLE:
            return self._answer(status, headers, content, pause_seconds=self.proxy.stall_seconds / 5)
        return self._answer(status, headers, content, sent=len(content) // 2 if fault == TRUNCATED else None)

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET  # noqa: N815

    def _forwarded(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        connection = http.client.HTTPConnection(self.proxy.upstream, timeout=30)
        connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for key, value in self.headers.items():
            connection.putheader(key, value)
        connection.endheaders(body)
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        headers = [(key, value) for key, value in answer.getheaders() if key.lower() not in HOP_BY_HOP]
        if self.command == "HEAD":
            headers.append(("Content-Length", answer.headers["Content-Length"]))
        return answer.status, headers, content

    def _reset(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()

    def _answer(
        self,
        status: int,
        headers: list[tuple[str, str]],
        content: bytes,
        *,
        sent: int | None = None,
        pause_seconds: float = 0.0,
    ) -> None:
        """Send an answer; of its body only the first `sent` bytes, and then a reset."""
        self.send_response_only(status)
        for key, value in headers:
            self.send_header(key, value)
        if self.command != "HEAD":
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        body = content[:sent] if self.command != "HEAD" else b""
        part = max(1, len(body) // 5) if pause_seconds else len(body)
        try:
            for begin in range(0, len(body), part or 1):
                time.sleep(pause_seconds)
                self.wfile.write(body[begin : begin + part])
        except OSError:
            # The client has given up.
            self.close_connection = True
        if sent is not None:
            self._reset()


def flipped(content: bytes) -> bytes:
    """The same, with the lowest bit of the last byte changed."""
    return content[:-1] + bytes([content[-1] ^ 1])
