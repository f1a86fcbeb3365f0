"""Exhausted memory is known in every form in which it comes, and nothing else is taken for it."""

import errno
import mmap
import re
import resource
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from bench.measuring import JOB, finished
from job import memory
from job.data.tfds.records import cut_short
from job.errors import DataCorrupt, ExitCode, MemoryExhausted, ScratchUnavailable
from job.observe import events
from job.observe.observer import RunningMeans
from job.run.record import RECORD_NAME, Identity, encoded, new_record
from job.settings import machine
from job.settings.resources import estimate
from job.storage import MISSING, LocalStore
from job.storage.scratch import explained
from tests import recorded
from tests.conftest import Recorder, slowly
from tests.processes import Environment, begin, wait_for
from tests.runs import CrashOn, Small, record_of, start
from tests.stores import Crash

HUGE = 1 << 50
"""Bytes that no machine has."""


def in_numpy() -> None:
    np.empty(HUGE, np.uint8)


def in_the_operating_system() -> None:
    mmap.mmap(-1, HUGE)


def in_tensorflow() -> None:
    tf.zeros([HUGE], tf.uint8)


def in_a_graph() -> None:
    tf.function(lambda n: tf.reduce_sum(tf.random.uniform([n])), autograph=False)(tf.constant(HUGE, tf.int64))


def in_an_input_pipeline() -> None:
    data = tf.data.Dataset.range(1).map(lambda _: tf.numpy_function(in_numpy, [], tf.uint8))
    next(iter(data))


@pytest.mark.parametrize(
    "ask",
    [
        in_numpy, in_the_operating_system, in_an_input_pipeline,
        *slowly(in_tensorflow, in_a_graph),
    ],
)  # fmt: skip
def test_memory_that_is_not_there_is_recognized_in_every_form(ask: Callable[[], None]) -> None:
    """By what really is raised; the message says why in one line."""
    with (
        pytest.raises(MemoryExhausted, match=r"no memory is left here: .*(llocat|memory|OOM)") as caught,
        memory.explained(lambda: "here", lambda _: "a hint"),
    ):
        ask()
    assert (caught.value.hint, "\n" in caught.value.message) == ("a hint", False)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        tf.errors.ResourceExhaustedError(None, None, "/scratch/x; No space left on device"),
        tf.errors.InternalError(None, None, "something else"),
        ValueError("out of memory"),
    ],
)
def test_other_errors_are_left_alone(error: Exception) -> None:
    """A full disk is TensorFlow's ResourceExhaustedError too."""
    with pytest.raises(type(error)), memory.explained(lambda: "", lambda _: ""):
        raise error


OOM = "OOM when allocating tensor with shape[32,728] and type float on /job:localhost/device:{} by allocator {}"


@pytest.mark.parametrize(
    ("text", "is_of_gpu"),
    [
        (OOM.format("GPU:0", "GPU_0_bfc"), True),
        (OOM.format("CPU:0", "mklcpu"), False),
        ("Failed to allocate memory for the batch of component 0", False),
        ("CUDA_ERROR_OUT_OF_MEMORY", True),
        ("CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED", True),
        ("CUBLAS_STATUS_ALLOC_FAILED", True),
        ("NCCL: Failed to CUDA calloc 4194304 bytes", True),
        ("Dst tensor is not initialized.", True),
    ],
)  # fmt: skip
def test_what_gpus_say_when_they_are_full_is_recognized(text: str, is_of_gpu: bool) -> None:
    """By texts in the libraries that are locked; the hint is then about the GPU."""
    error = tf.errors.InternalError(None, None, f"Graph execution error:\n{text}")
    with pytest.raises(MemoryExhausted, match=re.escape(text)) as caught, memory.explained(lambda: "", str.upper):
        raise error
    assert text.upper() in caught.value.hint
    assert memory.is_of_gpu(str(error)) == is_of_gpu


def test_exhausted_memory_is_not_taken_for_damaged_data_or_a_bad_disk() -> None:
    """Where errors of a kind are translated, this one passes."""
    exhausted = tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor")
    assert cut_short("3 of 8", exhausted) is exhausted
    assert isinstance(cut_short("3 of 8", tf.errors.DataLossError(None, None, "corrupted record")), DataCorrupt)
    with pytest.raises(OSError, match="ENOMEM"), explained(Path("x")):
        raise OSError(errno.ENOMEM, "ENOMEM")
    with pytest.raises(ScratchUnavailable), explained(Path("x")):
        raise OSError(errno.EIO, "EIO")


class AsksForTooMuch(Recorder):
    """Wants memory that is not there, at the first step."""

    def step(self, done: events.StepDone, running_means: RunningMeans) -> None:
        in_numpy()


class FillsTheGpu(Recorder):
    """Fails as TensorFlow does when a GPU has no memory left."""

    def step(self, done: events.StepDone, running_means: RunningMeans) -> None:
        raise tf.errors.ResourceExhaustedError(None, None, OOM.format("GPU:0", "GPU_0_bfc"))


@pytest.mark.parametrize(
    ("observer", "expected"),
    [
        *slowly((AsksForTooMuch, "give it more memory (the run needs about ")),
        (AsksForTooMuch, "set THAW_MICROBATCH_SIZE=8, which changes the result only by rounding"),
        (FillsTheGpu, "more memory of the pod does not help"),
    ],
)
def test_a_run_without_memory_ends_with_7_and_says_what_it_needs(
    small: Small, store: LocalStore, observer: type[Recorder], expected: str
) -> None:
    """The record says how it ended, and is let go of."""
    with pytest.raises(MemoryExhausted, match=r"no memory is left in head.*; what was committed stands: ") as caught:
        start(small(), store, observer=observer())
    assert expected in caught.value.hint
    record = record_of(store)
    assert (record.attempts[-1].exit_code, record.lease) == (ExitCode.MEMORY_EXHAUSTED, None)


@pytest.mark.slow
def test_a_process_whose_memory_is_limited_ends_with_7(environment: Environment) -> None:
    """A batch of 40 images at 1024 pixels in float32 is 503 MB, and it gets 400 MB beside what it has once the model is
    built.
    """
    with begin(environment(image_size=1024, batch_size=40, cache="none")) as process:
        wait_for(process, "model_built")
        mapped = int(Path(f"/proc/{process.pid}/statm").read_text().split()[0]) * mmap.PAGESIZE
        limit = mapped + 400_000_000
        resource.prlimit(process.pid, resource.RLIMIT_AS, (limit, limit))
        failed = wait_for(process, "run_failed")
        assert process.wait() == failed["exit_code"] == ExitCode.MEMORY_EXHAUSTED
    assert failed["reason"].startswith("no memory is left in head")
    assert "the run needs about 3.8 GB" in failed["hint"]


@pytest.mark.parametrize(("cache", "copies"), [("memory", 1), ("device", 2)])
def test_the_memory_of_a_killed_attempt_is_that_of_all_processes_of_the_pod(
    small: Small, store: LocalStore, monkeypatch: pytest.MonkeyPatch, cache: str, copies: int
) -> None:
    """Of four, two are on this host; without a GPU the device of images that are kept there is the memory too."""
    settings = small(workers=4, worker=0, worker_host="a,a,b,b", cache=cache, device="cpu")
    content = new_record(Identity.of(settings), attempts=(recorded.attempt(),), inputs=recorded.INPUTS)
    store.write(RECORD_NAME, encoded(content), if_version=MISSING)
    need = estimate(settings, num_examples=160, precision="float32")
    of_one = need.memory + (copies - 1) * need.images
    monkeypatch.setattr(machine, "memory_limit_bytes", lambda: 2 * of_one - 1)
    observer = CrashOn(events.PreviousKilled)
    with pytest.raises(Crash):
        start(settings, store, observer=observer)
    (told,) = observer.of(events.PreviousKilled)
    assert told.needed_bytes == 2 * of_one
    assert told.hint.startswith(f"give it more memory (the run needs about {2 * of_one / 1e9:.1f} GB)")


@pytest.mark.slow
def test_a_batch_in_parts_takes_less_memory(environment: Environment, tmp_path: Path) -> None:
    """Of the values that a batch of 40 images has, which are more than half of a gigabyte, a twentieth."""
    large = {"image_size": 512, "batch_size": 40, "cache": "none", "head_epochs": 1, "fine_tune_epochs": 0}
    whole, parts = (
        finished(JOB, environment(**large, **more, storage_uri=tmp_path / str(len(more)))).peak_bytes
        for more in ({}, {"microbatch_size": 2})
    )
    assert whole - parts > 300_000_000, (whole, parts)


def test_a_limit_of_addresses_that_tensorflow_would_die_of_is_an_error() -> None:
    """It would abort the process, without a word of ours; a limit that suffices, or none, is no matter."""
    with pytest.raises(MemoryExhausted, match=r"may address 2\.0 GB, and TensorFlow needs 2\.5 GB") as caught:
        memory.check_address_space(2_000_000_000)
    assert "ulimit -v unlimited" in caught.value.hint
    memory.check_address_space(memory.MIN_ADDRESS_SPACE_BYTES)
    memory.check_address_space(resource.RLIM_INFINITY)
