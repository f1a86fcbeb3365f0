"""The manifests as a cluster would get them, and the parts of them that tests look at."""

import copy
import functools
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from job.settings.settings import Settings, variable
from k8s.render import Manifest, container_of, kustomize, of_one_run, settings_of, shared_by_runs, template_of
from tests.conftest import REPOSITORY

K8S = REPOSITORY / "k8s"
OVERLAYS = sorted(path.parent.name for path in K8S.glob("overlays/*/kustomization.yaml"))
COMPONENTS = sorted(path.name for path in K8S.glob("components/*"))


@pytest.fixture
def kustomize_is_there() -> None:
    """Skips where nothing can render; fails there in CI, where it must be."""
    if not (shutil.which("kubectl") or shutil.which("kustomize")):
        reason = "neither kubectl nor kustomize is there to render the manifests"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)


def render(*argv: str, **env: str) -> "subprocess.CompletedProcess[str]":
    """Run what `make render` runs."""
    command = [sys.executable, "-m", "k8s.render", *argv]
    return subprocess.run(command, cwd=REPOSITORY, env=os.environ | env, capture_output=True, text=True, timeout=60)


def run_part(place: str) -> list[Manifest]:
    """What `make render` prints of a folder, and `make undeploy` deletes."""
    return copy.deepcopy(_run_part(place))


def shared_part(place: str) -> list[Manifest]:
    """What `make render-shared` prints of a folder."""
    return copy.deepcopy(_shared_part(place))


_run_part = functools.cache(lambda place: of_one_run(kustomize(K8S / place)))
_shared_part = functools.cache(lambda place: shared_by_runs(K8S / place))


def overlay(name: str) -> list[Manifest]:
    """An overlay as `make deploy` applies it: what runs share, and a run."""
    return shared_part(f"overlays/{name}") + run_part(f"overlays/{name}")


@functools.cache
def base() -> list[Manifest]:
    """What all overlays have in common."""
    return kustomize(K8S / "base" / "shared") + kustomize(K8S / "base")


def write_kustomization(folder: Path, **content: Any) -> Path:
    """Write a kustomization.yaml; resources and components are folders in k8s."""
    for key in ("resources", "components"):
        content[key] = [os.path.relpath(K8S / path, folder.resolve()) for path in content.get(key, [])]
    folder.mkdir(exist_ok=True)
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(content))
    return folder


def component(name: str, folder: Path) -> list[Manifest]:
    """The base with one component and nothing else: what runs share, and a run."""
    manifests = []
    for part in ("shared", "."):
        path = Path("components", name, part)
        components = [path] if (K8S / path / "kustomization.yaml").is_file() else []
        manifests += kustomize(write_kustomization(folder, resources=[Path("base", part)], components=components))
    return manifests


def of_kind(manifests: list[Manifest], kind: str) -> list[Manifest]:
    return [manifest for manifest in manifests if manifest["kind"] == kind]


def workload(manifests: list[Manifest]) -> Manifest:
    """The one Job or CronJob."""
    (found,) = of_kind(manifests, "Job") + of_kind(manifests, "CronJob")
    return found


def job_spec(manifests: list[Manifest]) -> dict[str, Any]:
    """The spec of the one Job, or of the Jobs that the one CronJob makes."""
    spec: dict[str, Any] = workload(manifests)["spec"]
    return spec.get("jobTemplate", {}).get("spec", spec)  # type: ignore[no-any-return]


def pod_spec(manifests: list[Manifest]) -> dict[str, Any]:
    return template_of(workload(manifests))["spec"]  # type: ignore[no-any-return]


def container(manifests: list[Manifest]) -> dict[str, Any]:
    return container_of(workload(manifests))


def config(manifests: list[Manifest]) -> dict[str, str]:
    """What the container gets from its ConfigMap."""
    names = [source["configMapRef"]["name"] for source in container(manifests)["envFrom"]]
    (found,) = [item for item in of_kind(manifests, "ConfigMap") if item["metadata"]["name"] in names]
    return found["data"]  # type: ignore[no-any-return]


def settings(manifests: list[Manifest]) -> Settings:
    """The settings of the container, without what only a cluster knows."""
    return settings_of(container(manifests), config(manifests))


def field_variables(manifests: list[Manifest]) -> dict[str, str]:
    """The variables that the cluster sets, with the field of the pod."""
    return {it["name"]: it["valueFrom"]["fieldRef"]["fieldPath"] for it in container(manifests)["env"]}


def demo_settings() -> dict[str, str]:
    """The variables of `make demo`."""
    makefile = (REPOSITORY / "Makefile").read_text().replace("\\\n", " ")
    (assignment,) = re.findall(r"^DEMO := (.*)$", makefile, re.MULTILINE)
    return dict(word.split("=", 1) for word in shlex.split(assignment))


def variables() -> set[str]:
    """Every variable that the program reads."""
    return {variable(field) for field in Settings.model_fields}
