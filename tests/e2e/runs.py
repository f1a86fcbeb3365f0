"""The runs of these tests: `overlays/local` with a few more settings, rendered as `make deploy` does."""

import json
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

from job import __version__
from k8s.render import Manifest
from tests.conftest import REPOSITORY
from tests.e2e.cluster import Namespace, kubectl
from tests.manifests import of_kind, render, write_kustomization

IMAGE = os.environ.get("IMAGE", f"thaw:{__version__}-cpu")
RESULT_SETTINGS = {"THAW_HEAD_EPOCHS": "3", "THAW_FINE_TUNE_EPOCHS": "4", "THAW_DETERMINISTIC": "true"}
"""The demo's recipe, but shorter, and with the same bits every time."""
OTHER_SETTINGS = {"THAW_DATA_DIR": "/runs/data", "THAW_LEASE_SECONDS": "15", "THAW_WAIT_SECONDS": "0"}
"""The pictures are drawn once, and kept beside the runs. A start that finds the run held waits as long as a lease."""
NONE: Mapping[str, str] = MappingProxyType({})
LONG = {"THAW_FINE_TUNE_EPOCHS": "500"}
"""A run that ends in none of these tests."""


def patch_of_job(spec: dict[str, Any]) -> dict[str, Any]:
    """A patch of Kustomize that changes these fields of the Job."""
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "thaw"}, "spec": spec}
    return {"target": {"kind": "Job", "name": "thaw"}, "patch": json.dumps(job)}


def patch_of_container(**fields: Any) -> dict[str, Any]:
    """A patch that changes these fields of the container."""
    return patch_of_job({"template": {"spec": {"containers": [{"name": "thaw", **fields}]}}})


@dataclass(frozen=True)
class Runs:
    """Renders runs; `folder` is for the overlays that it writes."""

    folder: Path

    def render(
        self,
        run_id: str | None,
        settings: Mapping[str, str] = NONE,
        *,
        components: tuple[str, ...] = (),
        patches: tuple[dict[str, Any], ...] = (),
        rows: str = "",
    ) -> list[Manifest]:
        """The manifests of one run; `settings` by the names of their variables, on top of those above.

        With `rows`, and the component for them, those of a sweep.
        """
        name, tag = IMAGE.rsplit(":", 1)
        values = {**RESULT_SETTINGS, **OTHER_SETTINGS, **settings}
        literals = [f"{variable}={value}" for variable, value in values.items()]
        write_kustomization(
            self.folder,
            resources=["overlays/local"],
            components=[f"components/{component}" for component in components],
            configMapGenerator=[
                {"name": "thaw-settings", "behavior": "merge", "literals": literals},
                *([{"name": "thaw-sweep", "literals": [f"rows={rows}"]}] if rows else []),
            ],
            images=[{"name": "thaw", "newName": name, "newTag": tag}],
            patches=list(patches),
        )
        return _rendered(str(self.folder), *(["--run-id", run_id] if run_id else []))

    def render_shared(self) -> list[Manifest]:
        """What all of these runs share, those of several workers among them."""
        shared = self.folder / "shared"
        shared.mkdir(exist_ok=True)
        write_kustomization(shared, resources=["overlays/local/shared"], components=["components/workers/shared"])
        write_kustomization(self.folder, resources=["overlays/local"])
        return _rendered(str(self.folder), "--shared")

    def undeploy(self, run_id: str, namespace: Namespace) -> str:
        """`make undeploy` of a run with the settings of the last one that was rendered; returns what it prints."""
        kubeconfig = self.folder / "kubeconfig"
        kubeconfig.write_text(kubectl("config", "view", "--raw", "--flatten", "--minify"))
        kubectl(f"--kubeconfig={kubeconfig}", "config", "set-context", "--current", f"--namespace={namespace.name}")
        argv = ["make", "--old-file=setup", "undeploy", f"OVERLAY={self.folder}", f"RUN_ID={run_id}"]
        env = os.environ | {"KUBECONFIG": str(kubeconfig)}
        done = subprocess.run(argv, cwd=REPOSITORY, env=env, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout


def _rendered(*argv: str) -> list[Manifest]:
    done = render(*argv)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def named(manifests: list[Manifest], kind: str) -> Manifest:
    """The only manifest of a kind."""
    (manifest,) = of_kind(manifests, kind)
    return manifest


def name_of_job(manifests: list[Manifest]) -> str:
    return str(named(manifests, "Job")["metadata"]["name"])
