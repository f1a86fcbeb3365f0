"""A run as Prometheus and a Pushgateway see it: real processes, real servers."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from job.errors import ExitCode
from job.observe.metrics.table import OUTCOME
from tests.conftest import REPOSITORY, SMALL_RUN, process_environment
from tests.monitoring import dashboard_queries
from tests.ports import free_port
from tests.services import Prometheus, Pushgateway, scrape, wait_for

pytestmark = pytest.mark.slow
COMMAND = [sys.executable, "-m", "job"]


def test_prometheus_and_the_dashboard_show_a_run_while_it_trains_and_its_outcome_afterwards(
    prepared: Path, tmp_path: Path
) -> None:
    """Series move; the categories of time add up in every scrape; every panel has data, except those of the GPU."""
    port = free_port()
    (tmp_path / "gateway").mkdir()
    with Pushgateway(tmp_path / "gateway") as gateway:
        scrapes = [
            scrape("run", f"http://127.0.0.1:{port}", labels={"namespace": "ml", "pod": "run"}),
            scrape("pushgateway", gateway.url, honor_labels=True),
        ]
        with Prometheus(tmp_path, scrapes=scrapes) as prometheus:
            # Prometheus gathers targets for some seconds before it scrapes.
            prometheus.await_value('up{job="pushgateway"} == 1')
            env = process_environment(SMALL_RUN | {
                "data_dir": prepared, "storage_uri": tmp_path / "runs", "cache_dir": tmp_path, "head_epochs": 150,
                "fine_tune_epochs": 20, "metrics_port": port, "pushgateway_url": gateway.url,
            })  # fmt: skip
            with subprocess.Popen(COMMAND, env=env, cwd=REPOSITORY, stdout=subprocess.DEVNULL) as run:
                first = prometheus.await_value('sum(thaw_steps_total{job="run"}) > 0', seconds=120)
                prometheus.await_value(f'sum(thaw_steps_total{{job="run"}}) > {first}', seconds=120)
                for series in ("thaw_loss", "thaw_checkpoint_last_commit_timestamp_seconds"):
                    prometheus.await_value(f'count({series}{{job="run"}})')
                training_at = time.time()
                assert run.wait(timeout=240) == 0
            prometheus.await_value('thaw_exit_code{job="thaw"}')

            assert (prometheus.value('max_over_time(thaw_progress_ratio{job="run"}[10m])') or 0) > 0
            assert 0 < (prometheus.value('last_over_time(thaw_goodput_ratio{job="run"}[10m])') or 0) < 1
            ratio = 'sum(thaw_time_seconds_total{job="run"}) / sum(thaw_run_duration_seconds{job="run"})'
            for bound in ("min", "max"):
                assert prometheus.value(f"{bound}_over_time(({ratio})[10m:500ms])") == pytest.approx(1, abs=0.01)
            empty = {
                title
                for title, query in dashboard_queries(namespace="ml", pod="run", dataset="two_shapes")
                if not prometheus.query(query, at=training_at) and not prometheus.query(query)
            }
            assert empty <= {"GPU memory", "GPU utilization"}
            pushed = {
                series.name: prometheus.value(f'{series.name}{{job="thaw", dataset="two_shapes"}}')
                for series in OUTCOME
            }
    outcome = json.loads((tmp_path / "runs/small/run.json").read_text())["outcome"]
    assert None not in pushed.values()
    assert pushed["thaw_exit_code"] == 0
    assert pushed["thaw_test_accuracy_ratio"] == pytest.approx(outcome["test_accuracy"])


def test_an_interrupted_run_pushes_42_and_no_success(
    environment: Callable[..., dict[str, str]], tmp_path: Path
) -> None:
    """Though the push has a second only."""
    with Pushgateway(tmp_path) as gateway:
        env = environment(head_epochs=2000, pushgateway_url=gateway.url)
        with subprocess.Popen(COMMAND, env=env, cwd=REPOSITORY, stdout=subprocess.PIPE) as run:
            assert run.stdout is not None
            wait_for(lambda: b"step_compiled" in run.stdout.readline(), seconds=120)  # type: ignore[union-attr]
            run.send_signal(signal.SIGTERM)
            run.communicate(timeout=240)
        assert run.returncode == ExitCode.INTERRUPTED
        pushed = gateway.get("/metrics")
    assert 'thaw_exit_code{dataset="two_shapes",instance="",job="thaw"} 42' in pushed
    assert "thaw_last_success_timestamp_seconds" not in pushed
