"""Mixing of images: the numbers of the papers, pure functions of a seed, alike for any number of workers."""

from itertools import pairwise

import keras
import numpy as np
import pytest
import tensorflow as tf

from job.model.augmentation import Rows
from job.model.mixing import beta_shares, cutmix, mix, mixup

MANY = 20_000


@pytest.fixture(scope="module")
def images() -> tuple[np.ndarray, np.ndarray]:
    """Images, and their partners."""
    own, partners = np.random.default_rng(0).integers(0, 256, (2, 64, 15, 21, 3), dtype=np.uint8)
    return own, partners


def seed(a: int, b: int) -> tf.Tensor:
    return tf.constant([a, b], tf.int32)


def shares_of(alpha: float, number: int = MANY, rows: Rows | None = None, last: int = 2) -> np.ndarray:
    return beta_shares(alpha, seed(1, last), rows or Rows(0, number), tf.zeros([number])).numpy()


@pytest.mark.parametrize("alpha", [0.2, 0.4, 1.0, 8.0])
def test_shares_have_the_quantiles_of_a_beta_distribution(alpha: float) -> None:
    """Those of as many draws by NumPy."""
    at = np.linspace(0.05, 0.95, 19)
    expected = np.quantile(np.random.default_rng(0).beta(alpha, alpha, 200_000), at)
    np.testing.assert_allclose(np.quantile(shares_of(alpha), at), expected, atol=0.02)


@pytest.mark.parametrize("alpha", [5e-324, 1e-308, 1e-6, 1e-3])
def test_a_very_small_alpha_gives_one_image_or_the_other(alpha: float) -> None:
    """Both gamma variables are 0 in float64: what is left is a coin, and no NaN or half."""
    shares = shares_of(alpha)
    assert np.mean((shares < 0.01) | (shares > 0.99)) > 0.98
    assert shares.mean() == pytest.approx(0.5, abs=0.02)


def test_shares_are_a_function_of_the_seed_and_the_example() -> None:
    """The same for the rows of a worker as for the whole batch; others with another seed."""
    whole = shares_of(0.4, 64)
    np.testing.assert_array_equal(shares_of(0.4, 21, Rows(30, 64)), whole[30:51])
    assert whole.dtype == np.float32
    assert not np.isin(shares_of(0.4, 64, last=3), whole).any()


def test_mixup_blends_as_keras_does(images: tuple[np.ndarray, np.ndarray]) -> None:
    """The pixels of `keras.layers.MixUp` with the same shares and partners, and the shares as they were."""
    own, partners = images
    shares = shares_of(0.4, 64)
    both = np.concatenate([own, partners]).astype(np.float32)
    transformation = {
        "mix_weight": np.tile(shares, 2)[:, None, None, None],
        "permutation_order": np.roll(range(128), 64),
    }
    expected = keras.layers.MixUp().transform_images(tf.constant(both), transformation)[:64]
    mixed, left = mixup(own, partners, tf.constant(shares))
    np.testing.assert_allclose(mixed, expected, atol=1e-3)
    np.testing.assert_array_equal(left, shares)


def box_of_the_paper(height: int, width: int, share: np.float32, centre: tuple[int, int]) -> tuple[int, ...]:
    """`rand_bbox` of the authors (github.com/clovaai/CutMix-PyTorch, train.py), with a given centre."""
    ratio = np.sqrt(np.float32(1) - share)
    ends = []
    for size, middle in zip((height, width), centre, strict=True):
        cut = int(size * ratio)
        ends += [np.clip(middle - cut // 2, 0, size), np.clip(middle + cut // 2, 0, size)]
    return tuple(ends)


def test_cutmix_pastes_the_box_of_the_paper(images: tuple[np.ndarray, np.ndarray]) -> None:
    """There is a centre for which it is the authors' box, whose real area is the share; all else is as it was."""
    own, partners = images
    shares = shares_of(1.0, 64)
    mixed, left = (value.numpy() for value in cutmix(own, partners, tf.constant(shares), seed(3, 4), Rows(0, 64)))
    for image, partner, share, result, rest in zip(own, partners, shares, mixed, left, strict=True):
        boxes = {box_of_the_paper(15, 21, share, (y, x)) for y in range(15) for x in range(21)}
        candidates = []
        for top, bottom, start, end in boxes:
            expected = image.copy()
            expected[top:bottom, start:end] = partner[top:bottom, start:end]
            if np.array_equal(expected, result):
                candidates.append(1 - (bottom - top) * (end - start) / (15 * 21))
        assert rest == pytest.approx(candidates[0], abs=1e-6)


def test_the_boxes_lie_anywhere(images: tuple[np.ndarray, np.ndarray]) -> None:
    """A small box: each third of rows and of columns has its part of the centres."""
    own, partners = np.zeros((600, 15, 21, 1), np.uint8), np.ones((600, 15, 21, 1), np.uint8)
    mixed, _ = cutmix(own, partners, tf.fill([600], 0.96), seed(3, 4), Rows(0, 600))
    pasted = mixed.numpy()[..., 0].sum(axis=0)
    for axis, size in ((0, 15), (1, 21)):
        parts = [pasted.take(range(*ends), axis=axis).sum() for ends in pairwise(np.linspace(0, size, 4, dtype=int))]
        assert min(parts) > 0.8 * pasted.sum() / 3


@pytest.mark.parametrize(("share", "expected"), [(1.0, 0), (0.0, 1)])
def test_the_extremes_are_the_images_themselves(
    images: tuple[np.ndarray, np.ndarray], share: float, expected: int
) -> None:
    """A share of 1 keeps every pixel; of mixup, a share of 0 takes every pixel of the other."""
    shares = tf.fill([64], share)
    np.testing.assert_array_equal(mixup(*images, shares)[0], images[expected])
    if share == 1:
        mixed, left = cutmix(*images, shares, seed(0, 0), Rows(0, 64))
        np.testing.assert_array_equal(mixed, images[0])
        np.testing.assert_array_equal(left, shares)


def test_boxes_are_alike_however_many_share_the_batch(images: tuple[np.ndarray, np.ndarray]) -> None:
    """Drawn for the whole batch: a part of it gets its own, an empty part nothing."""
    shares = tf.constant(shares_of(1.0, 64))
    whole = cutmix(*images, shares, seed(3, 4), Rows(0, 64))
    for start, stop in ((0, 21), (21, 64), (64, 64)):
        own, partners = (each[start:stop] for each in images)
        part = tf.function(cutmix)(own, partners, shares[start:stop], seed(3, 4), Rows(start, 64))
        for got, expected in zip(part, whole, strict=True):
            np.testing.assert_array_equal(got, expected[start:stop])
    other = cutmix(*images, shares, seed(3, 5), Rows(0, 64))
    assert not np.array_equal(other[0], whole[0])


def test_with_both_each_image_is_mixed_in_one_way() -> None:
    """Half of them by each: two values are a box, one is a blend; the shares are those of the pixels."""
    own, partners = np.ones((400, 12, 12, 1), np.uint8), np.zeros((400, 12, 12, 1), np.uint8)
    options = {"mixup_alpha": 1.0, "cutmix_alpha": 1.0, "seed": seed(5, 6)}
    mixed, shares = (value.numpy() for value in mix(own, partners, rows=Rows(0, 400), **options))
    np.testing.assert_allclose(shares, mixed.mean((1, 2, 3)), atol=1e-6)
    is_blended = mixed.max((1, 2, 3)) < 1
    assert np.ptp(mixed[is_blended], axis=(1, 2, 3)).max() == 0
    assert set(np.unique(mixed[~is_blended])) == {0, 1}
    assert is_blended.mean() == pytest.approx(0.5, abs=0.1)
    part, part_shares = mix(own[30:51], partners[30:51], rows=Rows(30, 400), **options)
    np.testing.assert_array_equal(part, mixed[30:51])
    np.testing.assert_array_equal(part_shares, shares[30:51])


@pytest.mark.parametrize(("alphas", "num_values"), [((1.0, 0.0), 1), ((0.0, 1.0), 2)])
def test_with_one_every_image_is_mixed_in_that_way(alphas: tuple[float, float], num_values: int) -> None:
    """A blend of two plain images has one value, a box in one of them two, where it is not empty."""
    own, partners = np.ones((64, 12, 12, 1), np.uint8), np.zeros((64, 12, 12, 1), np.uint8)
    mixup_alpha, cutmix_alpha = alphas
    mixed, _ = mix(own, partners, mixup_alpha=mixup_alpha, cutmix_alpha=cutmix_alpha, seed=seed(5, 6), rows=Rows(0, 64))
    assert {len(np.unique(image)) for image in mixed.numpy()} <= {1, num_values}
    assert (len(np.unique(mixed)) == 2) == (num_values == 2)
