"""A run as Prometheus, a Pushgateway and a person with a log see it: real processes, real servers."""

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from job.errors import ExitCode
from job.observe.metrics.table import OUTCOME
from tests.conftest import REPOSITORY, SMALL_RUN, job, process_environment
from tests.monitoring import dashboard_queries
from tests.services import Prometheus, Pushgateway, free_port, scrape, wait_for

pytestmark = pytest.mark.slow

Environment = Callable[..., dict[str, str]]


@dataclass
class Observed:
    """A run that has ended, what Prometheus keeps of it, and where its outcome was pushed."""

    prometheus: Prometheus
    gateway: Pushgateway
    steps: tuple[float, float]
    training_at: float
    returncode: int
    record: dict[str, object]


@pytest.fixture(scope="module")
def observed(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Observed]:
    """A run of some seconds, scraped while it trains."""
    folder, port = tmp_path_factory.mktemp("observed"), free_port()
    (folder / "gateway").mkdir()
    (folder / "prometheus").mkdir()
    with Pushgateway(folder / "gateway") as gateway:
        scrapes = [
            scrape("run", f"http://127.0.0.1:{port}", labels={"namespace": "ml", "pod": "run"}),
            scrape("pushgateway", gateway.url, honor_labels=True),
        ]
        with Prometheus(folder / "prometheus", scrapes=scrapes) as prometheus:
            # Prometheus gathers targets for some seconds before it scrapes.
            prometheus.await_value('up{job="pushgateway"} == 1')
            settings = SMALL_RUN | {
                "data_dir": prepared, "storage_uri": folder / "runs", "cache_dir": folder, "head_epochs": 150,
                "fine_tune_epochs": 20, "metrics_port": port, "pushgateway_url": gateway.url,
            }  # fmt: skip
            command, env = [sys.executable, "-m", "job"], process_environment(settings)
            with subprocess.Popen(command, env=env, cwd=REPOSITORY, stdout=subprocess.DEVNULL) as run:
                first = prometheus.await_value('sum(thaw_steps_total{job="run"}) > 0', seconds=120)
                later = prometheus.await_value(f'sum(thaw_steps_total{{job="run"}}) > {first}', seconds=120)
                for series in ("thaw_loss", "thaw_checkpoint_last_commit_timestamp_seconds"):
                    prometheus.await_value(f'count({series}{{job="run"}})')
                training_at = time.time()
                returncode = run.wait(timeout=240)
            prometheus.await_value('thaw_exit_code{job="thaw"}')
            record = json.loads((folder / "runs/small/run.json").read_text())
            yield Observed(prometheus, gateway, (first, later), training_at, returncode, record)


def test_the_series_of_a_run_move_while_it_trains(observed: Observed) -> None:
    """And its process is seen to be there."""
    assert observed.returncode == 0
    assert observed.steps[0] < observed.steps[1]
    assert observed.prometheus.value('max_over_time(up{job="run"}[10m])') == 1
    assert (observed.prometheus.value('max_over_time(thaw_progress_ratio{job="run"}[10m])') or 0) > 0
    goodput = observed.prometheus.value('last_over_time(thaw_goodput_ratio{job="run"}[10m])')
    assert goodput is not None
    assert 0 < goodput < 1


def test_the_categories_of_time_add_up_in_every_scrape(observed: Observed) -> None:
    """Within 1 % of what the run has taken by then."""
    ratio = 'sum(thaw_time_seconds_total{job="run"}) / sum(thaw_run_duration_seconds{job="run"})'
    for bound in ("min", "max"):
        assert observed.prometheus.value(f"{bound}_over_time(({ratio})[10m:500ms])") == pytest.approx(1, abs=0.01)


def test_the_dashboard_shows_a_run_that_trains(observed: Observed) -> None:
    """Every panel has data while it trains, or of its outcome afterwards; but for the GPU that there is not."""
    empty = {
        title
        for title, query in dashboard_queries(namespace="ml", pod="run", dataset="two_shapes")
        if not observed.prometheus.query(query, at=observed.training_at) and not observed.prometheus.query(query)
    }
    assert empty <= {"GPU memory"}


def test_the_outcome_is_pushed_after_the_exit(observed: Observed) -> None:
    """All of it, and what the record says."""
    for series in OUTCOME:
        assert observed.prometheus.value(f'{series.name}{{job="thaw", dataset="two_shapes"}}') is not None, series.name
    outcome = observed.record["outcome"]
    assert isinstance(outcome, dict)
    assert observed.prometheus.value("thaw_test_accuracy_ratio{job='thaw'}") == pytest.approx(outcome["test_accuracy"])
    assert observed.prometheus.value("thaw_exit_code{job='thaw'}") == 0


def test_a_port_in_use_and_a_dead_gateway_change_nothing_but_the_log(environment: Environment) -> None:
    """Two warnings, and exit 0."""
    with socket.create_server(("0.0.0.0", 0)) as other:
        port = other.getsockname()[1]
        done = job(env=environment(metrics_port=port, pushgateway_url=f"http://127.0.0.1:{free_port()}"))
    assert done.returncode == 0
    warnings = [event for event in map(json.loads, done.stdout.splitlines()) if event["level"] == "warning"]
    assert [event["event"] for event in warnings] == ["metrics_unavailable", "push_failed"]


def test_a_run_that_was_told_to_stop_pushes_42(environment: Environment, tmp_path: Path) -> None:
    """And no success."""
    with Pushgateway(tmp_path) as gateway:
        env = environment(head_epochs=2000, pushgateway_url=gateway.url)
        with subprocess.Popen([sys.executable, "-m", "job"], env=env, cwd=REPOSITORY, stdout=subprocess.PIPE) as run:
            assert run.stdout is not None
            wait_for(lambda: b"step_compiled" in run.stdout.readline(), seconds=120)  # type: ignore[union-attr]
            run.send_signal(signal.SIGTERM)
            run.communicate(timeout=60)
        assert run.returncode == ExitCode.INTERRUPTED
        pushed = gateway.get("/metrics")
    assert 'thaw_exit_code{dataset="two_shapes",instance="",job="thaw"} 42' in pushed
    assert "thaw_last_success_timestamp_seconds" not in pushed
