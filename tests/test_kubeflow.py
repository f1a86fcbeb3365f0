"""Progress to Kubeflow Trainer: over HTTPS, with the token of the pod, the newest only."""

import json
import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from job.observe import events
from job.observe.events import StepDone
from job.observe.kubeflow import PREFIX, Reporter
from tests.conftest import Recorder
from tests.ports import free_port
from tests.services import certificate, wait_for


class Trainer(HTTPServer):
    """The status endpoint of a trainer, with a certificate of its own authority."""

    def __init__(self, folder: Path) -> None:
        super().__init__(("localhost", 0), Handler)
        self.requests: list[tuple[str, dict[str, Any]]] = []
        self.status = 200
        self.certificate = certificate(folder)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certificate)
        self.socket = context.wrap_socket(self.socket, server_side=True)
        self.url = f"https://localhost:{self.server_port}/apis/trainer.kubeflow.org/v1alpha1/status"
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()


class Handler(BaseHTTPRequestHandler):
    server: Trainer

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.requests.append((self.headers["Authorization"], json.loads(body)))
        self.send_response(self.server.status)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def trainer(tmp_path: Path) -> Iterator[Trainer]:
    with Trainer(tmp_path) as server:
        yield server
        server.shutdown()


@pytest.fixture
def environment(trainer: Trainer, tmp_path: Path) -> dict[str, str]:
    """What Kubeflow Trainer gives a pod."""
    token = tmp_path / "token"
    token.write_text("first\n")
    return {f"{PREFIX}URL": trainer.url, f"{PREFIX}CA_CERT": str(trainer.certificate), f"{PREFIX}TOKEN": str(token)}


def train(reporter: Reporter, *, steps: int, num_steps: int) -> dict[str, Any]:
    """The status after some steps of the head phase, the only one."""
    classes: dict[str, dict[str, int]] = {}
    reporter.event(events.DataLoaded("d", "memory", 64, 8, 8, steps={"head": num_steps}, classes=classes))
    reporter.event(events.PhaseStarted("head", epoch=0, step=0, learning_rate=0.1))
    for step in range(1, steps + 1):
        reporter.step(StepDone("head", 0, step, num_steps, step, num_steps, 16, 0.1, 0.0, is_first=step == 1), unread)
    status: dict[str, Any] = reporter.status()["trainerStatus"]
    return status


def unread() -> tuple[float, float]:
    raise AssertionError("reading the loss waits for the device")


def test_the_status_of_a_run_arrives_and_ends_with_100_percent(
    trainer: Trainer, environment: dict[str, str], tmp_path: Path
) -> None:
    """With the newest token, in the format of the API. All steps done are 99 %: evaluation and export are to come."""
    with Reporter(environment, Recorder()) as reporter:
        assert train(reporter, steps=4, num_steps=4)["progressPercentage"] == 99
        status = train(reporter, steps=2, num_steps=4)
        assert (status["progressPercentage"], status["estimatedRemainingSeconds"] >= 0) == (50, True)
        reporter.event(events.EpochFinished(
            "head", epoch=0, step=4, train_loss=0.5, train_accuracy=0.75, validation_loss=0.25,
            validation_accuracy=0.875, validation_balanced_accuracy=0.625, train_seconds=1.0, validation_seconds=1.0,
            images_per_second=1.0, learning_rate=1e-3,
        ))  # fmt: skip
        (tmp_path / "token").write_text("second\n")
        reporter.event(events.RunFinished("", 0.9, (0.8, 1.0), test_loss=0.2, model_sha256=""))
    authorization, body = trainer.requests[-1]
    status = body["trainerStatus"]
    assert authorization == "Bearer second"
    assert (status["progressPercentage"], status["estimatedRemainingSeconds"]) == (100, 0)
    assert {metric["name"]: metric["value"] for metric in status["metrics"]} == {
        "loss": "0.5", "accuracy": "0.75", "eval_loss": "0.25", "eval_accuracy": "0.875",
        "eval_balanced_accuracy": "0.625", "epoch": "1",
        "test_loss": "0.2", "test_accuracy": "0.9",
    }  # fmt: skip


def test_a_failure_that_lasts_is_one_warning(trainer: Trainer, environment: dict[str, str]) -> None:
    """However often it happens."""
    observer, trainer.status = Recorder(), 503
    with Reporter(environment, observer, every_seconds=0.02):
        wait_for(lambda: len(trainer.requests) >= 4, what="four requests")
    (warning,) = observer.of(events.ReportingFailed)
    assert "503" in warning.reason


@pytest.mark.parametrize(
    "changed", [{"URL": f"https://localhost:{free_port()}/"}, {"TOKEN": "/nowhere"}, {"CA_CERT": None}]
)
def test_no_server_no_token_or_another_authority_are_warnings(
    environment: dict[str, str], changed: dict[str, str | None]
) -> None:
    """None of them ends a run."""
    values = environment | {f"{PREFIX}{name}": value for name, value in changed.items()}
    observer = Recorder()
    with Reporter({name: value for name, value in values.items() if value}, observer):
        pass
    assert observer.kinds() == [events.ReportingFailed]
