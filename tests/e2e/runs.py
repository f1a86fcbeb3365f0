"""The runs of these tests: `overlays/local` with a few settings more, rendered as `make deploy` does."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from job import __version__
from tests.conftest import REPOSITORY
from tests.e2e.cluster import Manifest

IMAGE = os.environ.get("IMAGE", f"thaw:{__version__}-cpu")
RESULT_SETTINGS = {"THAW_HEAD_EPOCHS": "3", "THAW_FINE_TUNE_EPOCHS": "4", "THAW_DETERMINISTIC": "true"}
"""The demo's recipe, but shorter, and with the same bits every time."""
OTHER_SETTINGS = {"THAW_DATA_DIR": "/runs/data", "THAW_LEASE_SECONDS": "15"}
"""The pictures are drawn once, and kept beside the runs."""


@dataclass(frozen=True)
class Runs:
    """Renders runs; `folder` is for the overlays that it writes."""

    folder: Path

    def render(
        self,
        run_id: str | None,
        *,
        components: tuple[str, ...] = (),
        patches: tuple[dict[str, Any], ...] = (),
        **settings: str,
    ) -> list[Manifest]:
        """The manifests of one run; settings by the names of their variables."""
        name, tag = IMAGE.rsplit(":", 1)
        values = RESULT_SETTINGS | OTHER_SETTINGS | settings
        literals = [f"{variable}={value}" for variable, value in values.items()]
        overlay = {
            "resources": [self._path_of("overlays/local")],
            "components": [self._path_of(f"components/{component}") for component in components],
            "configMapGenerator": [{"name": "thaw-settings", "behavior": "merge", "literals": literals}],
            "images": [{"name": "thaw", "newName": name, "newTag": tag}],
            "patches": list(patches),
        }
        (self.folder / "kustomization.yaml").write_text(json.dumps(overlay))
        argv = [sys.executable, "-m", "k8s.render", str(self.folder), *(["--run-id", run_id] if run_id else [])]
        done = subprocess.run(argv, cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return list(yaml.safe_load_all(done.stdout))

    def _path_of(self, part: str) -> str:
        return os.path.relpath(REPOSITORY / "k8s" / part, self.folder.resolve())


def named(manifests: list[Manifest], kind: str) -> Manifest:
    """The only manifest of a kind."""
    (manifest,) = [manifest for manifest in manifests if manifest["kind"] == kind]
    return manifest


def name_of_job(manifests: list[Manifest]) -> str:
    return str(named(manifests, "Job")["metadata"]["name"])
