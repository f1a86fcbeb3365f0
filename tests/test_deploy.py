"""`make deploy` and `make undeploy`, with a kubectl that only writes down what it gets."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.conftest import REPOSITORY
from tests.manifests import Manifests, needs_kustomize, render, run_part, shared_part, write_kustomization

pytestmark = needs_kustomize


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., tuple[str, str, Manifests]]:
    """Runs a target that calls kubectl; returns what it prints, and the arguments and manifests that kubectl gets."""
    kubectl, arguments, manifests = tmp_path / "kubectl", tmp_path / "arguments", tmp_path / "manifests"
    render_command = "kubectl kustomize" if shutil.which("kubectl") else "kustomize build"
    kubectl.write_text(
        f'#!/bin/sh\n[ "$1" != kustomize ] || PATH=${{PATH#*:}} exec {render_command} "$2"\n'
        f'echo "$*" > {arguments}\ncat > {manifests}\n'
    )
    kubectl.chmod(0o755)

    def run(*argv: str) -> tuple[str, str, Manifests]:
        # These tests may be run by make, whose sub-makes print the folder.
        words = ["make", "--no-print-directory", "--old-file=setup", f"BIN={Path(sys.executable).parent}", *argv]
        env = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
        done = subprocess.run(words, cwd=REPOSITORY, env=env, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr
        return done.stdout, arguments.read_text().strip(), Manifests(yaml.safe_load_all(manifests.read_text()))

    return run


@pytest.mark.slow
def test_undeploy_deletes_one_run(make: Callable[..., tuple[str, str, Manifests]]) -> None:
    """The Job and the ConfigMap that have the name of this run id."""
    printed, arguments, manifests = make("undeploy", "OVERLAY=local", "RUN_ID=seven")
    assert arguments == "delete --ignore-not-found -f -"
    assert manifests == Manifests(yaml.safe_load_all(render("local", "--run-id", "seven").stdout))
    assert manifests.names.isdisjoint(run_part("overlays/local").names)
    assert printed.startswith("nothing to delete"), "this kubectl has found nothing"


def test_deploy_applies_what_runs_share_and_then_the_run(make: Callable[..., tuple[str, str, Manifests]]) -> None:
    """In this order, since a pod needs its account and its claim."""
    _, arguments, manifests = make("deploy", "OVERLAY=local")
    assert arguments == "apply -f -"
    assert manifests == shared_part("overlays/local") + run_part("overlays/local")


@pytest.mark.slow
def test_deploy_of_examples_applies_nothing(make: Callable[..., tuple[str, str, Manifests]], tmp_path: Path) -> None:
    """The target fails before kubectl gets anything."""
    with pytest.raises(AssertionError, match=r"examples in place of what is yours: gs://thaw\.example\.com/runs"):
        make("deploy", "OVERLAY=gke")
    assert not (tmp_path / "arguments").exists()


@pytest.mark.slow
def test_a_run_of_several_workers_is_deployed_and_deleted_as_one(
    make: Callable[..., tuple[str, str, Manifests]], tmp_path: Path
) -> None:
    """Its policy goes with it; the Service is of all runs, and stays."""
    shared = tmp_path / "shared"
    shared.mkdir()
    write_kustomization(shared, resources=["overlays/local/shared"], components=["components/workers/shared"])
    literals = {"name": "thaw-settings", "behavior": "merge", "literals": ["THAW_WORKERS=3"]}
    parts = {"resources": ["overlays/local"], "components": ["components/workers"]}
    write_kustomization(tmp_path, **parts, configMapGenerator=[literals])
    _, _, applied = make("deploy", f"OVERLAY={tmp_path}", "RUN_ID=seven")
    _, _, deleted = make("undeploy", f"OVERLAY={tmp_path}", "RUN_ID=seven")
    assert applied.job["parallelism"] == 3
    assert deleted.names == {
        ("ConfigMap", applied.name),
        ("Job", applied.name),
        ("NetworkPolicy", f"{applied.name}-workers"),
    }
    assert applied[-len(deleted) :] == deleted
    assert ("Service", "thaw-workers") in applied.names - deleted.names
