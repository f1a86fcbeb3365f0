"""What TensorFlow finds of CUDA in a process that has gone the way of a run; neither a GPU nor a driver is needed.

It needs a TensorFlow that is built with CUDA, and NVIDIA's packages, as in requirements/gpu.txt.
"""

import json
import subprocess
import sys

import pytest
import tensorflow as tf

from job import nvidia
from tests.conftest import REPOSITORY

pytestmark = pytest.mark.skipif(
    not tf.test.is_built_with_cuda(), reason="this TensorFlow is built for processors alone"
)
LOADER = """
import ctypes, json, sys
from pathlib import Path
from job import nvidia
from job.__main__ import set_up_tensorflow
from job.imports import importing_tensorflow

def result(function):
    # A status of absl: 1 is OK, else the address of a count, a code and a string.
    words = (ctypes.c_uint64 * 4)()
    library[function].restype = None
    library[function](ctypes.byref(words))
    if words[0] == 1:
        return ""
    address = ctypes.c_uint64.from_address(words[0] + 8).value
    return ctypes.string_at(address, ctypes.c_uint64.from_address(words[0] + 16).value).decode()

set_up_tensorflow(log_level="3")
with importing_tensorflow():
    import job.run.pipeline
    import tensorflow as tf
    from job.train import device
if "without" in sys.argv:
    nvidia.load_cusolver = lambda: None
# No driver is here.
nvidia.check_gpu = lambda device: None
unused = device.use("auto")
library = ctypes.CDLL(str(Path(tf.__file__).parent / "libtensorflow_framework.so.2"))
names = ["Cublas", "CublasLt", "Cudnn", "Cufft", "Cusolver", "Cusparse", "CudaRuntime", "Cupti", "Nccl"]
functions = [f"Get{name}DsoHandle" for name in names] + ["MaybeTryDlopenGPULibraries"]
results = [result(f"_ZN3tsl8internal9DsoLoader{len(name)}{name}Ev") for name in functions]
print(json.dumps({"unused": str(unused)} | dict(zip(functions, results))))
"""


def found(*arguments: str) -> dict[str, str]:
    """By function of TensorFlow's own loader: why it does not find the library."""
    command = [sys.executable, "-c", LOADER, *arguments]
    done = subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True, text=True, timeout=240)
    return dict(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.slow
def test_tensorflow_finds_all_libraries_that_it_needs_before_it_takes_a_gpu() -> None:
    answers = found()
    assert answers.pop("unused").startswith("THAW_DEVICE=auto: the driver has a GPU, and TensorFlow cannot use it")
    assert {name: reason for name, reason in answers.items() if reason} == {}


@pytest.mark.slow
def test_without_help_it_would_not_find_cusolver() -> None:
    """When this fails, `nvidia.load_cusolver` is no longer needed."""
    answers = found("without")
    assert nvidia.CUSOLVER in answers["GetCusolverDsoHandle"]
    assert answers["MaybeTryDlopenGPULibraries"] == "Cannot dlopen all CUDA libraries."


def test_the_least_driver_is_that_of_this_tensorflow() -> None:
    """That of the CUDA that it is built with, for GPUs that are newer than its machine code."""
    build = tf.sysconfig.get_build_info()
    kinds = [name.partition("_") for name in build["cuda_compute_capabilities"]]
    assert {kind for kind, _, number in kinds if int(number) >= 10 * nvidia.PTX_CAPABILITY[0]} == {"compute"}
    assert {kind for kind, _, number in kinds if int(number) < 10 * nvidia.PTX_CAPABILITY[0]} == {"sm"}
    assert tuple(map(int, build["cuda_version"].split(".")[:2])) == nvidia.LEAST_CUDA_OF_PTX[0]
