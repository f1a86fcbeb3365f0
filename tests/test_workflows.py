"""The workflows of GitHub: pinned, with few rights, and calling what is there."""

import json
import os
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from job.settings.settings import Settings
from k8s.render import settings_of
from tests.conftest import REPOSITORY
from tests.manifests import OVERLAYS

TEXTS = {path.name: path.read_text() for path in (REPOSITORY / ".github" / "workflows").glob("*.yml")}

RELEASE_RIGHTS = {
    "images": {"contents": "read", "packages": "write", "id-token": "write"},
    "notes": {"contents": "write"},
}
"""Only a release writes: its images and their signatures, then the page of the release."""


def workflow(name: str) -> dict[Any, Any]:
    """The parsed workflow; YAML 1.1 reads its key `on` as true."""
    return yaml.safe_load(TEXTS[name])  # type: ignore[no-any-return]


def steps(name: str) -> list[dict[str, Any]]:
    return [step for job in workflow(name)["jobs"].values() for step in job["steps"]]


def gpu_step(word: str) -> dict[str, Any]:
    """The step of gpu.yml that has a word in its commands."""
    (step,) = [step for step in steps("gpu.yml") if word in step.get("run", "")]
    return step


@pytest.mark.parametrize("name", sorted(TEXTS))
def test_a_workflow_is_pinned_has_few_rights_and_ends(name: str) -> None:
    """It reads the code and nothing else; actions are commits, because a tag can be moved."""
    uses = re.findall(r"uses: (.+)$", TEXTS[name], re.MULTILINE)
    assert uses
    assert all(re.fullmatch(r"actions/[a-z-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", line) for line in uses)
    jobs = workflow(name)["jobs"].values()
    assert workflow(name)["permissions"] == {"contents": "read"}
    rights = {key: job["permissions"] for key, job in workflow(name)["jobs"].items() if "permissions" in job}
    assert rights == (RELEASE_RIGHTS if name == "release.yml" else {})
    assert "secrets." not in TEXTS[name]
    assert "pull_request_target" not in workflow(name)[True]
    checkouts = [step for step in steps(name) if "checkout@" in step.get("uses", "")]
    assert checkouts
    assert all(step["with"]["persist-credentials"] is False for step in checkouts)
    assert any("concurrency" in part for part in (workflow(name), *jobs))
    assert all(job["timeout-minutes"] <= 90 for job in jobs)


def test_every_version_of_python_that_is_claimed_is_checked() -> None:
    """By the package, its installation and the README."""
    check = workflow("ci.yml")["jobs"]["check"]
    versions = check["strategy"]["matrix"]["python"]
    (setup,) = [step for step in check["steps"] if "setup-python@" in step.get("uses", "")]
    assert setup["with"]["python-version"] == "${{ matrix.python }}"
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    minors = [int(version.removeprefix("3.")) for version in versions]
    assert project["requires-python"] == f">=3.{minors[0]},<3.{minors[-1] + 1}"
    assert minors == list(range(minors[0], minors[-1] + 1))
    claim = f"Python {', '.join(versions[:-1])} or {versions[-1]}"
    for page in ("README.md", "requirements/setup"):
        assert claim in (REPOSITORY / page).read_text()


@pytest.mark.parametrize("name", sorted(TEXTS))
def test_every_target_that_is_called_exists(name: str) -> None:
    """CI calls the Makefile, so a person can do what CI does."""
    targets = set(re.findall(r"^([a-z0-9-]+):.*## ", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))
    called = " ".join(re.findall(r"make ([a-z0-9 -]+)", "\n".join(step.get("run", "") for step in steps(name))))
    assert called
    assert set(called.split()) <= targets


@pytest.mark.parametrize(("name", "otherwise"), [("ci.yml", "github.sha"), ("gpu.yml", "github.ref")])
def test_a_pull_request_cancels_only_older_checks_of_itself(name: str, otherwise: str) -> None:
    """By its number: branches of two forks can have the same name."""
    (group,) = re.findall(r"^ +group: (.+)$", TEXTS[name], re.MULTILINE)
    number = "github.event.pull_request.number"
    assert group == f"{name.removesuffix('.yml')}-${{{{ {number} || {otherwise} }}}}"


def test_a_release_is_only_made_of_a_tag_and_of_what_has_passed() -> None:
    """Both images, named by the version; the notes last, when there is something to announce."""
    assert workflow("release.yml")[True] == {"push": {"tags": ["v*"]}}
    jobs = workflow("release.yml")["jobs"]
    assert [job.get("needs") for job in jobs.values()] == [None, "check", "images"]
    names = {row["target"]: row["suffix"] for row in jobs["images"]["strategy"]["matrix"]["include"]}
    assert names == {"image": "-cpu", "image-gpu": ""}
    assert "cancel-in-progress" not in workflow("release.yml")["concurrency"]
    (cosign,) = re.findall(r"go install (\S+)", TEXTS["release.yml"])
    assert re.fullmatch(r"github\.com/sigstore/cosign/v3/cmd/cosign@v3\.\d+\.\d+", cosign)


def test_every_overlay_is_rendered() -> None:
    """And what is in k8s/cloud."""
    rendered = workflow("ci.yml")["jobs"]["manifests"]["strategy"]["matrix"]["overlay"]
    assert sorted(rendered) == sorted([*OVERLAYS, "k8s/cloud"])


def test_a_gpu_runner_is_for_trusted_authors() -> None:
    """By a label, from a branch of this repository, and of a person who belongs to it."""
    (job,) = workflow("gpu.yml")["jobs"].values()
    assert "github.event.label.name == 'gpu'" in job["if"]
    assert "github.event.pull_request.head.repo.full_name == github.repository" in job["if"]
    assert """fromJSON('["OWNER", "MEMBER", "COLLABORATOR"]')""" in job["if"]
    assert workflow("gpu.yml")[True]["pull_request"] == {"types": ["labeled"]}


def test_the_gpu_run_has_good_settings_and_its_exit_code_decides() -> None:
    """There is a gate, and nothing hides the exit code from the step."""
    command = gpu_step("docker run")["run"]
    given = dict(re.findall(r"--env (\w+)='?\"?([^\s'\"]+)", command))
    assert settings_of({}, given | {"THAW_RUN_ID": "0a1b2c3"}).min_test_accuracy is not None
    assert {"--gpus all", "--read-only"} <= set(re.findall(r"--gpus all|--read-only", command))
    assert "||" not in command
    assert "continue-on-error" not in TEXTS["gpu.yml"]


def test_what_runs_on_a_gpu_runner_insists_on_the_gpu() -> None:
    """A processor would pass the gate too. With several GPUs, processes share more in /dev/shm than docker gives."""
    runs = [
        command
        for name in TEXTS
        for job in workflow(name)["jobs"].values()
        if "gpu" in job["runs-on"]
        for step in job["steps"]
        for command in re.findall(r"docker run (?:.*\\\n)*.*", step.get("run", ""))
    ]
    assert runs
    for word in ("--gpus all", "--env THAW_DEVICE=gpu", "--shm-size=2g"):
        assert all(f" {word} " in command for command in runs), word


def test_each_night_is_a_run_of_its_own() -> None:
    """The number of the workflow's run is new each night, and stays when its jobs are run again."""
    template = workflow("gpu.yml")["env"]["RUN_ID"]

    def run_id(number: int) -> str:
        return str(template.replace("${{ github.sha }}", "0a" * 20).replace("${{ github.run_number }}", str(number)))

    assert [run_id(number) for number in (7, 8)] == [f"{'0a' * 20}-7", f"{'0a' * 20}-8"]
    assert Settings(run_id=run_id(7)).resolved_run_id() == run_id(7)
    assert '--env THAW_RUN_ID="$RUN_ID"' in gpu_step("docker run")["run"]
    (upload,) = [step for step in steps("gpu.yml") if "upload-artifact@" in step.get("uses", "")]
    assert upload["with"]["path"] == "${{ env.WORK }}/runs/${{ env.RUN_ID }}/report"


@pytest.mark.parametrize("has_report", [True, False])
def test_the_gpu_run_shows_its_outcome(tmp_path: Path, has_report: bool) -> None:
    """As a table; a missing report is a sentence there, and no error of its own."""
    show = gpu_step("GITHUB_STEP_SUMMARY")
    assert show["if"] == "always()"
    report, summary = tmp_path / "runs" / "0a1b2c3-7" / "report" / "report.json", tmp_path / "summary.md"
    if has_report:
        report.parent.mkdir(parents=True)
        report.write_text(json.dumps({"outcome": {"test_accuracy": 0.97}}))
    env = os.environ | {"WORK": str(tmp_path), "RUN_ID": "0a1b2c3-7", "GITHUB_STEP_SUMMARY": str(summary)}
    subprocess.run(["bash", "-e", "-c", show["run"]], env=env, check=True, capture_output=True)
    assert ("| test_accuracy | 0.97 |" in summary.read_text()) == has_report
    assert ("no report" in summary.read_text()) != has_report
