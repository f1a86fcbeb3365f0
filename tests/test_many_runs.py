"""What a table of many runs, and a run that is watched, cost a bucket: requests and connections are counted."""

import time
from collections import Counter
from datetime import UTC, datetime

import pytest

from job.cli import list as list_command
from job.cli.list import NUM_THREADS
from job.cli.status import Watch, look
from job.run.record import RECORD_NAME
from job.schema import Holder, Lease
from job.storage import open_store
from tests import gcs_server
from tests.conftest import slowly
from tests.gcs_server import BUCKET, FLIP, WITHOUT, GcsServer, Handler
from tests.recorded import OUTCOME, attempt, record

HELD = Lease(attempt=1, holder=Holder(host="elsewhere", pid=1, started=0.0), seconds=60)


def put_runs(gcs: GcsServer, num_runs: int) -> dict[str, float]:
    """Finished runs, each with an accuracy of its own; the accuracies by run."""
    accuracies = {f"{number:04d}": number / num_runs for number in range(num_runs)}
    for run, accuracy in accuracies.items():
        content = record(run_id=run, state="done", outcome=OUTCOME | {"test_accuracy": accuracy})
        gcs.put(f"runs/{run}/{RECORD_NAME}", content.model_dump_json().encode(), None)
    return accuracies


def listed() -> dict[str, float | None]:
    rows = list_command.find(open_store(f"gs://{BUCKET}/runs"), now=datetime.now(UTC))
    return {row["run_id"]: row.get("test_accuracy") for row in rows}


def num_requests(gcs: GcsServer) -> Counter[str]:
    """Those since the last call, by operation."""
    counts = Counter(operation for operation, _ in gcs.requests)
    gcs.requests.clear()
    return counts


@pytest.mark.slow
def test_many_runs_cost_a_request_each_on_connections_that_stay_open(
    gcs: GcsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many connections as threads, however many runs; of the names there is one request a page."""
    num_connections, setup = Counter[str](), Handler.setup

    def counted_setup(handler: Handler) -> None:
        num_connections["all"] += 1
        setup(handler)

    monkeypatch.setattr(Handler, "setup", counted_setup)
    monkeypatch.setattr(gcs_server, "PAGE_SIZE", 1000)
    monkeypatch.setattr(gcs, "delay_seconds", 0.02)
    accuracies = put_runs(gcs, 2000)
    assert listed() == accuracies
    assert num_requests(gcs) == {"list": 2, "read": 2000}
    assert num_connections["all"] <= NUM_THREADS + 1


@pytest.mark.parametrize("kind", ["corrupt", FLIP, f"{WITHOUT}crc32c", *slowly("truncated")])
def test_a_faulty_answer_is_no_row_of_wrong_numbers(gcs: GcsServer, kind: str) -> None:
    """Each answer that does not have its checksum is asked for again."""
    accuracies = put_runs(gcs, 20)
    fault = gcs.fail(kind, at=0, times=2, operation="read")
    assert listed() == accuracies
    assert fault.struck == 2


def test_an_object_that_never_arrives_whole_is_damaged(gcs: GcsServer) -> None:
    """Its row has no numbers."""
    put_runs(gcs, 1)
    gcs.fail("corrupt", at=0, times=10**6, operation="read")
    (row,) = list_command.find(open_store(f"gs://{BUCKET}/runs"), now=datetime.now(UTC))
    assert (row["run_id"], row["condition"], "test_accuracy" in row) == ("0000", "damaged", False)
    assert "is damaged: " in row["problem"]


def test_an_unchanged_run_is_watched_by_one_small_request_a_look(gcs: GcsServer) -> None:
    """The record and its age are requested when its version has changed; till then the lease runs out all the same."""
    store, name = open_store(f"gs://{BUCKET}/runs/a"), f"runs/a/{RECORD_NAME}"
    gcs.put(name, record(run_id="a", lease=HELD).model_dump_json().encode(), None)
    watch = Watch(store)
    began = time.monotonic()
    first = watch.look()
    assert (first.condition, num_requests(gcs)) == ("running", {"stat": 2, "read": 1})
    time.sleep(0.3)
    held = [watch.look().hold.seconds for _ in range(10)]
    assert num_requests(gcs) == {"stat": 10}
    assert 0.3 <= first.hold.seconds - held[-1] <= time.monotonic() - began
    # The store's clock has whole seconds.
    assert held[-1] - (time.monotonic() - began) - 1 <= look(store).hold.seconds <= held[-1] + 1
    gcs.requests.clear()
    ended = attempt(end=datetime.now(UTC), exit_code=42)
    gcs.put(name, record(run_id="a", attempts=(ended,)).model_dump_json().encode(), None)
    assert [watch.look().condition for _ in range(3)] == ["stopped"] * 3
    assert num_requests(gcs) == {"stat": 3, "read": 1}


def test_a_watched_lease_runs_out_though_the_record_stays_as_it_is(
    gcs: GcsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A holder on another machine that was killed writes nothing."""
    gcs.put(f"runs/a/{RECORD_NAME}", record(run_id="a", lease=HELD).model_dump_json().encode(), None)
    watch = Watch(open_store(f"gs://{BUCKET}/runs/a"))
    assert watch.look().condition == "running"
    monotonic = time.monotonic
    monkeypatch.setattr("job.cli.status.time.monotonic", lambda: monotonic() + 61)
    assert watch.look().condition == "killed"
