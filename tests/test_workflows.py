"""The workflows of GitHub: pinned, with few rights, and calling what is there."""

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from job.settings.environment import read_settings
from job.settings.settings import PREFIX
from tests.conftest import REPOSITORY
from tests.manifests import OVERLAYS

WORKFLOWS = sorted((REPOSITORY / ".github" / "workflows").glob("*.yml"))
TEXTS = {path.name: path.read_text() for path in WORKFLOWS}

every_workflow = pytest.mark.parametrize("name", sorted(TEXTS))


def workflow(name: str) -> dict[Any, Any]:
    """The parsed workflow; YAML 1.1 reads its key `on` as true."""
    return yaml.safe_load(TEXTS[name])  # type: ignore[no-any-return]


def steps(name: str) -> list[dict[str, Any]]:
    return [step for job in workflow(name)["jobs"].values() for step in job["steps"]]


@every_workflow
def test_actions_are_pinned_to_a_commit_and_say_which_version(name: str) -> None:
    """A tag can be moved by whoever owns it."""
    lines = re.findall(r"uses: (.+)$", TEXTS[name], re.MULTILINE)
    assert lines
    for line in lines:
        assert re.fullmatch(r"actions/[a-z-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", line), line


@every_workflow
def test_a_workflow_reads_the_code_and_nothing_else(name: str) -> None:
    """No rights to write, no secrets, no credentials left in the checkout, no code of strangers with rights."""
    assert workflow(name)["permissions"] == {"contents": "read"}
    assert all("permissions" not in job for job in workflow(name)["jobs"].values())
    assert "secrets." not in TEXTS[name]
    assert "pull_request_target" not in workflow(name)[True]
    checkouts = [step for step in steps(name) if "checkout@" in step.get("uses", "")]
    assert checkouts
    assert all(step["with"]["persist-credentials"] is False for step in checkouts)


@every_workflow
def test_a_workflow_ends(name: str) -> None:
    """In time, and when a newer one takes its place."""
    parts = [workflow(name), *workflow(name)["jobs"].values()]
    assert any("concurrency" in part for part in parts)
    assert all(job["timeout-minutes"] <= 90 for job in workflow(name)["jobs"].values())


@every_workflow
def test_every_target_that_is_called_exists(name: str) -> None:
    """CI calls the Makefile, so a desk can do what CI does."""
    targets = set(re.findall(r"^([a-z0-9-]+):.*## ", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))
    called = [word for step in steps(name) for words in re.findall(r"make ([a-z0-9 -]+)", step.get("run", ""))
              for word in words.split()]  # fmt: skip
    assert called
    assert set(called) <= targets


def test_every_overlay_is_rendered() -> None:
    """And what is in k8s/cloud."""
    assert workflow("ci.yml")["jobs"]["manifests"]["strategy"]["matrix"]["overlay"] == [
        *sorted(OVERLAYS, key=["local", "gke", "gke-spot", "ci", "cron"].index), "k8s/cloud",
    ]  # fmt: skip


def test_a_gpu_runner_is_for_trusted_authors() -> None:
    """By a label, from a branch of this repository, and of somebody who belongs to it."""
    (job,) = workflow("gpu.yml")["jobs"].values()
    condition = job["if"]
    assert "github.event.label.name == 'gpu'" in condition
    assert "github.event.pull_request.head.repo.full_name == github.repository" in condition
    assert """fromJSON('["OWNER", "MEMBER", "COLLABORATOR"]')""" in condition
    assert workflow("gpu.yml")[True]["pull_request"] == {"types": ["labeled"]}


def test_the_gpu_run_has_settings_that_hold_and_a_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its exit code is the verdict: nothing stands between it and the step."""
    (train,) = [step for step in steps("gpu.yml") if "docker run" in step.get("run", "")]
    given = dict(re.findall(r"--env (THAW_\w+)='?\"?([^\s'\"]+)", train["run"]))
    values = {name: text.replace("$GITHUB_SHA", "0a1b2c3") for name, text in given.items()}
    for name, text in values.items():
        assert name.startswith(PREFIX)
        monkeypatch.setenv(name, text)
    assert read_settings(values).min_test_accuracy is not None
    assert "--gpus all" in train["run"]
    assert "--read-only" in train["run"]
    assert "||" not in train["run"]
    assert "continue-on-error" not in TEXTS["gpu.yml"]


@pytest.mark.parametrize("has_report", [True, False])
def test_the_gpu_run_shows_its_outcome(tmp_path: Path, has_report: bool) -> None:
    """As a table; that there is no report is told, and is no error of its own."""
    (show,) = [step for step in steps("gpu.yml") if "GITHUB_STEP_SUMMARY" in step.get("run", "")]
    assert show["if"] == "always()"
    report, summary = tmp_path / "runs" / "0a1b2c3" / "report" / "report.json", tmp_path / "summary.md"
    if has_report:
        report.parent.mkdir(parents=True)
        report.write_text(json.dumps({"outcome": {"test_accuracy": 0.97}}))
    env = os.environ | {"WORK": str(tmp_path), "GITHUB_SHA": "0a1b2c3", "GITHUB_STEP_SUMMARY": str(summary)}
    done = subprocess.run(["bash", "-e", "-c", show["run"]], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert ("| test_accuracy | 0.97 |" in summary.read_text()) == has_report
    assert ("no report" in summary.read_text()) != has_report
