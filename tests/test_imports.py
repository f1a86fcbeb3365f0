"""What goes with the import of TensorFlow."""

import os
import signal
import subprocess
import sys

import pytest

from job import processor
from job.cli import checks
from job.errors import DeviceUnavailable
from job.imports import importing_tensorflow, without_native_notes
from job.settings.settings import Settings

COUNTS = """
import gc
from job.imports import importing_tensorflow
counts = [gc.get_freeze_count()]
for _ in range(2):
    with importing_tensorflow():
        assert "tensorflow" in sys.modules or not gc.isenabled()
        import tensorflow
    assert gc.isenabled()
    kept = [[] for _ in range(1000)]
    counts.append(gc.get_freeze_count())
print(*counts)
"""


def test_notes_of_native_libraries_are_dropped_and_the_rest_is_kept(capfd: pytest.CaptureFixture[str]) -> None:
    """By the level that each line begins with, even when an error is raised inside."""
    with pytest.raises(KeyError), without_native_notes():
        raise KeyError(os.write(2, b"I0000 port.cc:153] a note\nW0000 x.cc:1] a warning\nE0000 an error\n"))
    os.write(2, b"later")
    assert capfd.readouterr().err == "W0000 x.cc:1] a warning\nE0000 an error\nlater"


ABORTS = """
import os
from job.imports import without_native_notes
with without_native_notes():
    os.write(2, b"I0000 a note\\nF0000 a check has failed")
    os.abort()
"""


def test_the_last_words_of_a_native_library_that_ends_the_process_are_kept() -> None:
    """Also without the end of a line."""
    done = subprocess.run([sys.executable, "-c", ABORTS], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (-signal.SIGABRT, "F0000 a check has failed\n")


def test_without_grep_everything_is_kept(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """It is in the image; elsewhere a note is better than nothing."""
    monkeypatch.setattr(os, "defpath", "/nowhere")
    with without_native_notes():
        os.write(2, b"I0000 a note\n")
    assert capfd.readouterr().err == "I0000 a note\n"


def pretend(monkeypatch: pytest.MonkeyPatch, flags: str) -> None:
    monkeypatch.setattr(processor, "cpu_info", lambda: ["model name\t: QEMU Virtual CPU", flags])


def test_a_processor_on_which_the_import_would_end_the_process_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """`plan` says the same."""
    pretend(monkeypatch, "flags\t\t: fpu sse4_2")
    for refused in (lambda: checks.device(Settings(device="cpu")), importing_tensorflow().__enter__):
        with pytest.raises(DeviceUnavailable, match="'QEMU Virtual CPU' has no AVX, which TensorFlow needs") as caught:
            refused()
        assert "-cpu host" in caught.value.hint


@pytest.mark.parametrize("flags", ["flags\t\t: fpu avx", "Features\t: fp asimd", ""])
def test_another_processor_is_taken(monkeypatch: pytest.MonkeyPatch, flags: str) -> None:
    """One of Arm has other flags, and of one without any nothing is known."""
    pretend(monkeypatch, flags)
    assert checks.device(Settings(device="cpu")).outcome == "ok"
    with importing_tensorflow():
        pass


@pytest.mark.slow
def test_garbage_is_looked_for_again_after_the_first_import_and_not_in_it() -> None:
    """What a later import finds may be garbage one day."""
    done = subprocess.run([sys.executable, "-c", f"import sys{COUNTS}"], check=True, capture_output=True, text=True)
    before, first, second = (int(count) for count in done.stdout.split())
    assert before == 0
    assert first > 100_000
    assert second == first
