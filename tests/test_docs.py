"""What the pages name is there, and their examples work. `make lint` compares the reference with the code."""

import contextlib
import json
import os
import re
import shlex
import textwrap
import tomllib
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml

from job import __version__, cli
from job.errors import ExitCode
from job.settings.fields import PREFIX
from k8s.render import examples_in, kustomize, of_one_run, settings_of, shared_by_runs
from tests.conftest import REPOSITORY
from tests.manifests import (
    COMPONENTS,
    K8S,
    OVERLAYS,
    Manifests,
    demo_settings,
    needs_kustomize,
    of_kind,
    variables,
    write_kustomization,
)

PAGES = {
    str(path.relative_to(REPOSITORY)): path.read_text()
    for path in (*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").rglob("*.md"))
}
ARCHITECTURE, KUBERNETES = PAGES["docs/architecture.md"], PAGES["docs/kubernetes.md"]
TARGETS = set(re.findall(r"^([a-z0-9-]+):.*## ", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))
OF_TESTS = {"THAW_TEST_DATA", "THAW_TEST_GCS"}

every_page = pytest.mark.parametrize("name", PAGES)


@every_page
def test_a_page_names_only_what_there_is(name: str) -> None:
    """Variables, targets of make, files, and the version."""
    text = PAGES[name]
    named = set(re.findall(r"THAW_[A-Z_]+\b(?!\*)", text))
    assert named - {"THAW_"} <= variables() | OF_TESTS
    for words in re.findall(r"(?:^ {4}|`)make ([a-z0-9 -]+?)(?: {2,}|`| [A-Z]|$)", text, re.MULTILINE):
        assert set(words.split()) <= TARGETS, words
    for path in re.findall(r"`((?:job|tests|k8s|bench|docs|demo|\.github)/[\w./-]*\w)`", text):
        assert (REPOSITORY / path).exists(), path
    assert set(re.findall(r"thaw:(\d+\.\d+\.\d+)", text)) <= {__version__}


@every_page
def test_every_command_of_a_page_is_one(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it stands there, in the folder of the repository; the program reads its flags and values."""
    monkeypatch.chdir(tmp_path)
    blocks = "\n".join(re.findall(r"^ {4}(.*)$", PAGES[name].replace("\\\n", ""), re.MULTILINE))
    for file in re.findall(r"--env-file (\S+\.env)", blocks):
        Path(file).touch()
    assert "python -m job" not in blocks.replace("script: [python -m job]", "")
    for line in re.findall(r"bin/thaw([^#|)\n]*)", blocks):
        command, words = cli.split(shlex.split(line))
        with contextlib.suppress(SystemExit):
            cli.read(command, words, {})


@every_page
def test_every_link_leads_somewhere(name: str) -> None:
    """To a file, and to a heading of it."""
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", PAGES[name]):
        place, _, heading = target.partition("#")
        path = (REPOSITORY / name).parent / place if place else REPOSITORY / name
        assert path.exists(), target
        headings = re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE) if heading else []
        anchors = [re.sub(r"[^\w -]", "", it.lower()).replace(" ", "-") for it in headings]
        assert not heading or heading in anchors, target


def test_pages_keep_to_their_length() -> None:
    """A long page is not read to its end."""
    assert len(PAGES["README.md"].splitlines()) < 200
    assert len(ARCHITECTURE.splitlines()) < 250


def test_the_picture_of_the_demo_is_one_of_a_whole_run_and_loads_nothing() -> None:
    """Headings, every epoch of both phases, and the result; as text, with no address but that of the format."""
    picture = ElementTree.fromstring((REPOSITORY / "docs" / "demo.svg").read_text())
    written = "".join(picture.itertext()).replace("\xa0", " ")
    assert re.search(r"phase +epoch +loss +accuracy +loss +accuracy +images/s +time +left +saved", written)
    for phase, variable in (("head", "THAW_HEAD_EPOCHS"), ("fine_tune", "THAW_FINE_TUNE_EPOCHS")):
        num_epochs = int(demo_settings()[variable])
        shown = re.findall(rf"{phase} +(\d+)/{num_epochs}\b", written)
        assert shown == [str(epoch + 1) for epoch in range(num_epochs)]
    assert re.search(r"accuracy +0\.\d{3} on test", written)
    addresses = re.findall(r"\w+://[^\s\"'<)]+", (REPOSITORY / "docs" / "demo.svg").read_text())
    assert set(addresses) == {"http://www.w3.org/2000/svg"}
    assert not [it for it in picture.iter() if it.tag.rpartition("}")[2] in ("script", "image", "use", "foreignObject")]


def test_the_lock_files_name_no_host() -> None:
    """Names and hashes only."""
    locks = sorted((REPOSITORY / "requirements").glob("*.txt"))
    assert [path.stem for path in locks] == ["cpu", "dev", "gpu"]
    for path in locks:
        assert not re.search(r"https?://|--index-url|--find-links", path.read_text()), path.name


def test_the_tree_has_every_folder_of_the_program() -> None:
    """And every module beside the folders; no line is of one that is gone."""
    listed = re.findall(r"^ {4}(job/\w+(?:\.py|/)) +\S", ARCHITECTURE, re.MULTILINE)
    there = [path for path in (REPOSITORY / "job").iterdir() if not path.name.startswith(("__init__", "__pycache__"))]
    assert sorted(listed) == sorted(f"job/{path.name}" + ("/" if path.is_dir() else "") for path in there)


def test_the_layers_in_the_architecture_are_those_that_lint_checks() -> None:
    """From the command line down to the errors."""
    contracts = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = [layer.replace("job.", "") for layer in contracts[0]["layers"]]
    (drawn,) = re.findall(r"## The layers\n.*?\n\n((?: {4}[^\n]+\n)+)", ARCHITECTURE, re.DOTALL)
    assert [line.strip() for line in drawn.splitlines()] == layers


def test_every_overlay_and_component_has_a_row() -> None:
    """A part that runs share is marked."""
    tables = re.findall(r"^\| (?:overlay|component) \| .* \|\n\|---\|---\|\n((?:\|.*\|\n)+)", KUBERNETES, re.MULTILINE)
    overlays, components = (dict(re.findall(r"^\| `(.+?)` \| (.+) \|$", rows, re.MULTILINE)) for rows in tables)
    rows = {name: what for names, what in components.items() for name in names.split("`, `")}
    assert (sorted(overlays), sorted(rows)) == (OVERLAYS, COMPONENTS)
    for name, what in rows.items():
        assert ("`shared`: " in what) == (K8S / "components" / name / "shared").is_dir(), name


@needs_kustomize
def test_an_overlay_of_ones_own_is_as_short_as_that(tmp_path: Path) -> None:
    """The example renders: its image, settings, queue and account are in the Job."""
    run, shared = re.findall(r"^((?: {4}.*\n)+)", KUBERNETES[KUBERNETES.index("    resources: [") :], re.MULTILINE)[:2]
    here = os.path.relpath(REPOSITORY, tmp_path.resolve())
    run = run.replace("0a1b2c3", "553640e6")  # to YAML a number, unless it is quoted
    (tmp_path / "shared").mkdir()
    for folder, block in ((tmp_path, run), (tmp_path / "shared", shared)):
        (folder / "kustomization.yaml").write_text(textwrap.dedent(block).replace("../../thaw", here))
    manifests = Manifests(of_one_run(kustomize(tmp_path)))
    (account,) = of_kind(shared_by_runs(tmp_path), "ServiceAccount")
    assert manifests.container["image"] == "europe-docker.pkg.dev/my-project/ml/thaw:553640e6"
    assert examples_in([*manifests, account]) == []
    assert (manifests.settings.seed, manifests.settings.storage_uri) == (7, "gs://my-bucket/runs")
    assert manifests.workload["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "thaw"
    assert "my-project" in account["metadata"]["annotations"]["iam.gke.io/gcp-service-account"]


@needs_kustomize
@pytest.mark.parametrize(
    ("overlay", "key"),
    [("eks", "eks.amazonaws.com/role-arn"), ("aks", "azure.workload.identity/client-id"), (None, None)],
)
def test_the_account_of_a_cloud_is_one_line_or_none(overlay: str | None, key: str | None, tmp_path: Path) -> None:
    """The line replaces that of the example; nothing is left that `make deploy` refuses."""
    shared = [
        textwrap.dedent(block)
        for block in re.findall(r"^((?: {4}.*\n)+)", KUBERNETES, re.MULTILINE)
        if re.match(r" {4}resources: .*/(overlays/gke|base)/shared\]", block)
    ]
    if key:
        (line,) = re.findall(rf"^ {{4}}( .*{key.replace('/', '~1')},.*\n)", KUBERNETES, re.MULTILINE)
        *others, _ = shared[0].replace("/gke/", f"/{overlay}/").splitlines(keepends=True)
        text = "".join([*others, line])
    else:
        text = shared[1]
    folder = tmp_path / "shared"
    folder.mkdir()
    (folder / "kustomization.yaml").write_text(
        text.replace("../../../thaw", os.path.relpath(REPOSITORY, folder.resolve()))
    )
    manifests = shared_by_runs(tmp_path)
    (account,) = of_kind(manifests, "ServiceAccount")
    assert set(account["metadata"].get("annotations", {})) == ({key} if key else set())
    assert examples_in(manifests) == []


@needs_kustomize
def test_a_part_of_a_gpu_and_a_cache_of_its_kernels_are_patches_of_a_pod(tmp_path: Path) -> None:
    """Both examples, on top of an overlay with `components/gpu`, which gives image, toleration and THAW_DEVICE."""
    section = KUBERNETES[KUBERNETES.index("\n## GPUs\n") : KUBERNETES.index("\n## Several workers\n")]
    part, cache = (yaml.safe_load(textwrap.dedent(it)) for it in re.findall(r"^((?: {4}.*\n)+)", section, re.MULTILINE))
    both = cache | {"patches": part["patches"] + cache["patches"]}
    run = Manifests(of_one_run(kustomize(write_kustomization(tmp_path, resources=["overlays/gke"], **both))))
    limits = run.container["resources"]["limits"]
    assert {name: number for name, number in limits.items() if "/" in name} == {"nvidia.com/mig-1g.10gb": "1"}
    assert (run.settings.device, [it["key"] for it in run.pod["tolerations"]]) == ("gpu", ["nvidia.com/gpu"])
    (claim,) = [it["name"] for it in run.pod["volumes"] if "persistentVolumeClaim" in it]
    (path,) = [it["mountPath"] for it in run.container["volumeMounts"] if it["name"] == claim]
    assert Path(run.config["CUDA_CACHE_PATH"]).parent == Path(path)


def test_the_log_is_followed_when_the_pod_has_started() -> None:
    """Before that, `kubectl logs` ends at once with an error. The pods are those of the Job that is waited for."""
    words = "make deploy|kubectl wait|kubectl logs"
    deploy, wait, logs = re.findall(rf"^    ((?:{words}) .+)$", KUBERNETES, re.MULTILINE)[:3]
    assert deploy.startswith("make deploy OVERLAY=local ")
    assert wait.startswith("kubectl wait job --for=jsonpath='{.status.ready}'=1 ")
    assert wait.partition("--selector ")[2] == logs.partition("--selector ")[2] == "app.kubernetes.io/name=thaw"


def test_argo_cd_and_flux_prune_runs_and_not_what_runs_share() -> None:
    """Two of each tool, with the folders that the commands above them fill."""
    argo, flux = (
        list(yaml.safe_load_all(block)) for block in re.findall(r"```yaml\n(apiVersion.+?)```", KUBERNETES, re.DOTALL)
    )
    folders = set(re.findall(r"^    make render.* > (\w+)/", KUBERNETES, re.MULTILINE))
    prunes = {it["spec"]["source"]["path"]: it["spec"]["syncPolicy"]["automated"]["prune"] for it in argo}
    assert prunes == {folder: folder == "runs" for folder in folders}
    assert {it["spec"]["path"].removeprefix("./"): it["spec"]["prune"] for it in flux} == prunes


def test_the_gitlab_job_has_good_settings_and_retries_what_a_retry_may_help() -> None:
    """With a gate, so that its exit code decides."""
    (block,) = re.findall(r"```yaml\n(thaw:.+?)```", KUBERNETES, re.DOTALL)
    job = yaml.safe_load(block)["thaw"]
    values = {name: str(text) for name, text in job["variables"].items() if name.startswith(PREFIX)}
    settings = settings_of({}, values | {"THAW_RUN_ID": "0a1b2c3"})
    assert settings.min_test_accuracy is not None
    assert (job["tags"], settings.device) == (["gpu"], "gpu"), "a processor would pass the gate too"
    assert job["retry"]["exit_codes"] == [code for code in ExitCode if code and code.retry != "will not help"]
    assert job["script"] == ["python -m job"]
    assert "$CI_PIPELINE_IID" in values["THAW_RUN_ID"], "each night is a run of its own"


def test_katib_finds_the_metrics_in_the_log(undisturbed_process: dict[str, str]) -> None:
    """By the expression of the page, in the lines of a real run: of each epoch, and of the outcome."""
    (block,) = re.findall(r"```yaml\n(.+?)```", PAGES["docs/sweeps.md"], re.DOTALL)
    spec = yaml.safe_load(block)["spec"]
    (expression,) = spec["metricsCollectorSpec"]["source"]["filter"]["metricsFormat"]
    log = Path(undisturbed_process["THAW_STORAGE_URI"], "stdout").read_text()
    found = re.findall(expression, log)
    epochs = [line for line in map(json.loads, log.splitlines()) if line["event"] == "epoch_finished"]
    accuracies = [float(value) for name, value in found if name == "validation_accuracy"]
    assert accuracies == [it["validation_accuracy"] for it in epochs]
    assert {name for name, _ in found} == {
        spec["objective"]["objectiveMetricName"], *spec["objective"]["additionalMetricNames"]
    }  # fmt: skip
    (container,) = spec["trialTemplate"]["trialSpec"]["spec"]["template"]["spec"]["containers"]
    assert container["name"] == spec["trialTemplate"]["primaryContainerName"]
    words = [word.replace("${trialParameters.rate}", "1e-5") for word in container["command"][3:]]
    assert cli.read("run", words, {it["name"]: it["value"] for it in container["env"]}).settings.log_format == "json"


def test_the_rows_of_the_page_are_those_of_a_sweep(tmp_path: Path) -> None:
    """Each index has the settings that stand there."""
    (rows,) = re.findall(r"^((?: {4}(?:# rows|THAW_).*\n)+)", PAGES["docs/sweeps.md"], re.MULTILINE)[:1]
    (tmp_path / "rows").write_text(textwrap.dedent(rows))
    environ = {"THAW_SWEEP": str(tmp_path / "rows")}
    seeds = [cli.read("run", [], environ | {"THAW_SWEEP_INDEX": str(index)}).settings.seed for index in range(3)]
    assert seeds == [0, 1, 0]
