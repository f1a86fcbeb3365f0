"""A real Prometheus and a real Pushgateway, for as long as a `with` block: on free ports, in a folder that is given.

A Prometheus scrapes for the first time some 5 s after its start, for so long it gathers targets: start it once for many
tests, in a fixture of a module.
"""

import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self, TypeVar
from urllib.error import URLError
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest
import yaml

T = TypeVar("T")
Scrape = Mapping[str, Any]
"""A scrape config of Prometheus."""

START_SECONDS = 120.0


def program(name: str, *, hint: str = "`make setup-services` as root installs it") -> str:
    """The path of a program. Without it a test is skipped on a desk, and fails in CI."""
    path = shutil.which(name)
    if path is None:
        complain = pytest.fail if os.environ.get("CI") else pytest.skip
        complain(f"{name} is not installed: {hint}")
    return path


def certificate(folder: Path) -> Path:
    """A certificate of this machine that nobody has signed, with its key, in PEM."""
    path = folder / "certificate.pem"
    subprocess.run(
        [
            program("openssl", hint="it comes with most systems"), "req", "-x509", "-newkey", "rsa:2048", "-nodes",
            "-days", "1", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1",
            "-addext", "basicConstraints=CA:false", "-keyout", path, "-out", f"{path}.1",
        ],
        check=True, capture_output=True,
    )  # fmt: skip
    path.write_bytes(path.read_bytes() + Path(f"{path}.1").read_bytes())
    return path


def scrape(job: str, *urls: str, labels: Mapping[str, str] | None = None, **options: Any) -> Scrape:
    """A scrape config for servers of this machine, by their URLs; `options` are Prometheus' own."""
    targets = [url.removeprefix("http://") for url in urls]
    return {"job_name": job, "static_configs": [{"targets": targets, "labels": dict(labels or {})}], **options}


def wait_for(question: Callable[[], T], *, seconds: float = START_SECONDS, what: str = "an answer") -> T:
    """Ask until the answer is true, and return it."""
    end = time.monotonic() + seconds
    while not (answer := question()):
        assert time.monotonic() < end, f"{what} has not come in {seconds:.0f} s"
        time.sleep(0.05)
    return answer


class Service:
    """A server in a process of its own; subclasses say how it is started, and when it is ready."""

    program: ClassVar[str]

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / f"{self.program}.log"
        self.url = ""

    def _command(self) -> Sequence[str]:
        raise NotImplementedError

    def _variables(self) -> Mapping[str, str]:
        """What its environment has beside ours."""
        return {}

    def _is_ready(self) -> bool:
        raise NotImplementedError

    def __enter__(self) -> Self:
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                self._command(), cwd=self.folder, stdout=log, stderr=subprocess.STDOUT,
                env={**os.environ, **self._variables()},
            )  # fmt: skip
        try:
            wait_for(self._is_alive_and_ready, what=f"readiness of {self.program}")
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def _is_alive_and_ready(self) -> bool:
        assert self._process.poll() is None, f"{self.program} has ended: {self.log.read_text()}"
        return self._is_ready()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def get(self, path: str, **query: str) -> str:
        """The body of an answer. Raises `URLError`."""
        address = f"{self.url}{path}?{urlencode(query)}" if query else f"{self.url}{path}"
        with urlopen(address, timeout=10) as answer:
            return str(answer.read().decode())


class PrometheusService(Service):
    """A server of the Prometheus project: on a port that the system picks, which its log names."""

    def _options(self) -> Sequence[str]:
        raise NotImplementedError

    def _command(self) -> Sequence[str]:
        return (program(self.program), "--web.listen-address=127.0.0.1:0", *self._options())

    def _is_ready(self) -> bool:
        found = re.search(r'msg="Listening on" address=(\S+)', self.log.read_text())
        if found is None:
            return False
        self.url = f"http://{found[1]}"
        try:
            self.get("/-/ready")
        except URLError:
            return False
        return True


class Pushgateway(PrometheusService):
    """A Pushgateway; `get("/metrics")` is what it would be scraped for."""

    program = "prometheus-pushgateway"

    def _options(self) -> Sequence[str]:
        # Debian's keeps what was pushed in a file of the system, for the next one to find.
        return ("--persistence.file=",)


class Prometheus(PrometheusService):
    """A Prometheus with these scrape configs and rule files, scraping and evaluating once a second or oftener."""

    program = "prometheus"

    def __init__(
        self, folder: Path, *, scrapes: Sequence[Scrape] = (), rules: Sequence[Path] = (), interval: str = "500ms"
    ) -> None:
        super().__init__(folder)
        self._config = {
            "global": {"scrape_interval": interval, "scrape_timeout": interval, "evaluation_interval": interval},
            "rule_files": [str(path.resolve()) for path in rules],
            "scrape_configs": list(scrapes),
        }

    def _options(self) -> Sequence[str]:
        config = self.folder / "prometheus.yml"
        config.write_text(yaml.safe_dump(self._config, sort_keys=False))
        return (f"--config.file={config}", f"--storage.tsdb.path={self.folder / 'tsdb'}")

    def api(self, path: str, **query: str) -> Any:
        """The data of an answer of /api/v1. Raises `URLError`, with 400 for an expression that is not PromQL."""
        return json.loads(self.get(f"/api/v1/{path}", **query))["data"]

    def query(self, expression: str, *, at: float | None = None) -> dict[tuple[tuple[str, str], ...], float]:
        """What an expression is worth now, or was at an instant: values by labels, sorted pairs of name and value."""
        data = self.api("query", query=expression, **({"time": str(at)} if at else {}))
        if data["resultType"] == "scalar":
            return {(): float(data["result"][1])}
        return {tuple(sorted(sample["metric"].items())): float(sample["value"][1]) for sample in data["result"]}

    def value(self, expression: str) -> float | None:
        """The value of an expression of one series; None where there is no data."""
        values = list(self.query(expression).values())
        assert len(values) <= 1, f"{expression} gives {len(values)} series"
        return values[0] if values else None

    def await_value(self, expression: str, *, seconds: float = START_SECONDS) -> float:
        """Wait until an expression of one series has data, and return the value."""
        return wait_for(lambda: list(self.query(expression).values()), seconds=seconds, what=f"data of {expression}")[0]
