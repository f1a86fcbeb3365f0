"""A server that speaks the part of Cloud Storage's JSON API that its Python client uses, and fails when told to.

It keeps generations, honours `ifGenerationMatch`, checks CRC32C, takes multipart and resumable uploads, serves ranges,
and lists in pages. `python -m tests.gcs_server PORT` runs it alone. Source of the protocol:
https://cloud.google.com/storage/docs/json_api/v1 and its guides on uploads and preconditions.
"""

import base64
import json
import random
import re
import socket
import struct
import sys
import threading
import time
from collections.abc import Set
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.parser import BytesParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import google_crc32c

BUCKET = "bucket"
PAGE_SIZE = 7

FAULTS = (
    "503 before", "503 after", "429", "401", "403", "404 of the bucket", "reset before", "reset after", "stall",
    "truncated", "corrupt",
)  # fmt: skip
FLIP = "flip"
"""One bit of an answer is another: of its body, or of what its headers say of the object."""
WITHOUT = "without "
"""Fields of an object, or the items of a listing, that an answer lacks: "without size crc32c"."""
FALSE_412 = "412"
"""A write is refused though the generation is the expected one."""
HALF_AND_STALL = "half and stall"
"""Half of a body and then nothing, until whoever waits for the rest is gone: for tests that kill it."""
OPERATIONS = ("read", "stat", "write", "start", "chunk", "list", "delete")


@dataclass(frozen=True)
class Object:
    data: bytes
    generation: int
    updated: float

    @property
    def crc32c(self) -> str:
        return base64.b64encode(google_crc32c.value(self.data).to_bytes(4, "big")).decode()


@dataclass
class Fault:
    """Does its harm to requests `first` to `first + times - 1` (from 0) of those of `operation`, or of all.

    Of these, to a share at random.
    """

    kind: str
    first: int
    times: int = 1
    operation: str | None = None
    share: float = 1.0
    rng: random.Random = field(default_factory=random.Random)
    seen: int = 0
    struck: int = 0

    def strikes(self, operation: str) -> bool:
        if self.operation not in (None, operation):
            return False
        strikes = self.first <= self.seen < self.first + self.times and self.rng.random() < self.share
        self.seen += 1
        self.struck += strikes
        return strikes


@dataclass
class Session:
    """A resumable upload under way."""

    name: str
    match: int | None
    crc32c: str | None = None
    data: bytearray = field(default_factory=bytearray)
    finished: tuple[int, dict[str, Any]] | None = None


class HttpError(Exception):
    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class QuietServer(ThreadingHTTPServer):
    """Clients that are killed break off their connections; that is nothing to print."""

    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class GcsServer:
    """The server, on a free port of this machine unless one is given."""

    def __init__(self, *, port: int = 0, stall_seconds: float = 3.0) -> None:
        self.objects: dict[str, Object] = {}
        self.sessions: dict[str, Session] = {}
        self.requests: list[tuple[str, str]] = []
        self.bytes_received = 0
        self.stall_seconds = stall_seconds
        self.rng = random.Random(0)
        self.omitted: frozenset[str] = frozenset()
        """Fields of an object that no answer has."""
        self._faults: list[Fault] = []
        self._generation = 1_700_000_000_000_000
        self.lock = threading.Lock()
        handler = type("BoundHandler", (Handler,), {"server_state": self})
        self._http = QuietServer(("127.0.0.1", port), handler)
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"

    def __enter__(self) -> "GcsServer":
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()

    def clear(self) -> None:
        """Empty the bucket, and forget faults and requests."""
        with self.lock:
            self.objects.clear()
            self.sessions.clear()
            self.requests.clear()
            self._faults.clear()
            self.omitted = frozenset()
            self.bytes_received = 0

    def fail(
        self, kind: str, *, at: int, times: int = 1, operation: str | None = None, share: float = 1.0, seed: int = 0
    ) -> Fault:
        self.rng.seed(seed)
        fault = Fault(kind, at, times, operation, share, self.rng)
        self._faults.append(fault)
        return fault

    def fault_of(self, operation: str) -> str | None:
        struck = [fault.kind for fault in self._faults if fault.strikes(operation)]
        return struck[0] if struck else None

    def put(self, name: str, data: bytes, match: int | None) -> Object:
        with self.lock:
            current = self.objects[name].generation if name in self.objects else 0
            if match is not None and match != current:
                raise HttpError(412, "At least one of the pre-conditions you specified did not hold.")
            self._generation = max(self._generation + 1, time.time_ns() // 1000)
            self.objects[name] = Object(data, self._generation, time.time())
            return self.objects[name]


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    # A body follows its headers in a packet of its own: otherwise it waits 40 ms for the client to confirm those.
    disable_nagle_algorithm = True
    server_state: GcsServer

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._serve()

    do_POST = do_GET  # noqa: N815
    do_PUT = do_GET  # noqa: N815
    do_DELETE = do_GET  # noqa: N815

    def _serve(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        if len(body) < length:
            # Whoever sent it is gone, killed half way: nobody waits for an answer, and half a request is none.
            self.close_connection = True
            return
        url = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        operation, name = self._operation(url.path, query)
        state = self.server_state
        with state.lock:
            state.requests.append((operation, name))
            state.bytes_received += len(body)
            fault = state.fault_of(operation)
        try:
            if not self._before(fault):
                return
            if fault == "corrupt" and operation in ("write", "chunk"):
                body = body[:-60] + bytes([body[-60] ^ 1]) + body[-59:] if len(body) > 60 else body
            code, headers, content = getattr(self, f"_{operation}")(name, query, body)
        except HttpError as error:
            code, headers, content = self._error(error.code, error.message)
        if self._after(fault, operation):
            self._answer(code, headers, content, fault=fault)

    def _before(self, fault: str | None) -> bool:
        """Whether the request is to be carried out."""
        messages = {
            "503 before": "We encountered an internal error. Please try again.",
            "429": "The rate of requests is too high. Please reduce it.",
            "401": "Invalid Credentials",
            "403": "someone does not have storage.objects.get access to the Google Cloud Storage object.",
            "404 of the bucket": "The specified bucket does not exist.",
            FALSE_412: "At least one of the pre-conditions you specified did not hold.",
        }
        if fault in messages:
            code = 503 if fault == "503 before" else int(fault.split()[0])
            self._answer(*self._error(code, messages[fault]))
            return False
        if fault == "reset before":
            self._reset()
            return False
        if fault == "stall":
            time.sleep(self.server_state.stall_seconds)
            self._reset()
            return False
        return True

    def _after(self, fault: str | None, operation: str) -> bool:
        """Whether what was done is to be answered as it is."""
        if fault == "503 after":
            self._answer(*self._error(503, "We encountered an internal error. Please try again."))
            return False
        if fault == "reset after":
            self._reset()
            return False
        return True

    def _reset(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()

    def _answer(self, code: int, headers: dict[str, str], content: bytes, *, fault: str | None = None) -> None:
        if fault == "corrupt" and "X-Goog-Hash" in headers and content:
            content = content[:-1] + bytes([content[-1] ^ 1])
        fields = self.server_state.omitted | (set(fault.split()[1:]) if fault and fault.startswith(WITHOUT) else set())
        if fields:
            headers, content = _without(fields, headers, content)
        if fault == FLIP:
            headers, content = _flipped(headers, content, self.server_state.rng)
        try:
            self.send_response(code)
            for key, value in headers.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if fault in ("truncated", HALF_AND_STALL) and content:
                self.wfile.write(content[: len(content) // 2])
                self.wfile.flush()
                if fault == HALF_AND_STALL:
                    self.connection.recv(1)
                self._reset()
            else:
                self.wfile.write(content)
        except OSError:
            self.close_connection = True

    @staticmethod
    def _error(code: int, message: str) -> tuple[int, dict[str, str], bytes]:
        content = {"error": {"code": code, "message": message, "errors": [{"message": message}]}}
        return code, {"Content-Type": "application/json"}, json.dumps(content).encode()

    def _operation(self, path: str, query: dict[str, str]) -> tuple[str, str]:
        match = re.match(r"^(/upload|/download)?/storage/v1/b/([^/]+)/o(?:/(.+))?$", path)
        if not match:
            return "unknown", path
        kind, bucket, name = match[1], match[2], unquote(match[3] or "")
        if bucket != BUCKET:
            return "no_bucket", name
        if kind == "/upload":
            if "upload_id" in query:
                return "chunk", query["upload_id"]
            return ("start" if query.get("uploadType") == "resumable" else "write"), query.get("name", "")
        if self.command == "DELETE":
            return "delete", name
        if not name:
            return "list", query.get("prefix", "")
        return ("read" if query.get("alt") == "media" else "stat"), name

    def _unknown(self, name: str, *_: Any) -> Any:
        raise HttpError(400, f"{self.command} {name} is not of this server")

    def _no_bucket(self, *_: Any) -> Any:
        raise HttpError(404, "The specified bucket does not exist.")

    def _object(self, name: str) -> Object:
        try:
            return self.server_state.objects[name]
        except KeyError:
            raise HttpError(404, f"No such object: {BUCKET}/{name}") from None

    def _resource(self, name: str, stored: Object) -> dict[str, Any]:
        updated = datetime.fromtimestamp(stored.updated, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        return {
            "kind": "storage#object",
            "id": f"{BUCKET}/{name}/{stored.generation}",
            "bucket": BUCKET,
            "name": name,
            "generation": str(stored.generation),
            "metageneration": "1",
            "size": str(len(stored.data)),
            "crc32c": stored.crc32c,
            "updated": updated,
            "timeCreated": updated,
        }

    def _json(self, content: Any, code: int = 200) -> tuple[int, dict[str, str], bytes]:
        return code, {"Content-Type": "application/json"}, json.dumps(content).encode()

    def _stat(self, name: str, query: dict[str, str], body: bytes) -> Any:
        return self._json(self._resource(name, self._object(name)))

    def _read(self, name: str, query: dict[str, str], body: bytes) -> Any:
        stored = self._object(name)
        if _match(query) not in (None, stored.generation):
            raise HttpError(412, "At least one of the pre-conditions you specified did not hold.")
        headers = {
            "Content-Type": "application/octet-stream",
            "X-Goog-Hash": f"crc32c={stored.crc32c}",
            "X-Goog-Generation": str(stored.generation),
        }
        wanted = re.match(r"bytes=(\d+)-(\d*)$", self.headers.get("Range") or "")
        if not wanted:
            return 200, headers, stored.data
        first = int(wanted[1])
        last = min(int(wanted[2] or len(stored.data)), len(stored.data) - 1)
        if first >= len(stored.data):
            raise HttpError(416, "The requested range cannot be satisfied.")
        headers["Content-Range"] = f"bytes {first}-{last}/{len(stored.data)}"
        return 206, headers, stored.data[first : last + 1]

    def _write(self, name: str, query: dict[str, str], body: bytes) -> Any:
        content_type = self.headers["Content-Type"]
        message = BytesParser().parsebytes(b"Content-Type: " + content_type.encode() + b"\r\n\r\n" + body)
        boundary = message.get_boundary()
        assert boundary is not None
        # Split by hand: the parser of mail changes line ends.
        _, metadata_part, media_part, _ = body.split(b"--" + boundary.encode())
        metadata = json.loads(metadata_part.split(b"\r\n\r\n", 1)[1])
        data = media_part.split(b"\r\n\r\n", 1)[1].removesuffix(b"\r\n")
        self._check(data, metadata.get("crc32c"))
        name = metadata.get("name", name)
        return self._json(self._resource(name, self.server_state.put(name, data, _match(query))))

    @staticmethod
    def _check(data: bytes, crc32c: str | None) -> None:
        if crc32c and base64.b64encode(google_crc32c.value(data).to_bytes(4, "big")).decode() != crc32c:
            raise HttpError(400, "Provided CRC32C does not match calculated CRC32C.")

    def _start(self, name: str, query: dict[str, str], body: bytes) -> Any:
        metadata = json.loads(body or b"{}")
        name = metadata.get("name", name)
        state = self.server_state
        with state.lock:
            upload_id = f"upload-{len(state.sessions)}"
            state.sessions[upload_id] = Session(name, _match(query), metadata.get("crc32c"))
        url = f"{state.url}/upload/storage/v1/b/{BUCKET}/o?uploadType=resumable&upload_id={upload_id}"
        return 200, {"Location": url}, b""

    def _chunk(self, upload_id: str, query: dict[str, str], body: bytes) -> Any:
        session = self.server_state.sessions[upload_id]
        if session.finished is None:
            place = re.match(r"bytes (?:\*|(\d+)-(\d+))/(\*|\d+)$", self.headers["Content-Range"])
            assert place is not None
            if place[1] is not None and int(place[1]) <= len(session.data):
                session.data[int(place[1]) :] = body
            if place[3] == "*" or len(session.data) < int(place[3]):
                last = len(session.data) - 1
                return 308, ({"Range": f"bytes=0-{last}"} if last >= 0 else {}), b""
            self._check(bytes(session.data), session.crc32c)
            stored = self.server_state.put(session.name, bytes(session.data), session.match)
            session.finished = (200, self._resource(session.name, stored))
        return self._json(session.finished[1], session.finished[0])

    def _list(self, prefix: str, query: dict[str, str], body: bytes) -> Any:
        with self.server_state.lock:
            names = sorted(name for name in self.server_state.objects if name.startswith(prefix))
        delimiter, length = query.get("delimiter"), len(prefix)
        if delimiter:
            names = sorted({name[:length] + "".join(name[length:].partition(delimiter)[:2]) for name in names})
        begin = int(query.get("pageToken", 0))
        page = names[begin : begin + PAGE_SIZE]
        folders = [name for name in page if delimiter and name.endswith(delimiter)]
        content: dict[str, Any] = {"items": [{"name": name} for name in page if name not in folders]}
        if folders:
            content["prefixes"] = folders
        if begin + PAGE_SIZE < len(names):
            content["nextPageToken"] = str(begin + PAGE_SIZE)
        return self._json(content)

    def _delete(self, name: str, query: dict[str, str], body: bytes) -> Any:
        with self.server_state.lock:
            if self.server_state.objects.pop(name, None) is None:
                raise HttpError(404, f"No such object: {BUCKET}/{name}")
        return 204, {}, b""


def _without(fields: Set[str], headers: dict[str, str], content: bytes) -> tuple[dict[str, str], bytes]:
    headers_of = {"crc32c": "X-Goog-Hash", "generation": "X-Goog-Generation"}
    gone = [headers_of.get(name) for name in fields]
    headers = {name: value for name, value in headers.items() if name not in gone}
    if content and headers.get("Content-Type") == "application/json":
        content = json.dumps(
            {name: value for name, value in json.loads(content).items() if name not in fields}
        ).encode()
    return headers, content


def _flipped(headers: dict[str, str], content: bytes, rng: random.Random) -> tuple[dict[str, str], bytes]:
    """The same answer with one bit of its body, or of a header about the object, the other way; a header stays text."""
    about = [name for name in headers if name.startswith("X-Goog-")]
    if about and (not content or rng.random() < 0.5):
        name = rng.choice(about)
        at = rng.randrange(len(headers[name]))
        other = chr(ord(headers[name][at]) ^ rng.choice([1, 2, 4]))
        return headers | {name: headers[name][:at] + other + headers[name][at + 1 :]}, content
    if not content:
        return headers, content
    flipped = bytearray(content)
    flipped[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    return headers, bytes(flipped)


def _match(query: dict[str, str]) -> int | None:
    return int(query["ifGenerationMatch"]) if "ifGenerationMatch" in query else None


if __name__ == "__main__":
    with GcsServer(port=int(sys.argv[1])) as server:
        print(server.url, flush=True)
        threading.Event().wait()
