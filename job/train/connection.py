"""How TensorFlow connects the workers, without keeping the other threads of this process from running.

Its own call waits for all workers, for up to an hour, and holds Python's lock (2.21): no signal would be heard
meanwhile, nor that a worker is gone.
"""

import contextlib
import ctypes
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import tensorflow as tf
from tensorflow.python import pywrap_tfe

from job.errors import RESUME, PeerLost

MAX_SECONDS = 120
LOOK_SECONDS = 0.05


@contextlib.contextmanager
def interruptible(check_stop: Callable[[], None]) -> Iterator[None]:
    """Inside, the context that TensorFlow makes for several workers calls `check_stop` while it waits for them.

    It raises what that raises, and PeerLost after MAX_SECONDS; then the process can do nothing more with TensorFlow.
    """

    def connect(context: Any, server: bytes) -> None:
        # To delete a context that connects ends the process, or waits for ever with the lock (2.21): it is kept.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(context))
        framework, enable = _library("tensorflow_framework"), _library("tensorflow_cc").TFE_EnableCollectiveOps
        framework.TF_NewStatus.restype, framework.TF_Message.restype = ctypes.c_void_p, ctypes.c_char_p
        status = ctypes.c_void_p(framework.TF_NewStatus())
        pointer = ctypes.pythonapi.PyCapsule_GetPointer
        pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
        handle = ctypes.c_void_p(pointer(context, None))
        # A call by ctypes gives up the lock. A thread that nobody waits for does not keep the process.
        connecting = threading.Thread(
            target=enable, args=(handle, server, ctypes.c_size_t(len(server)), status), daemon=True
        )
        connecting.start()
        until = time.monotonic() + MAX_SECONDS
        while connecting.is_alive():
            check_stop()
            if time.monotonic() > until:
                raise PeerLost(f"TensorFlow did not connect the workers within {MAX_SECONDS} s", hint=RESUME)
            connecting.join(LOOK_SECONDS)
        code = framework.TF_GetCode(status)
        if code != tf.errors.OK:
            message = framework.TF_Message(status).decode(errors="replace")
            raise tf.compat.v1.errors.exception_type_from_error_code(code)(None, None, message)

    original = pywrap_tfe.TFE_EnableCollectiveOps
    pywrap_tfe.TFE_EnableCollectiveOps = connect
    try:
        yield
    finally:
        pywrap_tfe.TFE_EnableCollectiveOps = original


def _library(name: str) -> ctypes.CDLL:
    """A library of TensorFlow, which has loaded it."""
    return ctypes.CDLL(str(Path(tf.sysconfig.get_lib()) / f"lib{name}.so.2"))
