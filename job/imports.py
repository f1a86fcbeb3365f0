"""What goes with the import of TensorFlow: no notes of its native code, and no search for garbage."""

import contextlib
import gc
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from typing import BinaryIO

from job import processor

_NATIVE_NOTE = re.compile(rb"^(I\d{4} |WARNING: All log messages before absl::InitializeLog)")


@contextlib.contextmanager
def importing_tensorflow() -> Iterator[None]:
    """For the imports inside; those of TensorFlow then need a quarter less processor time.

    Raises DeviceUnavailable where TensorFlow cannot be imported on this processor.
    """
    processor.check()
    is_first = "tensorflow" not in sys.modules
    with without_native_notes(), without_garbage_collection() if is_first else contextlib.nullcontext():
        yield


@contextlib.contextmanager
def without_garbage_collection() -> Iterator[None]:
    """For imports: what is made inside stays to the end of the process, and is not looked at inside or later.

    TensorFlow makes half a million objects, among which the garbage collector would look again and again.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


@contextlib.contextmanager
def without_native_notes() -> Iterator[None]:
    """Drop what native libraries write to standard error inside with level "info"; keep all else.

    TensorFlow 2.21 logs about oneDNN while it is imported, before it reads the variable that would silence it.
    """
    sys.stderr.flush()
    stderr = os.dup(2)
    with _nameless_file() as captured:
        os.dup2(captured.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(stderr, 2)
            os.close(stderr)
            captured.seek(0)
            for line in captured:
                if not _NATIVE_NOTE.match(line):
                    os.write(2, line)


def _nameless_file() -> BinaryIO:
    """In memory on Linux, where there may be no folder for temporary files."""
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("stderr"), "w+b")
    return tempfile.TemporaryFile()
