"""Exhausted memory, in any form in which a library reports it -> MemoryExhausted.

Python and NumPy raise MemoryError, the operating system ENOMEM, TensorFlow one of several errors with a text of its
own. A process that the kernel kills, or that a native library aborts, cannot catch anything.
"""

import contextlib
import errno
import re
import resource
from collections.abc import Callable, Iterator

from job.errors import MemoryExhausted

_TEXTS_OF_TENSORFLOW = re.compile(
    r"\bOOM\b|out.of.memory|failed to (sub)?alloc|cannot allocate memory|MemoryError|ALLOC(ATION)?_FAILED"
    r"|failed to satisfy suballocation|failed to CUDA calloc|Dst tensor is not initialized",
    re.IGNORECASE,
)
"""Its ResourceExhaustedError alone is no proof: a full disk is one too. A failed copy to a GPU is an InternalError."""

_TEXTS_OF_GPUS = re.compile(r"device:GPU|\bGPU_\d|cuda|cudnn|cublas|nccl|Dst tensor", re.IGNORECASE)

MIN_ADDRESS_SPACE_BYTES = 2_500_000_000
"""Most of this space is never used. The smallest run ended well with 3.1 GB, and was aborted with 2.0 GB."""


def is_exhausted(error: BaseException) -> bool:
    """Whether an error says that there is no memory left."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if type(error).__module__.startswith("tensorflow."):
        return bool(_TEXTS_OF_TENSORFLOW.search(str(error)))
    return isinstance(error, MemoryError)


def check_address_space(limit: int | None = None) -> None:
    """Raise MemoryExhausted where `ulimit -v` leaves less than TensorFlow reserves: it would abort the process.

    `limit` is that of this process by default.
    """
    limit = resource.getrlimit(resource.RLIMIT_AS)[0] if limit is None else limit
    if limit != resource.RLIM_INFINITY and limit < MIN_ADDRESS_SPACE_BYTES:
        needed = MIN_ADDRESS_SPACE_BYTES / 1e9
        raise MemoryExhausted(
            f"this process may address {limit / 1e9:.1f} GB, and TensorFlow needs {needed:.1f} GB",
            hint="raise the limit, with `ulimit -v unlimited`, where the process is started",
        )


@contextlib.contextmanager
def explained(where: Callable[[], str], hint: Callable[[str], str]) -> Iterator[None]:
    """Turn every error that says so inside into MemoryExhausted; both texts are asked for only then.

    `hint` gets the whole text of the error, which `is_of_gpu` can be asked about.
    """
    try:
        yield
    except Exception as error:
        if not is_exhausted(error):
            raise
        # TensorFlow's text begins with where in the program, and has the reason further down.
        lines = str(error).strip().splitlines() or [type(error).__name__]
        reason = next((line.strip() for line in lines if _TEXTS_OF_TENSORFLOW.search(line)), lines[0])
        raise MemoryExhausted(f"no memory is left {where()}: {reason}", hint=hint(str(error))) from error


def is_of_gpu(text: str) -> bool:
    """Whether the text of such an error names a GPU, or one of NVIDIA's libraries."""
    return bool(_TEXTS_OF_GPUS.search(text))
