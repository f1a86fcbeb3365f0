"""Batches of one shape: rows that do not count change nothing but rounding, and the network meets one shape alone."""

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from job.data.splits import Splits
from job.phases import Phase
from job.train import fixed_shapes
from job.train.evaluation import forward_of
from job.train.fixed_shapes import padded
from job.train.state import PhaseState
from job.train.step import Recipe, train_steps
from tests.classifiers import ALONE, build
from tests.conftest import slowly
from tests.graphs import with_functions
from tests.one_epoch import FINE_TUNE, HEAD, MIXED, trained

pytestmark = pytest.mark.usefixtures("_deterministic")


def test_rows_of_zeros_follow() -> None:
    rows = tf.function(lambda rows: padded(rows, 4))(tf.ones([3, 2], tf.uint8))
    assert rows.numpy().tolist() == [[1, 1], [1, 1], [1, 1], [0, 0]]


@pytest.mark.parametrize("phase", [HEAD, *slowly(FINE_TUNE)], ids=lambda phase: phase.name)
@pytest.mark.parametrize("recipe", [{}, pytest.param(MIXED, marks=pytest.mark.slow)], ids=["plain", "mixed"])
def test_a_last_batch_that_is_smaller_gives_the_same(splits: Splits, phase: Phase, recipe: dict[str, Any]) -> None:
    """In training and in validation, whole and in parts of which the last is smaller too."""
    smaller, losses = trained(splits, phase, **recipe)
    for size in (None, 5):
        arrays, own_losses = trained(splits, phase, fixed_shapes=True, microbatch_size=size, **recipe)
        np.testing.assert_allclose(own_losses, losses, rtol=1e-5)
        assert arrays["totals"][2] == smaller["totals"][2] == 40
        for name, expected in smaller.items():
            np.testing.assert_allclose(arrays[name], expected, rtol=1e-3, atol=2e-5, err_msg=f"{name}, {size}")


@pytest.mark.parametrize(
    "recipe", [*slowly({}, {"microbatch_size": 3}), {"microbatch_size": 3, "steps_per_execution": 2}]
)
def test_the_network_meets_one_shape(recipe: dict[str, Any]) -> None:
    """Known when the step is traced, for the forward and the backward pass."""

    def first_dimensions(*, fixed_shapes: bool) -> set[int | None]:
        state = PhaseState(build(), FINE_TUNE)
        recipe_of_all = Recipe(8, 0, xla=False, fixed_shapes=fixed_shapes, **recipe)
        steps = train_steps(state, state.classifier.features_training(0), recipe_of_all, ALONE)
        return {
            operation.inputs[0].shape[0]
            for graph in with_functions(steps.get_concrete_function().graph)
            for operation in graph.get_operations()
            if operation.type == "Conv2D"
        }

    assert first_dimensions(fixed_shapes=False) == {None}
    assert first_dimensions(fixed_shapes=True) == {recipe.get("microbatch_size", 8)}


@pytest.mark.slow
def test_xla_gives_the_same(splits: Splits) -> None:
    """Compiled for whole batches, and for parts of them."""
    plain, losses = trained(splits, FINE_TUNE)
    for size in (None, 5):
        arrays, own_losses = trained(splits, FINE_TUNE, xla=True, fixed_shapes=True, microbatch_size=size)
        np.testing.assert_allclose(own_losses, losses, rtol=1e-4)
        for name, expected in plain.items():
            np.testing.assert_allclose(arrays[name], expected, rtol=2e-3, atol=1e-4, err_msg=f"{name}, {size}")


def test_an_evaluation_of_fewer_images_gives_their_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where there is a GPU, the model is given eight."""
    exported = build().export()
    images = np.random.default_rng(0).integers(0, 256, (5, *exported.input_shape[1:]), np.uint8)
    expected = forward_of(exported, at_once=8)(images)
    monkeypatch.setattr(fixed_shapes, "are_faster", lambda *, xla: True)
    logits = forward_of(exported, at_once=8)(images)
    assert logits.shape[0] == 5
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-6)
