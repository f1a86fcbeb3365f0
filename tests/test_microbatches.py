"""A batch in parts: the same step but for rounding, whatever their size; and as exact as any run, also in float16."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from job.data.splits import Splits
from job.phases import Phase
from job.storage import LocalStore
from job.train.state import PhaseState
from job.train.step import Recipe, train_steps
from tests.classifiers import ALONE, build
from tests.conftest import slowly
from tests.one_epoch import FINE_TUNE, HEAD, MIXED, trained
from tests.processes import Environment, result
from tests.runs import Small, record_of, result_of, start, stop
from tests.teams import TeamRun

pytestmark = pytest.mark.usefixtures("_deterministic")


@pytest.mark.parametrize("phase", [HEAD, *slowly(FINE_TUNE)], ids=lambda phase: phase.name)
@pytest.mark.parametrize("recipe", [{}, pytest.param(MIXED, marks=pytest.mark.slow)], ids=["plain", "mixed"])
@pytest.mark.parametrize("size", [5, *slowly(8, 1)])
def test_a_step_is_that_of_the_whole_batch(splits: Splits, phase: Phase, recipe: dict[str, Any], size: int) -> None:
    """Of parts that come out even, of some that do not, and of single images; the draws of each image are its own."""
    whole, losses = trained(splits, phase, **recipe)
    arrays, own_losses = trained(splits, phase, microbatch_size=size, **recipe)
    np.testing.assert_allclose(own_losses, losses, rtol=1e-5)
    for name, expected in whole.items():
        np.testing.assert_allclose(arrays[name], expected, rtol=1e-3, atol=2e-5, err_msg=name)


@pytest.mark.slow
def test_parts_that_are_not_smaller_change_no_bit(splits: Splits) -> None:
    whole, losses = trained(splits, FINE_TUNE)
    arrays, own_losses = trained(splits, FINE_TUNE, microbatch_size=16)
    assert own_losses == losses
    for name, expected in whole.items():
        np.testing.assert_array_equal(arrays[name], expected, err_msg=name)


def test_a_worker_without_a_row_of_a_batch_adds_nothing() -> None:
    """Its gradient is 0, and so are its sums."""
    state = PhaseState(build(), FINE_TUNE)
    before = state.arrays()
    call = train_steps(state, state.classifier.features_training(0), Recipe(16, 0, xla=False, microbatch_size=4), ALONE)
    size = state.classifier.image_size
    totals, _ = call(
        tf.constant([[1, 2]]), tf.constant([[0, 0, 8, 0]]), tf.constant([1e-3]), tf.zeros([3], tf.float64),
        tf.constant(0.0), tf.zeros([1, size, size, 3], tf.uint8), tf.zeros([1], tf.int32),
    )  # fmt: skip
    assert totals.numpy().tolist() == [0, 0, 0]
    after = state.arrays()
    for name in state.classifier.named_variables():
        np.testing.assert_array_equal(after[name], before[name], err_msg=name)


@pytest.mark.slow
def test_several_steps_a_call_change_no_bit(splits: Splits) -> None:
    """Loops in a loop."""
    one, losses = trained(splits, FINE_TUNE, microbatch_size=5)
    several, own_losses = trained(splits, FINE_TUNE, microbatch_size=5, steps_per_execution=4)
    assert own_losses == losses
    for name, expected in one.items():
        np.testing.assert_array_equal(several[name], expected, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{"microbatch_size": 3}, {"precision": "float16"}], ids=["parts", "float16"])
def test_a_run_that_is_stopped_ends_with_the_same_bits(
    small: Small, store: LocalStore, tmp_path: Path, changes: dict[str, Any]
) -> None:
    """With the same parts, and with the loss scale that it had."""
    settings = small(**changes)
    whole = LocalStore(tmp_path / "whole")
    start(settings, whole)
    stop(settings, store, "fine_tune", 1)
    start(settings, store)
    assert result_of(store) == result_of(whole)


@pytest.mark.slow
def test_a_run_may_go_on_in_smaller_parts(small: Small, store: LocalStore) -> None:
    """As one does that was ended for memory: the size of the parts is no part of its identity."""
    stop(small(), store, "fine_tune", 1)
    start(small(microbatch_size=2), store)
    assert record_of(store).state == "done"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("num_workers", "changes"),
    [(3, {"microbatch_size": 2}), (2, {"microbatch_size": 3, "precision": "float16"})],
    ids=["parts", "float16"],
)
def test_workers_compute_their_rows_in_parts(
    environment: Environment, tmp_path: Path, num_workers: int, changes: dict[str, Any]
) -> None:
    """Two runs have the same bits: of three workers, of which the last has no row of the last batch, and of two, which
    decide alike whether a step in float16 counts.
    """
    short = {"head_epochs": 1, "fine_tune_epochs": 1}
    envs = [environment(**short, **changes, storage_uri=tmp_path / name) for name in ("one", "two")]
    for env in envs:
        with TeamRun(env, num_workers) as team:
            assert team.codes() == [0] * num_workers, team.told()
    assert result(envs[1]) == result(envs[0])
