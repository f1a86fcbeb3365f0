"""Numbers, names and events in words, for people."""

from collections.abc import Mapping

from job.observe import data_events, events
from job.paths import escaped
from job.redaction import redacted


def duration(seconds: float) -> str:
    """Two units are enough: 45 s, 3 min 20 s, 2 h 5 min, 4 d 1 h."""
    whole = round(seconds)
    for unit, length, smaller, part in (("d", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if whole >= length:
            rest = whole % length // part
            return f"{whole // length} {unit}" + (f" {rest} {smaller}" if rest else "")
    return f"{whole} s"


def short_duration(seconds: float) -> str:
    """One unit, and at most 7 characters, for a column: 4.4 s, 38 s, 7.3 min, 12 min, 2.1 h, 3.0 d."""
    units = (("s", 1, 99.5), ("min", 60, 99.5 * 60), ("h", 3600, 47.5 * 3600), ("d", 86400, float("inf")))
    unit, length = next((unit, length) for unit, length, until in units if seconds < until)
    value = seconds / length
    return f"{value:.{1 if value < 9.95 else 0}f} {unit}"


def size(num_bytes: float) -> str:
    """Bytes in the largest decimal unit that leaves a digit before the point."""
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.0f} {unit}" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.1f} TB"


def counts(numbers: Mapping[str, int]) -> str:
    """Each name with its number: cat 20, dog 1,204."""
    return ", ".join(f"{name} {number:,}" for name, number in numbers.items())


def three_digits(value: float) -> str:
    """Of a loss or a speed: 0.0709, 0.363, 12.3, 1,205; at most four decimals."""
    for decimals, until in ((4, 0.09995), (3, 0.9995), (2, 9.995), (1, 99.95), (0, 99_999.5)):
        if abs(value) < until:
            return f"{value:,.{decimals}f}"
    return f"{value:.1e}"


def printable(text: str) -> str:
    """Without the secrets of URLs, and with nothing but lines that moves the cursor: names come from outside."""
    return "\n".join(escaped(line) for line in redacted(text).split("\n"))


def sentence(event: events.Event) -> str:
    """What an event says, without its hint; one that has no words of its own is its facts."""
    match event:
        case events.WaitingForRun():
            of_all = "" if event.num_steps is None else f" of {event.num_steps:,}"
            steps = "" if event.steps_done is None else f", step {event.steps_done:,}{of_all}"
            state = f" ({event.state}{steps})" if event.state else ""
            return (
                f"waiting for attempt {event.attempt} of {event.held_by}, which holds the run{state}, "
                f"at most {duration(event.at_most_seconds)}"
            )
        case events.PreviousKilled():
            limit = f"; the limit here is {size(event.memory_limit_bytes)}" if event.memory_limit_bytes else ""
            needed = f"; the run needs about {size(event.needed_bytes)}" if event.needed_bytes else ""
            return f"{event.reason}{limit}{needed}"
        case events.GpuNotUsed():
            return f"the processor is used: {event.reason}"
        case events.WaitingForLock():
            return f"waiting for the lock {event.lock}, at most {duration(event.at_most_seconds)}"
        case events.WaitingForStore():
            return f"{event.reason}; tried again, for at most {duration(event.at_most_seconds)}"
        case events.WaitingForWorkers():
            workers = ", ".join(map(str, event.workers))
            return f"waiting for other workers ({workers}), at most {duration(event.at_most_seconds)}"
        case data_events.ClassMissing():
            return f"classes without an image in {event.split}: {event.num_classes:,} ({', '.join(event.classes)})"
        case data_events.ClassRare():
            few = f"classes with fewer than {event.fewer_than} training images, whose results mean little"
            return f"{few}: {event.num_classes:,} ({', '.join(event.classes)})"
        case data_events.Duplicates():
            pairs = {
                "train and validation": event.train_validation,
                "train and test": event.train_test,
                "validation and test": event.validation_test,
            }
            found = {pair: count for pair, count in pairs.items() if count}
            return f"the same images are in two splits: {counts(found)}; accuracy is too high then"
        case data_events.ImagesSkipped():
            left_out = f"{event.num_images:,} images cannot be read and are left out ({counts(event.kinds)})"
            return f"{left_out}: {', '.join(event.images)}"
        case data_events.ImagesUnused():
            splits = "THAW_TRAIN_SPLIT, THAW_VALIDATION_SPLIT and THAW_TEST_SPLIT"
            return f"{event.num_images:,} images are not used: they are in none of {splits}"
        case events.CheckpointDamaged():
            return f"{event.checkpoint} cannot be used, so the one before it is tried: {event.reason}"
        case events.NothingRestored():
            return "no checkpoint of the run can be used: training begins anew"
        case events.CommitFailed():
            return f"{event.phase} step {event.step} could not be committed, and training goes on: {event.reason}"
        case events.MetricsUnavailable():
            return f"no metrics on port {event.port}: {event.reason}"
        case events.PushFailed() | events.ReportingFailed():
            return f"{event.url} did not take what was sent: {event.reason}"
        case events.StoppedEarly():
            return f"{event.phase} ends early: no improvement since epoch {event.best_epoch + 1}"
        case events.BestRestored():
            best = f"validation loss {three_digits(event.validation_loss)}, accuracy {event.validation_accuracy:.3f}"
            if event.validation_balanced_accuracy is not None:
                best += f", balanced {event.validation_balanced_accuracy:.3f}"
            return f"{event.phase} keeps its best epoch, {event.epoch + 1}: {best}"
        case _:
            facts = (f"{name} {value}" for name, value in event.fields().items() if name != "hint")
            return ", ".join(facts)
