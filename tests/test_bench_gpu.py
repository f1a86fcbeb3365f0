"""`python -m bench.gpu`: what fails is a row and the next goes on; what is there is not measured again."""

import json
import os
import signal
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench import gpu, gpu_steps
from bench.gpu import Results
from bench.gpu_kernels import Convolution, convolutions, profile_of
from bench.gpu_steps import QUICK, RATE, Measurement, Scale, best_rate, rates
from bench.measuring import Row, Said, failure
from job import nvidia
from job.errors import DeviceUnavailable

HERE, ELSEWHERE = {"device": "H100"}, {"device": "H200"}
FOREVER = float("inf")


def two_rows(number: float) -> Iterable[Row | Said]:
    yield Row("first", "s", [number, number + 2])
    yield Said("second", "yes")


def fails_after_a_row() -> Iterable[Row]:
    yield Row("before", "s", [1.0])
    raise RuntimeError("a long log\nthe reason\n")


def crashes() -> Iterable[Row]:
    os.kill(os.getpid(), signal.SIGKILL)
    yield Row("never", "s", [1.0])


def hangs() -> Iterable[Row]:
    time.sleep(600)
    yield Row("never", "s", [1.0])


def measured(path: Path, *measurements: Measurement, facts: dict[str, Any] = HERE, is_anew: bool = False) -> Any:
    """The section in the file after these measurements."""
    results = Results(path, facts)
    results.measure("step", measurements, FOREVER, is_anew=is_anew)
    return json.loads(path.read_text())["step"]


def test_what_fails_is_a_row_and_the_next_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error, a crash, and no end within the time of a measurement, each with its reason in one line."""
    monkeypatch.setattr(gpu, "LIMIT_SECONDS", 240.0)
    functions: list[Callable[[], Iterable[Row]]] = [fails_after_a_row, crashes]
    section = measured(
        tmp_path / "results.json", *(Measurement(function.__name__, function, ()) for function in functions),
        Measurement("good", two_rows, (1.0,)),
    )  # fmt: skip
    rows = {row["what"]: row for row in section["rows"]}
    assert list(rows) == ["before", "fails_after_a_row", "crashes", "first", "second"]
    assert rows["fails_after_a_row"]["failed"] == "RuntimeError: the reason"
    assert rows["crashes"]["failed"] == "RuntimeError: its process ended with -9"
    assert rows["first"]["median"] == 2.0
    assert rows["second"] == {"what": "second", "said": "yes"}
    assert section["done"] == ["fails_after_a_row", "crashes", "good"]


def test_one_that_hangs_is_ended() -> None:
    began = time.monotonic()
    (row,) = gpu.rows_of(Measurement("hangs", hangs, ()), 1.0)
    assert row == Said("hangs", "TimeoutError: not done after 1 s", is_failure=True)
    assert time.monotonic() - began < 500


@pytest.mark.slow
def test_a_second_start_measures_only_what_is_not_there(tmp_path: Path) -> None:
    """One that was done keeps its rows, whatever they would be now; named, it is measured anew, as on another card."""
    path = tmp_path / "results.json"
    measured(path, Measurement("good", two_rows, (1.0,)))
    # Its arguments are others, which only shows that it is left out.
    section = measured(path, Measurement("good", two_rows, (3.0,)), Measurement("next", fails_after_a_row, ()))
    assert [row.get("median") for row in section["rows"] if row["what"] == "first"] == [2.0]
    assert section["done"] == ["good", "next"]
    for changes in ({"is_anew": True}, {"facts": ELSEWHERE}):
        section = measured(path, Measurement("good", two_rows, (5.0,)), **changes)
        assert [row["what"] for row in section["rows"]] == ["first", "second"]
        assert section["rows"][0]["median"] == 6.0
    assert list(Results(path, ELSEWHERE | {"commit": "later"}).here()) == ["step"]
    assert Results(path, HERE).here() == {}


def test_without_time_nothing_is_begun(tmp_path: Path) -> None:
    """It is left for the next start."""
    results = Results(tmp_path / "results.json", HERE)
    results.measure("step", [Measurement("good", two_rows, (1.0,))], time.monotonic() - 1, is_anew=False)
    assert results.found["step"]["done"] == []


def test_the_file_is_whole_after_every_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, seen, write = tmp_path / "results.json", [], Results._write

    def written(results: Results) -> None:
        write(results)
        seen.append(len(json.loads(path.read_text())["step"]["rows"]))

    monkeypatch.setattr(Results, "_write", written)
    measured(path, Measurement("good", two_rows, (1.0,)))
    # Before the measurement, after each row, and when it is done.
    assert seen == [0, 1, 2, 2]


def test_without_a_gpu_there_is_one_error(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def check_gpu() -> None:
        raise DeviceUnavailable("there is no driver", hint="")

    monkeypatch.setattr(nvidia, "check_gpu", check_gpu)
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as caught:
        gpu.main([])
    signal.signal(signal.SIGTERM, handler)
    assert caught.value.code == 2
    assert "error: there is no driver; --quick" in capsys.readouterr().err


def test_the_best_rate_is_that_of_the_fastest_variant() -> None:
    """Of this phase, precision and batch; neither memory nor what failed."""
    rows: list[Row | Said] = [
        Row("head step, float32, batch 32: a", RATE, [1.0, 5.0]), Row("head step, float32, batch 32: b", RATE, [4.0]),
        Row("head step, float32, batch 32: b: most memory that TensorFlow held", "GB", [90.0]),
        Row("head step, float32, batch 320: a", RATE, [9.0]), failure("head step, float32, batch 32: c", OSError("no")),
    ]  # fmt: skip
    results = {"step": {"rows": [row.as_json() for row in rows]}}
    assert best_rate(results, "head", "float32", 32) == 4.0
    assert best_rate(results, "head", "bfloat16", 32) is None
    assert best_rate({}, "head", "float32", 32) is None


def test_a_batch_without_memory_is_a_row_and_the_next_variant_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """No larger batch is tried with a variant for which there was no memory."""
    import tensorflow as tf

    def rates_up_to_2(steps: object, scale: Scale, batch_size: int) -> list[float]:
        if batch_size > 2:
            raise tf.errors.ResourceExhaustedError(None, None, "Graph execution error:\n\nOOM when allocating\n [Op:f]")
        return [float(batch_size)]

    monkeypatch.setattr(Scale, "use_device", lambda scale: None)
    monkeypatch.setattr(gpu_steps, "rates", rates_up_to_2)
    scale = replace(QUICK, batch_sizes=(1, 2, 4, 8), compared=(2, 4, 8))
    rows = list(gpu_steps._step_rows(scale, "head", "float32", xla=False))
    kinds = [(row.what.removeprefix("head step, float32, batch ")[0], isinstance(row, Said)) for row in rows]
    assert kinds == [("2", False), ("4", True)] * 3 + [("1", False)]
    failures = {row.text for row in rows if isinstance(row, Said)}
    assert failures == {"MemoryExhausted: no memory is left at batch 4: OOM when allocating"}


def test_a_rate_is_of_the_steps_that_were_made() -> None:
    """Twice to warm up, then three times; a call may make more steps than it was asked for."""
    asked = []

    def steps(num_steps: int) -> tuple[int, float]:
        asked.append(num_steps)
        return 8, 2.0

    assert rates(steps, QUICK, 16) == [64.0] * 3
    assert asked == [QUICK.warm_up_steps] * 5


def test_a_failure_says_the_reason_alone() -> None:
    """Of TensorFlow's errors, which begin with where it was, and end with advice."""
    kind = type("InternalError", (Exception,), {"__module__": "tensorflow.errors"})
    text = "Graph execution error:\n\nDetected at node a/b defined at (most recent call last):\nNo more!\n"
    assert failure("x", kind(f"{text}\t [[{{{{node a/b}}}}]]\nHint: look [Op:f]")).text == "InternalError: No more!"


def test_the_convolutions_of_a_network_are_counted() -> None:
    """A separable one is a depthwise and a pointwise one, which has no stride."""
    import keras

    layers = keras.layers
    network = keras.Sequential([
        keras.Input((9, 9, 4)), layers.Conv2D(4, 1), layers.Conv2D(4, 1), layers.SeparableConv2D(6, 3, 2, "same"),
        layers.DepthwiseConv2D(3),
    ])  # fmt: skip
    assert convolutions(network) == {
        Convolution((9, 9, 4), (9, 9, 4), (1, 1, 4, 4), 1, "VALID", False): 2,
        Convolution((9, 9, 4), (5, 5, 4), (3, 3, 4, 1), 2, "SAME", True): 1,
        Convolution((5, 5, 4), (5, 5, 6), (1, 1, 4, 6), 1, "SAME", False): 1,
        Convolution((5, 5, 6), (3, 3, 6), (3, 3, 6, 1), 1, "VALID", True): 1,
    }


def trace_of(*events: tuple[str, str, str, int, int]) -> Any:
    """Of the device GPU:0: the stream of each event, its name and its operation, begin and end in microseconds."""
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    trace = xplane_pb2.XSpace()
    trace.planes.add(name="/host:CPU")
    plane = trace.planes.add(name="/device:GPU:0")
    plane.stat_metadata[1].name = "tf_op"
    lines: dict[str, Any] = {}
    for number, (stream, name, operation, begin, end) in enumerate(events, start=10):
        if stream not in lines:
            lines[stream] = plane.lines.add(name=stream, timestamp_ns=5)
        event = lines[stream].events.add(metadata_id=number, offset_ps=begin * 10**6, duration_ps=(end - begin) * 10**6)
        plane.event_metadata[number].name = name
        if operation:
            plane.stat_metadata[number].name = operation
            event.stats.add(metadata_id=1, ref_value=number)
    return trace


def test_a_trace_is_summed() -> None:
    """By kind of operation; where two streams overlap, the device is busy once; other lines do not count."""
    profile = profile_of(
        trace_of(
            ("Stream #1(Compute)", "void cudnn::kernel<float>(int)", "block1/conv:Conv2D", 0, 10),
            ("Stream #1(Compute)", "sm90_gemm", "block2/conv:Conv2D", 20, 25),
            ("Stream #1(Compute)", "void eigen::sum<float>(int)", "", 30, 40),
            ("Stream #2(MemcpyH2D)", "MemcpyH2D", "images:Cast", 5, 15),
            ("XLA Ops", "all", "all:all", 0, 100),
        ),
        "/device:GPU:0",
    )
    assert profile.num_kernels == 4
    kinds = {"Conv2D": 15e-6, "void eigen::sum": 10e-6, "MemcpyH2D": 10e-6}
    assert profile.by_kind == {kind: pytest.approx(seconds) for kind, seconds in kinds.items()}
    assert profile.busy_seconds == pytest.approx(30e-6)
    assert profile.span_seconds == pytest.approx(40e-6)
    with pytest.raises(LookupError, match="no operation of /device:GPU:1"):
        profile_of(trace_of(), "/device:GPU:1")


@pytest.mark.slow
@pytest.mark.parametrize(("section", "number"), [("step", 0), ("roof", 0), ("where", 0), ("around", 1)])
def test_a_measurement_works_on_a_processor(section: str, number: int, tmp_path: Path) -> None:
    """Of the smallest network: no row is a failure."""
    scale = replace(QUICK, device="cpu", place=tmp_path)
    measurement = list(gpu.SECTIONS[section](scale, {}))[number]
    rows = list(gpu.rows_of(measurement, 300.0))
    assert rows
    assert [row for row in rows if isinstance(row, Said)] == []
