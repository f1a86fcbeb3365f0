"""No output has a secret: neither that of a setting, nor that of an error from elsewhere."""

import json
import os
import subprocess
import sys
import traceback
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from job.__main__ import Ending
from job.errors import ThawError
from job.observe.events import ClassRare, ReportingFailed
from job.observe.log import Console
from job.redaction import redacted, redacted_value
from job.settings.settings import Settings, variable
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
        if kind not in ("space", "query"):
            continue
        for field in TEXT_FIELDS:
            found[f"{field} {kind}"] = [], {variable(field): url}
        found[f"plan {kind}"] = ["plan", "--json", f"--data-dir={url}"], {}
        found[f"run {kind}"] = ["status", "--run", url], {}
        found[f"list {kind}"] = ["list", url], {}
        found[f"to {kind}"] = ["mirror", "--to", url], {}
        found[f"word {kind}"] = ["--seed=1", url], {}
        found[f"command {kind}"] = [url], {}
    return found


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The exit code and all output of each case, from one process, which is faster than one for each."""
    given = cases()
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path_factory.mktemp("log") / "log")], cwd=REPOSITORY, text=True,
        input=json.dumps(list(given.values())), capture_output=True, check=True,
        env={name: value for name, value in os.environ.items() if not name.startswith("THAW_")},
    )  # fmt: skip
    assert SECRET not in done.stderr
    return dict(zip(given, map(json.loads, done.stdout.splitlines()), strict=True))


@pytest.mark.parametrize("case", cases())
def test_a_secret_in_a_setting_is_refused_and_not_shown(answers: dict[str, Any], case: str) -> None:
    """Neither on a terminal, nor in the log, nor in what Kubernetes shows of the pod."""
    code, text = answers[case]
    assert SECRET not in text
    assert code == 2
    assert "error: " in text


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
    for log_format in ("json", "console"):
        console = Console(log_format)  # type: ignore[arg-type]
        console.event(ReportingFailed(URLS[kind], reason=text))
        console.event(ClassRare(fewer_than=10, num_classes=1, classes=[text]))
        console.failure(exit_code=1, reason=text, hint=text, traceback=text)
        console.closing("t", {"place": text})
    try:
        raise ValueError(text)
    except ValueError as bug:
        Ending().failed(bug)
    shown = capsys.readouterr()
    assert SECRET not in shown.out + shown.err
    assert "refused" in shown.out
    assert "refused" in shown.err


@pytest.mark.parametrize(
    "text",
    [
        "gs://bucket/mail@example.com/run", "file:///home/me@work/runs", "a & b = c", "/data/a@b.jpg", "what? yes",
        "http://host:9091/metrics", "bucket gs://b/c is not there; did you mean gs://b/d?", "user@host", "",
    ],
)  # fmt: skip
def test_what_is_no_secret_is_shown_as_it_is(text: str) -> None:
    """A message must still say which value is wrong."""
    assert redacted(text) == redacted_value(text) == text


@given(st.text(alphabet=st.characters(categories=("L", "N", "P", "S"), exclude_characters="@'\""), min_size=1))
def test_no_password_is_shown_whatever_is_in_it(password: str) -> None:
    """Letters of any script, and every sign that a URL has a meaning for."""
    shown = redacted(f"cannot reach https://user:{password}@host/path: refused")
    assert shown == "cannot reach https://***@host/path: refused"
