"""The order of an epoch: every example once, for ever the same, and the same examples in every epoch of a worker."""

from typing import Any

import numpy as np
import pytest

from job.data.order import Portion, epoch_order, evaluated, num_batches, own_rows, owned, permutation
from job.workers.share import Share

SIZES = [(1, 1), (3, 8), (8, 8), (40, 16), (41, 5), (100, 7), (1000, 32)]
"""Examples and rows of a batch: with a partial batch, without one, and less than one batch."""


def shares(num_workers: int) -> list[Share]:
    return [Share(worker, num_workers) for worker in range(num_workers)]


def test_the_order_is_a_permutation_that_is_fixed_for_all_time() -> None:
    """A run may be continued by another version of NumPy: these numbers must never change."""
    assert epoch_order(10, batch_size=4, seed=0, phase="head", epoch=0).tolist() == [8, 7, 2, 4, 0, 5, 1, 6, 3, 9]
    assert epoch_order(10, batch_size=4, seed=0, phase="head", epoch=1).tolist() == [3, 7, 1, 6, 8, 9, 2, 4, 0, 5]
    assert permutation(10, "report/0").tolist() == [2, 6, 5, 1, 3, 7, 4, 0, 8, 9]
    base = {"batch_size": 32, "seed": 0, "phase": "head", "epoch": 0}
    others: tuple[dict[str, Any], ...] = ({}, {"batch_size": 31}, {"seed": 1}, {"phase": "fine_tune"}, {"epoch": 1})
    orders = [tuple(epoch_order(1000, **(base | other)).tolist()) for other in others]
    assert len(set(orders)) == 5
    assert all(sorted(order) == list(range(1000)) for order in orders)


@pytest.mark.parametrize("num_workers", [1, 2, 3, 4, 5])
@pytest.mark.parametrize(("num_examples", "batch_size"), SIZES)
def test_a_worker_has_its_rows_of_every_batch_and_needs_no_others(
    num_examples: int, batch_size: int, num_workers: int
) -> None:
    """In every epoch of every phase; together the workers have each example once."""
    sets = [owned(num_examples, batch_size=batch_size, seed=3, share=share) for share in shares(num_workers)]
    assert sorted(np.concatenate(sets).tolist()) == list(range(num_examples))
    for found in sets:
        assert (np.diff(found) > 0).all()
        assert len(found) <= -(-batch_size // num_workers) * num_batches(num_examples, batch_size)
    for phase in ("head", "fine_tune"):
        for epoch in range(3):
            order = epoch_order(num_examples, batch_size=batch_size, seed=3, phase=phase, epoch=epoch)
            assert sorted(order.tolist()) == list(range(num_examples))
            batches = [order[start : start + batch_size] for start in range(0, num_examples, batch_size)]
            for share, found in zip(shares(num_workers), sets, strict=True):
                rows = np.concatenate([batch[share.rows(batch_size, len(batch))] for batch in batches])
                assert sorted(rows.tolist()) == found.tolist()
                assert own_rows(order, batch_size=batch_size, share=share).tolist() == rows.tolist()


def test_every_two_examples_of_different_columns_meet() -> None:
    """In 200 epochs with ten batches each about twenty times; two of one column never do."""
    met = np.zeros((40, 40), int)
    for epoch in range(200):
        for batch in epoch_order(40, batch_size=4, seed=0, phase="head", epoch=epoch).reshape(-1, 4):
            met[np.ix_(batch, batch)] += 1
    column_of = np.empty(40, int)
    for column, share in enumerate(shares(4)):
        column_of[owned(40, batch_size=4, seed=0, share=share)] = column
    different = column_of[:, None] != column_of[None, :]
    assert 5 <= met[different].min() <= met[different].max() <= 40
    assert (met[~different] == 200 * np.eye(40, dtype=int)[~different]).all()


@pytest.mark.parametrize("num_workers", [1, 2, 3, 5])
@pytest.mark.parametrize(("num_examples", "batch_size"), SIZES)
def test_an_evaluation_is_divided_by_whole_batches(num_examples: int, batch_size: int, num_workers: int) -> None:
    """In order, none twice: logits of the workers one after the other are those of all examples."""
    parts = [evaluated(num_examples, batch_size=batch_size, share=share) for share in shares(num_workers)]
    assert np.concatenate(parts).tolist() == list(range(num_examples))
    assert all(part[0] % batch_size == 0 for part in parts if len(part))
    sizes = [num_batches(len(part), batch_size) for part in parts]
    assert max(sizes) - min(sizes) <= 1


def test_a_portion_is_of_the_batches_of_each_split() -> None:
    """Test has a batch size of its own."""
    share = Share(1, 2)
    portion = Portion(share=share, batch_size=8, evaluation_batch_size=4, seed=7)
    assert portion.of("train", 40).tolist() == owned(40, batch_size=8, seed=7, share=share).tolist()
    assert portion.of("validation", 20).tolist() == [16, 17, 18, 19]
    assert portion.of("test", 20).tolist() == list(range(12, 20))
