"""The graphs of TensorFlow's functions."""

import tensorflow as tf
from tensorflow.python.framework import function_def_to_graph


def with_functions(graph: tf.Graph) -> list[tf.Graph]:
    """A graph, and those of all functions that it calls."""
    functions = graph.as_graph_def(add_shapes=True).library.function
    return [graph, *map(function_def_to_graph.function_def_to_graph, functions)]
