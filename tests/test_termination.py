"""The termination message: short, complete, and no reason to fail."""

import json
import os
from pathlib import Path

import pytest

from job.observe import termination
from job.observe.progress import Progress


def test_it_says_what_happened_where_and_what_to_do(tmp_path: Path) -> None:
    """As one JSON object."""
    progress = Progress(stage="fine_tune", step=17, last_commit={"checkpoint": "c", "phase": "fine_tune", "step": 10})
    data = termination.message(exit_code=42, reason="told to stop", hint="start again", progress=progress)
    assert termination.write(tmp_path / "log", data) is None
    assert json.loads((tmp_path / "log").read_text()) == {
        "exit_code": 42,
        "reason": "told to stop",
        "way_out": "start again",
        "phase": "fine_tune",
        "step": 17,
        "last_commit": {"checkpoint": "c", "phase": "fine_tune", "step": 10},
    }


def test_it_is_never_longer_than_kubernetes_reads() -> None:
    """A long reason loses its end, in any script, and stays JSON."""
    for reason in ("x" * 10_000, "ü" * 10_000, "\n" * 10_000):
        data = termination.message(exit_code=1, reason=reason, hint="h" * 100, progress=Progress())
        assert len(data) <= termination.MAX_BYTES
        assert len(data) > termination.MAX_BYTES * 0.8
        assert json.loads(data)["reason"].endswith("...")


def test_a_long_way_out_is_shortened_too() -> None:
    """Whatever is too long."""
    data = termination.message(exit_code=1, reason="short", hint="h" * 10_000, progress=Progress())
    assert len(data) <= termination.MAX_BYTES
    assert json.loads(data)["way_out"].startswith("hhh")


def test_a_file_that_cannot_be_written_is_told_and_no_more(tmp_path: Path) -> None:
    """The exit code is the message that counts."""
    assert "nowhere" in (termination.write(tmp_path / "nowhere" / "log", b"{}") or "")


@pytest.mark.timeout(30)
def test_a_pipe_that_nobody_reads_keeps_nobody_waiting(tmp_path: Path) -> None:
    """Somebody put it where the file should be."""
    os.mkfifo(tmp_path / "log")
    assert "log" in (termination.write(tmp_path / "log", b"{}") or "")


def test_outside_of_kubernetes_nothing_is_written(tmp_path: Path, monkeypatch) -> None:
    """There is no such device."""
    monkeypatch.setattr(termination, "DEFAULT_PATH", tmp_path / "termination-log")
    assert termination.write(None, b"{}") is None
    assert list(tmp_path.iterdir()) == []
