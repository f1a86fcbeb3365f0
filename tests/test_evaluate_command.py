"""Metrics of a finished run's model over other images: those of the report where the images are the same."""

import csv
import io
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from job import cli
from job.cli import evaluate, evaluating, labelling
from job.cli.evaluating import class_indices
from job.data import image_table
from job.errors import (
    DataCorrupt,
    DataUnavailable,
    ExitCode,
    InputError,
    InvalidSettings,
    MemoryExhausted,
    QualityGateMissed,
    RunUnavailable,
)
from job.storage import MISSING, LocalStore, open_store
from tests.conftest import job
from tests.gcs_server import BUCKET, GcsServer
from tests.runs import Undisturbed, Whole, record_of
from tests.shapes import FIRST_OF_TEST, encoded, write_images
from tests.stores import HOSTILE_TABLES

NUM_TEST = 24
CLASSES = ("disc", "bar")
"""In the order of the model; folders come sorted, in the other one."""


class Ask:
    """Asks in this process; `said` is what an answer wrote on standard error."""

    def __init__(self, run: str, data_dir: Path, cache_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.run, self.environ, self.cache_dir, self.capsys = run, {"THAW_DATA_DIR": str(data_dir)}, cache_dir, capsys
        self.said = ""

    def __call__(self, *words: str | Path, run: str = "", environ: Mapping[str, str] | None = None) -> dict[str, Any]:
        """The answer as JSON to the words of a command about a run, by default the small one."""
        code = self.code_of(*words, run=run, environ=environ)
        assert code == ExitCode.COMPLETE
        return self.answer()

    def code_of(self, *words: str | Path, run: str = "", environ: Mapping[str, str] | None = None) -> ExitCode:
        places = ["--run", run or self.run, "--cache-dir", str(self.cache_dir), "--json"]
        return cli.answer("evaluate", [*places, *map(str, words)], self.environ | dict(environ or {}))

    def answer(self) -> dict[str, Any]:
        out, self.said = self.capsys.readouterr()
        return dict(json.loads(out))


@pytest.fixture
def ask(undisturbed_run: Undisturbed, prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Ask:
    return Ask(undisturbed_run[0].uri, prepared, tmp_path / "cache", capsys)


def reported(store: Any) -> dict[str, Any]:
    return dict(json.loads(store.read("report/report.json").data))


def predicted(store: Any) -> list[str]:
    """The predicted class of each test image."""
    rows = csv.DictReader(io.StringIO(store.read("report/predictions.csv").data.decode()))
    return [row["predicted"] for row in rows]


def write_test_split(root: Path, *, named: Mapping[int, str] | None = None) -> Path:
    """The images of the small run's test split, in folders of their classes; `named` gives some another one."""
    for index in range(NUM_TEST):
        label = (named or {}).get(index, CLASSES[index % 2])
        (root / label).mkdir(parents=True, exist_ok=True)
        (root / label / f"{index:02d}.png").write_bytes(encoded(FIRST_OF_TEST + index))
    return root


def test_over_the_runs_own_test_the_numbers_are_exactly_those_of_its_report(
    ask: Ask, undisturbed_run: Undisturbed
) -> None:
    """Every one of them; and nothing is written into the run."""
    store, report = undisturbed_run[0], reported(undisturbed_run[0])
    before = {name: store.version(name) for name in store.list("")}
    found = ask()
    assert found["evaluation"] == report["test"]
    assert found["is_run_test"] is True
    assert {name: report["test"][name] for name in ("accuracy", "loss", "auroc", "macro", "num_examples")} == {
        name: found["run_test"][name] for name in ("accuracy", "loss", "auroc", "macro", "num_examples")
    }
    assert (found["dataset"], found["split"], found["num_images"]) == ("two_shapes", "train[56:80]", NUM_TEST)
    assert found["model_sha256"] == report["outcome"]["model_sha256"]
    assert {name: store.version(name) for name in store.list("")} == before


@pytest.mark.slow
def test_temperature_and_threshold_are_those_of_the_run(ask: Ask, calibrated_run: LocalStore) -> None:
    """The model divides its logits in float32, which rounds."""
    found, test = ask(run=calibrated_run.uri)["evaluation"], reported(calibrated_run)["test"]
    assert found["confusion"] == test["confusion"]
    assert found["loss"] == pytest.approx(test["loss"], abs=1e-6)
    error = test["calibration"]["expected_calibration_error"]
    assert found["calibration"]["expected_calibration_error"] == pytest.approx(error, abs=1e-6)


def test_the_answer_has_these_keys(ask: Ask) -> None:
    found = ask("--min-accuracy", "0")
    assert list(found) == [
        "run_id", "at", "model_sha256", "dataset", "split", "num_images", "data_sha256", "is_run_test", "skipped",
        "evaluation", "run_test", "gate", "warnings",
    ]  # fmt: skip
    assert list(found["evaluation"]) == [
        "num_examples", "loss", "accuracy", "accuracy_interval", "top_5_accuracy", "auroc", "macro", "confusion",
        "per_class", "precision_recall", "calibration",
    ]  # fmt: skip
    assert found["gate"] == {"min_accuracy": 0.0, "min_balanced_accuracy": None, "passed": True}
    assert (found["skipped"], found["warnings"]) == ([], [])


def test_own_images_are_counted_by_the_names_of_their_classes(
    ask: Ask, undisturbed_run: Undisturbed, tmp_path: Path
) -> None:
    """Their order is another one than the model's, and five images have a wrong label, which is counted as such."""
    wrong = {0: "Bar", 2: "Bar", 4: "Bar", 1: "disc", 3: "disc"}
    right = dict.fromkeys(range(1, NUM_TEST, 2), "Bar")
    images = write_test_split(tmp_path / "photos", named=right | wrong)
    expected = np.zeros((2, 2), int)
    for index, label in enumerate(predicted(undisturbed_run[0])):
        actual = (right | wrong).get(index, "disc").casefold()
        expected[CLASSES.index(actual), CLASSES.index(label)] += 1
    found = ask("--dataset", images)
    assert found["evaluation"]["confusion"] == expected.tolist()
    assert [row["name"] for row in found["evaluation"]["per_class"]] == list(CLASSES)
    assert found["num_images"] == NUM_TEST
    assert not found["is_run_test"]


@pytest.mark.slow
def test_the_metrics_do_not_depend_on_where_the_images_are(ask: Ask, tmp_path: Path) -> None:
    """The run's test images as files, in an archive, and kept or not: but for the order, the same images."""
    images = write_test_split(tmp_path / "photos")
    archive = shutil.make_archive(str(tmp_path / "photos"), "zip", images)
    of_run = ask()["evaluation"]
    for words in ([images], [archive], [images, "--cache", "none"], [images, "--cache", "disk", "--batch-size", "5"]):
        found = ask("--dataset", *words)["evaluation"]
        assert found["confusion"] == of_run["confusion"]
        assert found["loss"] == pytest.approx(of_run["loss"], abs=1e-6)


def test_a_class_that_the_model_does_not_know_is_an_error_that_names_both(ask: Ask, tmp_path: Path) -> None:
    """Of own images it may be left out; a TFDS data set of other classes is refused likewise."""
    images = write_test_split(tmp_path / "photos", named={0: "star", 2: "star"})
    with pytest.raises(InputError, match=r"does not know: 'star' \(2\); the model knows 'disc', 'bar'") as caught:
        ask("--dataset", images)
    assert caught.value.exit_code == ExitCode.BAD_INPUT
    assert "leave them out with --classes bar,disc" in caught.value.hint
    assert ask("--dataset", images, "--classes", "bar,disc")["num_images"] == NUM_TEST - 2
    with pytest.raises(InputError, match=r"three_shapes has .*: 'across' \(32\), 'down' \(32\); the model") as caught:
        ask("--dataset", "three_shapes")
    assert "--classes" not in caught.value.hint


def test_names_are_the_same_whatever_their_case_unless_the_model_has_both() -> None:
    labels = np.array([0, 1, 1], np.int32)
    assert class_indices(["dog", "cat"], ["Cat", "Dog"], labels, dataset="x").tolist() == [1, 0, 0]
    assert class_indices(["cat", "Cat"], ["Cat", "cat"], labels, dataset="x").tolist() == [1, 0, 0]
    with pytest.raises(InputError, match=r"'CAT' \(1\)"):
        class_indices(["cat", "Cat"], ["CAT", "cat"], labels, dataset="x")
    # One without an image may have any name.
    assert class_indices(["cat", "dog"], ["cat", "dog", "bird"], labels, dataset="x").tolist() == [0, 1, 1]


def test_a_class_without_images_has_no_metrics(ask: Ask, undisturbed_run: Undisturbed, tmp_path: Path) -> None:
    """One class alone can be evaluated, which no run could train on."""
    images = write_test_split(tmp_path / "photos")
    shutil.rmtree(images / "bar")
    found = ask("--dataset", images)["evaluation"]
    disc, bar = found["per_class"]
    right = predicted(undisturbed_run[0])[::2].count("disc")
    assert (disc["num_examples"], disc["num_correct"], bar["num_examples"]) == (12, right, 0)
    assert found["accuracy"] == disc["recall"] == right / 12
    assert bar["recall"] is bar["auroc"] is bar["average_precision"] is found["auroc"] is None


@pytest.mark.slow
def test_images_that_cannot_be_read_end_it_or_are_left_out(ask: Ask, tmp_path: Path) -> None:
    """As THAW_ON_UNREADABLE says, or the flag; all of them are named."""
    images = write_test_split(tmp_path / "photos")
    (images / "disc/00.png").write_bytes(encoded(FIRST_OF_TEST)[:200])
    (images / "bar/text.png").write_text("no image")
    with pytest.raises(DataCorrupt, match="2 of the 25 images cannot be read") as caught:
        ask("--dataset", images)
    assert all(name in caught.value.message for name in ("disc/00.png", "bar/text.png"))
    for answer in (
        ask("--dataset", images, "--on-unreadable", "skip"),
        ask("--dataset", images, environ={"THAW_ON_UNREADABLE": "skip"}),
    ):
        assert answer["num_images"] == NUM_TEST - 1
        assert {image["name"] for image in answer["skipped"]} == {"disc/00.png", "bar/text.png"}
    for path in images.glob("*/*.png"):
        path.write_text("no image")
    with pytest.raises(InputError, match="no image can be read"):
        ask("--dataset", images, "--on-unreadable", "skip")


def test_an_accuracy_below_the_gate_is_an_error_after_the_answer(ask: Ask, tmp_path: Path) -> None:
    """With exit code 6; an accuracy that is as high passes."""
    images = write_test_split(tmp_path / "photos", named={0: "bar"})
    accuracy = ask("--dataset", images)["evaluation"]["accuracy"]
    assert ask("--dataset", images, "--min-accuracy", repr(accuracy))["gate"]["passed"] is True
    with pytest.raises(QualityGateMissed, match=r"accuracy 0\.\d{4} is below --min-accuracy 1\.0") as caught:
        ask("--dataset", images, "--min-accuracy", "1")
    assert caught.value.exit_code == 6
    assert ask.answer()["gate"] == {"min_accuracy": 1.0, "min_balanced_accuracy": None, "passed": False}


def test_balanced_accuracy_has_a_gate_of_its_own(ask: Ask, tmp_path: Path) -> None:
    """One wrong label of an image of `disc` among those of `bar`: each is a share of its own class."""
    images = write_test_split(tmp_path / "photos", named={0: "bar"})
    found = ask("--dataset", images)["evaluation"]
    balanced = sum(row["recall"] for row in found["per_class"]) / 2
    assert balanced != found["accuracy"]
    assert ask("--dataset", images, "--min-balanced-accuracy", repr(balanced))["gate"]["passed"] is True
    with pytest.raises(QualityGateMissed, match=r"^balanced accuracy 0\.\d{4} is below --min-balanced-accuracy 1\.0$"):
        ask("--dataset", images, "--min-accuracy", "0", "--min-balanced-accuracy", "1")
    assert ask.answer()["gate"] == {"min_accuracy": 0.0, "min_balanced_accuracy": 1.0, "passed": False}


@pytest.mark.slow
def test_the_gate_is_the_exit_code_of_the_process(undisturbed_run: Undisturbed, prepared: Path, tmp_path: Path) -> None:
    """Standard output has the answer alone."""
    environ = {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}
    images = write_test_split(tmp_path / "photos", named={0: "bar"})
    words = ["evaluate", "--run", undisturbed_run[0].uri, "--dataset", str(images), "--json"]
    for gate, expected in (("0.5", ExitCode.COMPLETE), ("1", ExitCode.QUALITY_GATE)):
        done = job(*words, "--min-accuracy", gate, env=environ | {"THAW_DATA_DIR": str(prepared)})
        assert done.returncode == expected, done.stderr
        assert json.loads(done.stdout)["gate"]["passed"] == (expected == ExitCode.COMPLETE)
        assert ("is below --min-accuracy" in done.stderr) == (expected == ExitCode.QUALITY_GATE)


@pytest.mark.slow
def test_validation_is_measured_as_in_the_last_epoch(ask: Ask, whole: Whole) -> None:
    """Loss, accuracy and balanced accuracy, batch by batch and with folded weights; 16 images of three classes."""
    store, _, settings = whole(dataset="three_shapes", head_epochs=1, fine_tune_epochs=0, head_learning_rate=1e-4)
    found = ask("--split", settings.validation_split, run=store.uri)["evaluation"]
    (epoch,) = record_of(store).history
    assert 0 < found["macro"]["recall"] < 1
    assert found["macro"]["recall"] != found["accuracy"]
    assert epoch.validation_balanced_accuracy == pytest.approx(found["macro"]["recall"], rel=1e-12)
    assert epoch.validation_accuracy == pytest.approx(found["accuracy"], rel=1e-12)
    assert epoch.validation_loss == pytest.approx(found["loss"], rel=1e-5)


@pytest.mark.slow
def test_another_split_of_a_tfds_data_set(ask: Ask) -> None:
    """By its own name the data set is the run's; one of other images with the same classes is as good."""
    assert ask("--dataset", "two_shapes")["is_run_test"]
    found = ask("--split", "train[80:]")
    assert (found["num_images"], found["split"], found["is_run_test"]) == (16, "train[80:]", False)
    assert [row["num_examples"] for row in found["evaluation"]["per_class"]] == [8, 8]
    with pytest.raises(InvalidSettings, match=r"--split='nothing': Unknown split .* has train \(96\)"):
        ask("--split", "nothing")
    with pytest.raises(InvalidSettings, match=r"--split='train\[9:5\]': has no examples"):
        ask("--split", "train[9:5]")
    whole = ask("--dataset", "damaged_shapes", "--on-unreadable", "skip")
    assert (whole["split"], whole["num_images"], len(whole["skipped"])) == ("train", 94, 2)


def test_images_that_the_run_trained_on_are_a_warning(ask: Ask) -> None:
    (warning,) = ask("--split", "train[30:60]")["warnings"]
    assert warning.startswith("train[30:60] shares examples with train[:40], which the run trained on")
    assert ask.said == f"warning: {warning}\n"


def test_what_is_for_own_images_is_refused_of_a_tfds_data_set(ask: Ask) -> None:
    with pytest.raises(InvalidSettings, match=r"evaluate: --labels='folder': is for own images"):
        ask("--labels", "folder")
    with pytest.raises(InvalidSettings, match=r"evaluate: --dataset='X': is neither a TFDS data set"):
        ask("--dataset", "X")


@pytest.mark.slow
def test_a_run_on_own_images_is_evaluated_on_its_own_test(
    ask: Ask, whole: Whole, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    """Of data that brings its splits, of which the settings say nothing, that is `test`, as it is of other data."""
    images = tmp_path_factory.mktemp("own") / "photos"
    for split, first in (("train", 0), ("validation", 40), ("test", FIRST_OF_TEST)):
        for index in range(first, first + 24):
            path = images / split / CLASSES[index % 2] / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encoded(index))
    specs = {"train_split": "train[:40%]", "validation_split": "train[40%:50%]", "test_split": "train[50%:60%]"}
    changes = {"dataset": str(images), "data_dir": None, "head_epochs": 1, "fine_tune_epochs": 0, **specs}
    store = whole(**changes)[0]
    found = ask(run=store.uri)
    assert found["evaluation"] == reported(store)["test"]
    assert (found["split"], found["is_run_test"], found["warnings"]) == ("test", True, [])
    assert ask("--dataset", f"{images}/", run=store.uri)["is_run_test"]
    copied = Path(shutil.copytree(images, tmp_path / "photos"))
    again = ask("--dataset", copied, run=store.uri)
    assert (again["split"], again["evaluation"]) == ("test", found["evaluation"])
    (warning,) = ask("--dataset", copied, "--split", "train[:50%]+test", run=store.uri)["warnings"]
    assert "the run trained on 12 of these images" in warning


def test_an_error_names_the_options_of_this_command(ask: Ask, tmp_path: Path) -> None:
    """And no variables, which it does not read."""
    images = write_test_split(tmp_path / "photos")
    with pytest.raises(InvalidSettings, match=r"--classes: .* has no images of 'bird'"):
        ask("--dataset", images, "--classes", "disc,bird")
    with pytest.raises(DataUnavailable, match=r"^--dataset='/nothing'"):
        ask("--dataset", "/nothing")


def test_names_with_commas_are_left_out_by_a_list(ask: Ask, tmp_path: Path) -> None:
    """The hint can be pasted into a shell."""
    names = {0: "red, or so", 2: "red, or so"}
    images = write_test_split(tmp_path / "photos", named=names)
    with pytest.raises(InputError) as caught:
        class_indices(("disc", "red, or so"), ("disc", "red, or so", "star"), np.array([0, 1, 2]), dataset=str(images))
    assert """--classes '["disc", "red, or so"]'""" in caught.value.hint


def test_without_a_report_the_record_says_how_good_the_run_was(ask: Ask, copied: Path) -> None:
    (copied / "report/report.json").write_text("{}")
    found = ask(run=str(copied))
    outcome = record_of(LocalStore(copied)).outcome
    assert outcome is not None
    assert found["run_test"]["accuracy"] == outcome.test_accuracy
    assert found["run_test"]["auroc"] is None
    assert "report/report.json is not what the run wrote" in found["warnings"][0]


def test_files_that_are_too_large_are_not_read(ask: Ask, copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The report only says how good the run was; without its labels a model is of no use."""
    monkeypatch.setattr("job.run.artefacts.MAX_BYTES", 100)
    (warning,) = ask(run=str(copied))["warnings"]
    assert warning.endswith("only the record is used: " + f"{copied}/report/report.json is larger than 100 bytes")
    monkeypatch.setattr("job.run.artefacts.MAX_BYTES", 5)
    with pytest.raises(InputError, match=r"/labels\.json is larger than 5 bytes"):
        ask(run=str(copied))


@pytest.mark.slow
@pytest.mark.parametrize("table", HOSTILE_TABLES)
def test_a_table_of_images_that_another_wrote_is_not_believed(
    ask: Ask, copied: Path, tmp_path: Path, table: bytes
) -> None:
    """A record may name any object. What the run trained on is then not known."""
    path = copied / image_table.name_of(table)
    path.parent.mkdir()
    path.write_bytes(table)
    record = json.loads((copied / "run.json").read_text())
    record["inputs"]["images"] = path.relative_to(copied).as_posix()
    (copied / "run.json").write_text(json.dumps(record))
    found = ask("--dataset", write_images(tmp_path / "photos", 4), run=str(copied))
    assert (found["num_images"], found["warnings"]) == (4, [])


def test_a_run_that_is_not_finished_is_refused(ask: Ask, copied: Path, tmp_path: Path) -> None:
    with pytest.raises(RunUnavailable, match="there is no run"):
        ask(run=str(tmp_path / "nothing"))
    path = copied / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"state": "export", "outcome": None}))
    with pytest.raises(RunUnavailable, match="is not finished: it is in export"):
        ask(run=str(copied))


def test_exhausted_memory_says_what_to_make_smaller(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(*_: Any, **__: Any) -> None:
        raise MemoryError("cannot allocate")

    monkeypatch.setattr(evaluating, "load_splits", exhausted)
    with pytest.raises(MemoryExhausted, match="for 16 images at a time, with --cache memory") as caught:
        ask()
    assert caught.value.hint == "give a smaller --batch-size, or --cache disk or none"


def test_a_run_and_images_in_a_bucket(ask: Ask, undisturbed_run: Undisturbed, gcs: GcsServer, tmp_path: Path) -> None:
    """The same answer as from a disk."""
    store = undisturbed_run[0]
    uri = f"gs://{BUCKET}/runs/small"
    bucket = open_store(uri)
    for name in store.list(""):
        bucket.upload(name, store.root / name, if_version=MISSING)
    images, photos = write_test_split(tmp_path / "photos"), open_store(f"gs://{BUCKET}/photos")
    for path in images.rglob("*.png"):
        photos.upload(path.relative_to(images).as_posix(), path, if_version=MISSING)
    found = ask("--dataset", f"gs://{BUCKET}/photos", run=uri)
    assert found["evaluation"] == ask("--dataset", images)["evaluation"]
    assert (found["at"], found["dataset"]) == (uri, f"gs://{BUCKET}/photos")


def test_a_person_sees_the_numbers_beside_those_of_the_runs_own_test(
    undisturbed_run: Undisturbed, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = write_images(tmp_path / "photos", 16)
    (images / "disc/text.png").write_text("no image")
    words = ["--run", undisturbed_run[0].uri, "--dataset", str(images), "--on-unreadable", "skip"]
    assert cli.answer("evaluate", words, {}) == ExitCode.COMPLETE
    text = capsys.readouterr().out
    outcome = record_of(undisturbed_run[0]).outcome
    assert outcome is not None
    for expected in (
        f"16 of {images}", "left out", "1 that cannot be read", "run's own test", f"{outcome.test_accuracy:.4f}",
        "balanced accuracy", "macro F1", "AUROC", "expected calibration error", "disc", "bar",
    ):  # fmt: skip
        assert expected in text
    assert "nan" not in text


def test_of_many_classes_the_worst_are_shown() -> None:
    rows = [
        {
            "name": f"class {number}",
            "num_examples": int(number > 0),
            "precision": None,
            "recall": 0.5,
            "f1": number / 30,
        }
        for number in range(30)
    ]
    written = io.StringIO()
    Console(file=written, width=100).print(evaluate._classes(rows))
    lines = written.getvalue().splitlines()
    assert lines[0].startswith("the worst 20 of 30 classes")
    assert [line.split()[1] for line in lines[1:]] == [str(number) for number in range(1, 21)]


def test_probabilities_of_few_classes_are_all_there_and_of_many_the_first_five() -> None:
    """The most probable first."""
    for num_classes, num_shown in ((20, 20), (21, 5)):
        names = [f"class {number}" for number in range(num_classes)]
        labeller = object.__new__(labelling.Labeller)
        labeller.class_names = names
        row = np.arange(num_classes) / num_classes
        found = labeller._most_probable(row)
        assert list(found) == names[::-1][:num_shown]
        assert list(found.values()) == row[::-1][:num_shown].tolist()
