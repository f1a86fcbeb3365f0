"""Files that TensorFlow writes itself: what it raises of the disk is what is raised of any temporary file."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import tensorflow as tf

from job import memory
from job.storage import scratch


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn TensorFlow's errors on a file or folder, but those of memory, into ScratchUnavailable."""
    try:
        yield
    except tf.errors.OpError as error:
        if memory.is_exhausted(error):
            raise
        raise scratch.unavailable(path, error.message) from error
