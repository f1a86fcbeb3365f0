"""No output has a secret: neither that of a setting, nor that of an error from elsewhere."""

import json
import subprocess
import sys
import traceback
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from job.__main__ import Ending
from job.errors import ThawError
from job.observe.bar import Terminal
from job.observe.data_events import ClassRare
from job.observe.events import ReportingFailed, RunFailed
from job.observe.log import ConsoleLines, JsonLines
from job.observe.progress import Progress
from job.observe.terminal import Screen
from job.redaction import redacted, redacted_value
from job.settings.fields import variable
from job.settings.settings import Settings
from tests.conftest import REPOSITORY

SECRET = "hunter2"
TEXT_FIELDS = [name for name, info in Settings.model_fields.items() if info.annotation not in (int, float, bool)]
URLS = {
    "userinfo": f"https://user:{SECRET}@host/path",
    "token": f"https://{SECRET}@host",
    "slash": f"http://user:a/{SECRET}@host",
    "space": f"http://user:a {SECRET}@host",
    "query": f"https://host/path?a=b&sig={SECRET}",
    "bare query": f"http://host?{SECRET}",
    "fragment": f"http://host#token={SECRET}",
    "bucket": f"gs://user:{SECRET}@bucket/path",
    "bucket query": f"gs://bucket/path?token={SECRET}",
    "file": f"file://user:{SECRET}@/folder",
}
WORDS = {
    "unknown variable": ([], {"THAW_TOKEN": SECRET}),
    "unknown password": ([], {"THAW_PUSHGATEWAY_PASSWORD": f"x{SECRET}"}),
    "unknown flag": ([f"--password={SECRET}"], {}),
    "unknown flag and value": (["--password", SECRET], {}),
}
PROGRAM = """
import contextlib, io, json, os, sys
from job.__main__ import main
before, log = dict(os.environ), sys.argv[1]
for words, environ in json.load(sys.stdin):
    os.environ.clear()
    os.environ.update(before | {"THAW_TERMINATION_LOG": log} | environ)
    open(log, "w").close()
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(words)
    print(json.dumps([code, out.getvalue() + err.getvalue() + open(log).read()]))
"""


def cases() -> dict[str, tuple[list[str], dict[str, str]]]:
    """Every setting as a variable and as a flag, every place that a command takes, and what no program knows."""
    found: dict[str, tuple[list[str], dict[str, str]]] = dict(WORDS)
    for kind, url in URLS.items():
        found[f"flag {kind}"] = [f"--pushgateway-url={url}"], {}
        if kind in ("space", "query"):
            found |= {f"{field} {kind}": ([], {variable(field): url}) for field in TEXT_FIELDS}
            for words in (
                ["plan", "--json", "--data-dir", url], ["status", "--run", url], ["list", url], ["mirror", "--to", url],
                ["--seed=1", url], [url], ["plan", "--env-file", url], ["status", f"--json={url}"],
            ):  # fmt: skip
                found[f"{words} {kind}"] = words, {}
    return found


def test_a_secret_in_a_setting_is_refused_and_not_shown(tmp_path: Path) -> None:
    """Neither on a terminal, nor in the log, nor in what Kubernetes shows of the pod; all from one process."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "log")], cwd=REPOSITORY, text=True, capture_output=True,
        check=True, input=json.dumps(list(cases().values())),
    )  # fmt: skip
    assert SECRET not in done.stderr
    for case, (code, text) in zip(cases(), map(json.loads, done.stdout.splitlines()), strict=True):
        assert SECRET not in text, case
        assert (code, "error: " in text) == (2, True), case


def test_settings_are_shown_without_secrets() -> None:
    """In report.json and plan, even if one came past the checks."""
    settings = Settings.model_construct(**(Settings().model_dump() | {"pushgateway_url": URLS["query"]}))
    assert settings.shown() == Settings().model_dump(mode="json") | {
        "pushgateway_url": "https://host/path?a=***&sig=***"
    }


@pytest.mark.parametrize("kind", [kind for kind in URLS if kind != "space"])
def test_no_error_event_or_traceback_has_the_secret_of_a_url(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever library it comes from: only a space inside of it hides where it ends."""
    text = f"cannot reach {URLS[kind]!r}: refused"
    error = ThawError(text, hint=text)
    assert SECRET not in "".join([error.message, error.hint, *traceback.format_exception(error)])
    for log in (JsonLines(Progress()), ConsoleLines(Progress()), Screen(Terminal(), Progress())):
        log.event(ReportingFailed(URLS[kind], reason=text))
        log.event(ClassRare(fewer_than=10, num_classes=1, classes=[text]))
        log.event(RunFailed(exit_code=1, reason=text, hint=text, traceback=text))
        log.closing("t", {"report": text})
    try:
        raise ValueError(text)
    except ValueError as bug:
        Ending(Progress(), None).failed(bug)
    shown = capsys.readouterr()
    assert SECRET not in shown.out + shown.err
    assert "refused" in shown.out
    assert "refused" in shown.err


def test_what_is_no_secret_is_shown_as_it_is() -> None:
    """A message must still say which value is wrong."""
    for text in (
        "gs://bucket/mail@example.com/run", "s3://bucket/me@work/run", "az://box/a@b",
        "file:///home/me@work/runs", "a & b = c", "/data/a@b.jpg", "what? yes",
        "http://host:9091/metrics", "bucket gs://b/c is not there; did you mean gs://b/d?", "user@host", "",
    ):  # fmt: skip
        assert redacted(text) == redacted_value(text) == text


@given(st.text(alphabet=st.characters(categories=("L", "N", "P", "S"), exclude_characters="@'\""), min_size=1))
def test_no_password_is_shown_whatever_is_in_it(password: str) -> None:
    """Letters of any script, and every sign that a URL has a meaning for."""
    shown = redacted(f"cannot reach https://user:{password}@host/path: refused")
    assert shown == "cannot reach https://***@host/path: refused"
