"""What a data set's description says of it: a start and a plan find the same, before an example is read."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from job.cli import checks
from job.data.splits import load_splits
from job.data.tfds.builders import find_builder
from job.data.tfds.description import judge
from job.errors import InputError, ThawError
from job.settings.settings import Settings
from tests import shapes
from tests.conftest import slowly
from tests.gcs_server import BUCKET, GcsServer
from tests.runs import never

SPLITS = ("train[:4]", "train[4:6]", "train[6:]")


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every kind of data set, prepared."""
    folder = tmp_path_factory.mktemp("kinds")
    for name, kind in (shapes.USABLE | shapes.UNUSABLE).items():
        shapes.prepare(folder, name, **kind)
    return folder


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("two_images", ["front: Image of uint8", "back: Image of uint8", "supervised keys are None"]),
        ("two_labels", ["label: ClassLabel of 2 classes", "breed: ClassLabel of 2 classes"]),
        ("text_label", ["label: Text"]),
        ("several_labels", ["labels: Sequence of ClassLabel of 2 classes"]),
        ("pixels", ["image: Tensor of uint8 [24, 24, 3]"]),
        ("float_images", ["'image' is Image of float32"]),
        ("one_class", ["'label' is ClassLabel of 1 class:"]),
    ],
)
def test_what_is_in_the_way_is_named_by_key_and_kind(kinds: Path, name: str, expected: list[str]) -> None:
    """With what to do about it."""
    with pytest.raises(InputError) as caught:
        judge(find_builder(name, str(kinds))[0], SPLITS, cache="memory")
    for text in expected:
        assert text in caught.value.message
    assert caught.value.hint


def found_by(ask: Callable[[], Any]) -> tuple[int, str]:
    """Exit code and message; 0 when there is no error."""
    try:
        ask()
    except ThawError as error:
        return int(error.exit_code), error.message
    return 0, ""


def both_found(folder: str, cache_dir: Path, **changes: str) -> list[tuple[int, str]]:
    """What a plan and the data stage of a start end with."""
    values = {"dataset": "no_keys", "train_split": SPLITS[0], "validation_split": SPLITS[1], "test_split": SPLITS[2]}
    settings = Settings(**(values | {"data_dir": folder} | changes))
    request = shapes.request(
        folder, dataset=settings.dataset, cache=settings.cache, cache_dir=cache_dir,
        specs=(settings.train_split, settings.validation_split, settings.test_split),
    )  # fmt: skip
    return [found_by(lambda: checks.data(settings)), found_by(lambda: load_splits(request, check_stop=never).close())]


@pytest.mark.parametrize(
    "name", ["chosen", *shapes.UNUSABLE, *slowly(*(name for name in shapes.USABLE if name != "chosen"))]
)
def test_a_plan_and_a_start_say_the_same_of_every_kind(kinds: Path, tmp_path: Path, name: str) -> None:
    """Word for word, with the same exit code."""
    plan, start = both_found(str(kinds), tmp_path, dataset=name)
    assert plan == start
    assert plan[0] == (0 if name in shapes.USABLE else 4)


@pytest.mark.parametrize(
    ("changes", "code", "expected"),
    [
        ({"dataset": "no_keys:2.0.0"}, 4, "prepared there: no_keys/1.0.0"),
        ({"dataset": "no_such_kind"}, 4, "there is no data set 'no_such_kind'"),
        ({"test_split": "train[40%:]"}, 2, "overlaps THAW_VALIDATION_SPLIT='train[4:6]': the three splits must be"),
        ({"test_split": "nope"}, 2, "THAW_TEST_SPLIT='nope': "),
        ({"test_split": "train[6:8]+train[7:]"}, 2, "names some examples twice; no_keys/1.0.0 has train (10)"),
        ({"test_split": "all[6:8]"}, 2, "Error parsing split 'all[6:8]'"),
        ({"test_split": "train[-3:]"}, 0, ""),
        ({"test_split": "train[90%:93%]"}, 2, "has no examples"),
    ],
)
def test_a_plan_and_a_start_say_the_same_of_versions_and_splits(
    kinds: Path, tmp_path: Path, changes: dict[str, str], code: int, expected: str
) -> None:
    """What only the size of the data shows included."""
    plan, start = both_found(str(kinds), tmp_path, **changes)
    assert plan == start
    assert plan[0] == code
    assert expected in plan[1]


def test_a_plan_and_a_start_say_the_same_of_a_missing_file(tmp_path: Path) -> None:
    """By the name of the file."""
    shapes.prepare(tmp_path, "no_keys", **shapes.USABLE["no_keys"])
    next(tmp_path.glob("no_keys/1.0.0/*.tfrecord*")).unlink()
    plan, start = both_found(str(tmp_path), tmp_path)
    assert plan == start
    assert plan[0] == 4
    assert "no_keys-train.tfrecord-00000-of-00001" in plan[1]


@pytest.mark.parametrize("name", ["no_keys", "text_label"])
def test_a_mirror_is_judged_by_its_description_alone(kinds: Path, gcs: GcsServer, name: str) -> None:
    """As the prepared data that it holds; no shard is read."""
    for path in (kinds / name).rglob("*"):
        if path.is_file():
            gcs.put(f"mirror/{path.relative_to(kinds).as_posix()}", path.read_bytes(), None)
    values = {"dataset": name, "train_split": SPLITS[0], "validation_split": SPLITS[1], "test_split": SPLITS[2]}
    mirror, local = (
        found_by(lambda place=place: checks.data(Settings(**values, data_dir=place)))
        for place in (f"gs://{BUCKET}/mirror", str(kinds))
    )
    assert mirror == local
    assert not [read for kind, read in gcs.requests if kind == "read" and "tfrecord" in read]
