"""The series of a run: named by the rules, true of what was told, served and pushed."""

import itertools
import os
import re
import socket
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from job import __version__
from job.cli.observers import StoreObserver
from job.observe import events
from job.observe.events import Observers, StepDone
from job.observe.ledger import Ledger
from job.observe.metrics import Metrics, push, serving
from job.observe.metrics.table import BY_NAME, OUTCOME, SERIES
from job.observe.progress import Progress
from job.settings.settings import Settings
from job.storage import LocalStore, open_store
from tests.conftest import Recorder
from tests.runs import HOLDER, never, record_of
from tests.services import Pushgateway, free_port, program

CONSTANTS = {"run_id": "r", "fingerprint": "f", "dataset": "d", "backbone": "Tiny"}


def metrics_of(progress: Progress | None = None, **options: Any) -> Metrics:
    return Metrics(progress or Progress(), constants=CONSTANTS, **({"disks": []} | options))


def values(metrics: Metrics) -> dict[str, float]:
    """Every sample by its name and labels, as a scrape sees it."""
    text = generate_latest(metrics.registry).decode()
    return {
        sample.name + "".join(f"{{{value}}}" for _, value in sorted(sample.labels.items()) if _ != "le"): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if not sample.name.endswith("_bucket")
    }


def step(number: int, **facts: Any) -> StepDone:
    given = {
        "phase": "head", "epoch": 0, "step": number, "num_steps": 4, "batch": number, "num_batches": 4,
        "num_examples": 16, "seconds": 0.2, "data_wait_seconds": 0.1, "is_first": number == 1,
    }  # fmt: skip
    return StepDone(**(given | facts))


def means() -> tuple[float, float]:
    raise AssertionError("reading the loss waits for the device")


@pytest.fixture(scope="module")
def scraped(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    """The series at the end of a small run in this process."""
    from job.run import attempt
    from tests.conftest import SMALL_RUN

    folder = tmp_path_factory.mktemp("scraped")
    settings = Settings(**(SMALL_RUN | {"data_dir": str(prepared), "cache_dir": folder}))
    progress = Progress()
    metrics = metrics_of(progress, disks=[folder])
    observer = StoreObserver(metrics, Recorder())
    attempt.make(
        settings, store=open_store(str(folder / "runs/small"), observer=observer), holder=HOLDER,
        observer=Observers(Recorder(), metrics), progress=progress, check_stop=never,
    )  # fmt: skip
    return values(metrics) | {"record_seconds": _seconds(folder)}


def _seconds(folder: Path) -> float:
    (attempt,) = record_of(LocalStore(folder / "runs/small")).attempts
    return sum(sum(categories.values()) for categories in attempt.seconds.values())


def test_names_follow_the_rules_of_prometheus() -> None:
    """Prefix, base units, `_total` on counters and on nothing else."""
    for series in SERIES:
        assert re.fullmatch(r"thaw_[a-z_]+", series.name)
        assert series.name.endswith("_total") == (series.kind == "counter"), series.name
        assert not re.search(r"_(ms|milliseconds|minutes|hours|percent|kb|mb)(_|$)", series.name)
        assert series.help.endswith((".", "pushed.")), series.name
        assert bool(series.buckets) == (series.kind == "histogram")
        assert all(len(known) == len(series.labels) for known in series.known)


def test_the_run_id_is_a_label_of_one_series_only() -> None:
    """Every other would be a new series for every run."""
    assert [series.name for series in SERIES if "run_id" in series.labels] == ["thaw_info"]


def test_what_is_counted_is_there_from_the_start_and_what_is_not_known_is_absent() -> None:
    """A rate misses no first increase; an alert on a gauge without a value stays silent."""
    found = values(metrics_of())
    assert found["thaw_steps_total{head}"] == found["thaw_steps_total{fine_tune}"] == 0
    assert found["thaw_checkpoint_commits_total{epoch}"] == 0
    assert found["thaw_interrupted_total{SIGTERM}"] == 0
    assert found["thaw_phase{prepare}"] == 1
    for name in ("thaw_test_accuracy_ratio", "thaw_last_step_timestamp_seconds", "thaw_eta_timestamp_seconds"):
        assert name not in found


def test_a_complete_run_moves_every_series_that_it_should(scraped: dict[str, float]) -> None:
    """Two epochs of three batches in each phase."""
    assert scraped["thaw_steps_total{head}"] == scraped["thaw_steps_expected{head}"] == 6
    assert scraped["thaw_examples_total{fine_tune}"] == 80
    assert scraped["thaw_step_duration_seconds_count{head}"] == 5, "the compiled step is not among them"
    assert scraped["thaw_compile_duration_seconds{head}"] > scraped["thaw_step_duration_seconds_sum{head}"] / 5
    assert scraped["thaw_epoch{fine_tune}"] == 2
    assert scraped["thaw_learning_rate{head}"] == 1e-2
    assert scraped["thaw_progress_ratio"] == 1
    assert scraped["thaw_checkpoint_commits_total{epoch}"] == scraped["thaw_checkpoint_upload_seconds_count"]
    assert 1 <= scraped["thaw_checkpoint_commits_total{epoch}"] <= 4
    assert scraped["thaw_checkpoint_bytes_total"] > 1000
    assert scraped["thaw_test_accuracy_ratio"] <= 1
    assert scraped["thaw_test_loss"] > 0
    assert scraped["thaw_attempts"] == 1
    assert 0 <= scraped["thaw_accuracy_ratio{head}{validation}"] <= 1
    assert scraped["thaw_storage_requests_total{ok}{write}"] >= 8
    assert scraped["thaw_phase{done}"] == 1
    assert scraped["thaw_phase{head}"] == 0
    assert scraped["thaw_phase_duration_seconds{fine_tune}"] > 0
    assert 0 < scraped["thaw_goodput_ratio"] < 1
    assert any(name.startswith("thaw_disk_free_bytes") for name in scraped)
    assert any(name.startswith("thaw_info{Tiny}{d}") for name in scraped)
    assert scraped["process_resident_memory_bytes"] > 1e6


def test_every_second_has_a_category_and_they_add_up(scraped: dict[str, float]) -> None:
    """To the duration of the run, which the record has too, but for what came after its last write."""
    whole = sum(value for name, value in scraped.items() if name.startswith("thaw_time_seconds_total"))
    assert whole == pytest.approx(scraped["thaw_run_duration_seconds"], rel=0.01)
    assert scraped["record_seconds"] == pytest.approx(whole, rel=0.05)
    for category in ("productive", "compile", "init", "cache", "validate", "evaluate", "export", "data_wait"):
        assert scraped[f"thaw_time_seconds_total{{{category}}}"] > 0, category
    assert scraped["thaw_time_seconds_total{recompute}"] == 0


def test_the_series_of_one_scrape_are_of_one_moment() -> None:
    """However long the scrape takes: here, every look at the clock is a second later."""
    ticks = itertools.count()
    seen = values(metrics_of(Progress(ledger=Ledger(clock=lambda: float(next(ticks))))))
    total = sum(value for name, value in seen.items() if name.startswith("thaw_time_seconds_total"))
    assert total == seen["thaw_run_duration_seconds"] > 0


def test_a_step_is_recorded_without_reading_the_loss() -> None:
    """Reading it would wait for the device."""
    metrics = metrics_of()
    metrics.event(events.DataLoaded("d", "memory", 64, 8, 8, steps={"head": 4}, classes={}))
    metrics.event(events.PhaseStarted("head", epoch=0, step=0, learning_rate=0.1))
    for number in (1, 2, 3):
        metrics.step(step(number), means)
    found = values(metrics)
    assert found["thaw_examples_total{head}"] == 48
    assert found["thaw_data_wait_seconds_total"] == pytest.approx(0.3)
    assert found["thaw_step_duration_seconds_sum{head}"] == pytest.approx(0.4)
    assert found["thaw_progress_ratio"] == 0.75
    assert found["thaw_eta_timestamp_seconds"] >= found["thaw_last_step_timestamp_seconds"]


def test_trouble_is_counted_by_kind() -> None:
    """Damage, failed commits, refused writes, retries, signals, memory of a GPU."""
    metrics = metrics_of()
    metrics.event(events.CheckpointDamaged("c", reason="damaged"))
    metrics.event(events.NothingRestored(None, phase="prepare", step=0))
    metrics.event(events.CommitFailed("head", step=1, reason="no answer", error="StorageError"))
    for name in ("run.json", "checkpoints/a", "model/model.keras"):
        metrics.conflict(name)
    metrics.retry("write")
    metrics.interrupted("SIGTERM")
    metrics.event(events.StepCompiled("head", seconds=2.0, gpu_memory={"GPU:0": {"current": 5, "peak": 7}}))
    found = values(metrics)
    for name in (
        "thaw_restores_total{damaged}", "thaw_restores_total{none}", "thaw_checkpoint_failures_total{StorageError}",
        "thaw_precondition_failures_total{record}", "thaw_precondition_failures_total{checkpoint}",
        "thaw_precondition_failures_total{artefact}", "thaw_storage_retries_total{write}",
        "thaw_interrupted_total{SIGTERM}",
    ):  # fmt: skip
        assert found[name] == 1, name
    assert found["thaw_gpu_memory_bytes{GPU:0}{peak}"] == 7


def test_a_folder_tells_how_each_request_ended(tmp_path: Path) -> None:
    """Missing and refused ones are no errors of the disk."""
    metrics = metrics_of()
    store = LocalStore(tmp_path, observer=StoreObserver(metrics, Recorder()))
    store.write("run.json", b"a", if_generation=0)
    with pytest.raises(Exception, match="another process"):
        store.write("run.json", b"b", if_generation=0)
    with pytest.raises(Exception, match="no object"):
        store.read("other")
    found = values(metrics)
    assert found["thaw_storage_requests_total{ok}{write}"] == 1
    assert found["thaw_storage_requests_total{conflict}{write}"] == 1
    assert found["thaw_storage_requests_total{missing}{read}"] == 1
    assert found["thaw_precondition_failures_total{record}"] == 1


def test_metrics_and_health_are_served_and_nothing_else() -> None:
    """Over HTTP, until the context ends."""
    port = free_port()
    with serving(metrics_of().registry, port, Recorder()):
        with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
            assert "thaw_steps_total" in answer.read().decode()
            assert answer.headers["Content-Type"].startswith("text/plain; version=")
        with urlopen(f"http://127.0.0.1:{port}/healthz", timeout=5) as answer:
            assert answer.read() == b"ok\n"
        with pytest.raises(HTTPError, match="404"):
            urlopen(f"http://127.0.0.1:{port}/", timeout=5)
    with socket.create_server(("127.0.0.1", port)):
        pass  # the port is free again


def test_a_port_in_use_is_a_warning() -> None:
    """Which names it; the run goes on."""
    reader = Recorder()
    with socket.create_server(("0.0.0.0", 0)) as other:
        port = other.getsockname()[1]
        with serving(metrics_of().registry, port, reader):
            pass
    (warning,) = reader.of(events.MetricsUnavailable)
    assert warning.port == port
    assert "in use" in warning.reason


def test_a_live_scrape_passes_the_check_of_promtool() -> None:
    """Names, types, units and help texts."""
    metrics = metrics_of(disks=[Path("/tmp")])
    metrics.step(step(1), means)
    metrics.request("read", "200", 0.1)
    done = subprocess.run(
        [program("promtool"), "check", "metrics"],
        input=generate_latest(metrics.registry),
        capture_output=True,
        timeout=30,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


@pytest.fixture
def gateway(tmp_path: Path) -> Any:
    with Pushgateway(tmp_path) as server:
        yield server


def pushed(gateway: Pushgateway) -> dict[str, float]:
    families = text_string_to_metric_families(gateway.get("/metrics"))
    return {
        sample.name: sample.value
        for family in families
        for sample in family.samples
        if sample.labels.get("job") == "thaw" and sample.labels.get("dataset") == "d"
    }


def test_a_failure_leaves_the_time_of_the_last_success_on_the_gateway(gateway: Pushgateway) -> None:
    """Only an attempt that ended complete tells a new one."""
    metrics, reader = metrics_of(), Recorder()
    metrics.event(events.RunClaimed(at="", attempt=1, state="prepare"))
    metrics.event(events.Evaluated(accuracy=0.9, loss=0.3, num_examples=10))
    push(metrics.outcome(0), gateway.url, grouping={"dataset": "d"}, timeout_seconds=5, observer=reader)
    first = pushed(gateway)
    assert {series.name for series in OUTCOME} <= first.keys()
    assert (first["thaw_exit_code"], first["thaw_test_accuracy_ratio"], first["thaw_attempts"]) == (0, 0.9, 1)
    push(metrics_of().outcome(42), gateway.url, grouping={"dataset": "d"}, timeout_seconds=5, observer=reader)
    second = pushed(gateway)
    assert second["thaw_exit_code"] == 42
    assert second["thaw_last_success_timestamp_seconds"] == first["thaw_last_success_timestamp_seconds"]
    assert second["thaw_last_completion_timestamp_seconds"] > first["thaw_last_completion_timestamp_seconds"]
    assert reader.events == []


def test_a_finished_run_that_is_asked_again_was_completed_when_it_was(gateway: Pushgateway) -> None:
    """An old success does not become a new one by being looked at."""
    metrics = metrics_of()
    metrics.event(events.RunAlreadyDone("", 2, "2026-01-02T03:04:05Z", 0.9, (0.8, 1.0), test_loss=0.3, model_sha256=""))
    push(metrics.outcome(0), gateway.url, grouping={"dataset": "d"}, timeout_seconds=5, observer=Recorder())
    expected = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC).timestamp()
    assert pushed(gateway)["thaw_last_success_timestamp_seconds"] == expected


def test_what_a_run_is_known_by_is_one_series_from_the_start() -> None:
    """Precision and device are added to it when the model is built."""
    metrics = metrics_of()
    assert [name for name in values(metrics) if name.startswith("thaw_info")] == [
        f"thaw_info{{Tiny}}{{d}}{{}}{{f}}{{}}{{r}}{{{__version__}}}"
    ]
    metrics.event(events.ModelBuilt("Tiny", weights="none", precision="float32", xla=False, device="CPU"))
    (name,) = [name for name in values(metrics) if name.startswith("thaw_info")]
    assert "{float32}" in name
    assert "{CPU}" in name


def test_a_dead_gateway_is_a_warning() -> None:
    """Refused, or never answering."""
    reader = Recorder()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        for url in (f"http://127.0.0.1:{free_port()}", f"http://127.0.0.1:{silent.getsockname()[1]}"):
            push(metrics_of().outcome(0), url, grouping={}, timeout_seconds=0.3, observer=reader)
    assert reader.kinds() == [events.PushFailed] * 2


def test_an_interrupted_run_counts_what_it_has_to_do_again(small: Callable[..., Settings], store: LocalStore) -> None:
    """Steps that a killed attempt had reached and not committed are `recompute`, and no goodput."""
    from job.run import attempt
    from tests.runs import CrashOn

    settings = small(checkpoint_every_seconds=3600, head_epochs=1)
    progress = Progress()
    with pytest.raises(BaseException, match=events.StepCompiled.name):
        attempt.make(
            settings, store=store, holder=HOLDER, observer=CrashOn(events.StepCompiled, phase="fine_tune"),
            progress=progress, check_stop=never,
        )  # fmt: skip
    assert progress.reached == {"head": 3, "fine_tune": 1}
    # What a renewal of the lease would have written before the end.
    lost = record_of(store).attempts[0].model_copy(update={"reached": {"head": 3, "fine_tune": 3}})
    import json

    content = record_of(store).model_copy(update={"attempts": (lost,)})
    store.write("run.json", content.model_dump_json().encode(), if_generation=store.generation("run.json"))
    again = Progress()
    attempt.make(settings, store=store, holder=HOLDER, observer=Recorder(), progress=again, check_stop=never)
    seconds = again.ledger.seconds()["fine_tune"]
    assert seconds["recompute"] > 0
    assert seconds["productive"] > 0
    report = json.loads(store.read("report/report.json").data)
    assert report["goodput_ratio"] < 1
    assert report["time_seconds"]["recompute"] > 0


def test_the_environment_of_ci_has_what_these_tests_need() -> None:
    """A test that is skipped there would be green and blind."""
    if os.environ.get("CI"):
        for name in ("promtool", "prometheus", "prometheus-pushgateway"):
            program(name)


def test_every_series_is_in_the_table_once() -> None:
    """By name."""
    assert len(BY_NAME) == len(SERIES)
