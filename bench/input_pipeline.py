"""Images a second that the input pipeline gives, against what a step takes."""

import time
from collections.abc import Iterable
from typing import Literal

from bench.measuring import Row, interleaved
from bench.workload import Workload
from job.data.order import epoch_order
from job.data.resizing import Resizing
from job.data.split_spec import SPLIT_NAMES
from job.data.splits import DataRequest, Split, load_splits

REPETITIONS = 5
IMAGES = 960


def rows(load: Workload) -> Iterable[Row]:
    """Decoded, from the cache, and taken by the head's step, which is the faster of the two."""
    cached, decoded = _split(load, "memory"), _split(load, "none")
    fast, slow = interleaved(REPETITIONS, lambda: _images_per_second(cached), lambda: _images_per_second(decoded))
    yield Row("images decoded and resized each time", "1/s", slow)
    yield Row("images from the cache", "1/s", fast)
    shares, rates = [], []
    for repetition in range(REPETITIONS):
        splits = load.splits(IMAGES // 3, 16, 16)
        _, record = load.run(f"input-{repetition}", splits, HEAD_EPOCHS=3, FINE_TUNE_EPOCHS=0, SEED=repetition)
        seconds = record["attempts"][-1]["seconds"]["head"]
        shares.append(100 * seconds["data_wait"] / (seconds["data_wait"] + seconds["productive"]))
        rates.append(record["history"][-1]["images_per_second"])
    yield Row("images that the head phase trains on", "1/s", rates)
    yield Row("data wait of three head epochs, the first decoding", "%", shares, "under 1 % of an epoch")


def _split(load: Workload, cache: Literal["memory", "none"]) -> Split:
    request = DataRequest(
        dataset=load.dataset, data_dir=str(load.data_dir),
        specs=dict(zip(SPLIT_NAMES, load.splits(IMAGES, 8, 8), strict=True)),
        resizing=Resizing(load.image_size), cache=cache, cache_dir=load.place,
    )  # fmt: skip
    split = load_splits(request, check_stop=lambda: None).train
    split.wait()
    return split


def _images_per_second(source: Split) -> float:
    started = time.monotonic()
    order = epoch_order(len(source), batch_size=32, seed=0, phase="head", epoch=0)
    for _ in source.worker_batches(order, batch_size=32):
        pass
    return len(source) / (time.monotonic() - started)
