"""On real weights and photographs, where THAW_TEST_DATA names them."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from job.data.resizing import Resizing
from job.data.splits import DataRequest, Splits, load_splits
from job.errors import ExitCode, WeightsUnusable
from job.model.classifier import Classifier
from job.observe.events import EpochFinished
from job.observe.ledger import Ledger
from job.phases import Phase
from job.train.loop import Position, train_phase
from job.train.state import PhaseState
from job.train.step import Recipe
from tests.classifiers import ALONE, build
from tests.conftest import job, process_environment

pytestmark = pytest.mark.real_data

XCEPTION = "weights/xception_imagenet_notop.h5"
MOBILENET = "weights/mobilenet_v2_1.0_224_imagenet_notop.h5"
SMALLEST = {"Xception": 71, "MobileNetV2": 96}


def classifier(real_data: Path, backbone: str, weights: str) -> Classifier:
    return build(backbone=backbone, weights=str(real_data / weights), image_size=SMALLEST[backbone])


@pytest.fixture(scope="module")
def photographs(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Splits:
    request = DataRequest(
        dataset="cats_vs_dogs", data_dir=str(real_data / "tfds"),
        specs={"train": "train[:64]", "validation": "train[6400:6432]", "test": "train[8000:8032]"},
        resizing=Resizing(71), cache="memory", cache_dir=tmp_path_factory.mktemp("cache"),
    )  # fmt: skip
    return load_splits(request, check_stop=lambda: None)


def statistics_of(network: keras.Model) -> list[np.ndarray]:
    return [weight.numpy() for weight in network.weights if weight.path.endswith(("moving_mean", "moving_variance"))]


def test_the_articles_way_moves_the_statistics_of_xception(real_data: Path) -> None:
    """`base(x, training=False)` inside a functional model, then `fit`: Keras 3 overrides it. Why we do not use it."""
    base = classifier(real_data, "Xception", XCEPTION).backbone
    inputs = keras.Input((71, 71, 3))
    x = keras.layers.GlobalAveragePooling2D()(base(inputs, training=False))
    model = keras.Model(inputs, keras.layers.Dense(1)(x))
    model.compile(keras.optimizers.Adam(1e-5), keras.losses.BinaryCrossentropy(from_logits=True))
    before = statistics_of(base)
    images = np.random.default_rng(0).uniform(-1, 1, (8, 71, 71, 3)).astype(np.float32)
    model.fit(images, np.array([0, 1] * 4), epochs=1, batch_size=8, verbose=0)
    moved = [not np.array_equal(a, b) for a, b in zip(before, statistics_of(base), strict=True)]
    assert all(moved)


@pytest.mark.parametrize("phase", ["head", "fine_tune"])
def test_our_way_does_not_move_them(real_data: Path, photographs: Splits, phase: str) -> None:
    """In neither phase; and in fine-tuning all 156 tensors train: 154 of the backbone and 2 of the head."""
    model = classifier(real_data, "Xception", XCEPTION)
    state = PhaseState(
        model, Phase(name=phase, unfreeze={"head": "none", "fine_tune": "all"}[phase], learning_rate=1e-5, epochs=1)
    )
    assert len(state.variables) == {"head": 2, "fine_tune": 156}[phase]
    before = {name: variable.numpy() for name, variable in model.named_variables(with_head=False).items()}
    facts = train_phase(
        state, train=photographs.train, validation=photographs.validation, recipe=Recipe(32, 0, xla=False),
        position=Position(), ledger=Ledger(), collective=ALONE,
    )  # fmt: skip
    assert isinstance(list(facts)[-1], EpochFinished)
    for name, variable in model.named_variables(with_head=False).items():
        stays = phase == "head" or name.endswith(("moving_mean", "moving_variance"))
        assert np.array_equal(before[name], variable.numpy()) == stays, name


def test_the_weights_are_the_published_ones(real_data: Path) -> None:
    """Every tensor of the file is in the network, in Keras's own order."""
    import h5py

    model = classifier(real_data, "Xception", XCEPTION)
    loaded = sorted(hashlib.sha256(weight.numpy().tobytes()).hexdigest() for weight in model.backbone.weights)
    with h5py.File(real_data / XCEPTION) as file:
        tensors: list[str] = []
        file.visititems(
            lambda _, item: (
                tensors.append(hashlib.sha256(item[()].tobytes()).hexdigest())
                if isinstance(item, h5py.Dataset)
                else None
            )
        )
    assert loaded == sorted(tensors)
    assert len(loaded) == 234


def test_weights_of_another_backbone_are_refused(real_data: Path) -> None:
    """MobileNetV2's in Xception, and the other way round."""
    with pytest.raises(WeightsUnusable, match="are not weights of Xception"):
        classifier(real_data, "Xception", MOBILENET)
    with pytest.raises(WeightsUnusable, match="are not weights of MobileNetV2"):
        classifier(real_data, "MobileNetV2", XCEPTION)


def run(real_data: Path, tmp_path: Path, **settings: Any) -> Iterator[dict[str, Any]]:
    """Run the program; yields the report, and then the log of the same run started again."""
    values = {
        "data_dir": real_data / "tfds", "weights": real_data / MOBILENET, "backbone": "MobileNetV2", "image_size": 96,
        "storage_uri": tmp_path, "run_id": "real", "cache_dir": tmp_path / "cache",
    }  # fmt: skip
    env = process_environment(values | settings)
    done = job(env=env)
    assert done.returncode == ExitCode.COMPLETE, done.stdout + done.stderr
    yield json.loads((tmp_path / "real" / "report" / "report.json").read_text())
    again = job(env=env)
    assert again.returncode == ExitCode.COMPLETE
    yield json.loads(again.stdout)


def test_mobilenet_tells_photographs_of_cats_and_dogs_apart(real_data: Path, tmp_path: Path) -> None:
    """320 photographs are enough for nine in ten; then the same start does nothing."""
    runs = run(
        real_data, tmp_path, train_split="train[:320]", validation_split="train[6400:6528]",
        test_split="train[8000:8192]", image_size=128, batch_size=16, head_epochs=4, head_learning_rate=5e-3,
        fine_tune_epochs=1,
    )  # fmt: skip
    report = next(runs)
    assert report["outcome"]["test_accuracy"] >= 0.9
    assert report["splits"] == {"train": 320, "validation": 128, "test": 192}
    assert next(runs)["event"] == "run_already_done"


def test_the_ten_classes_of_cifar_run_to_the_end(real_data: Path, tmp_path: Path) -> None:
    """Far better than the one in ten of chance, small as it is."""
    runs = run(
        real_data, tmp_path, dataset="cifar10", train_split="train[:640]", validation_split="train[1000:1096]",
        test_split="test[:200]", head_epochs=3, fine_tune_epochs=1, fine_tune_learning_rate=1e-4,
    )  # fmt: skip
    report = next(runs)
    assert len(report["test"]["per_class"]) == 10
    assert report["outcome"]["test_accuracy"] >= 0.4
    confusion = np.array(report["test"]["confusion"])
    assert confusion.sum() == 200
    assert np.trace(confusion) / 200 == report["outcome"]["test_accuracy"]
