"""What a GPU would do with the graph of a train step, by the kernels that TensorFlow has for GPUs; no GPU is needed.

It needs a TensorFlow that is built with CUDA, as in requirements/gpu.txt. A value that a GPU has computed and that a
kernel reads in the memory of the host makes the program wait for all that the GPU was given before.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.framework import kernels

from job.data.on_device import OnDevice
from job.model.augmentation_policy import Augmentation
from job.model.classifier import ModelRequest, build_classifier
from job.model.draws import HOST
from job.phases import Phase
from job.train.collective import Collective
from job.train.state import PhaseState
from job.train.step import Recipe, train_steps
from job.workers.team import Alone
from tests.graphs import with_functions

pytestmark = pytest.mark.skipif(
    not tf.test.is_built_with_cuda(), reason="this TensorFlow is built for processors alone"
)
ARTICLE = Augmentation(flip="horizontal", rotation=0.1)
MORE = Augmentation(
    flip="horizontal_and_vertical", rotation=0.1, zoom=0.1, translation=0.1, brightness=0.1, contrast=0.1, hue=0.1
)
HEAD = Phase(name="head", unfreeze="none", learning_rate=1e-3, epochs=1)
FINE_TUNE = Phase(name="fine_tune", unfreeze="all", learning_rate=1e-5, epochs=1)
REGULARIZED = Phase(
    name="all", unfreeze="all", learning_rate=1e-5, epochs=1, weight_decay=0.01, clip_norm=1.0, ema_decay=0.9
)
OF_NO_DEVICE = (tf.resource, tf.string, tf.variant)


def kernel_of(operation: tf.Operation) -> Any:
    """The kernel with which TensorFlow places an operation: one for GPUs, for any device, or for the processor."""
    fitting = [kernel for kernel in kernels.get_registered_kernels_for_op(operation.type).kernel
               if all(_allows(constraint, operation) for constraint in kernel.constraint)]  # fmt: skip
    devices = ("CPU",) if operation.device.endswith(HOST) else ("GPU", "DEFAULT", "CPU")
    return next((kernel for device in devices for kernel in fitting if kernel.device_type == device), None)


def _allows(constraint: Any, operation: tf.Operation) -> bool:
    value = operation.node_def.attr[constraint.name]
    return {value.type, *value.list.type} - {0} <= set(constraint.allowed_values.list.type)


def _ports(arguments: Iterable[Any], operation: tf.Operation) -> list[str]:
    """The name of the argument of each input or output, of which some are lists."""
    attributes = operation.node_def.attr
    return [
        argument.name
        for argument in arguments
        for _ in range(
            attributes[argument.number_attr].i if argument.number_attr
            else len(attributes[argument.type_list_attr].list.type) if argument.type_list_attr
            else 1
        )
    ]  # fmt: skip


def _is_on_host(operation: tf.Operation, port: str) -> bool:
    kernel = kernel_of(operation)
    return kernel is None or kernel.device_type == "CPU" or port in kernel.host_memory_arg


def _is_made_on_host(value: tf.Tensor) -> bool:
    operation = value.op
    if operation.type == "Placeholder" or (operation.type == "Const" and value.dtype == tf.int32):
        return True
    return _is_on_host(operation, _ports(operation.op_def.output_arg, operation)[value.value_index])


def waits(graph: tf.Graph) -> Iterator[str]:
    """Each value that goes from the GPU to the host within a graph, and what reads it there; also in its functions.

    What a function is given is taken to be where it reads it.
    """
    for operation in (operation for one in with_functions(graph) for operation in one.get_operations()):
        for value, port in zip(operation.inputs, _ports(operation.op_def.input_arg, operation), strict=True):
            if value.dtype not in OF_NO_DEVICE and _is_on_host(operation, port) and not _is_made_on_host(value):
                yield f"{value.op.type} {value.dtype.name} {value.name} -> {operation.type} {operation.name}"


def graph_of(function: Callable[..., Any], *arguments: Any) -> tf.Graph:
    return tf.function(function, autograph=False).get_concrete_function(*arguments).graph


def step_graph(phase: Phase, augmentation: Augmentation, *, policy: str, on_device: bool, **recipe: Any) -> tf.Graph:
    """One train step of the smallest network, for three classes if the recipe has more than the article's."""
    request = ModelRequest(
        backbone="Tiny", weights="none", image_size=32, num_classes=3 if recipe else 2, dropout=0.2,
        augmentation=augmentation, policy=policy, seed=0,
    )  # fmt: skip
    state = PhaseState(build_classifier(request), phase)
    steps = train_steps(
        state, state.classifier.features_training(state.first), Recipe(8, 0, xla=False, **recipe),
        Collective(Alone(lambda: None)),
        on_device=OnDevice(np.zeros((8, 32, 32, 3), np.uint8), np.arange(8)) if on_device else None,
    )  # fmt: skip
    graph: tf.Graph = steps.get_concrete_function().graph
    return graph


@pytest.mark.parametrize("on_device", [False, True], ids=["memory", "device"])
@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
@pytest.mark.parametrize("phase", [HEAD, FINE_TUNE], ids=lambda phase: phase.name)
def test_a_step_waits_for_no_value_of_the_gpu(phase: Phase, policy: str, on_device: bool) -> None:
    """The recipe: all that is read in the memory of the host was made there."""
    assert list(waits(step_graph(phase, ARTICLE, policy=policy, on_device=on_device))) == []


def test_nor_does_one_with_more_of_everything() -> None:
    """Of RandAugment and changes of saturation, which are Keras's layers inside, nothing is promised."""
    graph = step_graph(
        REGULARIZED, MORE, policy="float32", on_device=True,
        mixup=0.2, cutmix=1.0, label_smoothing=0.1, class_weights=(1.0, 2.0, 3.0), fixed_shapes=True,
    )  # fmt: skip
    assert list(waits(graph)) == []


@pytest.mark.parametrize(
    "recipe", [{"fixed_shapes": True}, {"microbatch_size": 3}, {"microbatch_size": 3, "steps_per_execution": 2}]
)
def test_nor_does_one_of_fixed_shapes_or_in_parts(recipe: dict[str, Any]) -> None:
    """Nor the loops around them."""
    graph = step_graph(FINE_TUNE, ARTICLE, policy="float32", on_device=False, **recipe)
    assert list(waits(graph)) == []


def test_float16_waits_to_know_whether_the_gradients_are_finite() -> None:
    """And then whether the scale is to grow; for nothing else."""
    graph = step_graph(FINE_TUNE, ARTICLE, policy="mixed_float16", on_device=True)
    assert [re.sub(r" \S+:0 -> (\w+) .*", r" -> \1", wait) for wait in waits(graph)] == [
        "All bool -> If", "Equal bool -> If"
    ]  # fmt: skip


def test_each_operation_has_a_kernel_for_gpus() -> None:
    """But those that int32 has none of, and the draws, which are the processor's."""
    graph = step_graph(FINE_TUNE, ARTICLE, policy="mixed_bfloat16", on_device=True)
    on_processor = {
        operation.type
        for operation in graph.get_operations()
        if not operation.device.endswith(HOST) and getattr(kernel_of(operation), "device_type", "CPU") == "CPU"
    }
    assert on_processor <= {"Placeholder"}


def test_a_wait_is_seen() -> None:
    """Of a comparison of int32, which has no kernel for GPUs, and of a constant that a kernel for GPUs reads."""

    def compared(x: tf.Tensor) -> tf.Tensor:
        return tf.argmax(x, output_type=tf.int32) == 1

    for function in (compared, tf.function(compared, autograph=False)):
        (wait,) = waits(graph_of(function, tf.TensorSpec([4, 2])))
        assert wait.startswith("ArgMax int32")
    of_range = waits(graph_of(lambda x: tf.range(2.0) + x, tf.TensorSpec([2])))
    assert any(wait.startswith("Const float32") for wait in of_range)
