"""The series of a run: named by the rules, true of what has happened, served and pushed."""

import itertools
import re
import socket
import subprocess
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from urllib.request import Request, urlopen

import pytest
from prometheus_client import generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from job import __version__
from job.cli.observers import StoreObserver
from job.errors import ObjectMissing
from job.observe import events
from job.observe.events import StepDone
from job.observe.ledger import Ledger
from job.observe.metrics import Metrics, push, serving
from job.observe.metrics.table import OUTCOME, SERIES
from job.observe.observer import Observers
from job.observe.progress import Progress
from job.settings.settings import Settings
from job.storage import MISSING, LocalStore, open_store
from tests.conftest import SMALL_RUN, Recorder
from tests.ports import free_port
from tests.runs import CrashOn, record_of, start
from tests.services import Pushgateway, program, wait_for
from tests.stores import Crash

CONSTANTS = {"run_id": "r", "fingerprint": "f", "dataset": "d", "backbone": "Tiny"}


def metrics_of(progress: Progress | None = None, *, disks: tuple[Path, ...] = ()) -> Metrics:
    return Metrics(progress or Progress(), constants=CONSTANTS, disks=disks)


def values(metrics: Metrics) -> dict[str, float]:
    """Every sample of a scrape, by its name and the values of its labels."""
    return {
        sample.name + "".join(f"{{{value}}}" for _, value in sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(generate_latest(metrics.registry).decode())
        for sample in family.samples
        if not sample.name.endswith("_bucket")
    }


def seconds_by_category(found: dict[str, float]) -> dict[str, float]:
    return {name[24:-1]: value for name, value in found.items() if name.startswith("thaw_time_seconds_total")}


def step(number: int) -> StepDone:
    return StepDone(
        phase="head", epoch=0, step=number, num_steps=4, batch=number, num_batches=4, num_examples=16, seconds=0.2,
        data_wait_seconds=0.1, is_first=number == 1,
    )  # fmt: skip


def means() -> tuple[float, float]:
    raise AssertionError("reading the loss waits for the device")


def test_every_series_has_its_name_once_and_few_label_values() -> None:
    """Prometheus' own rules are checked with promtool below; run ids as labels would be new series for every run."""
    assert len({series.name for series in SERIES}) == len(SERIES)
    assert all(re.fullmatch(r"thaw_[a-z_]+", series.name) for series in SERIES)
    assert [series.name for series in SERIES if "run_id" in series.labels] == ["thaw_info"]
    assert all(series.name.endswith("_duration_seconds") for series in SERIES if series.kind == "histogram")


def test_attempts_that_were_killed_are_counted_by_the_next() -> None:
    """Nobody else can: they ended without a word."""
    metrics = metrics_of()
    assert "thaw_attempts_killed" not in values(metrics)
    metrics.event(events.RunClaimed("/runs/r", attempt=3, state="head"))
    assert values(metrics)["thaw_attempts_killed"] == 0
    metrics.event(events.PreviousKilled(2, "pod", "head", reason="", hint="", in_a_row=2))
    assert values(metrics)["thaw_attempts_killed"] == 2


def test_counters_are_there_from_the_start_and_gauges_without_a_value_are_not() -> None:
    """A rate misses no first increase; an alert on a gauge without a value stays silent."""
    metrics = metrics_of()
    found = values(metrics)
    for name in (
        "steps_total{head}",
        "steps_total{fine_tune}",
        "checkpoint_commits_total{epoch}",
        "interrupted_total{SIGTERM}",
    ):
        assert found[f"thaw_{name}"] == 0
    for name in ("test_accuracy_ratio", "last_step_timestamp_seconds", "eta_timestamp_seconds"):
        assert f"thaw_{name}" not in found
    assert found["thaw_phase{prepare}"] == 1
    assert found[f"thaw_info{{Tiny}}{{d}}{{}}{{f}}{{}}{{r}}{{{__version__}}}"] == 1
    metrics.event(events.ModelBuilt("Tiny", weights="none", precision="float32", xla=False, device="CPU"))
    assert [name for name in values(metrics) if "info" in name] == [
        f"thaw_info{{Tiny}}{{d}}{{CPU}}{{f}}{{float32}}{{r}}{{{__version__}}}"
    ]


def test_a_phase_that_stops_early_leaves_nothing_to_do() -> None:
    """And a restart after it does not begin at 0 again."""
    loaded = events.DataLoaded("d", "memory", 100, 20, 40, steps={"head": 20}, classes={}, relative_costs={"head": 1.0})
    for last in (events.StoppedEarly("head", 10, 0), events.Restored("checkpoints/a", "head", 20)):
        metrics = metrics_of()
        metrics.event(loaded)
        if isinstance(last, events.StoppedEarly):
            metrics.event(events.PhaseStarted("head", 1, 10, 1e-3))
            assert values(metrics)["thaw_progress_ratio"] == 0.5
        metrics.event(last)
        assert values(metrics)["thaw_progress_ratio"] == 1


@pytest.mark.slow
def test_a_complete_run_moves_every_series_that_it_should(prepared: Path, tmp_path: Path) -> None:
    """Two epochs of three batches in each phase; each second has a category, and the record has the same seconds."""
    progress = Progress()
    metrics = metrics_of(progress, disks=(tmp_path,))
    store = open_store(str(tmp_path / "runs/small"), observer=StoreObserver(metrics, Recorder()))
    settings = Settings(**(SMALL_RUN | {"data_dir": str(prepared), "cache_dir": tmp_path}))
    observer = Observers(Recorder(), metrics)
    start(settings, store, observer=observer, progress=progress)
    found = values(metrics)
    expected = {
        "steps_total{head}": 6, "steps_expected{head}": 6, "examples_total{fine_tune}": 80, "epoch{fine_tune}": 2,
        "step_duration_seconds_count{head}": 5,  # without the compiled one
        "learning_rate{head}": 1e-2, "progress_ratio": 1, "attempts": 1, "phase{done}": 1, "phase{head}": 0,
        "time_seconds_total{recompute}": 0,
    }  # fmt: skip
    assert {name: found[f"thaw_{name}"] for name in expected} == expected
    assert found["thaw_compile_duration_seconds{head}"] > found["thaw_step_duration_seconds_sum{head}"] / 5
    commits = found["thaw_checkpoint_commits_total{epoch}"]
    assert 1 <= commits == found["thaw_checkpoint_upload_duration_seconds_count"] <= 4
    assert found["thaw_storage_requests_total{ok}{write}"] >= 8
    for name in ("test_accuracy_ratio", "accuracy_ratio{head}{validation}", "goodput_ratio"):
        assert 0 < found[f"thaw_{name}"] <= 1, name
    for name in (
        "checkpoint_bytes_total",
        "test_loss",
        "phase_duration_seconds{fine_tune}",
        f"disk_free_bytes{{{tmp_path}}}",
    ):
        assert found[f"thaw_{name}"] > 0, name
    seconds = seconds_by_category(found)
    assert sum(seconds.values()) == pytest.approx(found["thaw_run_duration_seconds"], rel=0.01)
    assert {category for category, value in seconds.items() if value > 0} >= {
        "productive", "compile", "init", "cache", "validate", "evaluate", "export", "data_wait",
    }  # fmt: skip
    recorded = record_of(store).attempts[0].seconds
    assert sum(sum(stage.values()) for stage in recorded.values()) == pytest.approx(sum(seconds.values()), rel=0.05)
    done = subprocess.run(
        [program("promtool"), "check", "metrics"],
        input=generate_latest(metrics.registry),
        capture_output=True,
        timeout=240,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_the_series_of_one_scrape_are_of_one_moment() -> None:
    """Here every look at the clock is a second later."""
    ticks = itertools.count()
    found = values(metrics_of(Progress(ledger=Ledger(clock=lambda: float(next(ticks))))))
    assert sum(seconds_by_category(found).values()) == found["thaw_run_duration_seconds"] > 0


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


def test_trouble_is_counted_by_kind(tmp_path: Path) -> None:
    """Damage, failed commits, requests to a folder, retries, refused writes, signals; and memory of a GPU."""
    metrics = metrics_of()
    metrics.event(events.CheckpointDamaged("c", reason="damaged"))
    metrics.event(events.NothingRestored(None, phase="prepare", step=0))
    metrics.event(events.CommitFailed("head", step=1, reason="no answer", error="StorageError"))
    metrics.event(events.StepCompiled("head", seconds=2.0, gpu_memory={"GPU:0": {"current": 5, "peak": 7}}))
    metrics.conflict("checkpoints/a")
    metrics.conflict("model/model.keras")
    metrics.retry("write")
    metrics.event(events.Stopping("SIGTERM", within_seconds=13.5))
    store = LocalStore(tmp_path, observer=StoreObserver(metrics, Recorder()))
    store.write("run.json", b"a", if_version=MISSING)
    with pytest.raises(Exception, match="another process"):
        store.write("run.json", b"b", if_version=MISSING)
    with pytest.raises(ObjectMissing):
        store.read("other")
    found = values(metrics)
    for name in (
        "restores_total{damaged}", "restores_total{none}", "checkpoint_failures_total{StorageError}",
        "precondition_failures_total{record}", "precondition_failures_total{checkpoint}",
        "precondition_failures_total{artefact}", "storage_retries_total{write}", "interrupted_total{SIGTERM}",
        "storage_requests_total{ok}{write}", "storage_requests_total{conflict}{write}",
        "storage_requests_total{missing}{read}",
    ):  # fmt: skip
        assert found[f"thaw_{name}"] == 1, name
    assert found["thaw_gpu_memory_bytes{GPU:0}{peak}"] == 7


class Unreadable(Collector):
    """Stands for a series that reads a volume which hangs."""

    def collect(self) -> Iterator[Metric]:
        raise AssertionError("a series was read")


def test_metrics_and_health_are_served_until_the_end() -> None:
    """Over HTTP; then the port is free again. Whether the process lives is answered without reading any series."""
    port, observer, metrics = free_port(), Recorder(), metrics_of()
    with serving(metrics.registry, port, observer):
        with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
            assert "thaw_steps_total" in answer.read().decode()
        if Path("/proc/net/if_inet6").exists():
            with urlopen(f"http://[::1]:{port}/healthz", timeout=5) as answer:
                assert answer.status == 200
        metrics.registry.register(Unreadable())
        for method in ("GET", "HEAD"):
            with urlopen(Request(f"http://127.0.0.1:{port}/healthz", method=method), timeout=5) as answer:
                assert answer.status == 200

    def is_free() -> bool:
        with socket.socket() as client:
            return client.connect_ex(("127.0.0.1", port)) != 0

    wait_for(is_free, what="the end of the server")
    assert observer.events == []


def test_a_port_in_use_and_a_dead_gateway_are_warnings() -> None:
    """A gateway may refuse, or never answer."""
    observer, registry = Recorder(), metrics_of().outcome(0)
    with socket.create_server(("0.0.0.0", 0)) as silent:
        port = silent.getsockname()[1]
        with serving(registry, port, observer):
            pass
        for dead in (free_port(), port):
            push(registry, f"http://127.0.0.1:{dead}", grouping={}, timeout_seconds=0.3, observer=observer)
    assert observer.kinds() == [events.MetricsUnavailable, events.PushFailed, events.PushFailed]
    (warning,) = observer.of(events.MetricsUnavailable)
    assert (warning.port, warning.reason) == (port, "Address already in use")


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Pushgateway]:
    with Pushgateway(tmp_path) as server:
        yield server


def pushed(metrics: Metrics, exit_code: int, gateway: Pushgateway) -> dict[str, float]:
    """What the gateway has after a push."""
    observer = Recorder()
    push(metrics.outcome(exit_code), gateway.url, grouping={"dataset": "d"}, timeout_seconds=5, observer=observer)
    assert observer.events == []
    families = text_string_to_metric_families(gateway.get("/metrics"))
    samples = (sample for family in families for sample in family.samples)
    return {sample.name: sample.value for sample in samples if sample.labels.get("dataset") == "d"}


def test_the_gateway_keeps_the_time_of_the_last_success(gateway: Pushgateway) -> None:
    """Not a failure sets it, and an old success does not become a new one when the run is started again."""
    metrics, success = metrics_of(), "thaw_last_success_timestamp_seconds"
    metrics.event(events.RunClaimed(at="", attempt=1, state="prepare"))
    metrics.event(events.Evaluated(accuracy=0.9, balanced_accuracy=0.8, loss=0.3, num_examples=10))
    first = pushed(metrics, 0, gateway)
    assert {series.name for series in OUTCOME} <= first.keys()
    assert (first["thaw_exit_code"], first["thaw_test_accuracy_ratio"], first["thaw_attempts"]) == (0, 0.9, 1)
    assert first["thaw_test_balanced_accuracy_ratio"] == 0.8
    second = pushed(metrics_of(), 42, gateway)
    assert (second["thaw_exit_code"], second[success]) == (42, first[success])
    assert second["thaw_last_completion_timestamp_seconds"] > first["thaw_last_completion_timestamp_seconds"]
    again = metrics_of()
    again.event(events.RunAlreadyDone("", 2, "2026-01-02T03:04:05Z", 0.9, (0.8, 1.0), test_loss=0.3, model_sha256=""))
    assert pushed(again, 0, gateway)[success] == datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC).timestamp()


@pytest.mark.slow
def test_steps_that_are_done_again_are_recompute(small: Callable[..., Settings], store: LocalStore) -> None:
    """A killed attempt had reached them and not committed; they are no goodput."""
    settings = small(checkpoint_every_seconds=3600, fine_tune_epochs=0)
    progress, crash = Progress(), CrashOn(events.StepCompiled)
    with pytest.raises(BaseException, match="step_compiled"):
        start(settings, store, observer=crash, progress=progress)
    assert progress.reached == {"head": 1}
    # As if a renewal of the lease had written it later.
    lost = record_of(store).attempts[0].model_copy(update={"reached": {"head": 3}})
    content = record_of(store).model_copy(update={"attempts": (lost,)})
    store.write("run.json", content.model_dump_json().encode(), if_version=store.version("run.json"))
    again = Progress()
    with pytest.raises(Crash):
        start(settings, store, observer=CrashOn(events.EpochFinished, epoch=1), progress=again)
    seconds = again.ledger.seconds()["head"]
    assert min(seconds["recompute"], seconds["productive"]) > 0
