"""All that changes while a phase trains, as arrays by name: the content of a checkpoint. Neither trains nor stores."""

import contextlib
from collections.abc import Iterator

import keras
import numpy as np
import tensorflow as tf

from job.errors import InputError
from job.model.classifier import Classifier
from job.phases import Phase
from job.train.loss import means_of
from job.train.optimizer import LossScaling, optimizer_of


class PhaseState:
    """All that changes while a phase trains: the model's variables, the optimizer's, and the epoch's sums.

    The layers of the backbone from `first` on train, with the head. Those from `changed_from` on differ from the
    pre-trained ones, and are in the checkpoint. `totals` float64 [3] are running sums over the examples of an epoch, on
    the device: loss, correct answers, examples.
    """

    def __init__(self, classifier: Classifier, phase: Phase, *, changed_from: int | None = None) -> None:
        self.classifier = classifier
        self.phase = phase
        self.first = classifier.first_trained(phase.unfreeze)
        self.variables = classifier.trainable_variables(self.first)
        self._changed_from = self.first if changed_from is None else changed_from
        self.optimizer = optimizer_of(phase, self.variables)
        if classifier.is_float16:
            self.optimizer = LossScaling(self.optimizer)
            self.optimizer.build(self.variables)
        self.totals = tf.zeros([3], tf.float64)

    @property
    def trains_backbone(self) -> bool:
        return self.first < self.classifier.num_layers

    @property
    def learning_rate(self) -> float:
        """That of the last step, which is a variable of the optimizer; this waits for the device."""
        return float(self.optimizer.learning_rate.numpy())

    @property
    def num_overflows(self) -> int:
        """The steps in a row, up to the last one, that float16 left out; waits for the device."""
        return self.optimizer.num_overflows if isinstance(self.optimizer, LossScaling) else 0

    def running_means(self) -> tuple[float, float]:
        """Mean loss and accuracy of the epoch so far; waits for the device."""
        return means_of(self.totals.numpy())

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside, the model has the moving averages of its weights, if the phase keeps such."""
        if self.phase.ema_decay == 0:
            yield
            return
        raw = [tf.identity(variable.value) for variable in self.variables]
        self.finish()
        try:
            yield
        finally:
            for variable, value in zip(self.variables, raw, strict=True):
                variable.assign(value)

    def finish(self) -> None:
        """The phase is over: moving averages of the weights, if it keeps such, are the model's from now on."""
        if self.phase.ema_decay > 0:
            self.optimizer.finalize_variable_values(self.variables)

    def arrays(self) -> dict[str, np.ndarray]:
        """The state as it is now, by name, read-only; kilobytes in the head phase, as the backbone does not change.

        On a CPU nothing is copied here: tensors are immutable, and a variable whose value is still in use elsewhere
        moves to new memory when it is next written.
        """
        arrays = {
            name: np.asarray(memoryview(tf.convert_to_tensor(variable.value)))
            for name, variable in self._named_variables().items()
        }
        arrays["totals"] = np.array(self.totals.numpy())
        return arrays

    def load(self, arrays: dict[str, np.ndarray], *, step: int) -> None:
        """Continue from `arrays`, which hold the state after `step` steps of this phase.

        Raises InputError when they are not those of this model.
        """
        for name, variable in self._named_variables().items():
            variable.assign(_fitting(arrays, name, tuple(variable.shape), variable.dtype))
        self.totals = tf.constant(_fitting(arrays, "totals", (3,), "float64"))
        iterations = int(self.optimizer.iterations.numpy())
        if iterations != step:
            raise _other_model(f"the optimizer of {self.phase.name} is at step {iterations}, expected {step}")

    def _named_variables(self) -> dict[str, keras.Variable]:
        # By number: the names of slots contain names of layers, which depend on what else the process has built.
        slots = {f"optimizer/{index:03d}": variable for index, variable in enumerate(self.optimizer.variables)}
        return self.classifier.named_variables(self._changed_from) | slots


def _fitting(arrays: dict[str, np.ndarray], name: str, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    array = arrays.get(name)
    if array is None:
        raise _other_model(f"{name} is missing")
    if (array.shape, str(array.dtype)) != (shape, dtype):
        raise _other_model(f"{name} is {array.dtype} of shape {array.shape}, expected {dtype} of {shape}")
    return array


def _other_model(problem: str) -> InputError:
    return InputError(
        f"the checkpoint is not of this model: {problem}",
        hint="if another version of the program wrote it, use that one; else give the run another THAW_RUN_ID",
    )
