"""What a checkpoint holds: the same names in every process, whatever else it has built."""

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from job.errors import InputError
from job.phases import Phase
from job.train.state import PhaseState
from tests.classifiers import build


def new_state(unfreeze: str, **changes: Any) -> PhaseState:
    return PhaseState(build(**changes), Phase(name="head", unfreeze=unfreeze, learning_rate=1e-3, epochs=1))


@pytest.mark.parametrize("unfreeze", ["none", "top:5", "all"])
def test_names_do_not_depend_on_what_the_process_has_built(unfreeze: str) -> None:
    """Keras numbers its layers and optimizers as it goes; a restart must find what was committed."""
    arrays = new_state(unfreeze).arrays()
    keras.layers.Conv2D(1, 1)
    keras.optimizers.Adam()
    again = new_state(unfreeze)
    assert list(again.arrays()) == list(arrays)
    again.load(arrays, step=0)


@pytest.mark.parametrize("unfreeze", ["none", "top:5", "all"])
def test_what_was_read_does_not_change_with_the_variables(unfreeze: str) -> None:
    """Training goes on while it is uploaded: steps of the optimizer, and values that are assigned."""
    state = new_state(unfreeze)
    step = tf.function(
        lambda: state.optimizer.apply([tf.ones_like(variable.value) for variable in state.variables], state.variables),
        autograph=False,
    )
    step()
    arrays = state.arrays()
    before = {name: array.copy() for name, array in arrays.items()}
    step()
    for variable in state.variables:
        variable.assign(variable + 1.0)
    step()
    assert all(np.array_equal(arrays[name], before[name]) for name in arrays)
    assert not any(np.array_equal(arrays[name], array) for name, array in state.arrays().items() if "kernel" in name)


def test_what_was_read_cannot_be_written() -> None:
    """It may be the memory of a variable."""
    with pytest.raises(ValueError, match="read-only"):
        new_state("none").arrays()["head/kernel"][:] = 0


def test_a_checkpoint_of_another_step_is_refused() -> None:
    """The optimizer's own count must agree."""
    state = new_state("none")
    with pytest.raises(InputError, match="is at step 0, expected 3"):
        state.load(state.arrays(), step=3)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("head/kernel", None, "head/kernel is missing"),
        ("head/kernel", np.zeros((1, 1), np.float32), r"head/kernel is float32 of shape \(1, 1\), expected float32 of"),
        ("optimizer/001", np.zeros((), np.int8), "optimizer/001 is int8"),
        ("totals", np.zeros(2), r"totals is float64 of shape \(2,\), expected float64 of \(3,\)"),
    ],
)
def test_a_checkpoint_of_another_model_is_refused(name: str, value: np.ndarray | None, expected: str) -> None:
    """With the array that does not fit; training on from it would be another run."""
    state = new_state("none")
    arrays = state.arrays()
    if value is None:
        del arrays[name]
    else:
        arrays[name] = value
    with pytest.raises(InputError, match=expected):
        state.load(arrays, step=0)


def test_what_the_head_phase_keeps_of_xception_is_small() -> None:
    """The backbone does not change: a checkpoint has the head and its optimizer, and a commit stays under 200 kB."""
    arrays = new_state("none", backbone="Xception", image_size=71).arrays()
    assert 0 < sum(array.nbytes for array in arrays.values()) < 50_000
