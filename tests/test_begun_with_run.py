"""A run that begins with the model of a finished one: backbone and head, for classes of the same name."""

import gc
import hashlib
import json
import shutil
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from job.cli import checks
from job.errors import ExitCode, InputError, InvalidSettings, WeightsUnusable
from job.model.answers import same_classes
from job.model.classifier import Classifier
from job.model.networks import tiny_backbone
from job.observe.events import HeadTaken, SeenBefore
from job.observe.sentences import sentence
from job.report.files import MODEL, PAGE
from job.settings.settings import Settings
from job.storage import MISSING, LocalStore, open_store
from tests.classifiers import build
from tests.conftest import job, slowly
from tests.gcs_server import BUCKET, GcsServer
from tests.processes import Environment, report, result
from tests.runs import Small, Undisturbed, Whole, record_of, start, stop
from tests.shapes import encoded

UNCHANGED: dict[str, Any] = {"head_epochs": 0, "fine_tune_epochs": 1, "fine_tune_learning_rate": 1e-30}
"""Training that moves no weight of float32."""


@pytest.mark.parametrize("place", ["gs://", *slowly("path", "file://")])
def test_it_begins_with_backbone_and_head(
    undisturbed_run: Undisturbed, small: Small, store: LocalStore, gcs: GcsServer, place: str
) -> None:
    """Trained by nothing, it ends with the very weights; the record and the log say with which it began."""
    finished = undisturbed_run[0]
    uri = {"path": str(finished.root), "file://": finished.root.as_uri(), "gs://": f"gs://{BUCKET}/small"}[place]
    if place == "gs://":
        bucket = open_store(uri)
        for path in (path for path in finished.root.rglob("*") if path.is_file()):
            bucket.upload(path.relative_to(finished.root).as_posix(), path, if_version=MISSING)
    settings = small(weights=uri, **UNCHANGED)
    recorder = start(settings, store)
    found, expected = record_of(store), record_of(finished)
    assert found.outcome is not None
    assert expected.outcome is not None
    assert found.outcome.model_sha256 == expected.outcome.model_sha256
    assert found.settings["WEIGHTS"] == uri
    assert found.inputs["first_model_sha256"] == expected.outcome.model_sha256
    assert f"began with</th><td><code>{expected.outcome.model_sha256}<" in store.read(PAGE).data.decode()
    assert recorder.of(HeadTaken) == [HeadTaken(uri, 2, [])]
    assert recorder.of(SeenBefore) == []


@pytest.mark.slow
def test_interrupted_it_ends_with_the_same_bits(whole: Whole, small: Small, tmp_path: Path) -> None:
    """Also where only one of three classes is known, and in both phases."""
    settings = small(weights=str(whole()[0].root), dataset="three_shapes", deterministic=True)
    stores = [LocalStore(tmp_path / name) for name in ("one", "other")]
    recorder = start(settings, stores[0])
    assert recorder.of(HeadTaken) == [HeadTaken(settings.weights, 1, ["across", "down"])]
    for phase in ("head", "fine_tune"):
        stop(settings, stores[1], phase, 3)
    start(settings, stores[1])
    digests = [outcome.model_sha256 for store in stores if (outcome := record_of(store).outcome)]
    assert digests[0] == digests[1]


@pytest.mark.slow
def test_as_a_user_starts_it(environment: Environment, undisturbed_run: Undisturbed) -> None:
    """In two workers' processes too, which both read the run."""
    uri = str(undisturbed_run[0].root)
    env = environment(weights=uri, **UNCHANGED, devices=2, log_format="json")
    done = job(env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    expected = record_of(undisturbed_run[0]).outcome
    assert expected is not None
    assert result(env)[0]["test_accuracy"] == expected.test_accuracy
    assert report(env)["settings"]["weights"] == uri


ONE_EPOCH: dict[str, Any] = {"head_epochs": 0, "fine_tune_epochs": 1}


def test_examples_that_the_earlier_run_trained_on_make_the_results_too_good(
    undisturbed_run: Undisturbed, small: Small, store: LocalStore
) -> None:
    uri = str(undisturbed_run[0].root)
    specs = {"train_split": "train[40:80]", "validation_split": "train[:20]", "test_split": "train[80:96]"}
    recorder = start(small(weights=uri, **ONE_EPOCH, **specs), store)
    (seen,) = recorder.of(SeenBefore)
    assert seen == SeenBefore(uri, {"validation": "train[:40]"})
    assert sentence(seen) == f"the run {uri} trained on examples of validation, which makes these results too good"


def test_own_images_that_the_earlier_run_trained_on_are_counted(small: Small, tmp_path: Path) -> None:
    """They are the same by their bytes: of 40 images, all that were there before are in the other split now."""
    for index in range(60):
        path = tmp_path / "photos" / "cd"[index % 2] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(index))
    own = {"dataset": str(tmp_path / "photos"), "data_dir": None, **ONE_EPOCH}
    specs = {"train_split": "train[:40%]", "validation_split": "train[40%:70%]", "test_split": "train[70%:]"}
    earlier, store = (LocalStore(tmp_path / name / "small") for name in ("earlier", "store"))
    start(small(**own, **specs), earlier)
    specs = {"train_split": "train[40%:70%]", "validation_split": "train[70%:]", "test_split": "train[:40%]"}
    recorder = start(small(**own, **specs, weights=str(earlier.root)), store)
    assert recorder.of(SeenBefore) == [SeenBefore(str(earlier.root), {"test": 24})]


NAMES = ["cat", "dog", "fox"]


def exported(num_classes: int) -> tuple[Classifier, keras.Model]:
    """A classifier with weights of its own, in the head too, and what it exports."""
    classifier = build(num_classes=num_classes, seed=7)
    generator = np.random.default_rng(0)
    classifier.head.set_weights([generator.normal(size=weight.shape) for weight in classifier.head.get_weights()])
    return classifier, classifier.export()


@pytest.mark.parametrize(
    ("earlier", "names"),
    [
        (["cat", "dog"], ["cat", "dog"]),
        (["cat", "dog"], ["dog", "cat"]),
        (["cat", "dog"], ["dog", "cat", "fox"]),
        (NAMES, ["fox", "cat"]),
        (NAMES, ["Dog", "fox", "cat"]),
    ],
    ids=["same", "other order", "one more", "one less", "other case"],
)
def test_a_class_keeps_what_the_head_has_learned_of_it(earlier: Sequence[str], names: Sequence[str]) -> None:
    """Differences of logits decide: those between classes that both know are as they were."""
    before, model = exported(len(earlier))
    after = build(num_classes=len(names), weights=model)
    after.take_head(model, known := same_classes(earlier, names))
    images = tf.constant(np.random.default_rng(1).integers(0, 256, (3, 16, 16, 3)), tf.float32)
    expected, found = (of_all(classifier, images) for classifier in (before, after))
    kept = np.flatnonzero(known >= 0)
    found, expected = found[:, kept], expected[:, known[kept]]
    np.testing.assert_allclose(found - found[:, :1], expected - expected[:, :1], rtol=1e-5, atol=1e-5)


def of_all(classifier: Classifier, images: tf.Tensor) -> np.ndarray:
    """The logits of each class, [n, k]."""
    logits = classifier.logits(classifier.features(images)).numpy()
    return np.concatenate([np.zeros_like(logits), logits], axis=1) if logits.shape[1] == 1 else logits


def test_a_class_that_is_new_begins_as_in_a_new_head() -> None:
    _, model = exported(3)
    new, taken = (build(num_classes=3) for _ in range(2))
    taken.take_head(model, np.array([0, -1, 2]))
    earlier = model.get_layer("head").get_weights()
    for found, fresh, before in zip(taken.head.get_weights(), new.head.get_weights(), earlier, strict=True):
        np.testing.assert_array_equal(found[..., 1], fresh[..., 1])
        np.testing.assert_array_equal(found[..., [0, 2]], before[..., [0, 2]])


def test_a_network_of_your_own_is_taken_out_of_the_model(tmp_path: Path) -> None:
    inputs = keras.Input((16, 16, 3))
    keras.Model(inputs, keras.layers.Conv2D(4, 3, activation="relu")(inputs)).save(tmp_path / "network.keras")
    before = build(backbone="Custom", weights=str(tmp_path / "network.keras"))
    after = build(backbone="Custom", weights=before.export())
    assert after.digest(with_head=False) == before.digest(with_head=False)


def test_the_earlier_model_does_not_stay_in_memory() -> None:
    earlier = weakref.ref(model := exported(2)[1])
    after = build(weights=model)
    after.take_head(model, np.array([0, 1]))
    del model
    gc.collect()
    assert after.num_logits == 1
    assert earlier() is None


@pytest.mark.slow
def test_weights_have_the_same_names_whatever_was_built_before() -> None:
    """The scales of ConvNeXt have no name of their own, and the earlier model is built first."""
    before = build(backbone="ConvNeXtTiny", image_size=32)
    after = build(backbone="ConvNeXtTiny", image_size=32, weights=before.export())
    assert after.digest(with_head=False) == before.digest(with_head=False)
    assert set(after.named_variables(100)) < set(before.named_variables())


def test_a_network_that_is_not_for_this_size_is_refused(tmp_path: Path) -> None:
    inputs = keras.Input((16, 16, 3))
    keras.Model(inputs, keras.layers.Reshape((8, 8, 12))(inputs)).save(tmp_path / "network.keras")
    before = build(backbone="Custom", weights=str(tmp_path / "network.keras"))
    with pytest.raises(WeightsUnusable, match=r"has no Custom for THAW_IMAGE_SIZE=24: .*must be unchanged"):
        build(backbone="Custom", weights=before.export(), image_size=24)


def hostile(kind: str) -> keras.Model:
    """A model that no run has exported."""
    layers = keras.layers
    inputs = keras.Input((None, None, 3) if kind == "open size" else (16, 16, 3))
    network = layers.Conv2D(128, 3) if kind == "no network" else tiny_backbone(16)
    features = layers.GlobalAveragePooling2D()(network(inputs))
    if kind == "other width":
        features = layers.Dense(7)(features)
    name = "top" if kind == "no head" else "head"
    logits = layers.Dense(1, name=name, use_bias=kind != "no bias")(features)
    return keras.Model(inputs, [logits, logits] if kind == "two outputs" else logits)


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("no network", "expected one network in it, found 0"),
        ("no head", r"weights of the shapes \[\], expected"),
        ("other width", r"weights of the shapes \[\[\(7, 1\), \(1,\)\]\], expected \[\[\(128, 1\), \(1,\)\]\]"),
        *slowly(
            ("no bias", "weights of the shapes"),
            ("open size", "expected square images in and logits out"),
            ("two outputs", "expected square images in and logits out"),
        ),
    ],
)
def test_a_model_that_no_run_has_exported_is_refused(
    copied: Path, small: Small, store: LocalStore, kind: str, text: str
) -> None:
    """Also where the record has its digest: whoever can write the one can write the other."""
    hostile(kind).save(copied / MODEL)
    record, content = copied / "run.json", (copied / MODEL).read_bytes()
    changed = json.loads(record.read_text())
    changed["files"][MODEL] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    record.write_text(json.dumps(changed))
    with pytest.raises(WeightsUnusable, match=f"THAW_WEIGHTS='{copied}': .*{text}"):
        start(small(weights=str(copied), **ONE_EPOCH, storage_uri="unused"), store)


def test_what_it_trained_on_is_a_split(copied: Path, small: Small) -> None:
    record = copied / "run.json"
    record.write_text(record.read_text().replace("train[:40]", "$$$["))
    with pytest.raises(WeightsUnusable, match=r"settings: '\$\$\$\[' is not a split"):
        checks.weights(small(weights=str(copied)))


def refusals(finished: Path, tmp_path: Path) -> dict[str, tuple[dict[str, Any], str]]:
    for name in ("model gone", "record lost", "renamed"):
        shutil.copytree(finished, tmp_path / name / "small")
    (tmp_path / "model gone" / "small" / MODEL).unlink()
    (tmp_path / "record lost" / "small" / "run.json").unlink()
    (tmp_path / "renamed" / "small").rename(tmp_path / "renamed" / "other")
    (tmp_path / "weights.hdf5").touch()
    return {
        "nothing there": ({"weights": str(tmp_path / "imagenett")}, "there is no run at .*imagenett"),
        "itself": ({"weights": str(tmp_path / "small")}, "run 'small' is not finished: it is in "),
        "another backbone": (
            {"weights": str(finished), "backbone": "MobileNetV2", "image_size": 32},
            "that run is of Tiny, expected THAW_BACKBONE=MobileNetV2",
        ),
        "model gone": ({"weights": str(tmp_path / "model gone" / "small")}, "that run has no model/model.keras"),
        "record lost": ({"weights": str(tmp_path / "record lost" / "small")}, ".* has no run.json beside 3 objects"),
        "renamed": ({"weights": str(tmp_path / "renamed" / "other")}, "it is of run 'small', expected 'other'"),
        "a file": ({"weights": str(tmp_path / "weights.hdf5")}, "a file is where a folder should be"),
    }


@pytest.mark.parametrize(
    "why",
    ["nothing there", "itself", "another backbone", "model gone", *slowly("record lost", "renamed", "a file")],
)
def test_a_run_that_cannot_be_begun_with_is_refused(
    undisturbed_run: Undisturbed, small: Small, tmp_path: Path, why: str
) -> None:
    """By `plan` as by a start, before any image is read."""
    store = LocalStore(tmp_path / "small")
    changes, text = refusals(undisturbed_run[0].root, tmp_path)[why]
    settings = small(**changes)
    with pytest.raises(WeightsUnusable, match=f"THAW_WEIGHTS=.*: {text}"):
        start(settings, store)
    assert record_of(store).attempts[-1].exit_code == ExitCode.BAD_INPUT
    with pytest.raises(WeightsUnusable, match=text):
        checks.weights(settings)


def test_one_that_is_not_finished_has_no_model(small: Small, tmp_path: Path, store: LocalStore) -> None:
    stop(small(), LocalStore(tmp_path / "small"), "head", 3)
    with pytest.raises(WeightsUnusable, match="is not finished: it is in head, and has no model yet"):
        start(small(weights=str(tmp_path / "small")), store)


def test_a_damaged_model_is_not_begun_with(copied: Path, small: Small, store: LocalStore) -> None:
    model = copied / MODEL
    model.write_bytes(model.read_bytes()[:-1] + b"x")
    with pytest.raises(InputError, match=r"model\.keras is not what the run wrote"):
        start(small(weights=str(copied)), store)


def test_a_plan_names_the_run(undisturbed_run: Undisturbed, small: Small) -> None:
    check = checks.weights(small(weights=str(undisturbed_run[0].root)))
    assert (check.outcome, check.text.startswith("the model of the finished run ")) == ("ok", True)


@pytest.mark.parametrize("place", ["a folder", "gs://bucket/runs/cats"])
def test_a_mirror_does_not_take_a_run_for_a_file(
    undisturbed_run: Undisturbed, environment: Environment, tmp_path: Path, place: str
) -> None:
    env = environment(weights=str(undisturbed_run[0].root) if place == "a folder" else place)
    done = job("mirror", "--to", str(tmp_path / "mirror"), env=env)
    assert (done.returncode, "is a run, and a mirror has files of weights" in done.stdout + done.stderr) == (2, True)
    assert not (tmp_path / "mirror" / "weights").exists()


@pytest.mark.parametrize(
    ("weights", "is_run"),
    [
        ("./runs/cats", True),
        ("gs://bucket/runs/cats/", True),
        ("none", False),
        ("imagenet", False),
        ("gs://bucket/x.weights.h5", False),
        ("x.keras", False),
    ],
)
def test_what_names_a_run(weights: str, is_run: bool) -> None:
    settings = Settings(weights=weights)
    assert settings.begins_with_run() == is_run
    assert settings.weights == weights.rstrip("/")


def test_a_place_that_no_store_has_is_refused_at_once() -> None:
    with pytest.raises((InvalidSettings, ValueError), match="ftp"):
        Settings(weights="ftp://host/runs/cats")
