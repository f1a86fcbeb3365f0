"""`make render`: Job and ConfigMap are named by the run, and deleting a run deletes nothing that runs share."""

import re
from pathlib import Path

import pytest
import yaml

from job import __version__
from k8s.render import COMPONENT, CannotRender, examples_in, kustomize, of_one_run
from k8s.targets import without_target
from tests.conftest import slowly
from tests.manifests import (
    COMPONENTS,
    INSTANCE,
    K8S,
    OVERLAYS,
    Manifests,
    needs_kustomize,
    overlay,
    render,
    run_part,
    shared_part,
    write_kustomization,
)

pytestmark = needs_kustomize

GKE, CRON = "overlays/gke", "overlays/cron"
MORE_SHARED = {
    "overlays/local": {("PersistentVolumeClaim", "thaw-runs")},
    "overlays/own-data-pvc": {("PersistentVolumeClaim", "thaw-runs")},
    "overlays/gke-workers": {("Service", "thaw-workers")},
    "overlays/gke-workers-kueue": {("Service", "thaw-workers")},
    "overlays/minio": {("NetworkPolicy", "thaw-minio")},
    "overlays/kubeflow": {("ClusterTrainingRuntime", "thaw"), ("NetworkPolicy", "thaw-trainer")},
    "overlays/kubeflow-one": {("ClusterTrainingRuntime", "thaw-one"), ("NetworkPolicy", "thaw-trainer")},
    "cloud": {("Role", "thaw-workflow"), ("RoleBinding", "thaw-workflow")},
}
CLAIM_OF_A_PERSON = "thaw-data"
"""It holds images, so nothing here makes or deletes it."""


def write_overlay(folder: Path, *literals: str) -> Path:
    """An overlay outside of the repository: overlays/gke with other settings."""
    generator = {"name": "thaw-settings", "behavior": "merge", "literals": list(literals)}
    return write_kustomization(folder, resources=[GKE], configMapGenerator=[generator])


def deleted_by_label() -> set[str]:
    """The kinds that the page deletes when there is no overlay to find a run by."""
    page = (K8S.parent / "docs/kubernetes.md").read_text()
    section = page[page.index("## Deleting a run") : page.index("## Pruning")]
    return set(",".join(re.findall(r"kubectl delete ([a-z,]+) (?:NAME|--selector)", section)).split(","))


def patch(change: str, **target: str) -> dict[str, object]:
    """A patch of a Job or a CronJob as in a kustomization."""
    whole = {"apiVersion": "batch/v1", "kind": "any", "metadata": {"name": "any"}}
    return {"target": target, "patch": yaml.safe_dump(whole | yaml.safe_load(change))}


def rendered(text: str) -> Manifests:
    return Manifests(yaml.safe_load_all(text))


def test_the_same_settings_have_the_same_manifests() -> None:
    """Byte for byte, in any environment: applied again, nothing changes."""
    first = render("gke")
    again = render("gke", THAW_SEED="1", THAW_RUN_ID="mine", THAW_NO_SETTING="1", THAW_BATCH_SIZE="x")
    assert first.returncode == again.returncode == 0
    assert first.stdout == again.stdout


def test_job_and_config_map_are_named_by_the_run(tmp_path: Path) -> None:
    """By the fingerprint, which run.json has too; and the run has its name before it starts."""
    manifests = Manifests(of_one_run(kustomize(write_overlay(tmp_path))))
    fingerprint = manifests.settings.fingerprint()
    assert re.fullmatch(rf"thaw-{fingerprint}-[0-9a-f]{{6}}", manifests.name)
    assert len(manifests.name) <= 63 - len("-xxxxx")
    assert manifests.container["envFrom"] == [{"configMapRef": {"name": manifests.name}}]
    assert manifests.config["THAW_RUN_ID"] == f"cats_vs_dogs-{fingerprint}"


@pytest.mark.parametrize(
    ("setting", "is_same_run"),
    [
        ("THAW_SEED=1", False),
        ("THAW_CHECKPOINT_EVERY_SECONDS=30", True),
        *slowly(
            ("THAW_RUN_ID=another", False),
            ("THAW_STORAGE_URI=gs://other.example.com/runs", False),
            ("AWS_ENDPOINT_URL=https://s3.example.com", False),
            ("AZURE_STORAGE_ACCOUNT_NAME=other", False),
            ("AWS_REGION=eu-central-1", True),
        ),
    ],
)
def test_another_run_is_another_job(tmp_path: Path, setting: str, is_same_run: bool) -> None:
    """A setting that does not change the result changes only the ConfigMap of the same Job, for its next pod."""
    changed, before = Manifests(of_one_run(kustomize(write_overlay(tmp_path, setting)))), overlay("gke")
    assert (changed.workload == before.workload) == (changed.name == before.name) == is_same_run
    assert changed.of_kind("ConfigMap") != before.of_kind("ConfigMap")


def test_a_run_id_can_be_given() -> None:
    """For checks of a change: its commit names the run."""
    manifests = rendered(render("ci", "--run-id", "ci-0a1b2c3").stdout)
    assert manifests.config["THAW_RUN_ID"] == "ci-0a1b2c3"
    assert manifests.name != overlay("ci").name


def test_wrong_settings_never_reach_the_cluster(tmp_path: Path) -> None:
    """Exit code 2 and the program's own message, with every problem; nothing to apply is printed."""
    done = render(str(write_overlay(tmp_path, "THAW_BATCHSIZE=3", "THAW_SEED=x")))
    assert (done.returncode, done.stdout) == (2, "")
    assert "THAW_BATCHSIZE: no such setting; did you mean THAW_BATCH_SIZE?" in done.stderr
    assert "THAW_SEED='x': must be a whole number" in done.stderr


def test_a_schedule_keeps_its_name_and_has_no_run_id() -> None:
    """With one run id, every slot but the first would do nothing."""
    assert overlay("cron").name == "thaw"
    done = render("cron", "--run-id", "weekly")
    assert done.returncode == 2
    assert "THAW_RUN_ID='weekly': each slot of a CronJob is a run of its own" in done.stderr


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name == "pvc-store" else pytest.mark.slow)
        for name in COMPONENTS
        if name != "cron" and (K8S / "components" / name / "kustomization.yaml").is_file()
    ],
)
def test_a_component_changes_the_jobs_of_a_schedule_as_it_changes_a_job(name: str, tmp_path: Path) -> None:
    """Whether it comes before the component `cron`, or on top of it in an overlay of one's own."""
    once, before, after, top = (tmp_path / folder for folder in ("once", "before", "after", "top"))
    for folder, components in ((once, [name]), (before, [name, "cron"]), (after, ["cron"])):
        folder.mkdir()
        parts = [f"components/{component}" for component in components]
        write_kustomization(folder, resources=["base"], components=parts)
    top.mkdir()
    write_kustomization(top, resources=[after], components=[f"components/{name}"])
    job = Manifests(kustomize(once))
    for schedule in (Manifests(kustomize(before)), Manifests(kustomize(top))):
        assert schedule.names == job.names - {("Job", "thaw")} | {("CronJob", "thaw")}
        template = schedule.workload["spec"]["jobTemplate"]
        assert template["metadata"] == {"labels": job.workload["metadata"]["labels"]}
        env = schedule.container["env"]
        env[:] = [entry for entry in env if entry["name"] != "THAW_RUN_ID"]
        assert (schedule.job, schedule.config) == (job.job, job.config)


@pytest.mark.parametrize(
    ("argv", "parts", "message"),
    [
        (["gke-spto"], {}, "'gke-spto' is no overlay: there are aks, ci, cron, eks, gke, gke-spot"),
        (["."], {"resources": [GKE, "overlays/ci"]}, "may not add resource"),
        (
            ["."],
            {"resources": [GKE], "patches": [patch("spec: {}", kind="CronJob")]},
            "no manifest is the target of kind=CronJob",
        ),
        (
            ["."],
            {"resources": [CRON], "patches": [patch("spec: {}", name="thaww")]},
            "no manifest is the target of name=thaww",
        ),
        (["."], {"resources": [CRON], "patches": [patch("$patch: delete", kind="Job")]}, "neither a Job nor"),
        (["."], {"resources": [CRON], "patches": [patch("spec: {jobTemplate: {}}", kind="CronJob")]}, "patch the Job"),
        (["."], {"resources": ["overlays/local", "overlays/local/shared"]}, "PersistentVolumeClaim thaw-runs"),
        ([".", "--shared"], {"resources": [GKE]}, "hint: make shared/kustomization.yaml"),
        (["ci", "--shared", "--run-id", "a"], {}, "not allowed with"),
    ],
)
def test_what_cannot_be_rendered_is_explained(
    tmp_path: Path, argv: list[str], parts: dict[str, list[str]], message: str
) -> None:
    """And nothing is printed that could be applied."""
    write_kustomization(tmp_path, **parts)
    done = render(*(str(tmp_path) if word == "." else word for word in argv))
    assert (done.returncode, done.stdout) == (2 if "--run-id" in argv else 1, "")
    assert message in done.stderr


def test_without_kustomize_the_message_names_what_is_missing(tmp_path: Path) -> None:
    """On a machine with neither kubectl nor kustomize."""
    done = render("local", PATH=str(tmp_path))
    assert done.returncode == 1
    assert "neither kubectl nor kustomize is there" in done.stderr
    assert "install kubectl" in done.stderr


@pytest.mark.parametrize("name", ["local", pytest.param("cron", marks=pytest.mark.slow)])
def test_the_server_stores_what_is_printed(name: str) -> None:
    """It would drop an empty list, and so find every apply changed; and read the text 2e-3 as a number."""
    text = render(name).stdout
    assert ": []" not in text
    assert name == "cron" or "THAW_FINE_TUNE_LEARNING_RATE: '2e-3'" in text


@pytest.mark.parametrize("place", [*(f"overlays/{name}" for name in OVERLAYS), "cloud"])
def test_a_run_and_what_runs_share_are_apart(place: str) -> None:
    """A run is a workload and its settings, with a label to delete it by and one that what is shared has not."""
    run, shared = run_part(place), shared_part(place)
    both = Manifests([*shared, *run])
    kinds = sorted(manifest["kind"] for manifest in run if manifest["kind"] != "NetworkPolicy")
    if both.settings.sweep:
        kinds.remove("ConfigMap")  # of its rows
    assert kinds in (["ConfigMap", "CronJob"], ["ConfigMap", "Job"], ["ConfigMap", "JobSet"], ["TrainJob"])
    assert len(run.of_kind("NetworkPolicy")) == (both.settings.workers > 1)
    labelled = [*run, run.workload["spec"].get("jobTemplate", run.workload)]
    if run.workload["kind"] != "TrainJob":  # its pods are made by the runtime
        labelled.append(run.job["template"])
    assert {it["metadata"]["labels"][INSTANCE] for it in labelled} == {run.name}
    assert {manifest["kind"].lower() for manifest in run} <= deleted_by_label()
    assert INSTANCE not in yaml.safe_dump(list(shared))
    assert {it["metadata"]["labels"][COMPONENT] for it in labelled} == {"training"}
    assert {it["metadata"]["labels"][COMPONENT] for it in shared} == {"shared"}
    account = {("ServiceAccount", "thaw"), ("NetworkPolicy", "thaw"), ("NetworkPolicy", "thaw-https")}
    assert shared.names == account | MORE_SHARED.get(place, set())
    claims = [it["persistentVolumeClaim"] for it in both.pod["volumes"] if "persistentVolumeClaim" in it]
    names = {claim["claimName"] for claim in claims} - {CLAIM_OF_A_PERSON}
    assert {("PersistentVolumeClaim", name) for name in names} <= shared.names
    assert ("ServiceAccount", both.pod["serviceAccountName"]) in shared.names


def test_runs_of_one_namespace_agree_on_what_they_share() -> None:
    """Applying one of them does not change it for the others."""
    shared = [shared_part(f"overlays/{name}") for name in ("gke", "gke-spot", "ci", "cron")]
    assert all(other == shared[0] for other in shared)


def test_neither_argo_cd_nor_flux_deletes_the_claim() -> None:
    """By their own annotations."""
    (claim,) = overlay("local").of_kind("PersistentVolumeClaim")
    assert claim["metadata"]["annotations"] == {
        "argocd.argoproj.io/sync-options": "Prune=false,Delete=false",
        "kustomize.toolkit.fluxcd.io/prune": "disabled",
    }


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name == "minio" else pytest.mark.slow)
        for name in COMPONENTS
        if (K8S / "components" / name / "shared").is_dir()
    ],
)
def test_a_shared_part_of_a_component_in_a_run_is_refused(name: str, tmp_path: Path) -> None:
    """It would be deleted with the run, or have no effect."""
    write_kustomization(tmp_path, resources=["base"], components=[f"components/{name}/shared"])
    with pytest.raises(CannotRender):
        of_one_run(kustomize(tmp_path))


def test_examples_are_shown_and_not_deployed() -> None:
    """All of them in one message: those of the run, and those of what runs share."""
    shown, refused = render("gke"), render("gke", "--deploy")
    assert shown.returncode == 0
    assert "gs://thaw.example.com/runs" in shown.stderr
    assert (refused.returncode, refused.stdout) == (1, "")
    assert (
        f"gs://thaw.example.com/runs, registry.example.com/thaw:{__version__}, "
        "thaw-run@example-project.iam.gserviceaccount.com\n"
    ) in refused.stderr


@pytest.mark.parametrize(
    ("text", "is_example"),
    [
        ("gs://thaw.example.com/runs", True),
        ("example.org:5000/thaw:1", True),
        ("thaw-run@example-project.iam.gserviceaccount.com", True),
        ("gs://my-example-project/runs", False),
        ("gs://example-project-42/runs", False),
        ("arn:aws:iam::123456789012:role/thaw-run", True),
        ("arn:aws:iam::123456789013:role/thaw-run", False),
        ("00000000-0000-0000-0000-000000000000", True),
        ("10000000-0000-0000-0000-000000000000", False),
        ("counterexample.com/thaw", False),
        ("example.com.my-company.io/thaw", False),
    ],
)
def test_an_example_is_of_a_reserved_domain_or_of_our_project(text: str, is_example: bool) -> None:
    """A name that only looks like one is yours."""
    assert examples_in([{"kind": "ConfigMap", "data": {"THAW_STORAGE_URI": text}}]) == [text] * is_example


@pytest.mark.parametrize("name", OVERLAYS)
def test_only_an_overlay_without_a_cloud_is_deployed_as_it_is(name: str) -> None:
    """What is left unchanged is no place of a stranger, and no place at all."""
    assert (examples_in(overlay(name)) == []) == (name in ("local", "own-data-pvc"))


@pytest.mark.parametrize(
    ("image", "reference"),
    [
        ({"newTag": "553640e6"}, "eu.gcr.io/ml/thaw:553640e6"),
        ({"digest": f"sha256:{'0a' * 32}"}, f"eu.gcr.io/ml/thaw@sha256:{'0a' * 32}"),
    ],
)
def test_an_image_is_pinned_by_revision_or_digest(image: dict[str, str], reference: str, tmp_path: Path) -> None:
    """A node never has another image under such a name, so it need not ask again."""
    name = {"name": "registry.example.com/thaw", "newName": "eu.gcr.io/ml/thaw"}
    manifests = Manifests(of_one_run(kustomize(write_kustomization(tmp_path, resources=[GKE], images=[name | image]))))
    assert (manifests.container["image"], manifests.container["imagePullPolicy"]) == (reference, "IfNotPresent")


def test_a_patch_has_a_target_by_the_name_before_it_was_changed(tmp_path: Path) -> None:
    """A prefix and the hash of a generator come later; of what is fetched from a URL nothing is known."""
    seed = "- {op: add, path: /data/THAW_SEED, value: '7'}"
    config = {"target": {"kind": "ConfigMap", "name": "thaw-settings"}, "patch": seed}
    job = patch("spec: {backoffLimit: 2}", kind="Job", name="thaw")
    write_kustomization(tmp_path, resources=[GKE], patches=[config, job], namePrefix="mine-")
    manifests = Manifests(of_one_run(kustomize(tmp_path)))
    assert manifests.name.startswith("mine-thaw-")
    assert (manifests.settings.seed, manifests.job["backoffLimit"]) == (7, 2)
    kustomization = {"resources": ["https://git.example.com/thaw//k8s/base"], "patches": [job]}
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    assert without_target(tmp_path, []) == []
