"""Exhausted memory, in whichever form a library tells of it -> MemoryExhausted.

Python and NumPy raise MemoryError, the operating system ENOMEM, TensorFlow one of several errors with a text of its
own. What the kernel kills, and what a native library aborts for, nobody can catch.
"""

import contextlib
import errno
import re
from collections.abc import Callable, Iterator

from job.errors import MemoryExhausted

_TOLD_BY_TENSORFLOW = re.compile(
    r"\bOOM\b|out of memory|failed to allocate|cannot allocate memory|MemoryError|ALLOC_FAILED"
    r"|Dst tensor is not initialized",
    re.IGNORECASE,
)
"""Its ResourceExhaustedError alone is no proof: a full disk is one too. A failed copy to a GPU is an InternalError."""


def is_exhausted(error: BaseException) -> bool:
    """Whether an error says that there is no memory left."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if type(error).__module__.startswith("tensorflow."):
        return bool(_TOLD_BY_TENSORFLOW.search(str(error)))
    return isinstance(error, MemoryError)


@contextlib.contextmanager
def explained(where: Callable[[], str], hint: Callable[[], str]) -> Iterator[None]:
    """Turn every error that says so inside into MemoryExhausted; both texts are asked for only then."""
    try:
        yield
    except Exception as error:
        if not is_exhausted(error):
            raise
        # TensorFlow's text begins with where in the program, and has the reason further down.
        lines = str(error).strip().splitlines() or [type(error).__name__]
        reason = next((line.strip() for line in lines if _TOLD_BY_TENSORFLOW.search(line)), lines[0])
        raise MemoryExhausted(f"no memory is left {where()}: {reason}", hint=hint()) from error
