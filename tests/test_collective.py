"""What workers compute together, as far as one process shows it; test_team has the rest."""

from typing import Any

import pytest
from tensorflow.python.distribute import collective_all_reduce_strategy

from job.train.collective import _resolver
from job.workers.addresses import Addresses


@pytest.mark.parametrize(("has_gpu", "device"), [(True, "GPU"), (False, "CPU")])
def test_a_worker_computes_on_one_gpu_where_there_are_any(has_gpu: bool, device: str) -> None:
    """However many the process sees: the strategy takes what the resolver names, and the CPU when that names none."""
    resolver = _resolver(Addresses(("a", "b"), 2222), worker=1, has_gpu=has_gpu)
    extended: Any = collective_all_reduce_strategy.CollectiveAllReduceExtended
    found = extended._initialize_local_devices(None, resolver, "/job:worker/task:1")
    assert found == ((f"/job:worker/task:1/device:{device}:0",), device)
    assert resolver.cluster_spec().as_dict() == {"worker": ["a:2223", "b:2224"]}
