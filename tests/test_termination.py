"""The termination message: short, complete, and no reason to fail."""

import json
import os
from pathlib import Path

import pytest

from job.observe import termination
from job.observe.progress import Progress


def test_it_says_what_happened_where_and_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As one JSON object."""
    progress = Progress(stage="fine_tune", step=17, last_commit={"checkpoint": "c", "phase": "fine_tune", "step": 10})
    data = termination.message(exit_code=42, reason="stopped by SIGTERM", hint="start again", progress=progress)
    termination.leave(tmp_path / "log", data)
    assert capsys.readouterr().err == ""
    assert json.loads((tmp_path / "log").read_text()) == {
        "exit_code": 42, "reason": "stopped by SIGTERM", "hint": "start again", "phase": "fine_tune", "step": 17,
        "last_commit": {"checkpoint": "c", "phase": "fine_tune", "step": 10},
    }  # fmt: skip


@pytest.mark.parametrize("long", ["x" * 10_000, "ü" * 10_000, "\n" * 10_000], ids=["ascii", "other script", "newlines"])
@pytest.mark.parametrize("field", ["reason", "hint"])
def test_it_is_never_longer_than_kubernetes_reads(field: str, long: str) -> None:
    """A long text loses its end, in any script, and the message stays JSON."""
    data = termination.message(**({"reason": "r", "hint": "h", field: long}), exit_code=1, progress=Progress())
    assert 0.8 * termination.MAX_BYTES < len(data) <= termination.MAX_BYTES
    assert json.loads(data)[field].endswith("...")


@pytest.mark.timeout(30)
def test_a_file_that_cannot_be_written_is_a_warning_and_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nor does a pipe without a reader block; outside of Kubernetes there is no such file, and nothing is written."""
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path / "nowhere/log"):
        termination.leave(path, b"{}")
        assert capsys.readouterr().err.startswith(f"warning: no termination message: {path}: ")
    monkeypatch.setattr(termination, "DEFAULT_PATH", tmp_path / "absent")
    termination.leave(None, b"{}")
    assert capsys.readouterr().err == ""
    assert not (tmp_path / "absent").exists()


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("~no-such-user/log", "~no-such-user/log: the home folder ~no-such-user is not known"),
        ("https://user:secret@host/log", "https:/***@host/log: No such file or directory"),
    ],
)
def test_a_path_that_is_none_is_a_warning_without_secrets(
    capsys: pytest.CaptureFixture[str], path: str, problem: str
) -> None:
    """The message is also written about wrong settings, before this path is checked."""
    termination.leave(path, b"{}")
    assert capsys.readouterr().err == f"warning: no termination message: {problem}\n"
