"""What the splits are made of: what means nothing is refused, what is doubtful is a warning, what differs is named."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from job.data.composition import Composition, Skipped, check_same, identity
from job.errors import InputError
from job.observe import data_events, events

CLASSES = ("disc", "bar")


def digests_of(*numbers: int) -> np.ndarray:
    """A digest for each number: uint8 [n, 32]."""
    return np.array([np.full(32, number) for number in numbers], dtype=np.uint8).reshape(-1, 32)


def of(
    train: list[int], validation: list[int], test: list[int], *, classes: tuple[str, ...] = CLASSES, shared: int = 0
) -> Composition:
    """Splits with these labels, whose images all differ but for the first `shared` of test, which are in train too."""
    labels = {"train": train, "validation": validation, "test": test}
    starts = {"train": 0, "validation": 120, "test": 160}
    digests = {name: digests_of(*range(starts[name], starts[name] + len(found))) for name, found in labels.items()}
    digests["test"][:shared] = digests["train"][:shared]
    return Composition.of(classes, {name: np.array(found, np.int32) for name, found in labels.items()}, digests)


BALANCED = [0, 1] * 10


def test_classes_are_counted_in_each_split_and_many_are_summed_up() -> None:
    """By name, with those that have none; a line of the log stays short."""
    few = of([0, 0, 1], [1, 0], [0, 1, 1, 1])
    assert few.as_json() == {
        "train": {"disc": 2, "bar": 1}, "validation": {"disc": 1, "bar": 1}, "test": {"disc": 1, "bar": 3}
    }  # fmt: skip
    assert few.summary() == few.as_json()
    many = of([0, 0, 1, 999], BALANCED, BALANCED, classes=tuple(f"class {number}" for number in range(1000)))
    assert many.summary()["train"] == {"num_classes": 3, "fewest": 0, "most": 2}


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (([0] * 5, [0, 1], [0, 1]), "train has one class only: disc (5)"),
        ((BALANCED, [1, 1], BALANCED), "validation has one class only: bar (2)"),
        ((BALANCED, BALANCED, [0]), "test has one class only: disc (1)"),
        (([0, 0], [1, 1], [1, 1]), "test has classes that train lacks: bar (2)"),
    ],
)
def test_a_split_without_a_class_that_counts_is_refused(labels: tuple[list[int], ...], expected: str) -> None:
    """As data that is sorted by class has them; the counts are in the message."""
    with pytest.raises(InputError) as caught:
        of(*labels).check()
    assert expected in caught.value.message
    assert "train has disc: " in caught.value.message
    assert "shuffle" in caught.value.hint


def test_images_that_were_left_out_are_the_reason_of_an_empty_split() -> None:
    skipped = tuple(Skipped("test", f"{number}.jpg", "is HEIC, which is not read", "") for number in range(2))
    with pytest.raises(InputError) as caught:
        replace(of(BALANCED, BALANCED, []), skipped=skipped).check()
    assert "  test has no image that can be used\n" in caught.value.message
    assert "  2 images cannot be read, and were left out (is HEIC: 2)\n" in caught.value.message


def test_what_is_merely_uneven_is_no_error() -> None:
    """Ten of one and a hundred of the other are learned."""
    found = of([0] * 100 + [1] * 10, [0] * 9 + [1], BALANCED)
    found.check()
    assert list(found.findings()) == []


THREE = (*CLASSES, "never")


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (of(BALANCED, BALANCED, BALANCED, classes=THREE),
         data_events.ClassMissing("train", num_classes=1, classes=["never"])),
        (of([*BALANCED, *[2] * 10], BALANCED, [0, 1, 2], classes=THREE),
         data_events.ClassMissing("validation", num_classes=1, classes=["never"])),
        (of([*BALANCED, 2], [0, 1, 2], [0, 1, 2], classes=THREE),
         data_events.ClassRare(fewer_than=10, num_classes=1, classes=["never"])),
        (of(BALANCED, BALANCED, BALANCED, shared=3),
         data_events.Duplicates(train_validation=0, train_test=3, validation_test=0)),
    ],
    ids=["in no split", "not in validation", "rare", "duplicates"],
)  # fmt: skip
def test_what_is_doubtful_is_a_warning(found: Composition, expected: events.Event) -> None:
    """One warning of a kind, and no error."""
    found.check()
    assert list(found.findings()) == [expected]


def data(
    labels: tuple[int, ...] = (0, 1, 0), images: tuple[int, ...] = (1, 2, 3), classes: tuple[str, ...] = CLASSES,
    name: str = "shapes/1.0.0",
) -> dict[str, Any]:  # fmt: skip
    """The identity of data whose test split is given; train and validation are always the same."""
    found = {split: np.array([0, 1], np.int32) for split in ("train", "validation")}
    digests = {split: digests_of(7, 8) for split in found}
    return identity(
        name, classes, found | {"test": np.array(labels, np.int32)}, digests | {"test": digests_of(*images)}
    )


def test_the_same_data_is_the_same() -> None:
    """Also for a run that has not begun with any."""
    check_same(data(), data())
    check_same(None, data())


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (data(labels=(1, 1, 0)), "test: as many examples, 3"),
        (data(images=(1, 2, 4)), "test: as many examples, 3"),
        (data(labels=(1, 0, 0), images=(2, 1, 3)), "test: as many examples, 3"),
        (data(labels=(0, 1), images=(1, 2)), "test: the run has 3 examples, this attempt 2"),
        (data(classes=("bar", "disc")), "class names"),
        (data(name="shapes/1.0.1"), "dataset: the run has shapes/1.0.0, this attempt shapes/1.0.1"),
    ],
    ids=["label", "byte", "order", "size", "names", "version"],
)
def test_other_data_is_refused_by_what_differs(found: dict[str, Any], expected: str) -> None:
    """And nothing else is named."""
    with pytest.raises(InputError) as caught:
        check_same(data(), found)
    (line,) = caught.value.message.splitlines()[1:]
    assert expected in line
