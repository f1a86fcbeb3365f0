"""Progress to Kubeflow Trainer: over HTTPS, with the token of the pod, the newest only."""

import json
import shutil
import ssl
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from job.observe import events
from job.observe.events import StepDone
from job.observe.kubeflow import Reporter
from tests.conftest import Recorder
from tests.services import free_port, wait_for


class Trainer:
    """The status endpoint of a trainer, with a certificate of its own authority."""

    def __init__(self, folder: Path) -> None:
        self.requests: list[tuple[str, dict[str, Any]]] = []
        self.status = 200
        self.certificate, key = folder / "ca.crt", folder / "key.pem"
        subprocess.run(
            [shutil.which("openssl") or "openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1",
             "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-keyout", key, "-out",
             self.certificate],
            check=True, capture_output=True,
        )  # fmt: skip
        trainer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                trainer.requests.append((self.headers["Authorization"], json.loads(body)))
                self.send_response(trainer.status)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self.server = HTTPServer(("localhost", 0), Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certificate, key)
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"https://localhost:{self.server.server_port}/apis/trainer.kubeflow.org/v1alpha1/status"


@pytest.fixture
def trainer(tmp_path: Path) -> Iterator[Trainer]:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    server = Trainer(tmp_path)
    yield server
    server.server.shutdown()
    server.server.server_close()


@pytest.fixture
def token(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.write_text("first\n")
    return path


def environment(url: str, certificate: Path, token: Path) -> dict[str, str]:
    values = {"URL": url, "CA_CERT": str(certificate), "TOKEN": str(token)}
    return {f"KUBEFLOW_TRAINER_SERVER_{name}": value for name, value in values.items()}


def done(step: int) -> StepDone:
    return StepDone(
        phase="head", epoch=0, step=step, num_steps=4, batch=step, num_batches=4, num_examples=16, seconds=0.1,
        data_wait_seconds=0.0, is_first=step == 1,
    )  # fmt: skip


def loaded(head_steps: int) -> events.DataLoaded:
    return events.DataLoaded("d", "memory", train=64, validation=8, test=8, steps={"head": head_steps}, classes={})


def unread() -> tuple[float, float]:
    raise AssertionError("reading the loss waits for the device")


def test_the_status_of_a_run_arrives_and_ends_with_100_percent(trainer: Trainer, token: Path) -> None:
    """With the token as it is then, in the words of the API."""
    reporter = Reporter.of(environment(trainer.url, trainer.certificate, token), Recorder())
    with reporter:
        reporter.event(loaded(4))
        reporter.event(events.PhaseStarted("head", epoch=0, step=0, learning_rate=0.1))
        for step in (1, 2):
            reporter.step(done(step), unread)
        assert reporter.status()["trainerStatus"]["progressPercentage"] == 50
        assert reporter.status()["trainerStatus"]["estimatedRemainingSeconds"] >= 0
        reporter.event(events.EpochFinished(
            "head", epoch=0, step=4, train_loss=0.5, train_accuracy=0.75, validation_loss=0.25,
            validation_accuracy=0.875, train_seconds=1.0, validation_seconds=1.0, images_per_second=1.0,
        ))  # fmt: skip
        token.write_text("second\n")
        reporter.event(events.RunFinished("", 0.9, (0.8, 1.0), test_loss=0.2, model_sha256=""))
    authorization, body = trainer.requests[-1]
    assert authorization == "Bearer second"
    status = body["trainerStatus"]
    assert (status["progressPercentage"], status["estimatedRemainingSeconds"]) == (100, 0)
    values = {metric["name"]: metric["value"] for metric in status["metrics"]}
    assert values == {
        "loss": "0.5", "accuracy": "0.75", "eval_loss": "0.25", "eval_accuracy": "0.875", "epoch": "1",
        "test_loss": "0.2", "test_accuracy": "0.9",
    }  # fmt: skip


def test_a_run_that_is_about_to_be_complete_is_not(trainer: Trainer, token: Path) -> None:
    """All steps done are 99 %: evaluation and export are to come."""
    reporter = Reporter.of(environment(trainer.url, trainer.certificate, token), Recorder())
    reporter.event(loaded(2))
    reporter.event(events.PhaseStarted("head", epoch=0, step=0, learning_rate=0.1))
    reporter.step(done(2), unread)
    assert reporter.status()["trainerStatus"]["progressPercentage"] == 99


def test_trouble_is_one_warning_until_it_is_over(trainer: Trainer, token: Path) -> None:
    """A refusal is told once, however often it happens."""
    reader = Recorder()
    trainer.status = 503
    with Reporter(url=trainer.url, ca_cert=str(trainer.certificate), token=token, observer=reader, every_seconds=0.02):
        wait_for(lambda: len(trainer.requests) >= 4, what="four requests")
    (failed,) = reader.of(events.ReportingFailed)
    assert "503" in failed.reason


@pytest.mark.parametrize("wrong", ["server", "token", "certificate"])
def test_no_server_no_token_or_another_authority_are_warnings(trainer: Trainer, token: Path, wrong: str) -> None:
    """None of them ends a run."""
    reader = Recorder()
    values = environment(trainer.url, trainer.certificate, token)
    if wrong == "server":
        values["KUBEFLOW_TRAINER_SERVER_URL"] = f"https://localhost:{free_port()}/"
    if wrong == "token":
        token.unlink()
    if wrong == "certificate":
        del values["KUBEFLOW_TRAINER_SERVER_CA_CERT"]
    with Reporter.of(values, reader):
        pass
    assert reader.kinds() == [events.ReportingFailed]
