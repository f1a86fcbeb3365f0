"""A release: what has a tag has a signature, a version is never replaced, and the changelog has its section."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from job import __version__
from tests.conftest import REPOSITORY

IMAGE = "ghcr.io/some-owner/thaw:0.2.0-cpu"
NAME = IMAGE.rpartition(":")[0]
WORKFLOW = "Some-Owner/thaw/.github/workflows/release.yml@refs/tags/v0.2.0"
DIGEST = "sha256:" + "0a" * 32

DOCKER = f"""#!/bin/bash
echo "docker $*" >>"$LOG"
case "$*" in
info) ;;
"buildx imagetools inspect "*)
    [ -z "${{REFUSES:-}}" ] || {{ echo "ERROR: $REFUSES" >&2; exit 1; }}
    [ -e "$REGISTRY/tag" ] || {{ echo "ERROR: $4: not found" >&2; exit 1; }} ;;
"buildx imagetools create "*) touch "$REGISTRY/tag" ;;
build*)
    while [ "$1" != --metadata-file ]; do shift; done
    printf '{{\\n  "containerimage.digest": "{DIGEST}",\\n  "image.name": "x"\\n}}' >"$2" ;;
esac
"""
COSIGN = """#!/bin/bash
echo "cosign $*" >>"$LOG"
[ "$1" != sign ] || [ -z "${CANNOT_SIGN:-}" ] || exit 1
"""


class Registry:
    """A folder that stands for a registry, and substitutes of docker and cosign that log what they are asked."""

    def __init__(self, folder: Path) -> None:
        self.log = folder / "log"
        for name, script in (("docker", DOCKER), ("cosign", COSIGN)):
            (folder / name).write_text(script)
            (folder / name).chmod(0o755)
        self.env = os.environ | {
            "PATH": f"{folder}:{os.environ['PATH']}",
            "LOG": str(self.log),
            "REGISTRY": str(folder),
            "GITHUB_SERVER_URL": "https://github.com",
            "GITHUB_WORKFLOW_REF": WORKFLOW,
        }

    def publish(self, **env: str) -> tuple[int, list[str]]:
        """Exit code, and the first words of each command that was given."""
        self.log.write_text("")
        command = [REPOSITORY / ".ci" / "publish", "image", IMAGE]
        code = subprocess.run(command, env=self.env | env, capture_output=True, timeout=240).returncode
        commands = [re.sub(r" --(?!tag).*", "", line) for line in self.log.read_text().splitlines()]
        return code, [command for command in commands if command != "docker info"]


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path)


INSPECT, VERIFY = f"docker buildx imagetools inspect {IMAGE}", f"cosign verify {IMAGE}"


def test_what_has_a_tag_has_a_signature(registry: Registry) -> None:
    """The image is built without a tag, signed by digest, and named last; a second time it is only verified."""
    code, commands = registry.publish()
    tag = f"docker buildx imagetools create --tag {IMAGE} {NAME}@{DIGEST}"
    sign = "cosign sign"
    assert (code, commands) == (0, [INSPECT, "docker build", sign, tag, VERIFY])
    text = registry.log.read_text()
    assert f"cosign sign --yes {NAME}@{DIGEST}\n" in text
    assert f"--target cpu --tag {NAME} --build-arg VERSION={__version__} " in text
    assert {"--sbom=true", "--provenance=mode=max"} <= set(text.split())
    assert f"--certificate-identity https://github.com/{WORKFLOW}\n" in text
    assert registry.publish() == (0, [INSPECT, VERIFY])


def test_an_image_that_could_not_be_signed_gets_no_tag(registry: Registry) -> None:
    """The next try publishes it."""
    code, commands = registry.publish(CANNOT_SIGN="1")
    assert (code, commands) == (1, [INSPECT, "docker build", "cosign sign"])
    assert registry.publish()[0] == 0


def test_a_version_is_not_replaced_because_the_registry_did_not_answer(registry: Registry) -> None:
    """Only that there is none allows a new one."""
    assert registry.publish(REFUSES="dial tcp: i/o timeout") == (1, [INSPECT])


@pytest.mark.parametrize(
    ("heading", "tag", "said"),
    [
        (f"{__version__} (2026-11-30)", f"v{__version__}", "- a change\n  in two lines"),
        (f"{__version__} (unreleased)", f"v{__version__}", "give it the day of the release"),
        ("9.9.9 (2026-11-30)", f"v{__version__}", f"no section '## {__version__} (YYYY-MM-DD)'"),
        (f"{__version__} (2026-11-30)", "v9.9.9", f"TAG=v9.9.9 is not v{__version__}"),
    ],
)
def test_the_notes_are_the_section_of_the_version(tmp_path: Path, heading: str, tag: str, said: str) -> None:
    """Of the version and no other; without a day it is not released."""
    for name in ("Makefile", "job/__init__.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(REPOSITORY / name, tmp_path / name)
    older = "## 0.0.1 (2026-01-01)\n\n- older\n"
    (tmp_path / "CHANGELOG.md").write_text(f"# Changelog\n\n## {heading}\n\n- a change\n  in two lines\n\n{older}")
    done = subprocess.run(["make", "release-notes", f"TAG={tag}"], cwd=tmp_path, capture_output=True, text=True)
    good = said.startswith("- a change")
    assert (done.returncode == 0) == good
    assert said in (done.stdout if good else done.stderr)
    assert "older" not in done.stdout


@pytest.mark.parametrize(
    ("given", "named"), [("thaw:1-cpu", "docker.io/library/thaw:1-cpu"), ("ghcr.io/o/thaw:1", "ghcr.io/o/thaw:1")]
)
def test_an_image_has_the_name_by_which_a_cluster_finds_it(given: str, named: str) -> None:
    """Whichever program builds it: podman would put one without a registry under localhost."""
    words = ["make", "--dry-run", "image", "CONTAINER=podman", f"CPU_IMAGE={given}"]
    done = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert f" --tag {named} " in done.stdout


@pytest.mark.parametrize(("builder", "asked"), [("docker", False), ("podman", False), ("/usr/bin/buildah", True)])
def test_packages_are_a_layer_of_their_own(builder: str, asked: bool) -> None:
    """A change of the source pushes no packages. buildah makes one layer unless asked; docker has no such flag."""
    words = ["make", "--dry-run", "image", f"CONTAINER={builder}"]
    done = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert (f"{builder} build --layers " in done.stdout) == ("--layers" in done.stdout) == asked


def test_the_page_verifies_as_the_workflow_does() -> None:
    """The same issuer, and the identity of that workflow and tag."""
    page, script = (
        re.sub(r"\s*\\\n\s*", " ", (REPOSITORY / name).read_text()) for name in ("docs/releases.md", ".ci/publish")
    )
    issuers = [re.findall(r"--certificate-oidc-issuer (\S+)", text) for text in (page, script)]
    assert issuers[0] == issuers[1] == ["https://token.actions.githubusercontent.com"]
    (identity,) = re.findall(r"--certificate-identity (\S+)", page)
    assert identity.endswith(f"/.github/workflows/release.yml@refs/tags/v{__version__}")
    assert (REPOSITORY / ".github" / "workflows" / "release.yml").is_file()


def test_the_changelog_has_a_section_of_this_version() -> None:
    """The first: with its day, or not yet released."""
    headings = re.findall(r"^## (.+)$", (REPOSITORY / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert re.fullmatch(rf"{re.escape(__version__)} \((unreleased|\d{{4}}-\d\d-\d\d)\)", headings[0])
