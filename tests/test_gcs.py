"""The bucket as a store, over real HTTP: it survives each fault that passes, and explains each that lasts."""

import os
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
    AccessDenied,
    AnswerMalformed,
    ExitCode,
    ObjectDamaged,
    ObjectMissing,
    PreconditionFailed,
    StorageError,
    StorageRefused,
)
from job.storage import MISSING, StoredObject, gcs_errors, open_store
from job.storage import gcs as gcs_module
from job.storage.gcs import GcsStore
from job.storage.retrying import RetryingStore
from tests.gcs_server import (
    BUCKET,
    FALSE_412,
    FAULTS,
    FLIP,
    FORGOTTEN,
    LASTING,
    OPERATIONS,
    OTHER_GENERATION,
    WITHOUT,
    GcsServer,
    Object,
)

Do = Callable[[str], None]

PASSING = [kind for kind in FAULTS if kind not in LASTING]
NUM_REQUESTS = {"read": 2, "stat": 1, "write": 2, "start": 1, "chunk": 3, "list": 3, "delete": 1}
"""Of each operation that `do` makes."""

SMALL, BIG = b"small" * 100, 9 << 20
"""The client sends a file of more than 8 MiB in chunks."""


@pytest.fixture
def small(tmp_path: Path) -> Path:
    (tmp_path / "small").write_bytes(SMALL)
    return tmp_path / "small"


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("big") / "big"
    path.write_bytes(os.urandom(BIG))
    return path


@pytest.fixture
def do(
    gcs_store: RetryingStore, gcs: GcsServer, small: Path, big: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Do:
    """Call the store so that it makes requests of a kind, and look at the effect on the server."""
    monkeypatch.setattr(gcs_module, "UPLOAD_CHUNK_BYTES", 4 << 20)
    name = "runs/small/a"

    def perform(operation: str) -> None:
        if operation in ("read", "stat", "delete"):
            gcs.put(name, SMALL, None)
        if operation == "read":
            assert gcs_store.read("a").data == SMALL
            gcs_store.download("a", tmp_path / "down")
            assert (tmp_path / "down").read_bytes() == SMALL
        elif operation == "stat":
            assert gcs_store.version("a") == str(gcs.objects[name].generation)
        elif operation == "delete":
            gcs_store.delete("a")
            assert not gcs.objects
        elif operation == "write":
            generation = gcs_store.write("a", SMALL, if_version=MISSING)
            assert str(gcs.objects[name].generation) == generation
            gcs_store.upload("b", small, if_version=MISSING)
            assert [stored.data for stored in gcs.objects.values()] == [SMALL, SMALL]
        elif operation == "list":
            for number in range(20):
                gcs.put(f"runs/small/{number:02d}", b"", None)
            assert gcs_store.list("") == [f"{number:02d}" for number in range(20)]
        else:
            gcs_store.upload("a", big, if_version=MISSING)
            assert gcs.objects[name].data == big.read_bytes()

    return perform


def cells() -> list[Any]:
    """Each fault at each place of each operation in the matrix; here each fault, operation and place in some pair."""
    found = []
    for row, kind in enumerate(PASSING):
        for column, (operation, num_requests) in enumerate(NUM_REQUESTS.items()):
            for at in range(num_requests):
                is_chosen = (row + column) % 2 == 0 and at == (row // 2 + 1) % num_requests
                found.append(pytest.param(kind, operation, at, marks=() if is_chosen else pytest.mark.matrix))
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "operation", "at"), cells())
def test_a_fault_that_passes_is_survived(gcs: GcsServer, do: Do, kind: str, operation: str, at: int) -> None:
    """Whether the server had done it or not, at the first request or a later one."""
    fault = gcs.fail(kind, at=at, operation=operation)
    do(operation)
    assert fault.struck == 1
    assert fault.seen > NUM_REQUESTS[operation] or kind in ("corrupt", "truncated")


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("kind", LASTING)
def test_a_fault_that_lasts_is_raised_at_once_with_a_hint(gcs: GcsServer, do: Do, kind: str, operation: str) -> None:
    """A missing bucket is not an empty one, and rights have the names that IAM knows."""
    fault = gcs.fail(kind, at=0, times=1000, operation=operation)
    with pytest.raises(StorageRefused, match="gs://bucket/runs/small") as caught:
        do(operation)
    assert all(words in caught.value.hint for words in LASTING[kind])
    assert fault.seen <= 2


@pytest.mark.parametrize(
    ("operation", "permission"),
    [("read", "get"), ("write", "create"), ("list", "list"), ("delete", "delete")],
)
def test_a_permission_that_is_missing_is_named(gcs: GcsServer, do: Do, operation: str, permission: str) -> None:
    """As IAM calls it, and no retry of the Job would help."""
    gcs.fail("403", at=0, times=1000, operation=operation)
    with pytest.raises(AccessDenied, match=f"cannot {operation} gs://bucket/runs/small") as caught:
        do(operation)
    assert f"storage.objects.{permission}" in caught.value.hint
    assert caught.value.exit_code == ExitCode.BAD_INPUT


@pytest.mark.parametrize("is_there", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_server_that_does_not_come_back_is_given_up_at_the_deadline(
    gcs: GcsServer, monkeypatch: pytest.MonkeyPatch, is_there: bool
) -> None:
    """With its last answer; or without a network."""
    if not is_there:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", "http://127.0.0.1:9")
    remote = GcsStore(bucket=BUCKET, prefix="p", timeout_seconds=60.0)
    store = RetryingStore(remote, retry_seconds=2.0, first_delay_seconds=0.001)
    fault = gcs.fail("503 before", at=0, times=10_000)
    with pytest.raises(StorageError, match=f"{503 if is_there else 'Connection'}.*tried for") as caught:
        store.read("a")
    assert type(caught.value) is StorageError
    assert (fault.seen > 2) == is_there


@pytest.mark.parametrize("operation", ["stat", "read"])
def test_an_error_whose_body_breaks_off_is_asked_for_again(
    gcs: GcsServer, gcs_store: RetryingStore, monkeypatch: pytest.MonkeyPatch, operation: str
) -> None:
    """The client reads that of a download where it does not try again. Here the object is deleted meanwhile."""
    gcs.put("runs/small/a", SMALL, None)
    noted = gcs.noted

    def deleting(of_request: str, name: str, num_bytes: int) -> str | None:
        if of_request == operation:
            gcs.objects.clear()
        return noted(of_request, name, num_bytes)

    monkeypatch.setattr(gcs, "noted", deleting)
    fault = gcs.fail("truncated", at=0, operation=operation)
    with pytest.raises(ObjectMissing):
        gcs_store.read("a")
    assert fault.struck == 1


def test_a_resumable_upload_that_the_server_has_forgotten_is_begun_again(gcs: GcsServer, do: Do) -> None:
    """Which the client does not."""
    fault = gcs.fail(FORGOTTEN, at=1, operation="chunk")
    do("chunk")
    assert fault.struck == 1


class Damaged(Object):
    """An object whose bytes are not those of its checksum."""

    @property
    def crc32c(self) -> str:
        return "AAAAAA=="


def test_bytes_that_were_damaged_before_the_connection_broke_are_noticed(
    gcs: GcsServer, gcs_store: RetryingStore, tmp_path: Path
) -> None:
    """The client fetches the rest, and then verifies nothing."""
    whole = gcs.put("runs/small/a", os.urandom(4 << 20), None)
    gcs.objects["runs/small/a"] = Damaged(whole.data, whole.generation, whole.updated)
    gcs.fail("truncated", at=0, operation="read")
    with pytest.raises(ObjectDamaged):
        gcs_store.download("a", tmp_path / "a")


@pytest.mark.slow
def test_a_small_request_that_hangs_is_given_up_sooner_than_a_file(
    gcs: GcsServer, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lease is at stake: the record cannot wait as long as a checkpoint may."""
    monkeypatch.setattr(gcs, "stall_seconds", 10.0)
    remote = GcsStore(bucket=BUCKET, prefix="p", timeout_seconds=0.5, file_timeout_seconds=60.0)
    store = RetryingStore(remote, first_delay_seconds=0.01)
    seconds = []
    for send in (
        lambda: store.write("a", SMALL, if_version=MISSING),
        lambda: store.upload("b", small, if_version=MISSING),
    ):
        fault, began = gcs.fail("stall", at=0), time.monotonic()
        send()
        assert fault.struck == 1
        seconds.append(time.monotonic() - began)
    assert seconds[0] < gcs.stall_seconds <= seconds[1]


@pytest.mark.parametrize("omitted", [(), ("crc32c",)])
@pytest.mark.parametrize("operation", ["write", "chunk"])
def test_what_the_server_holds_is_compared_with_what_was_sent(
    gcs: GcsServer, do: Do, monkeypatch: pytest.MonkeyPatch, operation: str, omitted: tuple[str, ...]
) -> None:
    """By its answer, or by the bytes; and an object that may be another's is not deleted."""
    put = gcs.put

    def damaging(name: str, data: bytes, match: int | None) -> Object:
        whole = put(name, data, match)
        gcs.objects[name] = Object(data[:-1], whole.generation, whole.updated)
        return gcs.objects[name]

    gcs.omitted = frozenset(omitted)
    monkeypatch.setattr(gcs, "put", damaging)
    with pytest.raises(ObjectDamaged, match="gs://bucket/runs/small/a is not what was sent"):
        do(operation)
    assert "delete" not in {operation for operation, _ in gcs.requests}


@pytest.mark.parametrize("operation", ["read", "stat", "write", "chunk"])
@pytest.mark.parametrize("field", ["generation", "crc32c", "size", "id", OTHER_GENERATION])
def test_a_field_that_one_answer_lacks_is_taken_from_another(
    gcs: GcsServer, do: Do, field: str, operation: str
) -> None:
    """Of whichever request it is; a generation that is wrong is not believed either."""
    fault = gcs.fail(field if field == OTHER_GENERATION else f"{WITHOUT}{field}", at=0, operation=operation)
    do(operation)
    assert fault.struck == 1


@pytest.mark.parametrize("operation", ["read", "write"])
def test_a_server_that_never_states_generations_is_given_up(gcs: GcsServer, do: Do, operation: str) -> None:
    """That is a fault of the store, and not of an object."""
    gcs.omitted = frozenset({"generation"})
    with pytest.raises(AnswerMalformed, match="the answer is not understood") as caught:
        do(operation)
    assert caught.value.hint


def test_without_a_checksum_what_was_altered_on_its_way_is_noticed(
    gcs: GcsServer, gcs_store: RetryingStore, small: Path, tmp_path: Path
) -> None:
    """In both directions: it is received once more, and compared."""
    gcs.omitted = frozenset({"crc32c"})
    for at, act in (
        (0, lambda: gcs_store.upload("a", small, if_version=MISSING)),
        (0, lambda: gcs_store.read("a")),
        (1, lambda: gcs_store.download("a", tmp_path / "a")),
    ):
        fault = gcs.fail("corrupt", at=at, operation="read")
        result = act()
        assert fault.struck == 1
        assert not isinstance(result, StoredObject) or result.data == SMALL
    assert (tmp_path / "a").read_bytes() == SMALL


def test_a_listing_that_lacks_its_items_is_not_an_empty_one(gcs: GcsServer, gcs_store: RetryingStore) -> None:
    """It is requested twice."""
    gcs.put("runs/small/a", b"", None)
    gcs.fail(f"{WITHOUT}items", at=0)
    assert gcs_store.list("") == ["a"]


@pytest.mark.parametrize("operation", ["write", "start"])
def test_a_refusal_of_the_generation_that_is_there_is_no_conflict(
    gcs: GcsServer, gcs_store: RetryingStore, big: Path, operation: str
) -> None:
    """The write is sent again; when that does not help, no other process is blamed."""

    def send() -> None:
        if operation == "write":
            gcs_store.write("a", SMALL, if_version=gcs_store.version("a"))
        else:
            gcs_store.upload("a", big, if_version=gcs_store.version("a"))

    fault = gcs.fail(FALSE_412, at=0, operation=operation)
    send()
    assert fault.struck == 1
    gcs.fail(FALSE_412, at=0, times=1000, operation=operation)
    with pytest.raises(StorageError, match="a write on it is refused") as caught:
        send()
    assert not isinstance(caught.value, PreconditionFailed)


@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.matrix)])
def test_with_bits_flipped_in_many_answers_nothing_false_is_believed(
    gcs: GcsServer, gcs_store: RetryingStore, tmp_path: Path, seed: int
) -> None:
    """Each call returns the truth, or raises that the store fails: never a conflict, a missing object, other bytes."""
    fault = gcs.fail(FLIP, at=0, times=10_000, share=0.3, seed=seed)
    data, failed = b"first", []
    gcs.put("runs/small/a", data, None)
    for number in range(40):
        stored, new = gcs.objects["runs/small/a"], f"{number}".encode() * 100
        try:
            assert gcs_store.version("a") == str(stored.generation)
            assert gcs_store.read("a") == StoredObject(data, str(stored.generation))
            gcs_store.download("a", tmp_path / "a")
            assert (tmp_path / "a").read_bytes() == data
            generation = gcs_store.write("a", new, if_version=str(stored.generation))
            assert generation == str(gcs.objects["runs/small/a"].generation)
        except StorageError as error:
            failed.append(type(error))
        data = gcs.objects["runs/small/a"].data
        assert data in (new, stored.data)
    assert fault.struck > 50
    assert len(failed) < 20
    assert set(failed) <= {StorageError, AnswerMalformed, ObjectDamaged}


def test_no_error_shows_a_password() -> None:
    """Neither that of a proxy or a server's address, nor the right to go on with an upload; nor half of one."""
    proxy = "Cannot connect to proxy http://me:secret@proxy:3128/"
    for text in (proxy, f"{'x' * 260} {proxy}", "PUT http://h/o?upload_id=secret&x=1 failed"):
        error = gcs_errors.explain(requests.ConnectionError(text), "read", "gs://b/a")
        assert "secret" not in error.message


def test_missing_credentials_are_named_with_where_they_come_from(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """They are no setting."""
    monkeypatch.delenv("STORAGE_EMULATOR_HOST", raising=False)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "nothing.json"))
    with pytest.raises(StorageRefused, match=r"nothing\.json") as caught:
        open_store("gs://bucket/x")
    assert "Workload Identity" in caught.value.hint


def test_a_client_that_cannot_be_made_is_no_fault_of_the_store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It ends as a bug does, and not as a store that may be back at the next start; here google-auth has one."""
    monkeypatch.delenv("STORAGE_EMULATOR_HOST", raising=False)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "list.json"))
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(AttributeError):
        open_store("gs://bucket/x")


def test_no_request_needs_more_than_the_four_permissions_and_every_write_has_a_precondition(
    gcs: GcsServer, do: Do, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client would ask for the bucket itself too, which needs a fifth; and a retry is safe only with one."""
    matches: list[int | None] = []
    put = gcs.put

    def noted(name: str, data: bytes, match: int | None) -> Object:
        matches.append(match)
        return put(name, data, match)

    for operation in OPERATIONS:
        gcs.objects.clear()
        monkeypatch.setattr(gcs, "put", noted if operation in ("write", "chunk") else put)
        do(operation)
    assert {operation for operation, _ in gcs.requests} == set(OPERATIONS)
    assert matches == [0, 0, 0]


def exceptions_of(*roots: type[BaseException]) -> Iterator[type[BaseException]]:
    """The exceptions of these trees."""
    for root in roots:
        yield root
        yield from exceptions_of(*root.__subclasses__())


FOREIGN = set(
    exceptions_of(
        google.api_core.exceptions.GoogleAPIError,
        google.auth.exceptions.GoogleAuthError,
        google.cloud.storage.exceptions.DataCorruption,
        google.cloud.storage.exceptions.InvalidResponse,
        requests.RequestException,
        urllib3.exceptions.HTTPError,
    )
)


def an_error(kind: type[BaseException]) -> BaseException:
    """One of them, from the arguments that it takes."""
    answer = SimpleNamespace(status_code=500, tell=lambda: 1, length_remaining=2)
    said = "what it said"
    for arguments in ((said,), (answer, said), (said, said), (answer, b"5"), (1, 2), ("", "", 0)):
        try:
            error = kind(*arguments)
            str(error)
        except (TypeError, AttributeError, ValueError):
            continue
        if isinstance(error, google.cloud.storage.exceptions.InvalidResponse):
            error.response = answer
        return error
    raise AssertionError(f"{kind} cannot be made")


def test_every_foreign_error_becomes_one_of_ours() -> None:
    """It is caught, and says what was asked of what."""
    assert len(FOREIGN) > 60
    for kind in FOREIGN:
        with (
            pytest.raises(StorageError, match="gs://bucket/a") as caught,
            gcs_errors.explained("read", "gs://bucket/a"),
        ):
            raise an_error(kind)
        assert caught.value.hint or isinstance(caught.value, (ObjectMissing, PreconditionFailed)), kind


def test_the_status_of_an_answer_says_what_passes_and_what_lasts() -> None:
    """By the status of the answer."""
    kinds = {
        StorageRefused: (400, 409), AccessDenied: (401, 403), ObjectMissing: (404,), PreconditionFailed: (412,),
        StorageError: (408, 410, 429, 500, 502, 503, 504),
    }  # fmt: skip
    for kind, codes in kinds.items():
        for code in codes:
            error = google.api_core.exceptions.from_http_status(code, "what it said")
            assert type(gcs_errors.explain(error, "read", "gs://b/a")) is kind, code
