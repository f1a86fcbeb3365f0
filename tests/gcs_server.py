"""A server of the part of Cloud Storage's JSON API that its Python client uses, which fails when a test asks for it.

It keeps generations, honours `ifGenerationMatch`, checks CRC32C, takes multipart and resumable uploads, serves ranges,
and lists in pages. `python -m tests.gcs_server PORT [DELAY-SECONDS]` runs it alone. Source of the protocol:
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
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import google_crc32c

BUCKET = "bucket"
PAGE_SIZE = 7
OPERATIONS = ("read", "stat", "write", "start", "chunk", "list", "delete")

FAULTS = (
    "503 before", "503 after", "429", "401", "403", "404 of the bucket", "reset before", "reset after", "stall",
    "truncated", "corrupt",
)  # fmt: skip
LASTING = {
    "401": ["Workload Identity"],
    "403": ["storage.objects.", "on bucket bucket", "roles/storage.objectUser"],
    "404 of the bucket": ["THAW_STORAGE_URI"],
}
"""Faults that a retry does not help, and what their hint names."""

FLIP = "flip"
"""One bit of an answer is wrong: of its body, or of a header about the object."""
WITHOUT = "without "
"""Fields of an object, or the items of a listing, that an answer lacks: "without size crc32c"."""
FALSE_412 = "412"
"""A write is refused though the generation is the expected one."""
FORGOTTEN = "410"
"""The server no longer knows a resumable upload."""
OTHER_GENERATION = "other generation"
"""An answer has a wrong generation, and the right one in the id."""
HALF_AND_STALL = "half and stall"
"""Half of a body and then nothing, until the client is gone: for tests that kill it."""

UNAVAILABLE = (503, "We encountered an internal error. Please try again.")
NO_BUCKET = (404, "The specified bucket does not exist.")
NO_MATCH = (412, "At least one of the pre-conditions you specified did not hold.")
REFUSALS = {
    "503 before": UNAVAILABLE,
    "429": (429, "The rate of requests is too high. Please reduce it."),
    "401": (401, "Invalid Credentials"),
    "403": (403, "someone does not have storage.objects.get access to the Google Cloud Storage object."),
    "404 of the bucket": NO_BUCKET,
    FALSE_412: NO_MATCH,
    FORGOTTEN: (410, "The upload session is gone."),
}

Answer = tuple[int, dict[str, str], bytes]
"""Status, headers and body."""
Query = dict[str, str]


def crc32c(data: bytes) -> str:
    return base64.b64encode(google_crc32c.value(data).to_bytes(4, "big")).decode()


@dataclass(frozen=True)
class Object:
    data: bytes
    generation: int
    updated: float

    @property
    def crc32c(self) -> str:
        return crc32c(self.data)


@dataclass
class Fault:
    """Affects `times` requests of `operation`, or of all, from number `first` (from 0); of these a random `share`."""

    kind: str
    first: int
    times: int
    operation: str | None
    share: float
    rng: random.Random
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
    """A resumable upload."""

    name: str
    match: int | None
    crc32c: str | None
    data: bytearray = field(default_factory=bytearray)
    finished: Answer | None = None


class HttpError(Exception):
    """An answer that refuses a request, by its status and message."""


class QuietServer(ThreadingHTTPServer):
    """Clients that are killed break off their connections; that is nothing to print."""

    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class GcsServer:
    """The server, on a free port of this machine unless one is given."""

    def __init__(self, *, port: int = 0, stall_seconds: float = 3.0, delay_seconds: float = 0.0) -> None:
        self.objects: dict[str, Object] = {}
        self.sessions: dict[str, Session] = {}
        self.requests: list[tuple[str, str]] = []
        self.bytes_received = 0
        self.stall_seconds = stall_seconds
        self.delay_seconds = delay_seconds
        """Before each answer, as over a network; requests of other connections do not wait for it."""
        self.rng = random.Random(0)
        self.omitted: frozenset[str] = frozenset()
        """Fields of an object that no answer has."""
        self.lock = threading.Lock()
        self._faults: list[Fault] = []
        self._generation = 1_700_000_000_000_000
        handler = type("BoundHandler", (Handler,), {"state": self})
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
            for held in (self.objects, self.sessions, self.requests, self._faults):
                held.clear()
            self.omitted = frozenset()
            self.bytes_received = 0

    def fail(
        self, kind: str, *, at: int, times: int = 1, operation: str | None = None, share: float = 1.0, seed: int = 0
    ) -> Fault:
        self.rng.seed(seed)
        self._faults.append(Fault(kind, at, times, operation, share, self.rng))
        return self._faults[-1]

    def noted(self, operation: str, name: str, num_bytes: int) -> str | None:
        """Note a request; returns the kind of the fault that affects it."""
        with self.lock:
            self.requests.append((operation, name))
            self.bytes_received += num_bytes
            struck = [fault.kind for fault in self._faults if fault.strikes(operation)]
        return struck[0] if struck else None

    def put(self, name: str, data: bytes, match: int | None) -> Object:
        with self.lock:
            current = self.objects[name].generation if name in self.objects else 0
            if match is not None and match != current:
                raise HttpError(*NO_MATCH)
            self._generation = max(self._generation + 1, time.time_ns() // 1000)
            self.objects[name] = Object(data, self._generation, time.time())
            return self.objects[name]


class Handler(BaseHTTPRequestHandler):
    """One connection. `_read`, `_stat` and so on carry out the operation of that name."""

    protocol_version = "HTTP/1.1"
    # A body follows its headers in a packet of its own: otherwise it waits 40 ms for the client to confirm those.
    disable_nagle_algorithm = True
    state: GcsServer

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        if len(body) < length:
            # The client was killed half way: half a request is none, and nothing waits for an answer.
            self.close_connection = True
            return
        url = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        operation, name = self._operation(url.path, query)
        fault = self.state.noted(operation, name, len(body))
        time.sleep(self.state.delay_seconds)
        if fault == "stall":
            time.sleep(self.state.stall_seconds)
        if fault in ("stall", "reset before"):
            self._reset()
            return
        if fault == "corrupt" and operation in ("write", "chunk") and len(body) > 60:
            body = body[:-60] + bytes([body[-60] ^ 1]) + body[-59:]
        try:
            if fault in REFUSALS:
                raise HttpError(*REFUSALS[fault])
            answer = getattr(self, f"_{operation}")(name, query, body)
            if fault == "503 after":
                raise HttpError(*UNAVAILABLE)
        except HttpError as error:
            code, message = error.args
            answer = as_json({"error": {"code": code, "message": message, "errors": [{"message": message}]}}, code)
        if fault == "reset after":
            self._reset()
        else:
            self._answer(*answer, fault=fault or "")

    do_POST = do_PUT = do_DELETE = do_GET  # noqa: N815

    def _reset(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()

    def _answer(self, code: int, headers: dict[str, str], content: bytes, *, fault: str) -> None:
        if fault == "corrupt" and "X-Goog-Hash" in headers and content:
            content = content[:-1] + bytes([content[-1] ^ 1])
        fields = self.state.omitted | (set(fault.split()[1:]) if fault.startswith(WITHOUT) else set())
        if fields:
            headers, content = without(fields, headers, content)
        if fault == OTHER_GENERATION:
            content = content.replace(b'"generation": "', b'"generation": "1')
        if fault == FLIP:
            headers, content = flipped(headers, content, self.state.rng)
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

    def _operation(self, path: str, query: Query) -> tuple[str, str]:
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

    def _unknown(self, name: str, query: Query, body: bytes) -> Answer:
        raise HttpError(400, f"{self.command} {name} is not of this server")

    def _no_bucket(self, name: str, query: Query, body: bytes) -> Answer:
        raise HttpError(*NO_BUCKET)

    def _object(self, name: str) -> Object:
        try:
            return self.state.objects[name]
        except KeyError:
            raise HttpError(404, f"No such object: {BUCKET}/{name}") from None

    def _stat(self, name: str, query: Query, body: bytes) -> Answer:
        return resource(name, self._object(name))

    def _read(self, name: str, query: Query, body: bytes) -> Answer:
        stored = self._object(name)
        if match_of(query) not in (None, stored.generation):
            raise HttpError(*NO_MATCH)
        headers = {
            "Content-Type": "application/octet-stream",
            "X-Goog-Hash": f"crc32c={stored.crc32c}",
            "X-Goog-Generation": str(stored.generation),
        }
        wanted = re.match(r"bytes=(\d+)-(\d*)$", self.headers.get("Range") or "")
        if not wanted:
            return 200, headers, stored.data
        size, first = len(stored.data), int(wanted[1])
        last = min(int(wanted[2] or size), size - 1)
        if first >= size:
            raise HttpError(416, "The requested range cannot be satisfied.")
        return 206, headers | {"Content-Range": f"bytes {first}-{last}/{size}"}, stored.data[first : last + 1]

    def _write(self, name: str, query: Query, body: bytes) -> Answer:
        boundary = re.search(r'boundary="?([^";]+)', self.headers["Content-Type"])
        assert boundary is not None
        # Split by hand: the parser of mail changes line ends.
        _, metadata_part, media_part, _ = body.split(b"--" + boundary[1].encode())
        metadata = json.loads(metadata_part.split(b"\r\n\r\n", 1)[1])
        data = media_part.split(b"\r\n\r\n", 1)[1].removesuffix(b"\r\n")
        return self._stored(Session(metadata.get("name", name), match_of(query), metadata.get("crc32c")), data)

    def _stored(self, upload: Session, data: bytes) -> Answer:
        if upload.crc32c and crc32c(data) != upload.crc32c:
            raise HttpError(400, "Provided CRC32C does not match calculated CRC32C.")
        return resource(upload.name, self.state.put(upload.name, data, upload.match))

    def _start(self, name: str, query: Query, body: bytes) -> Answer:
        metadata = json.loads(body or b"{}")
        state = self.state
        with state.lock:
            upload_id = f"upload-{len(state.sessions)}"
            state.sessions[upload_id] = Session(metadata.get("name", name), match_of(query), metadata.get("crc32c"))
        url = f"{state.url}/upload/storage/v1/b/{BUCKET}/o?uploadType=resumable&upload_id={upload_id}"
        return 200, {"Location": url}, b""

    def _chunk(self, upload_id: str, query: Query, body: bytes) -> Answer:
        session = self.state.sessions[upload_id]
        if session.finished is None:
            place = re.match(r"bytes (?:\*|(\d+)-(\d+))/(\*|\d+)$", self.headers["Content-Range"])
            assert place is not None
            if place[1] is not None and int(place[1]) <= len(session.data):
                session.data[int(place[1]) :] = body
            if place[3] == "*" or len(session.data) < int(place[3]):
                last = len(session.data) - 1
                return 308, ({"Range": f"bytes=0-{last}"} if last >= 0 else {}), b""
            session.finished = self._stored(session, bytes(session.data))
        return session.finished

    def _list(self, prefix: str, query: Query, body: bytes) -> Answer:
        with self.state.lock:
            held = {name: it.generation for name, it in self.state.objects.items() if name.startswith(prefix)}
        names = sorted(held)
        delimiter, length = query.get("delimiter"), len(prefix)
        if delimiter:
            names = sorted({name[:length] + "".join(name[length:].partition(delimiter)[:2]) for name in names})
        begin = int(query.get("pageToken", 0))
        page = names[begin : begin + PAGE_SIZE]
        folders = [name for name in page if delimiter and name.endswith(delimiter)]
        items = [{"name": name, "generation": str(held[name])} for name in page if name not in folders]
        content: dict[str, Any] = {"items": items}
        if folders:
            content["prefixes"] = folders
        if begin + PAGE_SIZE < len(names):
            content["nextPageToken"] = str(begin + PAGE_SIZE)
        return as_json(content)

    def _delete(self, name: str, query: Query, body: bytes) -> Answer:
        with self.state.lock:
            self._object(name)
            del self.state.objects[name]
        return 204, {}, b""


def as_json(content: Any, code: int = 200) -> Answer:
    return code, {"Content-Type": "application/json"}, json.dumps(content).encode()


def resource(name: str, stored: Object) -> Answer:
    updated = datetime.fromtimestamp(stored.updated, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    return as_json(
        {
            "kind": "storage#object", "id": f"{BUCKET}/{name}/{stored.generation}", "bucket": BUCKET, "name": name,
            "generation": str(stored.generation), "metageneration": "1", "size": str(len(stored.data)),
            "crc32c": stored.crc32c, "updated": updated, "timeCreated": updated,
        }
    )  # fmt: skip


def without(fields: Set[str], headers: dict[str, str], content: bytes) -> tuple[dict[str, str], bytes]:
    headers_of = {"crc32c": "X-Goog-Hash", "generation": "X-Goog-Generation"}
    gone = [headers_of.get(name) for name in fields]
    headers = {name: value for name, value in headers.items() if name not in gone}
    if content and headers.get("Content-Type") == "application/json":
        kept = {name: value for name, value in json.loads(content).items() if name not in fields}
        content = json.dumps(kept).encode()
    return headers, content


def flipped(headers: dict[str, str], content: bytes, rng: random.Random) -> tuple[dict[str, str], bytes]:
    """The same answer with one bit of its body, or of a header about the object, flipped; a header stays text."""
    about = [name for name in headers if name.startswith("X-Goog-")]
    if about and (not content or rng.random() < 0.5):
        name = rng.choice(about)
        at = rng.randrange(len(headers[name]))
        other = chr(ord(headers[name][at]) ^ rng.choice([1, 2, 4]))
        return headers | {name: headers[name][:at] + other + headers[name][at + 1 :]}, content
    if not content:
        return headers, content
    changed = bytearray(content)
    changed[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    return headers, bytes(changed)


def match_of(query: Query) -> int | None:
    return int(query["ifGenerationMatch"]) if "ifGenerationMatch" in query else None


if __name__ == "__main__":
    with GcsServer(port=int(sys.argv[1]), delay_seconds=float((sys.argv[2:] or ["0"])[0])) as server:
        print(server.url, flush=True)
        threading.Event().wait()
