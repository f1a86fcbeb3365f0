"""The processor of this machine, as Linux describes it: its name, what it can do, and whether that is enough.

Elsewhere, and where a flag has another name, nothing is known of it, and nothing is refused.
"""

import functools
from pathlib import Path

from job.errors import DeviceUnavailable

# The CPU flags that mean a processor multiplies bfloat16 itself; elsewhere it is emulated, and slower than float32.
NATIVE_BFLOAT16_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
INTEL = "GenuineIntel"
INTEL_FAST_FLAG = "amx_bf16"
"""With AVX512-BF16 alone, AMD's processors train about twice as fast in bfloat16, and Intel's more slowly."""
NEEDED_FLAG = "avx"
"""Of x86, by TensorFlow (2.21) as it is on PyPI. Without it the import ends the process, and no word of it is seen."""


def name() -> str:
    """As its maker calls it, or `CPU` where that is not known."""
    return next((line.partition(":")[2].strip() for line in cpu_info() if line.startswith("model name")), "CPU")


def check() -> None:
    """Raise DeviceUnavailable where TensorFlow would end the process."""
    flags = _words("flags")
    if flags and NEEDED_FLAG not in flags:
        raise DeviceUnavailable(
            f"the processor {name()!r} has no AVX, which TensorFlow needs",
            hint="a virtual machine may hide it: give it the processor type of its host, such as `-cpu host` in QEMU",
        )


def has_native_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16 itself."""
    return bool(_words("flags", "Features") & NATIVE_BFLOAT16_FLAGS)


def has_fast_bfloat16() -> bool:
    """Whether it does so faster than it multiplies float32."""
    if INTEL in _words("vendor_id"):
        return INTEL_FAST_FLAG in _words("flags")
    return has_native_bfloat16()


def _words(*names: str) -> set[str]:
    """In the lines of these names, for all cores."""
    return {word for line in cpu_info() if line.startswith(names) for word in line.split()}


@functools.cache
def cpu_info() -> list[str]:
    """The lines in which Linux describes the processors; none elsewhere. They are many where it has many cores."""
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []
