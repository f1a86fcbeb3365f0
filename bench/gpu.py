"""All that is to be measured on a GPU, by one command, in the order of its importance.

`python -m bench.gpu [SECTION ...] [--quick] [--minutes N] [--results FILE]` writes each row down as soon as it is
there. Each measurement is a process of its own: one that fails, crashes or hangs is a row with the reason, and the next
goes on. Started again on the same card and with the same sources of the job, it goes on where it was; a section that is
named is measured anew.

`--quick` makes a few steps of a very small network, on a processor too: it shows that all of this works.
"""

import argparse
import contextlib
import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from bench import gpu_kernels, gpu_program, gpu_steps
from bench.gpu_steps import FULL, QUICK, Measurement, Scale
from bench.measuring import REPOSITORY, Row, Said, failure
from job import nvidia, processor
from job.errors import DeviceUnavailable

RESULTS = Path(__file__).parent / "results-gpu.json"
LIMIT_SECONDS = 420.0
"""Of a measurement: much longer than any should take."""
SECTIONS: dict[str, Callable[[Scale, dict[str, Any]], Iterable[Measurement]]] = {
    "program": gpu_program.program,
    "step": gpu_steps.step,
    "peers": gpu_steps.peers,
    "roof": gpu_kernels.roof,
    "where": gpu_kernels.where,
    "around": gpu_program.around,
}
PROCESSES = multiprocessing.get_context("spawn")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"of {', '.join(SECTIONS)}, all by default")
    parser.add_argument("--quick", action="store_true", help="a few steps of a very small network, here or on a GPU")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="end after so many")
    parser.add_argument("--results", type=Path, help="the file to write, and to go on with")
    options = parser.parse_args(argv)
    if unknown := set(options.sections) - set(SECTIONS):
        parser.error(f"{', '.join(sorted(unknown))}: a section is one of {', '.join(SECTIONS)}")
    until = time.monotonic() + 60 * options.minutes
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with tempfile.TemporaryDirectory(prefix="thaw-bench-") as place:
        scale = replace(QUICK if options.quick else FULL, place=Path(place))
        try:
            nvidia.check_gpu()
            # Of several GPUs the first, in all processes.
            os.environ["CUDA_VISIBLE_DEVICES"] = nvidia.visible_gpus(os.environ)[0]
        except DeviceUnavailable as error:
            if not options.quick:
                parser.error(f"{error.message}; --quick tries everything without one")
            scale = replace(scale, device="cpu")
        card = list(rows_of(Measurement("the device", gpu_steps.card, (scale,)), LIMIT_SECONDS))
        if failures := [row.text for row in card if isinstance(row, Said) and row.is_failure]:
            parser.error(f"TensorFlow cannot use the device: {failures[0]}")
        facts = {row.what: row.text for row in card if isinstance(row, Said)} | _machine(options.quick)
        results = Results(options.results or RESULTS.with_stem(f"{RESULTS.stem}{'-quick' * options.quick}"), facts)
        for name in options.sections or SECTIONS:
            results.measure(name, SECTIONS[name](scale, results.here()), until, is_anew=name in options.sections)


class Results:
    """The sections so far, in a file that is whole after every row; `facts` say where, and with which sources."""

    def __init__(self, path: Path, facts: dict[str, Any]) -> None:
        self._path, self._facts = path, facts
        self.found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}

    def here(self) -> dict[str, Any]:
        """The sections that were measured with the same facts; the commit may be a later one of other files."""
        facts = self._facts | {"commit": ""}
        return {name: section for name, section in self.found.items() if section["on"] | {"commit": ""} == facts}

    def measure(self, name: str, measurements: Iterable[Measurement], until: float, *, is_anew: bool) -> None:
        """Measure what is left of a section, or all `is_anew`; begin nothing after `until`, in monotonic seconds."""
        if is_anew or name not in self.here():
            self.found[name] = {"measured": f"{datetime.now(UTC):%Y-%m-%d}", "on": self._facts, "done": [], "rows": []}
        section = self.found[name]
        for measurement in measurements:
            left = until - time.monotonic()
            if measurement.name in section["done"]:
                continue
            if left <= 0:
                print(f"{name}: {measurement.name}: no time is left", flush=True)
                return
            print(f"{datetime.now(UTC):%H:%M:%S} {name}: {measurement.name}", flush=True)
            self._keep(section, measurement.name, None)
            for row in rows_of(measurement, min(left, LIMIT_SECONDS)):
                self._keep(section, row.what, row)
            # One that was cut short by `until` is for the next start.
            if time.monotonic() < until:
                section["done"].append(measurement.name)
                self._write()

    def _keep(self, section: dict[str, Any], what: str, row: Row | Said | None) -> None:
        """Put a row in the place of the one that was called so; without one, of that alone."""
        others = [other for other in section["rows"] if other["what"] != what]
        section["rows"] = [*others, *([row.as_json()] if row else [])]
        self._write()

    def _write(self) -> None:
        new = self._path.with_suffix(".new")
        new.write_text(json.dumps(self.found, indent=1) + "\n")
        new.replace(self._path)


def rows_of(measurement: Measurement, seconds: float) -> Iterator[Row | Said]:
    """The rows of a measurement as they come from a process of its own; why it has no more is one too."""
    until = time.monotonic() + seconds
    receiving, sending = PROCESSES.Pipe(duplex=False)
    process = PROCESSES.Process(target=_measure, args=(measurement, sending))
    process.start()
    assert process.pid is not None
    sending.close()
    try:
        while receiving.poll(max(0.0, until - time.monotonic())):
            if (row := receiving.recv()) is None:
                return
            yield row
        yield failure(measurement.name, TimeoutError(f"not done after {seconds:.0f} s"))
    except EOFError:
        process.join()
        yield failure(measurement.name, RuntimeError(f"its process ended with {process.exitcode}"))
    finally:
        # With all that it has started; there may be none left, or it has not come so far.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()
        process.join()


def _measure(measurement: Measurement, sending: Connection) -> None:
    os.setpgid(0, 0)
    try:
        for row in measurement.rows(*measurement.arguments):
            sending.send(row)
    except Exception as error:
        sending.send(failure(measurement.name, error))
    sending.send(None)


def _machine(is_quick: bool) -> dict[str, Any]:
    smi, sources = shutil.which("nvidia-smi"), hashlib.sha256()
    for path in sorted(REPOSITORY.glob("job/**/*.py")):
        sources.update(path.read_bytes())
    return {
        "driver": _output([smi, "--query-gpu=driver_version", "--format=csv,noheader"]) if smi else "",
        "processor": processor.name(),
        "cores": os.cpu_count(),
        "commit": _output(["git", "rev-parse", "--short=12", "HEAD"]) if shutil.which("git") else "",
        "sources": sources.hexdigest()[:12],
        "quick": is_quick,
    }


def _output(command: list[str]) -> str:
    """The first line that a command says; nothing where it fails."""
    said = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True).stdout
    return next(iter(said.splitlines()), "")


if __name__ == "__main__":
    main()
