"""Events in words, for people."""

from job.observe import data_events, events
from job.wording import counts, duration, size, three_digits


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
        case events.SeenBefore():
            seen = ", ".join(
                f"{'examples' if isinstance(shared, str) else f'{shared:,} images'} of {split}"
                for split, shared in event.images.items()
            )
            return f"the run {event.run} trained on {seen}, which makes these results too good"
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
