"""What goes with the import of TensorFlow: no notes of its native code, and no search for garbage."""

import contextlib
import gc
import os
import subprocess
import sys
from collections.abc import Iterator

from job import processor

_NATIVE_NOTE = "^(I[0-9]{4} |WARNING: All log messages before absl::InitializeLog)"


@contextlib.contextmanager
def importing_tensorflow() -> Iterator[None]:
    """For the imports inside; those of TensorFlow then need a quarter less processor time.

    Raises DeviceUnavailable where TensorFlow cannot be imported on this processor.
    """
    processor.check()
    if "tensorflow" in sys.modules:
        yield
        return
    with without_garbage_collection(), without_native_notes():
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

    TensorFlow 2.21 logs about oneDNN while it is imported, before it reads the variable that would silence it. Another
    process drops the lines, because what this one holds back is lost when a native library ends it.
    """
    sys.stderr.flush()
    command, env = ["grep", "-aEv", "--line-buffered", _NATIVE_NOTE], {"LC_ALL": "C"}
    stderr = os.dup(2)
    try:
        # In a session of its own, or Ctrl-C would end it too.
        filtering = subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=stderr, start_new_session=True)
    except OSError:
        # No such program, or no process more: then all is shown.
        os.close(stderr)
        yield
        return
    with filtering as kept:
        assert kept.stdin
        os.dup2(kept.stdin.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(stderr, 2)
            os.close(stderr)
