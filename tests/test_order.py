"""The order of own images: the same for the same images, every class in every slice, the same image on one side."""

import hashlib

import numpy as np
import pytest

from job.data.files.order import cut, shuffled

FEW = [0] * 60 + [1] * 30 + [2] * 10 + [3]


def digests_of(contents: list[int]) -> np.ndarray:
    return np.array([list(hashlib.sha256(bytes([content])).digest()) for content in contents], np.uint8)


def test_the_order_depends_on_the_images_alone() -> None:
    """However they were listed."""
    labels, digests = np.array(FEW, np.int32), digests_of(list(range(len(FEW))))
    listed = np.random.default_rng(0).permutation(len(FEW))
    for stratify in (True, False):
        expected = digests[shuffled(labels, digests, stratify=stratify)]
        other = digests[listed][shuffled(labels[listed], digests[listed], stratify=stratify)]
        np.testing.assert_array_equal(expected, other)


@pytest.mark.parametrize(("start", "stop"), [(0, 40), (40, 50), (50, 60), (60, 100)])
def test_each_slice_has_its_share_of_every_class(start: int, stop: int) -> None:
    """To within one image; of a class with one image, the first slice has it."""
    labels = np.array(FEW, np.int32)
    order = shuffled(labels, digests_of(list(range(len(FEW)))), stratify=True)
    part = labels[order[round(start * len(FEW) / 100) : round(stop * len(FEW) / 100)]]
    for label, count in enumerate(np.bincount(labels)[:3]):
        assert abs((part == label).sum() - count * (stop - start) / 100) <= 1
    assert (3 in part) == (start == 0)


def test_without_stratify_the_order_is_that_of_the_digests() -> None:
    """Sorted folders do not matter."""
    digests = digests_of(list(range(100)))
    order = shuffled(np.repeat([0, 1], 50).astype(np.int32), digests, stratify=False)
    assert [bytes(row) for row in digests[order]] == sorted(bytes(row) for row in digests)


@pytest.mark.parametrize("stratify", [True, False])
def test_the_same_image_is_never_on_both_sides_of_a_cut(stratify: bool) -> None:
    """Also where its copies have different labels."""
    contents = [index // 3 for index in range(90)]
    digests, labels = digests_of(contents), np.arange(90, dtype=np.int32) % 2
    ordered = digests[shuffled(labels, digests, stratify=stratify)]
    for position in range(91):
        place = cut(position, ordered)
        assert position - 3 < place <= position
        assert not {bytes(row) for row in ordered[:place]} & {bytes(row) for row in ordered[place:]}
    assert (cut(0, ordered), cut(90, ordered)) == (0, 90)
