"""The manifests as a cluster would get them, and the parts of them that tests look at."""

import contextlib
import copy
import functools
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from job.settings.fields import variable
from job.settings.settings import Settings
from k8s.render import Manifest, as_text, kustomize, main, of_one_run, settings_of, shared_by_runs
from tests.conftest import REPOSITORY
from tests.once import made_once

K8S = REPOSITORY / "k8s"
OVERLAYS = sorted(path.parent.name for path in K8S.glob("overlays/*/kustomization.yaml"))
COMPONENTS = sorted(path.name for path in K8S.glob("components/*"))
INSTANCE = "app.kubernetes.io/instance"
JOB_SET_NAME = "jobset.sigs.k8s.io/jobset-name"
WORKLOADS = ("Job", "CronJob", "JobSet", "TrainJob")

needs_kustomize = pytest.mark.skipif(
    not (shutil.which("kubectl") or shutil.which("kustomize") or os.environ.get("CI")),
    reason="neither kubectl nor kustomize is there to render the manifests",
)
"""In CI it must be there, and a test without it fails."""


class Manifests(list[Manifest]):
    """Manifests with one Job, CronJob, JobSet or TrainJob among them; of a TrainJob also with its runtime."""

    def of_kind(self, kind: str) -> list[Manifest]:
        return of_kind(self, kind)

    @property
    def workload(self) -> Manifest:
        (found,) = [manifest for kind in WORKLOADS for manifest in self.of_kind(kind)]
        return found

    @property
    def name(self) -> str:
        return str(self.workload["metadata"]["name"])

    @property
    def job(self) -> Any:
        """The spec of the Job, or of the Jobs that the CronJob, JobSet or TrainJob makes."""
        spec = self.workload["spec"]
        if self.workload["kind"] == "TrainJob":
            return self._job_of_trainer(spec["trainer"])
        if self.workload["kind"] == "JobSet":
            (replicated,) = spec["replicatedJobs"]
            return replicated["template"]["spec"]
        return spec.get("jobTemplate", self.workload)["spec"]

    def _job_of_trainer(self, trainer: Any) -> Any:
        """What Kubeflow Trainer makes of its runtime: image and resources are replaced, variables replaced or added."""
        (runtime,) = self.of_kind("ClusterTrainingRuntime")
        (replicated,) = runtime["spec"]["template"]["spec"]["replicatedJobs"]
        job = copy.deepcopy(replicated["template"]["spec"])
        job["completions"] = job["parallelism"] = trainer["numNodes"]
        (container,) = job["template"]["spec"]["containers"]
        container |= {"image": trainer["image"], "resources": trainer["resourcesPerNode"]}
        names = [entry["name"] for entry in container["env"]]
        for entry in trainer["env"]:
            if entry["name"] in names:
                container["env"][names.index(entry["name"])] = entry
            else:
                container["env"].append(entry)
        return job

    @property
    def pod(self) -> Any:
        return self.job["template"]["spec"]

    @property
    def labels(self) -> dict[str, str]:
        """Those of the pods, as they are in the cluster."""
        in_set = {JOB_SET_NAME: self.name} if self.workload["kind"] in ("JobSet", "TrainJob") else {}
        return self.job["template"]["metadata"]["labels"] | in_set  # type: ignore[no-any-return]

    @property
    def container(self) -> Any:
        (container,) = self.pod["containers"]
        return container

    @property
    def config(self) -> dict[str, str]:
        """What the container gets from its ConfigMap, or, where it has none, from the list of its variables."""
        if "envFrom" not in self.container:
            return self.literals
        names = [source["configMapRef"]["name"] for source in self.container["envFrom"]]
        (found,) = [item for item in self.of_kind("ConfigMap") if item["metadata"]["name"] in names]
        return found["data"]  # type: ignore[no-any-return]

    @property
    def literals(self) -> dict[str, str]:
        """The variables in the list that have a value."""
        return {it["name"]: it["value"] for it in self.container["env"] if "value" in it}

    @property
    def settings(self) -> Settings:
        """The settings of the container, without what only a cluster knows."""
        return settings_of(self.container, self.config)

    @property
    def fields(self) -> dict[str, str]:
        """The variables that the cluster sets, with the field of the pod."""
        return {
            it["name"]: it["valueFrom"]["fieldRef"]["fieldPath"]
            for it in self.container["env"]
            if "fieldRef" in it.get("valueFrom", {})
        }

    @property
    def names(self) -> set[tuple[str, str]]:
        return {(manifest["kind"], manifest["metadata"]["name"]) for manifest in self}


def render(*argv: str, **env: str) -> "subprocess.CompletedProcess[str]":
    """Run what `make render` runs: with these variables in a process of its own, without any in this one."""
    command = [sys.executable, "-m", "k8s.render", *argv]
    if env:
        return subprocess.run(
            command, cwd=REPOSITORY, env=os.environ | env, capture_output=True, text=True, timeout=240
        )
    with contextlib.redirect_stdout(io.StringIO()) as stdout, contextlib.redirect_stderr(io.StringIO()) as stderr:
        try:
            code = int(main(argv))
        except SystemExit as of_argparse:
            code = int(of_argparse.code or 0)
    return subprocess.CompletedProcess(command, code, stdout.getvalue(), stderr.getvalue())


def run_part(place: str) -> Manifests:
    """What `make render` prints of a folder, and `make undeploy` deletes."""
    return Manifests(copy.deepcopy(_run_part(place)))


def shared_part(place: str) -> Manifests:
    """What `make render-shared` prints of a folder."""
    return Manifests(copy.deepcopy(_shared_part(place)))


@functools.cache
def _run_part(place: str) -> list[Manifest]:
    return _once(f"run-{place}", lambda: of_one_run(kustomize(K8S / place)))


@functools.cache
def _shared_part(place: str) -> list[Manifest]:
    return _once(f"shared-{place}", lambda: shared_by_runs(K8S / place))


def _once(name: str, make: Callable[[], list[Manifest]]) -> list[Manifest]:
    return made_once(name.replace("/", "-"), lambda _: make())[1]


def overlay(name: str) -> Manifests:
    """An overlay as `make deploy` applies it: what runs share, and a run."""
    return Manifests(shared_part(f"overlays/{name}") + run_part(f"overlays/{name}"))


@functools.cache
def _kustomized(place: str) -> list[Manifest]:
    return _once(f"kustomized-{place}", lambda: kustomize(K8S / place))


@functools.cache
def base() -> Manifests:
    """What all overlays have in common."""
    return Manifests(_kustomized("base/shared") + _kustomized("base"))


def write_kustomization(folder: Path, **content: Any) -> Path:
    """Write a kustomization.yaml; resources and components are folders in k8s."""
    for key in ("resources", "components"):
        content[key] = [os.path.relpath(K8S / path, folder.resolve()) for path in content.get(key, [])]
    (folder / "kustomization.yaml").write_text(as_text([content]))
    return folder


def component(name: str) -> Manifests:
    """The base with one component and nothing else: what runs share, and a run."""
    return Manifests(copy.deepcopy(_component(name)))


@functools.cache
def _component(name: str) -> list[Manifest]:
    return _once(f"component-{name}", lambda: _with_component(name))


def _with_component(name: str) -> list[Manifest]:
    manifests: list[Manifest] = []
    for part in ("base/shared", "base"):
        path = f"components/{name}{part.removeprefix('base')}"
        if (K8S / path / "kustomization.yaml").is_file():
            with tempfile.TemporaryDirectory() as folder:
                manifests += kustomize(write_kustomization(Path(folder), resources=[part], components=[path]))
        else:
            manifests += _kustomized(part)
    return manifests


def of_kind(manifests: list[Manifest], kind: str) -> list[Manifest]:
    return [manifest for manifest in manifests if manifest["kind"] == kind]


def job_spec(manifests: list[Manifest]) -> Any:
    return Manifests(manifests).job


def demo_settings() -> dict[str, str]:
    """The variables of `make demo`."""
    makefile = (REPOSITORY / "Makefile").read_text().replace("\\\n", " ")
    (assignment,) = re.findall(r"^DEMO := (.*)$", makefile, re.MULTILINE)
    return dict(word.split("=", 1) for word in shlex.split(assignment))


def variables() -> set[str]:
    """Every variable that the program reads."""
    return {variable(field) for field in Settings.model_fields}
