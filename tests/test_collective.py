"""What workers compute together, as far as one process shows it; test_team has the rest."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.distribute import collective_all_reduce_strategy

from job.errors import PeerLost
from job.train.collective import Collective, cluster_resolver
from job.workers.addresses import Addresses
from job.workers.team import Alone
from tests.runs import never


@pytest.mark.parametrize(("has_gpu", "device"), [(True, "GPU"), (False, "CPU")])
def test_a_worker_computes_on_one_gpu_where_there_are_any(has_gpu: bool, device: str) -> None:
    """However many the process sees: the strategy takes what the resolver names, and the CPU when that names none."""
    resolver = cluster_resolver(Addresses(("a", "b"), 2222), worker=1, has_gpu=has_gpu)
    extended: Any = collective_all_reduce_strategy.CollectiveAllReduceExtended
    found = extended._initialize_local_devices(None, resolver, "/job:worker/task:1")
    assert found == ((f"/job:worker/task:1/device:{device}:0",), device)
    assert resolver.cluster_spec().as_dict() == {"worker": ["a:2223", "b:2224"]}


class Waiting(Alone):
    def failed(self, error: Exception) -> Exception:
        raise AssertionError("asks the others")


def test_memory_that_is_exhausted_here_is_not_blamed_on_others() -> None:
    """A GPU reports it as one of the errors by which a lost worker shows too."""
    error = tf.errors.InternalError(None, None, "Dst tensor is not initialized.")
    with pytest.raises(tf.errors.InternalError) as raised, Collective(Waiting(never)).explained():
        raise error
    assert raised.value is error


class Left(Alone):
    def failed(self, error: Exception) -> Exception:
        return PeerLost("worker 1 is gone")


class BrokenOff(Collective):
    """As between GPUs when a worker goes: the sum under way counts as done, and the next one fails."""

    def summed(self, tensors: Sequence[tf.Tensor]) -> Sequence[tf.Tensor]:
        if tensors[0].shape == (1,):
            raise tf.errors.UnavailableError(None, None, "connection reset")
        return tensors


def test_a_sum_is_believed_only_when_the_next_one_is_done() -> None:
    """Otherwise numbers that are no sum would be the result of a run."""
    with pytest.raises(PeerLost, match="worker 1 is gone"):
        BrokenOff(Left(never), tf.distribute.OneDeviceStrategy("/cpu:0")).total(np.ones(3))
