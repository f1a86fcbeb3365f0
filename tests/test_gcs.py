"""The bucket as a store, over real HTTP: every fault that passes is survived, every other is told with the way out."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import google.api_core.exceptions
import google.auth.exceptions
import google.cloud.storage.exceptions
import pytest
import requests
import urllib3

from job.errors import (
    InvalidSettings,
    ObjectDamaged,
    ObjectMissing,
    PreconditionFailed,
    StorageError,
    StorageRefused,
    ThawError,
)
from job.storage import MISSING, StoredObject, open_store
from job.storage.gcs import UPLOAD_CHUNK_BYTES, GcsStore
from job.storage.gcs_answers import content_of
from job.storage.gcs_errors import PERMISSIONS, explain
from tests.conftest import REPOSITORY
from tests.gcs_server import BUCKET, FALSE_412, FAULTS, FLIP, OPERATIONS, WITHOUT, GcsServer, Object

PASSING = ("503 before", "503 after", "429", "reset before", "reset after", "stall", "truncated", "corrupt")
LASTING = ("401", "403", "404 of the bucket")

SMALL, BIG = b"small" * 100, 2 * UPLOAD_CHUNK_BYTES + 12345


@pytest.fixture
def small(tmp_path: Path) -> Path:
    (tmp_path / "small").write_bytes(SMALL)
    return tmp_path / "small"


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("big") / "big"
    path.write_bytes(os.urandom(BIG))
    return path


def perform(operation: str, store: GcsStore, server: GcsServer, *, small: Path, big: Path, tmp_path: Path) -> None:
    """Do what needs requests of a kind, and look at the effect on the server."""
    name = "runs/small/a"
    if operation == "read":
        server.put(name, SMALL, None)
        assert store.read("a").data == SMALL
        store.download("a", tmp_path / "down")
        assert (tmp_path / "down").read_bytes() == SMALL
    elif operation == "stat":
        server.put(name, SMALL, None)
        assert store.generation("a") == server.objects[name].generation
    elif operation == "write":
        generation = store.write("a", SMALL, if_generation=MISSING)
        assert server.objects[name].generation == generation
        store.upload("b", small, if_generation=MISSING)
        assert [stored.data for stored in server.objects.values()] == [SMALL, SMALL]
    elif operation in ("start", "chunk"):
        store.upload("a", big, if_generation=MISSING)
        assert server.objects[name].data == big.read_bytes()
    elif operation == "list":
        for number in range(20):
            server.put(f"runs/small/{number:02d}", b"", None)
        assert store.list("") == [f"{number:02d}" for number in range(20)]
    else:
        server.put(name, SMALL, None)
        store.delete("a")
        assert not server.objects


@pytest.fixture
def do(gcs_store: GcsStore, gcs: GcsServer, small: Path, big: Path, tmp_path: Path) -> Callable[[str], None]:
    return lambda operation: perform(operation, gcs_store, gcs, small=small, big=big, tmp_path=tmp_path)


@pytest.mark.parametrize("at", [0, 1, 2])
@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("kind", PASSING)
def test_a_fault_that_passes_is_survived(
    gcs: GcsServer, do: Callable[[str], None], kind: str, operation: str, at: int
) -> None:
    """Whether the server had done it or not, and whichever of the requests it strikes."""
    fault = gcs.fail(kind, at=at, operation=operation)
    do(operation)
    assert fault.struck == (fault.seen > at)
    if at == 0:
        assert fault.struck == 1
        assert kind == "corrupt" or fault.seen > 1 or operation in ("stat", "delete", "start", "list")


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("kind", LASTING)
def test_a_fault_that_lasts_is_told_at_once_with_the_way_out(
    gcs: GcsServer, do: Callable[[str], None], kind: str, operation: str
) -> None:
    """Asking again would not help, so nobody does."""
    fault = gcs.fail(kind, at=0, times=1000, operation=operation)
    with pytest.raises(StorageRefused) as caught:
        do(operation)
    assert "gs://bucket/runs/small" in caught.value.message
    assert caught.value.hint
    assert fault.seen <= 2


def test_a_store_that_does_not_come_back_is_given_up_at_the_deadline(gcs: GcsServer) -> None:
    """With what it last said."""
    store = GcsStore(bucket=BUCKET, prefix="p", timeout_seconds=0.5, retry_seconds=0.5, first_delay_seconds=0.05)
    fault = gcs.fail("503 before", at=0, times=10_000)
    with pytest.raises(StorageError, match=r"tried until the deadline.*503") as caught:
        store.read("a")
    assert not isinstance(caught.value, StorageRefused)
    assert fault.seen > 2


def test_a_server_that_is_not_there_is_given_up_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """No network, or a wrong address."""
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "http://127.0.0.1:9")
    store = GcsStore(bucket=BUCKET, prefix="p", timeout_seconds=0.5, retry_seconds=0.5, first_delay_seconds=0.05)
    with pytest.raises(StorageError, match="Connection"):
        store.read("a")


@pytest.mark.parametrize("ask", ["read", "download", "generation"])
def test_an_answer_that_breaks_off_is_asked_for_again_even_when_it_is_an_error(
    gcs: GcsServer, gcs_store: GcsStore, tmp_path: Path, ask: str
) -> None:
    """That there is no such object is an answer like any other."""
    gcs.fail("truncated", at=0)
    if ask == "generation":
        assert gcs_store.generation("a") == MISSING
    else:
        with pytest.raises(ObjectMissing):
            gcs_store.read("a") if ask == "read" else gcs_store.download("a", tmp_path / "a")
    assert len(gcs.requests) == 2


def test_bytes_that_were_damaged_before_the_connection_broke_are_noticed(
    gcs: GcsServer, gcs_store: GcsStore, tmp_path: Path
) -> None:
    """The client fetches the rest, and then verifies nothing."""
    data = os.urandom(4 << 20)
    gcs.put("runs/small/a", data, None)
    gcs.fail("truncated", at=0)
    whole = gcs.objects["runs/small/a"]
    gcs.objects["runs/small/a"] = Damaged(data, whole.generation, whole.updated)
    with pytest.raises(ObjectDamaged):
        gcs_store.download("a", tmp_path / "a")


def test_a_small_request_that_hangs_is_given_up_sooner_than_a_file(gcs: GcsServer, small: Path) -> None:
    """The lease is at stake: the record cannot wait as long as a checkpoint may."""
    store = GcsStore(
        bucket=BUCKET, prefix="p", timeout_seconds=0.2, file_timeout_seconds=10.0, first_delay_seconds=0.01
    )
    seconds = []
    for send in (
        lambda: store.write("a", SMALL, if_generation=MISSING),
        lambda: store.upload("b", small, if_generation=MISSING),
    ):
        fault, began = gcs.fail("stall", at=0), time.monotonic()
        send()
        assert fault.struck == 1
        seconds.append(time.monotonic() - began)
    assert seconds[0] < gcs.stall_seconds <= seconds[1]


@pytest.mark.parametrize("operation", ["write", "chunk"])
def test_what_the_server_holds_is_compared_with_what_was_sent(
    gcs: GcsServer, do: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, operation: str
) -> None:
    """Its answer to an upload has size and checksum of the object."""
    put = gcs.put

    def damaging(name: str, data: bytes, match: int | None) -> Object:
        whole = put(name, data, match)
        gcs.objects[name] = Object(data[:-1], whole.generation, whole.updated)
        return gcs.objects[name]

    monkeypatch.setattr(gcs, "put", damaging)
    with pytest.raises(ObjectDamaged, match="gs://bucket/runs/small/a"):
        do(operation)
    assert "delete" not in {operation for operation, _ in gcs.requests}


class Damaged(Object):
    """An object whose bytes are not those of its checksum."""

    @property
    def crc32c(self) -> str:
        return "AAAAAA=="


@pytest.mark.parametrize("operation", ["read", "stat", "write", "chunk"])
@pytest.mark.parametrize("field", ["generation", "crc32c", "size", "id"])
def test_an_answer_that_lacks_a_field_is_made_up_for(
    gcs: GcsServer, do: Callable[[str], None], field: str, operation: str
) -> None:
    """By another one."""
    fault = gcs.fail(f"{WITHOUT}{field}", at=0, operation=operation)
    do(operation)
    assert fault.struck == 1


@pytest.mark.parametrize("operation", ["read", "stat", "write", "chunk"])
def test_a_server_that_never_tells_generations_is_given_up(
    gcs: GcsServer, do: Callable[[str], None], operation: str
) -> None:
    """That is a fault of the store, and of no object."""
    gcs.omitted = frozenset({"generation"})
    with pytest.raises(StorageError, match="the answer is not understood") as caught:
        do(operation)
    assert type(caught.value) is StorageError
    assert caught.value.hint


def test_without_a_checksum_what_was_altered_on_its_way_is_noticed(
    gcs: GcsServer, gcs_store: GcsStore, small: Path, tmp_path: Path
) -> None:
    """In both directions: it is received once more, and compared."""
    gcs.omitted = frozenset({"crc32c"})
    fault = gcs.fail("corrupt", at=0, operation="read")
    gcs_store.upload("a", small, if_generation=MISSING)
    assert fault.struck == 1
    fault = gcs.fail("corrupt", at=0, operation="read")
    assert gcs_store.read("a").data == SMALL
    assert fault.struck == 1
    fault = gcs.fail("corrupt", at=1, operation="read")
    gcs_store.download("a", tmp_path / "a")
    assert fault.struck == 1
    assert (tmp_path / "a").read_bytes() == SMALL
    whole = gcs.objects["runs/small/a"]
    gcs.objects["runs/small/b"] = Object(SMALL[:-1], whole.generation, whole.updated)
    with pytest.raises(ObjectDamaged, match="is not what was sent"):
        gcs_store._held("b", content_of(SMALL))


def test_a_listing_that_lacks_its_items_is_not_an_empty_one(gcs: GcsServer, gcs_store: GcsStore) -> None:
    """Nothing is there only when it has been said twice."""
    gcs.put("runs/small/a", b"", None)
    gcs.fail(f"{WITHOUT}items", at=0)
    assert gcs_store.list("") == ["a"]


@pytest.mark.parametrize("operation", ["write", "start"])
def test_a_refusal_of_the_generation_that_is_there_is_no_conflict(
    gcs: GcsServer, gcs_store: GcsStore, big: Path, operation: str
) -> None:
    """The write is sent again; when that does not help, another process is still not to blame."""

    def send() -> None:
        if operation == "write":
            gcs_store.write("a", SMALL, if_generation=gcs_store.generation("a"))
        else:
            gcs_store.upload("a", big, if_generation=gcs_store.generation("a"))

    fault = gcs.fail(FALSE_412, at=0, operation=operation)
    send()
    assert fault.struck == 1
    gcs.fail(FALSE_412, at=0, times=1000, operation=operation)
    with pytest.raises(StorageError, match="a write on it is refused") as caught:
        send()
    assert not isinstance(caught.value, PreconditionFailed)


@pytest.mark.parametrize("seed", [1, 2])
def test_with_bits_flipped_in_many_answers_nothing_false_is_believed(
    gcs: GcsServer, gcs_store: GcsStore, tmp_path: Path, seed: int
) -> None:
    """Each call gives what is true, or says that the store fails: never a conflict, a missing object or other bytes."""
    fault = gcs.fail(FLIP, at=0, times=10_000, share=0.3, seed=seed)
    data, failed = b"first", []
    gcs.put("runs/small/a", data, None)
    for number in range(40):
        stored, new = gcs.objects["runs/small/a"], f"{number}".encode() * 100
        try:
            assert gcs_store.generation("a") == stored.generation
            assert gcs_store.read("a") == StoredObject(data, stored.generation)
            gcs_store.download("a", tmp_path / "a")
            assert (tmp_path / "a").read_bytes() == data
            generation = gcs_store.write("a", new, if_generation=stored.generation)
            assert generation == gcs.objects["runs/small/a"].generation
        except StorageError as error:
            failed.append(type(error))
        data = gcs.objects["runs/small/a"].data
        assert data in (new, stored.data)
    assert fault.struck > 50
    assert len(failed) < 20
    assert set(failed) <= {StorageError, ObjectDamaged}


def test_no_error_shows_a_password() -> None:
    """Neither that of a proxy or a server's address, nor the right to go on with an upload."""
    for text in ("Cannot connect to proxy http://me:secret@proxy:3128/", "PUT http://h/o?upload_id=secret&x=1 failed"):
        error = explain(requests.ConnectionError(text), "read", "gs://b/a")
        assert "secret" not in error.message


@pytest.mark.parametrize("uri", ["gs://me:secret@bucket/x", "s3://me:secret@bucket/x", "ftp://h/x?token=secret"])
def test_a_uri_with_a_password_is_refused_and_not_shown(uri: str) -> None:
    """Credentials are never part of it."""
    with pytest.raises(InvalidSettings) as caught:
        open_store(uri)
    assert "secret" not in caught.value.message + caught.value.hint


def test_a_bucket_that_is_not_there_is_told(gcs: GcsServer) -> None:
    """It is not taken for an empty one."""
    store = GcsStore(bucket="no-such-bucket", prefix="p")
    for ask in (lambda: store.read("a"), lambda: store.list(""), lambda: store.write("a", b"", if_generation=0)):
        with pytest.raises(StorageRefused, match="bucket does not exist") as caught:
            ask()
        assert "THAW_STORAGE_URI" in caught.value.hint


def test_who_may_not_is_told_the_four_permissions(gcs: GcsServer, gcs_store: GcsStore) -> None:
    """By the names that a person gives to IAM."""
    gcs.fail("403", at=0)
    with pytest.raises(StorageRefused) as caught:
        gcs_store.read("a")
    assert len(PERMISSIONS) == 4
    assert all(permission in caught.value.hint for permission in PERMISSIONS)


def test_without_credentials_it_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """And where they come from; they are no setting."""
    monkeypatch.delenv("STORAGE_EMULATOR_HOST", raising=False)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "nothing.json"))
    with pytest.raises(StorageRefused, match=r"nothing\.json") as caught:
        open_store("gs://bucket/x")
    assert "Workload Identity" in caught.value.hint


@pytest.mark.parametrize("times", [2, 3])
def test_bytes_that_arrive_damaged_are_fetched_again_and_then_given_up(
    gcs: GcsServer, gcs_store: GcsStore, tmp_path: Path, times: int
) -> None:
    """Twice may be chance; three times is not."""
    gcs_store.write("a", SMALL, if_generation=MISSING)
    gcs.fail("corrupt", at=0, times=times, operation="read")
    if times == 2:
        gcs_store.download("a", tmp_path / "a")
        assert (tmp_path / "a").read_bytes() == SMALL
    else:
        with pytest.raises(ObjectDamaged):
            gcs_store.download("a", tmp_path / "a")


def test_a_write_that_another_process_made_is_a_conflict(gcs: GcsServer, gcs_store: GcsStore) -> None:
    """Reading back tells it from our own."""
    gcs_store.write("a", b"theirs", if_generation=MISSING)
    with pytest.raises(PreconditionFailed):
        gcs_store.write("a", b"ours", if_generation=MISSING)
    assert gcs_store.read("a").data == b"theirs"


def test_no_request_needs_more_than_the_four_permissions(gcs: GcsServer, do: Callable[[str], None]) -> None:
    """The client would ask for the bucket itself by the way, which takes a fifth."""
    for operation in OPERATIONS:
        gcs.objects.clear()
        do(operation)
    assert {operation for operation, _ in gcs.requests} == set(OPERATIONS)


def test_every_write_has_a_precondition(gcs: GcsServer, do: Callable[[str], None], monkeypatch: Any) -> None:
    """A retry is safe only then."""
    matches: list[int | None] = []
    put = gcs.put

    def noted(name: str, data: bytes, match: int | None) -> Any:
        matches.append(match)
        return put(name, data, match)

    monkeypatch.setattr(gcs, "put", noted)
    for operation in ("write", "chunk"):
        gcs.objects.clear()
        do(operation)
    assert matches == [0, 0, 0]


# Every error of the libraries below has an answer


def exceptions_of(*roots: type[BaseException]) -> Iterator[type[BaseException]]:
    """The exceptions of these trees, that are classes of the libraries."""
    for root in roots:
        yield root
        yield from exceptions_of(*root.__subclasses__())


FOREIGN = sorted(
    set(
        exceptions_of(
            google.api_core.exceptions.GoogleAPIError,
            google.auth.exceptions.GoogleAuthError,
            google.cloud.storage.exceptions.DataCorruption,
            google.cloud.storage.exceptions.InvalidResponse,
            requests.RequestException,
            urllib3.exceptions.HTTPError,
        )
    ),
    key=lambda kind: f"{kind.__module__}.{kind.__name__}",
)


def an_error(kind: type[BaseException]) -> BaseException:
    """One of them, whatever it must be made from."""
    answer = SimpleNamespace(status_code=500, tell=lambda: 1, length_remaining=2)
    for arguments in (
        ("what it said",),
        (answer, "what it said"),
        ("what", "it said"),
        (answer, b"5"),
        (1, 2),
        ("", "", 0),
    ):
        try:
            error = kind(*arguments)
            str(error)
        except (TypeError, AttributeError, ValueError):
            continue
        if isinstance(error, google.cloud.storage.exceptions.InvalidResponse):
            error.response = answer
        return error
    raise AssertionError(f"{kind} cannot be made")


@pytest.mark.parametrize("kind", FOREIGN, ids=lambda kind: f"{kind.__module__}.{kind.__name__}")
def test_every_foreign_error_becomes_one_of_ours(gcs_store: GcsStore, kind: type[BaseException]) -> None:
    """It is caught, and says what was asked of what."""
    with pytest.raises(ThawError) as caught, gcs_store._explained("read", "a"):
        raise an_error(kind)
    assert isinstance(caught.value, StorageError)
    assert "gs://bucket/runs/small/a" in caught.value.message
    assert caught.value.hint or isinstance(caught.value, (ObjectMissing, PreconditionFailed))


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (400, StorageRefused), (401, StorageRefused), (403, StorageRefused), (404, ObjectMissing), (408, StorageError),
        (409, StorageRefused), (412, PreconditionFailed), (429, StorageError), (500, StorageError), (502, StorageError),
        (503, StorageError), (504, StorageError),
    ],
)  # fmt: skip
def test_what_passes_and_what_lasts_are_told_apart(code: int, expected: type[ThawError]) -> None:
    """By the code of the answer."""
    error = google.api_core.exceptions.from_http_status(code, "what it said")
    assert type(explain(error, "read", "gs://b/a")) is expected


READ_ON_A_DESK = """
import sys
from job.storage import open_store
print(open_store(sys.argv[1]).list(""))
assert "google.cloud.storage" in sys.modules
"""


def test_the_emulator_variable_works_in_a_process_of_its_own(gcs: GcsServer) -> None:
    """As a user sets it, with a URI as a user writes it."""
    gcs.put("runs/a", b"", None)
    done = subprocess.run(
        [sys.executable, "-c", READ_ON_A_DESK, f"gs://{BUCKET}/runs"], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.stdout == "['a']\n", done.stderr


def test_every_fault_of_the_server_is_in_a_class() -> None:
    """A new one cannot be forgotten."""
    assert set(FAULTS) == {*PASSING, *LASTING}
