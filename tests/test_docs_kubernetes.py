"""docs/kubernetes.md says what the manifests and the code say."""

import os
import re
import textwrap
from pathlib import Path

import pytest
import yaml

from job import __version__
from job.errors import ExitCode
from job.settings.environment import read_settings
from job.settings.settings import PREFIX
from k8s.render import kustomize, of_one_run, shared_by_runs
from tests.conftest import REPOSITORY
from tests.manifests import (
    COMPONENTS,
    K8S,
    OVERLAYS,
    container,
    job_spec,
    kustomize_is_there,  # noqa: F401
    of_kind,
    overlay,
    settings,
    variables,
)

DOCS = (REPOSITORY / "docs" / "kubernetes.md").read_text()


def table(first_column: str) -> dict[str, str]:
    """The rows of the table whose first column has this name."""
    (rows,) = re.findall(rf"^\| {first_column} \| .* \|\n\|---\|---\|\n((?:\|.*\|\n)+)", DOCS, re.MULTILINE)
    return dict(re.findall(r"^\| `?(.+?)`? \| (.+) \|$", rows, re.MULTILINE))


def test_every_overlay_and_component_has_a_row() -> None:
    """And no row is of one that is gone."""
    assert sorted(table("overlay")) == OVERLAYS
    rows = {name: what for names, what in table("component").items() for name in names.split("`, `")}
    assert sorted(rows) == COMPONENTS
    for name, what in rows.items():
        assert ("`shared`: " in what) == (K8S / "components" / name / "shared").is_dir(), name
        assert what.startswith("`shared`: ") == (not (K8S / "components" / name / "kustomization.yaml").exists()), name


@pytest.mark.usefixtures("kustomize_is_there")
def test_every_exit_code_does_what_its_row_says() -> None:
    """By the rules of the Job, and each code once."""
    spec = job_spec(overlay("gke"))
    actions = {code: rule["action"] for rule in spec["podFailurePolicy"]["rules"]
               for code in rule.get("onExitCodes", {}).get("values", [])}  # fmt: skip
    says = {"FailJob": "fails at once", "Ignore": "does not count", "Count": "tries again, six times at most"}
    rows = {int(code): what for codes, what in table("code").items() for code in codes.split(", ")}
    assert sorted(rows) == sorted(ExitCode)
    for code in set(rows) - {ExitCode.COMPLETE}:
        assert says[actions.get(code, "Count")] in rows[code]
    assert spec["backoffLimit"] == 6


def test_names_are_of_what_exists() -> None:
    """Variables, targets, files and the version."""
    targets = re.findall(r"^([a-z0-9-]+):.*## ", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
    assert set(re.findall(r"THAW_[A-Z_]+", DOCS)) <= variables()
    assert set(re.findall(r"(?:^ {4}|`)make ([a-z-]+)", DOCS, re.MULTILINE)) <= set(targets)
    for path in re.findall(r"(?:k8s|\.github)/[\w./-]*\w", DOCS):
        assert (REPOSITORY / path).exists(), path
    for path in re.findall(r"`components/([\w-]+)`", DOCS):
        assert path in COMPONENTS
    assert set(re.findall(r"thaw:(\d+\.\d+\.\d+)", DOCS)) == {__version__}


@pytest.mark.usefixtures("kustomize_is_there")
def test_an_overlay_of_ones_own_is_as_short_as_that(tmp_path: Path) -> None:
    """The example renders: its image, settings, queue and account are in the Job."""
    run, shared = re.findall(r"^((?: {4}.*\n)+)", DOCS[DOCS.index("    resources: [") :], re.MULTILINE)[:2]
    here = os.path.relpath(REPOSITORY, tmp_path.resolve())
    (tmp_path / "shared").mkdir()
    for folder, block in ((tmp_path, run), (tmp_path / "shared", shared)):
        (folder / "kustomization.yaml").write_text(textwrap.dedent(block).replace("../../thaw", here))
    manifests = of_one_run(kustomize(tmp_path))
    (job,), (account,) = of_kind(manifests, "Job"), of_kind(shared_by_runs(tmp_path), "ServiceAccount")
    assert container(manifests)["image"] == f"europe-docker.pkg.dev/my-project/ml/thaw:{__version__}"
    assert (settings(manifests).seed, settings(manifests).storage_uri) == (7, "gs://my-bucket/runs")
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "thaw"
    assert "my-project" in account["metadata"]["annotations"]["iam.gke.io/gcp-service-account"]


def test_argo_cd_and_flux_prune_runs_and_not_what_runs_share() -> None:
    """Two of each tool, in one namespace, with the folders that the lines above fill."""
    argo, flux = (
        list(yaml.safe_load_all(block)) for block in re.findall(r"```yaml\n(apiVersion.+?)```", DOCS, re.DOTALL)
    )
    folders = set(re.findall(r"^    make render.* > (\w+)/", DOCS, re.MULTILINE))
    assert folders == {"shared", "runs"}
    for item in argo:
        assert item["spec"]["syncPolicy"]["automated"]["prune"] == (item["spec"]["source"]["path"] == "runs")
    for item in flux:
        assert item["spec"]["prune"] == (item["spec"]["path"] == "./runs")
    assert {item["spec"]["source"]["path"] for item in argo} == folders
    assert {item["spec"]["path"] for item in flux} == {f"./{folder}" for folder in folders}


def test_the_gitlab_job_has_settings_that_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    """And repeats what a retry may help."""
    (block,) = re.findall(r"```yaml\n(thaw:.+?)```", DOCS, re.DOTALL)
    job = yaml.safe_load(block)["thaw"]
    values = {name: str(text) for name, text in job["variables"].items() if name.startswith(PREFIX)}
    values["THAW_RUN_ID"] = values["THAW_RUN_ID"].replace("$CI_COMMIT_SHA", "0a1b2c3")
    for name, text in values.items():
        monkeypatch.setenv(name, text)
    assert read_settings(values).min_test_accuracy is not None
    assert job["retry"]["exit_codes"] == [
        ExitCode.UNEXPECTED, ExitCode.INTERRUPTED, ExitCode.SUPERSEDED, ExitCode.STORAGE_UNAVAILABLE,
    ]  # fmt: skip
    assert job["script"] == ["python -m job"]


def test_the_readme_leads_here() -> None:
    """From a section of its own."""
    assert "[docs/kubernetes.md](docs/kubernetes.md)" in (REPOSITORY / "README.md").read_text()
