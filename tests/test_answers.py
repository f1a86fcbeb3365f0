"""A run with a temperature and a threshold: all that it ships gives the same answers, and says so."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from job.cli import predict
from job.errors import InputError, InvalidSettings
from job.observe import events
from job.report import saved_model
from job.report.card import card
from job.storage import LocalStore, digest_of
from tests.conftest import CALIBRATED_RUN
from tests.reports import content, render
from tests.runs import CrashOn, Small, record_of, start
from tests.shapes import FIRST_OF_TEST, encoded
from tests.stores import Crash


def report_of(store: LocalStore) -> dict[str, Any]:
    return dict(json.loads(store.read("report/report.json").data))


@pytest.mark.slow
def test_report_saved_model_and_predict_agree(
    calibrated_run: LocalStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On every test image; some answers are of the less probable class."""
    report = report_of(calibrated_run)
    assert report["temperature_scaling"]["is_fitted"]
    threshold = report["thresholds"]["used"]
    assert threshold != 0.5
    images = [encoded(FIRST_OF_TEST + index) for index in range(24)]
    for index, image in enumerate(images):
        (tmp_path / f"{index:02d}.png").write_bytes(image)
    predict.answer(predict.Options(run=calibrated_run.uri, images=(str(tmp_path),), as_json=True))
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    loaded = tf.saved_model.load(str(calibrated_run.root / "model/saved_model"))
    served = loaded.signatures["serving_default"](encoded_images=tf.constant(images))
    labels, probabilities = served["label"].numpy().astype(str), served["probabilities"].numpy()
    second = report["test"]["per_class"][1]["name"]
    assert [line["label"] for line in lines] == labels.tolist()
    assert (labels == second).tolist() == (probabilities[:, 1] > threshold).tolist()
    of_label = probabilities[np.arange(24), (labels == second).astype(int)]
    assert [line["probability"] for line in lines] == pytest.approx(of_label.tolist(), abs=1e-5)
    assert min(of_label) < 0.5
    for row, line in zip(report["predictions"], lines, strict=False):
        assert (row["predicted"], row["probability"]) == (line["label"], pytest.approx(line["probability"], abs=1e-5))
    assert sum(row["num_predicted"] for row in report["test"]["per_class"] if row["name"] == second) == sum(
        labels == second
    )
    np.testing.assert_allclose(tf.nn.softmax([[0.0, it] for it in served["logits"][:, 0]]), probabilities, atol=1e-6)


@pytest.mark.slow
def test_the_outcome_is_that_of_the_answers(calibrated_run: LocalStore) -> None:
    """Accuracy at the threshold in use, loss after the temperature; both are also there without."""
    report = report_of(calibrated_run)
    outcome, scaling = report["outcome"], report["temperature_scaling"]
    assert outcome["test_loss"] == report["test"]["loss"] == scaling["after"]["loss"] != scaling["before"]["loss"]
    assert report["test"]["calibration"]["bins"] == scaling["after"]["bins"]
    rows = {row["threshold"]: row for row in report["thresholds"]["on_test"]}
    assert rows.keys() == {0.5, report["thresholds"]["used"]}
    assert rows[report["thresholds"]["used"]]["accuracy"] == outcome["test_accuracy"]
    assert rows[0.5]["accuracy"] != outcome["test_accuracy"]
    assert [layer["name"] for layer in report["layers"]][-1] == "temperature"


@pytest.mark.slow
def test_a_run_that_is_evaluated_again_gives_the_same(
    small: Small, store: LocalStore, calibrated_run: LocalStore
) -> None:
    """Both are functions of the weights and of the validation split."""
    settings = small(**CALIBRATED_RUN)
    with pytest.raises(Crash):
        start(settings, store, observer=CrashOn(events.Evaluated))
    start(settings, store)
    again, first = report_of(store), report_of(calibrated_run)
    for name in ("outcome", "test", "temperature_scaling", "thresholds", "predictions"):
        assert again[name] == first[name], name


@pytest.mark.slow
def test_the_threshold_of_a_run_is_verified_before_it_is_used(calibrated_run: LocalStore, tmp_path: Path) -> None:
    """Another one is refused; so is one that is no probability, though the record has its digest."""
    run = Path(shutil.copytree(calibrated_run.root, tmp_path / "small"))
    path = run / "model/threshold.json"
    assert json.loads(path.read_text()) == report_of(calibrated_run)["thresholds"]["used"]
    path.write_text("7")
    options = predict.Options(run=str(run), images=("a.png",), as_json=True)
    with pytest.raises(InputError, match=r"threshold\.json is not what the run wrote"):
        predict.answer(options)
    record, digest = json.loads((run / "run.json").read_text()), digest_of(path)
    record["files"]["model/threshold.json"] = {"size": digest.size, "sha256": digest.sha256}
    (run / "run.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match=r"threshold\.json is no threshold"):
        predict.answer(options)


@pytest.mark.slow
def test_a_threshold_needs_two_classes(small: Small, store: LocalStore) -> None:
    """Which is known with the data, and said before anything is trained."""
    with pytest.raises(InvalidSettings, match=r"THAW_THRESHOLD=auto is for two classes, and the data has 3"):
        start(small(dataset="three_shapes", threshold="auto"), store)
    assert record_of(store).checkpoints == ()


def test_the_answer_of_three_classes_is_scaled_too() -> None:
    """And the label is the most probable one."""
    from job.model.answers import calibrated
    from tests.classifiers import build

    model = build(num_classes=3).export()
    images = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3)).astype(np.float32)
    plain, scaled = (
        saved_model.signatures(it, ("a", "b", "c"))["float32_images"](tf.constant(images))
        for it in (model, calibrated(model, 0.1))
    )
    np.testing.assert_allclose(scaled["probabilities"], tf.nn.softmax(plain["logits"] * 10), rtol=1e-4)
    assert scaled["label"].numpy().tolist() == plain["label"].numpy().tolist()


@pytest.mark.slow
def test_page_and_card_say_how_the_model_answers() -> None:
    """And only what is so."""
    plain, own = content(), content(calibrate=True, threshold="0.4")
    for report, is_said in ((plain, False), (own, True)):
        html, text = " ".join(render(report).split()), card(report)
        assert ("The exported model does this." in html) == is_said
        assert ("The answer is dog where its probability is above 0.4000" in html) == is_said
        assert ("Its logits are divided by a temperature of 2.0000" in text) == is_said
        assert ("tf.nn.softmax(logits)[1] > 0.4" in text) == is_said
    html = " ".join(render(content(wrong=0, calibrate=True)).split())
    assert "say nothing of a temperature" in html
    assert "So the exported model has none." in html
