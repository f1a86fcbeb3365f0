"""What the workers of a run compute together: sums over all of them, with TensorFlow's own strategy.

`tf.distribute.MultiWorkerMirroredStrategy` gives the collective operations: NCCL between GPUs, rings over gRPC between
processors. Variables are plain ones, a copy on each worker, and stay equal because every worker applies the same sum of
gradients; variables of the strategy's own cost five times the tracing (TensorFlow 2.21), and `fit` of Keras 3 does not
know it.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from job import memory
from job.train import connection, device
from job.workers.addresses import Addresses
from job.workers.team import Team

OF_PEERS = (
    tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.CancelledError, tf.errors.DeadlineExceededError,
    tf.errors.InternalError, tf.errors.UnknownError,
)  # fmt: skip
"""How TensorFlow reports that a worker is gone: as Unavailable and DeadlineExceeded on a CPU (2.21)."""


class Collective:
    """The sums of a team; of a team of one they are the values themselves, without a strategy."""

    def __init__(self, team: Team, strategy: tf.distribute.Strategy | None = None) -> None:
        self.team = team
        self.share = team.share
        self._strategy = strategy
        self._totals: dict[tf.TensorSpec, Callable[..., tf.Tensor]] = {}

    def together(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, in which `summed` may be used, for the graph of a `tf.function`."""
        strategy = self._strategy
        return function if strategy is None else lambda *args: strategy.run(function, args=args)

    def step(self, function: Callable[..., Any], signature: Sequence[tf.TensorSpec]) -> Callable[..., Any]:
        """A function that is done `together`, traced once."""
        return tf.function(self.together(function), input_signature=signature, autograph=False)

    def summed(self, tensors: Sequence[tf.Tensor]) -> Sequence[tf.Tensor]:
        """In a function that is done `together`: each tensor summed over the workers, all in one operation.

        Of several operations, some could be done and some not when a worker dies.
        """
        if self._strategy is None:
            return tensors
        # An argument of the step cannot be summed as it is.
        return tf.distribute.get_replica_context().all_reduce("SUM", [tf.identity(tensor) for tensor in tensors])

    def total(self, values: np.ndarray) -> np.ndarray:
        """The sum of float arrays of one shape over the workers; waits for them. Raises as `Team.failed` does."""
        found = self._total(values)
        self.confirm()
        return found

    def confirm(self) -> None:
        """Wait until every worker has all sums so far. Raises as `Team.failed` does.

        Between GPUs a sum that is broken off, as a worker is gone, counts as done (TensorFlow 2.21), with numbers that
        are no sum; only the next one fails.
        """
        self._total(np.zeros(1))

    def _total(self, values: np.ndarray) -> np.ndarray:
        if self._strategy is None:
            return values
        spec = tf.TensorSpec(values.shape, values.dtype)
        if spec not in self._totals:
            self._totals[spec] = self.step(lambda value: self.summed([value])[0], [spec])
        with self.explained():
            return np.asarray(self._totals[spec](tf.constant(values)))

    @contextlib.contextmanager
    def explained(self) -> Iterator[None]:
        """Turn an error of TensorFlow's inside into that of the worker that is its cause."""
        try:
            yield
        except OF_PEERS as error:
            if memory.is_exhausted(error):
                raise  # Its cause is here.
            cause = self.team.failed(error)
            if cause is error:
                raise
            raise cause from error


def assemble(team: Team, addresses: Addresses) -> Collective:
    """The collective of workers that have met. Call it before TensorFlow has done anything else in this process.

    Raises as `Team.check` does, while it waits for the others.
    """
    share = team.share
    if share.num_workers == 1:
        return Collective(team)
    has_gpu = device.gpu() is not None
    resolver = cluster_resolver(addresses, worker=share.worker, has_gpu=has_gpu)
    implementation = tf.distribute.experimental.CommunicationImplementation
    options = tf.distribute.experimental.CommunicationOptions(
        implementation=implementation.NCCL if has_gpu else implementation.RING
    )
    with Collective(team).explained(), connection.interruptible(team.check):
        return Collective(team, tf.distribute.MultiWorkerMirroredStrategy(resolver, options))


def cluster_resolver(
    addresses: Addresses, *, worker: int, has_gpu: bool
) -> tf.distribute.cluster_resolver.SimpleClusterResolver:
    """One device for each worker: this resolver looks for no GPU by itself, and without one the CPU would compute."""
    tasks = [_joined(*addresses.tensors(other)) for other in range(len(addresses.hosts))]
    return tf.distribute.cluster_resolver.SimpleClusterResolver(
        tf.train.ClusterSpec({"worker": tasks}), task_type="worker", task_id=worker, rpc_layer="grpc",
        num_accelerators={"GPU": 1} if has_gpu else {},
    )  # fmt: skip


def _joined(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
