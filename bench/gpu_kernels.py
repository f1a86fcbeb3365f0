"""What the card allows, and where its time goes: each convolution of the network alone, and a profile of a step."""

import functools
import itertools
import re
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from bench.gpu_steps import PHASES, PRECISIONS, VARIANTS, Measurement, Scale, Variant, best_rate, step_name
from bench.measuring import Row, Said, failure
from job.settings.fields import Precision

COPIES = 8
"""Of an operation in a round of the loop, with kernels or gradients of their own: the loop itself then costs little."""
LOOP_SECONDS = 0.02
LOOPS = 3
DIRECTIONS = ("forward", "gradient of the input", "gradient of the kernel")
PROFILED_STEPS = 10
SHOWN_KINDS = 15


class Convolution(NamedTuple):
    """Of one image: `maps` [height, width, channels] come in, `out` go out; `kernel` as Keras has it."""

    maps: tuple[int, int, int]
    out: tuple[int, int, int]
    kernel: tuple[int, int, int, int]
    stride: int
    padding: str
    is_depthwise: bool

    @property
    def kind(self) -> str:
        shape = f"{self.kernel[0]}x{self.kernel[1]}"
        return f"depthwise {shape}" if self.is_depthwise else shape


@dataclass
class Profile:
    """Of a trace: seconds of the device by kind of operation; its kernels, when it was busy, from first to last."""

    by_kind: Mapping[str, float]
    num_kernels: int
    busy_seconds: float
    span_seconds: float


def roof(scale: Scale, results: Mapping[str, Any]) -> Iterable[Measurement]:
    """The time of all convolutions of a step, each measured alone, and which share of that rate our step reaches."""
    for precision, batch_size in itertools.product(PRECISIONS, reversed(scale.compared)):
        ours = {phase: best_rate(results, phase, precision, batch_size) for phase in PHASES}
        yield Measurement(f"{precision}, batch {batch_size}", _roof_rows, (scale, precision, batch_size, ours))


def where(scale: Scale, results: Mapping[str, Any]) -> Iterable[Measurement]:
    """A profile of ten steps; of steps that are called one at a time only with few images, where launches may count."""
    del results
    for variant, batch_sizes in ((VARIANTS[0], scale.compared), (VARIANTS[1], scale.compared[:1])):
        for batch_size, precision, phase in itertools.product(batch_sizes, PRECISIONS, PHASES):
            name = f"{step_name(phase, precision, batch_size)}: {variant.name}"
            yield Measurement(name, _profile_rows, (scale, phase, precision, batch_size, variant))


def convolutions(network: Any) -> Counter[Convolution]:
    """How often each convolution occurs in a network of Keras; a separable one is a depthwise and a pointwise one."""
    found: Counter[Convolution] = Counter()
    for layer in network.layers:
        if "Conv2D" not in type(layer).__name__:
            continue
        maps, out, stride = layer.input.shape[1:], layer.output.shape[1:], layer.strides[0]
        for weight in (weight for weight in layer.weights if "kernel" in weight.name):
            kernel = tuple(weight.shape)
            is_depthwise = type(layer).__name__ == "DepthwiseConv2D" or "depthwise" in weight.name
            middle = (*out[:2], kernel[2] * kernel[3]) if is_depthwise else out
            found[Convolution(maps, middle, kernel, stride, layer.padding.upper(), is_depthwise)] += 1
            # What is left of a separable one is pointwise.
            maps, stride = middle, 1
    return found


def _roof_rows(scale: Scale, precision: str, batch_size: int, ours: Mapping[str, float | None]) -> Iterable[Row | Said]:
    scale.use_device()
    import tensorflow as tf

    from job.model import networks

    # Grappler would remove what is not used, and change the layout.
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
    layouts = ("NHWC", "NCHW") if scale.device == "gpu" else ("NHWC",)
    seconds: dict[tuple[str, str], float] = defaultdict(float)
    what = f"convolutions, {precision}, batch {batch_size}"
    for convolution, count in convolutions(networks.construct(scale.backbone, scale.image_size)).items():
        for direction in DIRECTIONS:
            found, reasons = [], []
            for layout in layouts:
                try:
                    found.append(_seconds(convolution, direction, layout, batch_size, getattr(tf, precision)))
                except Exception as error:
                    reasons.append(error)
            if found:
                seconds[convolution.kind, direction] += count * min(found)
            else:
                yield failure(f"{what}: {direction} of {count} x {tuple(convolution)}, not in the sums", reasons[0])
    for (kind, direction), value in seconds.items():
        yield Row(f"{what}: {kind}, {direction}", "ms", [1e3 * value])
    for phase in PHASES:
        directions = DIRECTIONS if phase == "fine_tune" else DIRECTIONS[:1]
        rate = batch_size / sum(value for (_, direction), value in seconds.items() if direction in directions)
        yield Row(f"{what}: all of a {phase} step, the roof", "images/s", [rate])
        if own := ours[phase]:
            yield Row(f"{what}: our best {phase} step, of that roof", "%", [100 * own / rate], "at least 60 %")


def _seconds(convolution: Convolution, direction: str, layout: str, batch_size: int, dtype: Any) -> float:
    """Of one convolution, forward or backward: the least of some loops on the device."""
    import tensorflow as tf

    def drawn(shape: Sequence[int], count: int) -> list[Any]:
        return [tf.cast(tf.random.normal(shape), dtype) for _ in range(count)]

    def laid_out(height: int, width: int, channels: int) -> list[int]:
        return [batch_size, channels, height, width] if layout == "NCHW" else [batch_size, height, width, channels]

    stride, kernel = convolution.stride, convolution.kernel
    maps, out = laid_out(*convolution.maps), laid_out(*convolution.out)
    name = "DepthwiseConv2dNative" if convolution.is_depthwise else "Conv2D"
    suffix = {"forward": "", "gradient of the input": "BackpropInput", "gradient of the kernel": "BackpropFilter"}
    one = functools.partial(
        getattr(tf.raw_ops, name + suffix[direction]), padding=convolution.padding, data_format=layout,
        strides=[1, 1, stride, stride] if layout == "NCHW" else [1, stride, stride, 1],
    )  # fmt: skip

    def repeated(rounds: Any, shared: Any, *others: Any) -> Any:
        def body(number: Any) -> list[Any]:
            if direction == "forward":
                made = [one(input=shared, filter=other) for other in others]
            elif direction == "gradient of the input":
                made = [one(input_sizes=maps, filter=other, out_backprop=shared) for other in others]
            else:
                made = [one(input=shared, filter_sizes=kernel, out_backprop=other) for other in others]
            with tf.control_dependencies(made):
                return [number + 1]

        return tf.while_loop(lambda number: number < rounds, body, [tf.constant(0)], parallel_iterations=1)

    loop = tf.function(repeated, autograph=False)
    (shared,) = drawn(out if direction == "gradient of the input" else maps, 1)
    others = drawn(out if direction == "gradient of the kernel" else kernel, COPIES)

    def timed(rounds: int) -> float:
        began = time.monotonic()
        loop(tf.constant(rounds), shared, *others)
        tf.test.experimental.sync_devices()
        return time.monotonic() - began

    timed(1)
    rounds = max(1, round(LOOP_SECONDS / timed(1)))
    return min(timed(rounds) for _ in range(LOOPS)) / rounds / COPIES


def _profile_rows(
    scale: Scale, phase: str, precision: Precision, batch_size: int, variant: Variant
) -> Iterable[Row | Said]:
    scale.use_device()
    import tensorflow as tf
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    from bench import training
    from job.train.step import Recipe

    size = scale.image_size
    state = training.new_state(training.PHASES[phase], backbone=scale.backbone, image_size=size, precision=precision)
    recipe = Recipe(batch_size, 0, xla=variant.xla, steps_per_execution=variant.steps_per_execution)
    steps = training.drawn_steps(state, recipe, on_device=variant.on_device)
    steps(scale.warm_up_steps)
    with tempfile.TemporaryDirectory(dir=scale.place) as folder:
        tf.profiler.experimental.start(folder, tf.profiler.experimental.ProfilerOptions(python_tracer_level=0))
        done, _ = steps(PROFILED_STEPS)
        tf.profiler.experimental.stop()
        trace = xplane_pb2.XSpace()
        trace.ParseFromString(next(Path(folder).rglob("*.xplane.pb")).read_bytes())
    profile = profile_of(trace, "/device:GPU:0" if scale.device == "gpu" else "/host:CPU")
    what = f"{step_name(phase, precision, batch_size)}: {variant.name}"
    kinds = sorted(profile.by_kind.items(), key=lambda item: -item[1])
    for kind, seconds in kinds[:SHOWN_KINDS]:
        yield Row(f"{what}: {kind}", "ms a step", [1e3 * seconds / done])
    yield Row(f"{what}: all other kinds", "ms a step", [1e3 * sum(value for _, value in kinds[SHOWN_KINDS:]) / done])
    yield Row(f"{what}: kernels and copies", "a step", [profile.num_kernels / done])
    yield Row(f"{what}: from the first to the last", "ms a step", [1e3 * profile.span_seconds / done])
    yield Row(f"{what}: idle meanwhile", "%", [100 * (1 - profile.busy_seconds / profile.span_seconds)])


def profile_of(trace: Any, device: str) -> Profile:
    """The profile of a device in a trace of TensorFlow, an XSpace.

    A GPU has a line for each stream, and each kernel says of which operation it is, as name:kind; a copy has a kind of
    its own. On a processor the lines are threads, and the operations are among much else.
    """
    by_kind: dict[str, float] = defaultdict(float)
    intervals = []
    for plane in (plane for plane in trace.planes if plane.name == device):
        for line in (line for line in plane.lines if line.name.startswith("Stream") or "GPU" not in device):
            for event in line.events:
                name = plane.event_metadata[event.metadata_id]
                if "GPU" not in device and not name.display_name:
                    continue
                stats = {plane.stat_metadata[stat.metadata_id].name: stat for stat in event.stats}
                operation = name.name
                if (stat := stats.get("tf_op")) is not None and not operation.startswith("Mem"):
                    operation = stat.str_value or plane.stat_metadata[stat.ref_value].name
                by_kind[_kind(operation)] += event.duration_ps / 1e12
                start = line.timestamp_ns * 1000 + event.offset_ps
                intervals.append((start, start + event.duration_ps))
    busy, last = 0, 0
    for start, end in sorted(intervals):
        busy += max(0, end - max(start, last))
        last = max(last, end)
    if not intervals:
        raise LookupError(f"the trace has no operation of {device}, but {[plane.name for plane in trace.planes]}")
    span = last - min(intervals)[0]
    return Profile(by_kind, len(intervals), busy / 1e12, span / 1e12)


def _kind(operation: str) -> str:
    """Conv2D of `xception/block1_conv1/Conv2D:Conv2D`; of a kernel alone its name without template arguments."""
    return operation.rpartition(":")[2] if re.search(r"[^:]:\w+$", operation) else re.split(r"[<(]", operation)[0]
