"""The manifests as a cluster would get them, and the parts of them that tests look at."""

import copy
import functools
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from job.settings.settings import PREFIX, Settings, variable
from k8s.render import Manifest, container_of, kustomize, of_one_run, shared_by_runs
from tests.conftest import REPOSITORY

K8S = REPOSITORY / "k8s"
OVERLAYS = sorted(path.parent.name for path in K8S.glob("overlays/*/kustomization.yaml"))
COMPONENTS = sorted(path.name for path in K8S.glob("components/*"))
PLACES = [f"overlays/{name}" for name in OVERLAYS] + ["cloud"]
"""Folders of all that is deployed."""


@pytest.fixture
def kustomize_is_there() -> None:
    """Skips where nothing can render; fails there in CI, where it must be."""
    if not (shutil.which("kubectl") or shutil.which("kustomize")):
        reason = "neither kubectl nor kustomize is there to render the manifests"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)


def render(*argv: str, **env: str) -> "subprocess.CompletedProcess[str]":
    """What `make render` runs."""
    command = [sys.executable, "-m", "k8s.render", *argv]
    return subprocess.run(command, cwd=REPOSITORY, env=os.environ | env, capture_output=True, text=True, timeout=60)


def overlay(name: str) -> list[Manifest]:
    """An overlay as `make deploy` applies it: what runs share, and a run."""
    return shared_part(f"overlays/{name}") + run_part(f"overlays/{name}")


def run_part(place: str) -> list[Manifest]:
    """What `make render` prints of a folder, and `make undeploy` deletes."""
    return copy.deepcopy(_run_part(place))


def shared_part(place: str) -> list[Manifest]:
    """What `make render-shared` prints of a folder."""
    return copy.deepcopy(_shared_part(place))


@functools.cache
def _run_part(place: str) -> list[Manifest]:
    return of_one_run(kustomize(K8S / place))


@functools.cache
def _shared_part(place: str) -> list[Manifest]:
    return shared_by_runs(K8S / place)


@functools.cache
def base() -> list[Manifest]:
    """What all overlays have in common."""
    return kustomize(K8S / "base" / "shared") + kustomize(K8S / "base")


def component(name: str, folder: Path) -> list[Manifest]:
    """The base with one component and nothing else, rendered in `folder`: what runs share, and a run."""
    return [manifest for part in ("shared", ".") for manifest in _with_component(name, folder, part)]


def _with_component(name: str, folder: Path, part: str) -> list[Manifest]:
    """One part of the base, with the same part of a component where that has one."""
    base_part, component_part = K8S / "base" / part, K8S / "components" / name / part
    components = [component_part] if (component_part / "kustomization.yaml").is_file() else []
    places = {"resources": [base_part], "components": components}
    relative = {key: [os.path.relpath(path, folder.resolve()) for path in paths] for key, paths in places.items()}
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(relative))
    return kustomize(folder)


def of_kind(manifests: list[Manifest], kind: str) -> list[Manifest]:
    return [manifest for manifest in manifests if manifest["kind"] == kind]


def job_spec(manifests: list[Manifest]) -> dict[str, Any]:
    """The spec of the one Job, or of the Jobs that the one CronJob makes."""
    for cron_job in of_kind(manifests, "CronJob"):
        return cron_job["spec"]["jobTemplate"]["spec"]  # type: ignore[no-any-return]
    (job,) = of_kind(manifests, "Job")
    return job["spec"]  # type: ignore[no-any-return]


def pod_spec(manifests: list[Manifest]) -> dict[str, Any]:
    return job_spec(manifests)["template"]["spec"]  # type: ignore[no-any-return]


def container(manifests: list[Manifest]) -> dict[str, Any]:
    (workload,) = of_kind(manifests, "Job") + of_kind(manifests, "CronJob")
    return container_of(workload)


def config(manifests: list[Manifest]) -> dict[str, str]:
    """What the container gets from its ConfigMap."""
    names = [source["configMapRef"]["name"] for source in container(manifests)["envFrom"]]
    (found,) = [item for item in of_kind(manifests, "ConfigMap") if item["metadata"]["name"] in names]
    return found["data"]  # type: ignore[no-any-return]


def settings(manifests: list[Manifest]) -> Settings:
    """The settings of the container, but for what only a cluster knows."""
    return Settings(**{name.removeprefix(PREFIX).lower(): text for name, text in config(manifests).items()})  # type: ignore[arg-type]


def variables() -> set[str]:
    """Every variable that the program reads."""
    return {variable(field) for field in Settings.model_fields}
