"""Time and memory as the training split grows, under each cache: MobileNetV2 with a frozen backbone."""

from collections.abc import Iterable

from bench.measuring import Row
from bench.workload import Workload
from job.observe.ledger import by_stage

REAL_SIZES = (500, 1000, 2000, 4000, 8000)
DRAWN_SIZES = (250, 500, 1000, 1800)
CACHES = ("memory", "disk", "none")


def rows(load: Workload) -> Iterable[Row]:
    """One epoch of the head for each size and cache; the values of a row are those of the sizes in turn."""
    seconds: dict[tuple[str, int], float] = {}
    memory: dict[tuple[str, int], float] = {}
    sizes = REAL_SIZES if load.is_real else DRAWN_SIZES
    # With a small network, the growth of the data is visible.
    settings = load.mobilenet_settings() | {"HEAD_EPOCHS": 1, "FINE_TUNE_EPOCHS": 0}
    for size in sizes:
        for cache in CACHES:
            settings["CACHE"] = cache
            process, record = load.run(f"growth-{cache}-{size}", load.splits(size, 32, 32), **settings)
            memory[cache, size] = process.peak_anonymous_bytes / 1e9
            stages = by_stage(attempt["seconds"] for attempt in record["attempts"])
            seconds[cache, size] = (stages["data"] + stages["head"]) / size * 1000
    span = f"{sizes[0]:,} to {sizes[-1]:,} images"
    for cache in CACHES:
        rates = [seconds[cache, size] for size in sizes]
        peaks = [memory[cache, size] for size in sizes]
        yield Row(f"CACHE={cache}, {span}: time of 1,000", "s", rates, "the same for each size")
        yield Row(f"CACHE={cache}, {span}: most anonymous memory", "GB", peaks)
        grown = (peaks[-1] - peaks[0]) / (sizes[-1] - sizes[0])
        goal = f"{load.image_size**2 * 3 / 1e3:.0f} kB, its pixels" if cache == "memory" else "0"
        yield Row(f"CACHE={cache}: memory for each further image", "kB", [grown * 1e6], goal)
