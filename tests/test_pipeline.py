"""The run as a whole, in this process: what a complete run leaves, and the ways to set one up."""

import json
from pathlib import Path

import numpy as np
import pytest

from job import events, tensorboard
from job.errors import QualityGateMissed
from job.record import RECORD_NAME
from job.storage import LocalStore
from tests.runs import Small, Undisturbed, record_of, result_of, start

# What a complete run leaves


def test_a_run_goes_through_every_stage_in_order(undisturbed_run: Undisturbed) -> None:
    """The events of a run are its straight line."""
    _, reader, _ = undisturbed_run
    names = [name for name in reader.names() if name not in (events.EPOCH_FINISHED, events.COMMITTED)]
    assert names == [
        events.RUN_CLAIMED, events.DATA_LOADED, events.MODEL_BUILT,
        events.PHASE_STARTED, events.STEP_COMPILED, events.PHASE_STARTED, events.STEP_COMPILED,
        events.EVALUATED, events.EXPORTED, events.RUN_FINISHED, "Run small is complete",
    ]  # fmt: skip


def test_the_record_says_all_that_is_known_of_a_finished_run(undisturbed_run: Undisturbed) -> None:
    """The fields that readers rely on."""
    store, _, settings = undisturbed_run
    content = json.loads(store.read(RECORD_NAME).data)
    assert (content["run_id"], content["fingerprint"]) == ("small", settings.fingerprint())
    assert content["state"] == "done"
    assert content["settings"] == settings.result_settings()
    assert [attempt["exit_code"] for attempt in content["attempts"]] == [0]
    assert content["attempts"][0]["end"] > content["attempts"][0]["start"]
    assert {"test_accuracy", "test_loss", "model_sha256"} <= content["outcome"].keys()


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
        "model/labels.json", "model/model.keras", "report/report.json", "run.json", "logs/history.json",
        *tensorboard.NAMES,
    }  # fmt: skip
    assert [entry.name for entry in record_of(store).checkpoints] == [
        checkpoints[2], checkpoints[0], checkpoints[1],
    ]  # fmt: skip


def test_the_report_has_sizes_history_results_and_provenance(undisturbed_run: Undisturbed) -> None:
    """`report.json` is for programs."""
    store, _, settings = undisturbed_run
    report = json.loads(store.read("report/report.json").data)
    assert report["splits"] == {"train": 40, "validation": 16, "test": 24}
    assert [(epoch["phase"], epoch["epoch"]) for epoch in report["history"]] == [
        ("head", 0), ("head", 1), ("fine_tune", 0), ("fine_tune", 1),
    ]  # fmt: skip
    assert report["outcome"] == record_of(store).outcome
    assert report["test"]["num_examples"] == 24
    assert sum(map(sum, report["test"]["confusion"])) == 24
    assert len(report["predictions"]) == 16
    assert {"data", "model", "head", "fine_tune", "evaluate", "export"} <= report["durations_seconds"].keys()
    assert report["settings"]["batch_size"] == settings.batch_size
    provenance = report["provenance"]
    assert {"thaw", "python", "tensorflow", "keras", "tensorflow-datasets"} <= provenance["versions"].keys()
    assert provenance["data"]["dataset"] == "two_shapes/1.0.0"
    assert len(provenance["backbone_sha256"]) == 64


def test_the_shipped_model_has_the_accuracy_that_the_outcome_says(undisturbed_run: Undisturbed, tmp_path: Path) -> None:
    """Measured again on the test split by plain Keras."""
    import keras

    from tests.shapes import draw

    store, _, _ = undisturbed_run
    store.download("model/model.keras", tmp_path / "model.keras")
    model = keras.saving.load_model(tmp_path / "model.keras")
    import tensorflow as tf

    indices = range(56, 80)
    pixels = np.stack([draw(index % 2, index) for index in indices])
    resized = tf.round(tf.image.resize(pixels, (16, 16)))
    logits = np.array(model(resized, training=False))[:, 0]
    accuracy = float(np.mean((logits > 0) == np.array([index % 2 == 1 for index in indices])))
    outcome = record_of(store).outcome
    assert outcome is not None
    assert accuracy == outcome["test_accuracy"]
    assert json.loads(store.read("model/labels.json").data) == ["disc", "bar"]


def test_a_head_phase_commit_is_kilobytes(undisturbed_run: Undisturbed) -> None:
    """The backbone is not in it."""
    _, reader, _ = undisturbed_run
    sizes = {facts["phase"]: facts["bytes"] for facts in reader.of(events.COMMITTED)}
    assert sizes["head"] < 10_000 < sizes["fine_tune"]


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
    assert start(small(min_test_accuracy=0.0, **settings), store).names()[0] == events.RUN_ALREADY_DONE


# More than two classes, and other ways to keep the data


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
