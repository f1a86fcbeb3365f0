"""Progress to Kubeflow Trainer, where this process is part of a TrainJob.

With its feature TrainJobStatus (KEP-2779), Kubeflow Trainer gives the pods of a TrainJob three variables: the address
for the status, a certificate authority, and a file with a token, which is renewed now and then. A thread sends the
newest status every five seconds. A failure is one warning, until sending works again.
"""

import threading
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import requests

from job.observe import events
from job.observe.estimate import Estimate
from job.observe.observer import Observer, RunningMeans

PREFIX = "KUBEFLOW_TRAINER_SERVER_"
EVERY_SECONDS = 5.0
TIMEOUT_SECONDS = 5.0


class Reporter(Observer):
    """Sends the status of the run to where the variables of a TrainJob say; `observer` gets the warnings."""

    def __init__(self, environ: Mapping[str, str], observer: Observer, *, every_seconds: float = EVERY_SECONDS) -> None:
        self._url = environ[f"{PREFIX}URL"]
        self._ca_cert = environ.get(f"{PREFIX}CA_CERT")
        self._token = Path(environ.get(f"{PREFIX}TOKEN", ""))
        self._observer = observer
        self._every_seconds = every_seconds
        self._estimate = Estimate()
        self._metrics: dict[str, float] = {}
        self._is_done = False
        self._has_failed = False
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._send_regularly, daemon=True, name="kubeflow")

    def __enter__(self) -> "Reporter":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join(TIMEOUT_SECONDS)

    def event(self, event: events.Event) -> None:
        self._estimate.event(event)
        match event:
            case events.EpochFinished():
                self._metrics = {
                    "loss": event.train_loss, "accuracy": event.train_accuracy,
                    "eval_loss": event.validation_loss, "eval_accuracy": event.validation_accuracy,
                    "eval_balanced_accuracy": event.validation_balanced_accuracy,
                    "epoch": event.epoch + 1,
                }  # fmt: skip
            case events.RunFinished():
                self._is_done = True
                self._metrics = self._metrics | {"test_loss": event.test_loss, "test_accuracy": event.test_accuracy}

    def step(self, done: events.StepDone, running_means: RunningMeans) -> None:
        self._estimate.step(done)

    def status(self) -> dict[str, Any]:
        """The status in the format of the API, without what is not known."""
        seconds_left = 0.0 if self._is_done else self._estimate.seconds_left()
        status: dict[str, Any] = {
            # 100 only for a complete run: after the last step, evaluation and export are still to come.
            "progressPercentage": 100 if self._is_done else min(99, int(100 * self._estimate.ratio())),
            "metrics": [{"name": name, "value": f"{value:.6g}"} for name, value in self._metrics.items()],
            "lastUpdatedTime": datetime.now(UTC).strftime("%FT%TZ"),
        }
        if seconds_left is not None:
            status["estimatedRemainingSeconds"] = int(seconds_left)
        return {"trainerStatus": status}

    def _send_regularly(self) -> None:
        while not self._is_over.wait(self._every_seconds):
            self._send()
        self._send()

    def _send(self) -> None:
        try:
            answer = requests.post(
                self._url,
                json=self.status(),
                # Read each time: the token is renewed.
                headers={"Authorization": f"Bearer {self._token.read_text().strip()}"},
                verify=self._ca_cert or True,
                timeout=TIMEOUT_SECONDS,
            )
            answer.raise_for_status()
            self._has_failed = False
        except (requests.RequestException, OSError, ValueError) as error:
            if not self._has_failed:
                self._observer.event(events.ReportingFailed(self._url, reason=f"{type(error).__name__}: {error}"))
            self._has_failed = True
