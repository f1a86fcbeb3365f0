"""The run as a whole, in this process: what a complete run leaves, and the ways to set one up."""

import hashlib
import json
import re
from pathlib import Path

import pytest

from job.data.order import epoch_order
from job.errors import DataCorrupt, InputError, QualityGateMissed
from job.observe import events
from job.report import export, tensorboard
from job.report.files import FILES
from job.run.pipeline import Pipeline
from job.run.record import RECORD_NAME, Identity, RunRecord
from job.settings.settings import Settings
from job.storage import LocalStore
from tests.classifiers import ALONE
from tests.conftest import Recorder
from tests.recorded import checkpoint
from tests.runs import HOLDER, Small, Undisturbed, context, record_of, result_of, start

SIZES = {"train": 40, "validation": 16, "test": 24}

# What a complete run leaves


def test_a_run_goes_through_every_stage_in_order(undisturbed_run: Undisturbed) -> None:
    """The events of a run are its straight line."""
    _, reader, _ = undisturbed_run
    kinds = [kind for kind in reader.kinds() if kind not in (events.EpochFinished, events.Committed)]
    assert kinds == [
        events.RunClaimed, events.DataLoaded, events.ModelBuilt,
        events.PhaseStarted, events.StepCompiled, events.PhaseStarted, events.StepCompiled,
        events.Evaluated, events.Exported, events.RunFinished,
    ]  # fmt: skip


def test_the_store_holds_what_the_layout_promises_and_no_more(undisturbed_run: Undisturbed) -> None:
    """Two checkpoints of the last phase, the boundary of the first, the model and the report."""
    store, _, _ = undisturbed_run
    names = store.list("")
    checkpoints = [name for name in names if name.startswith("checkpoints/")]
    assert [name.split("-a")[0] for name in checkpoints] == [
        "checkpoints/fine_tune-00000003",
        "checkpoints/fine_tune-00000006",
        "checkpoints/head-00000006",
    ]
    assert set(names) - set(checkpoints) == {
        "model/README.md", "model/labels.json", "model/model.keras",
        "model/saved_model/fingerprint.pb", "model/saved_model/saved_model.pb",
        "model/saved_model/variables/variables.data-00000-of-00001", "model/saved_model/variables/variables.index",
        "report/index.html", "report/predictions.csv", "report/report.json", "run.json", "logs/history.json",
        *tensorboard.NAMES,
    }  # fmt: skip
    assert [entry.name for entry in record_of(store).checkpoints] == [
        checkpoints[2], checkpoints[0], checkpoints[1],
    ]  # fmt: skip


def test_the_record_names_every_file_of_the_run_with_its_digest(undisturbed_run: Undisturbed) -> None:
    """All under model, report and logs, as they are in the store."""
    store, _, _ = undisturbed_run
    named = record_of(store).files
    assert list(named) == [name for name in export.NAMES if name in named]
    assert set(named) == {name for prefix in ("model/", "report/", "logs/") for name in store.list(prefix)}
    for name, kept in named.items():
        assert name.startswith(tuple(FILES)), "the layout describes it"
        data = store.read(name).data
        assert (kept.size, kept.sha256) == (len(data), hashlib.sha256(data).hexdigest())


def test_the_report_has_sizes_history_results_and_provenance(undisturbed_run: Undisturbed) -> None:
    """`report.json` is for programs."""
    store, _, settings = undisturbed_run
    report = json.loads(store.read("report/report.json").data)
    assert report["splits"] == {"train": 40, "validation": 16, "test": 24}
    assert [(epoch["phase"], epoch["epoch"]) for epoch in report["history"]] == [
        ("head", 0), ("head", 1), ("fine_tune", 0), ("fine_tune", 1),
    ]  # fmt: skip
    assert report["outcome"] == result_of(store)["outcome"]
    assert report["test"]["num_examples"] == 24
    assert sum(map(sum, report["test"]["confusion"])) == 24
    assert len(report["predictions"]) == 16
    assert {"data", "model", "head", "fine_tune", "evaluate", "export"} <= report["durations_seconds"].keys()
    assert report["settings"]["batch_size"] == settings.batch_size
    provenance = report["provenance"]
    assert {"thaw", "python", "tensorflow", "keras", "tensorflow-datasets"} <= provenance["versions"].keys()
    assert provenance["data"]["dataset"] == "two_shapes/1.0.0"
    assert len(provenance["backbone_sha256"]) == 64


def test_the_page_is_of_the_same_run_and_shows_its_pictures(undisturbed_run: Undisturbed) -> None:
    """12 training images, 4 of them with 5 variants, and the surest predictions, some of them with maps."""
    store, _, _ = undisturbed_run
    html = store.read("report/index.html").data.decode()
    report = json.loads(store.read("report/report.json").data)
    surest = report["most_confident"]
    assert html.count("<img ") == 12 + 4 * 6 + len(surest["right"]) + 2 * len(surest["wrong"]) + min(
        6, len(surest["right"])
    )
    assert f"<h1>{report['run_id']}</h1>" in html
    assert report["outcome"]["model_sha256"] in html
    assert report["test"]["calibration"]["expected_calibration_error"] > 0
    assert {part["name"]: part["num_trainable"] for part in report["phases"]} == {
        "head": 129,
        "fine_tune": 190_161,
    }


@pytest.mark.slow
def test_two_runs_with_the_same_weights_have_the_same_report_but_for_times(
    small: Small, store: LocalStore, tmp_path: Path
) -> None:
    """Pictures, plots and numbers are functions of the result."""
    other = LocalStore(tmp_path / "other")
    for place in (store, other):
        start(small(head_epochs=1, fine_tune_epochs=0), place)
    first, second = (json.loads(place.read("report/report.json").data) for place in (store, other))
    for report in (first, second):
        for timed in ("durations_seconds", "time_seconds", "goodput_ratio", "attempts"):
            del report[timed]
        for epoch in report["history"]:
            for timed in ("ended", "train_seconds", "validation_seconds", "images_per_second"):
                del epoch[timed]
    assert first == second
    pages = [place.read("report/index.html").data.decode() for place in (store, other)]
    drawn = [re.findall(r"data:image[^\"]+|<svg .+?</svg>", html, re.DOTALL) for html in pages]
    assert drawn[0] == drawn[1]
    assert len(drawn[0]) > 40
    assert store.read("model/README.md").data == other.read("model/README.md").data


class PeakOfEvaluation(Recorder):
    """Notes how much memory the process takes in the evaluation beside what it had before, in bytes."""

    num_bytes = 0

    def event(self, event: events.Event) -> None:
        super().event(event)
        if isinstance(event, events.Evaluated):
            self.num_bytes = memory_of("VmHWM") - self.before
        self.before = memory_of("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")


def memory_of(field: str) -> int:
    (kilobytes,) = re.findall(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(kilobytes) * 1024


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak of a process is read from /proc")
def test_an_evaluation_takes_as_few_images_at_a_time_as_training(small: Small, store: LocalStore) -> None:
    """At 512 pixels the layers of all 24 test images would be 201 MB; those of two are 17 MB."""
    reader = PeakOfEvaluation()
    start(small(image_size=512, batch_size=2, head_epochs=1, fine_tune_epochs=0, cache="none"), store, observer=reader)
    assert reader.num_bytes < 170e6


# The quality gate


def test_the_gate_commits_the_results_and_then_fails(small: Small, store: LocalStore) -> None:
    """The record is done, the attempt says 6, and a lower gate passes without training."""
    settings = {"head_epochs": 1, "fine_tune_epochs": 0, "head_learning_rate": 1e-6}
    with pytest.raises(QualityGateMissed, match=r"below THAW_MIN_TEST_ACCURACY=1\.0"):
        start(small(min_test_accuracy=1.0, **settings), store)
    record = record_of(store)
    assert (record.state, record.attempts[-1].exit_code) == ("done", 6)
    with pytest.raises(QualityGateMissed):
        start(small(min_test_accuracy=1.0, **settings), store)
    assert start(small(min_test_accuracy=0.0, **settings), store).kinds()[0] == events.RunAlreadyDone


@pytest.mark.slow
def test_a_gate_that_the_record_cannot_answer_is_an_error(small: Small, store: LocalStore) -> None:
    """Records of earlier versions have no balanced accuracy; that of this run is beside the other in the message."""
    settings = {"head_epochs": 1, "fine_tune_epochs": 0, "head_learning_rate": 1e-6}
    with pytest.raises(QualityGateMissed, match=r"test balanced accuracy 0\.\d{4} is below THAW_MIN_TEST_BALANCED_ACC"):
        start(small(min_test_accuracy=0.0, min_test_balanced_accuracy=1.0, **settings), store)
    found = store.read(RECORD_NAME)
    content = json.loads(found.data)
    del content["outcome"]["test_balanced_accuracy"]
    store.write(RECORD_NAME, json.dumps(content).encode(), if_version=found.version)
    with pytest.raises(InputError, match="its record has no test balanced accuracy"):
        start(small(min_test_balanced_accuracy=0.0, **settings), store)
    assert start(small(min_test_accuracy=0.0, **settings), store).kinds()[0] == events.RunAlreadyDone


# More than two classes, and other ways to keep the data


@pytest.mark.slow
@pytest.mark.parametrize("cache", ["disk", "none"])
def test_three_classes_run_to_the_end_under_every_cache(
    small: Small, store: LocalStore, tmp_path: Path, cache: str
) -> None:
    """The result does not depend on the cache."""
    settings = {"dataset": "three_shapes", "head_epochs": 1, "fine_tune_epochs": 1}
    other = LocalStore(tmp_path / "memory")
    start(small(cache="memory", **settings), other)
    start(small(cache=cache, **settings), store)
    assert result_of(store) == result_of(other)
    report = json.loads(store.read("report/report.json").data)
    assert [row["name"] for row in report["test"]["per_class"]] == ["disc", "across", "down"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("train", "validation", "test", "cache"),
    [
        ("[:48]", "[51:67]", "[67:91]", "memory"),
        ("[8:48]", "[48:64]", "[64:88]", "none"),
        ("[51:91]", "[8:24]", "[:8]", "memory"),
    ],
    ids=["train", "validation", "test"],
)
def test_a_damaged_image_ends_the_run_long_before_its_training_does(
    small: Small, store: LocalStore, train: str, validation: str, test: str, cache: str
) -> None:
    """Of any split, and at each start again, with the exit code of the data."""
    splits = {"train_split": f"train{train}", "validation_split": f"train{validation}", "test_split": f"train{test}"}
    settings = small(dataset="damaged_shapes", head_epochs=10_000, cache=cache, **splits)
    for _ in range(2):
        with pytest.raises(DataCorrupt, match=r"(?s)1 of the .* images cannot be read.*shape-(7|50)\.png"):
            start(settings, store)
    record = record_of(store)
    assert ([attempt.exit_code for attempt in record.attempts], record.outcome) == ([4, 4], None)


# Which images come first


@pytest.mark.parametrize(
    ("position", "expected"),
    [
        (None, ("head", 0, 0)),
        (("head", 2), ("head", 0, 2)),
        (("head", 3), ("head", 1, 0)),
        (("head", 6), ("fine_tune", 0, 0)),
        (("fine_tune", 4), ("fine_tune", 1, 1)),
        (("fine_tune", 6), None),
    ],
)
def test_images_are_decoded_in_the_order_of_the_epoch_that_comes_first(
    small: Small,
    store: LocalStore,
    tmp_path: Path,
    position: tuple[str, int] | None,
    expected: tuple[str, int, int] | None,
) -> None:
    """From the newest checkpoint on, three batches an epoch; what was done of that epoch comes last.

    Once all is trained, the images come as they are.
    """
    found = pipeline_at(small(), store, position, tmp_path).first_order(40).tolist()
    if expected is None:
        assert found == list(range(40))
    else:
        phase, epoch, skipped = expected
        order = epoch_order(40, batch_size=16, seed=0, phase=phase, epoch=epoch)
        assert found == [*order[16 * skipped :], *order[: 16 * skipped]]


def pipeline_at(settings: Settings, store: LocalStore, position: tuple[str, int] | None, folder: Path) -> Pipeline:
    """A pipeline whose record has its newest checkpoint after a step of a phase."""
    record = RunRecord.open(store, Identity.of(settings))
    record.take(HOLDER, lease_seconds=60)
    if position is not None:
        record.content = record.content.model_copy(update={"checkpoints": (checkpoint(*position),)})
    return Pipeline(settings, store, record, context(), ALONE, folder=folder)
