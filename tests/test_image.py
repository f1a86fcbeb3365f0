"""The CPU image: what is in it, and that it works where a cluster allows the least.

`make image-test` builds the image; CONTAINER is the program that runs it, IMAGE its name.
"""

import json
import os
import re
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from job import __version__
from job.errors import ExitCode
from job.settings.settings import Settings
from tests.manifests import demo_settings

pytestmark = [pytest.mark.image, pytest.mark.timeout(600)]

CONTAINER = os.environ.get("CONTAINER", "")
IMAGE = os.environ.get("IMAGE", f"thaw:{__version__}-cpu")
MAX_BYTES = 2_000_000_000
USERS = ("65532:65532", "12345:0")
"""The image's own, and one as OpenShift assigns: any number, of group 0."""

TOOLS = "gcc cc g++ clang make ld as nvcc"
SECRET_FILES = ".git .netrc .pypirc pip.conf .env .aws .ssh .docker *.key credentials*.json"


@pytest.fixture(scope="module", autouse=True)
def _something_that_runs_images() -> None:
    if CONTAINER.rpartition("/")[2] in ("docker", "podman"):
        return
    if os.environ.get("CI"):
        pytest.fail(f"CI must run the image, and CONTAINER={CONTAINER!r} is neither docker nor podman")
    pytest.skip("running an image needs docker or podman")


def container(*argv: str) -> subprocess.CompletedProcess[str]:
    """Run a command of docker or podman."""
    return subprocess.run([CONTAINER, *argv], capture_output=True, text=True, timeout=300)


def in_image(program: str, *argv: str, flags: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    """Run another program of the image."""
    return container("run", "--rm", *flags, f"--entrypoint={program}", IMAGE, *argv)


def hardened(user: str, volume: Path) -> list[str]:
    """The flags that allow a container the least: what Pod Security `restricted` asks, and more."""
    flags = ["--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges", "--network=none", f"--user={user}"]
    if CONTAINER.endswith("podman"):
        # Kubernetes makes nothing writable on a read-only root, not even /tmp.
        flags.append("--read-only-tmpfs=false")
    return [*flags, f"--volume={volume}:/work:Z"]


def environment() -> list[str]:
    """The settings of `make demo`, but for its places: in the image everything is in /work."""
    places = ("THAW_DATA_DIR", "THAW_STORAGE_URI")
    return [f"--env={name}={value}" for name, value in demo_settings().items() if name not in places]


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[Path]:
    """A folder that any user may write to; whose files only its users may remove."""
    folder = tmp_path / "work"
    folder.mkdir()
    folder.chmod(0o777)
    yield folder
    for user in USERS:
        in_image("find", "/work", "-mindepth", "1", "-delete", flags=hardened(user, folder))


def inspected() -> dict[str, Any]:
    done = container("image", "inspect", IMAGE)
    assert done.returncode == 0, f"{done.stderr}\nbuild it first: make image-test"
    (image,) = json.loads(done.stdout)
    return dict(image)


def found(*condition: str) -> list[str]:
    """The paths in the image of which a condition of `find` holds, as any user sees them."""
    skipped = ["(", "-path", "/proc", "-o", "-path", "/sys", "-o", "-path", "/dev", ")", "-prune", "-o"]
    return in_image("find", "/", *skipped, "(", *condition, ")", "-print", flags=[f"--user={USERS[1]}"]).stdout.split()


@pytest.mark.parametrize("user", USERS)
def test_the_demo_runs_without_rights_and_is_answered_at_once_the_second_time(user: str, volume: Path) -> None:
    """Read-only root, no network, no capabilities; all that is written is in /work."""
    command = ["run", "--rm", *hardened(user, volume), *environment(), IMAGE]
    first = container(*command)
    assert first.returncode == ExitCode.COMPLETE, first.stdout + first.stderr
    (record,) = [json.loads(path.read_text()) for path in volume.glob("runs/*/run.json")]
    assert record["state"] == "done"
    assert record["outcome"]["test_accuracy"] >= 0.9
    second = container(*command)
    assert (second.returncode, second.stdout.count("\n")) == (ExitCode.COMPLETE, 1)
    assert json.loads(second.stdout)["event"] == "run_already_done"


@pytest.mark.parametrize("event", ["run_claimed", "phase_started"])
def test_sigterm_ends_with_42(event: str, volume: Path) -> None:
    """While TensorFlow is imported, and while the demo trains."""
    name = container("run", "--detach", *hardened(USERS[0], volume), *environment(), IMAGE).stdout.strip()
    assert name
    try:
        until = time.monotonic() + 240
        while f'"event": "{event}"' not in container("logs", name).stdout:
            assert time.monotonic() < until, container("logs", name)
            time.sleep(0.2)
        container("kill", "--signal=TERM", name)
        assert container("wait", name).stdout.strip() == str(int(ExitCode.INTERRUPTED)), container("logs", name)
    finally:
        container("rm", "--force", name)


def test_a_wrong_setting_is_one_message(volume: Path) -> None:
    """And nothing is written."""
    done = container("run", "--rm", *hardened(USERS[0], volume), "--env=THAW_BATCH_SIZES=8", IMAGE)
    assert done.returncode == ExitCode.INVALID_SETTINGS
    assert "THAW_BATCH_SIZE" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(volume.iterdir())


def test_kubernetes_finds_what_it_needs_in_the_description() -> None:
    """`runAsNonRoot` needs a user by number; tini passes SIGTERM on, which a shell in front would not."""
    image = inspected()
    config, labels = image["Config"], image["Config"]["Labels"]
    assert image["Size"] < MAX_BYTES
    assert config["User"] == USERS[0]
    assert config["Entrypoint"] == ["tini", "--", "python", "-m", "job"]
    assert not config.get("Healthcheck")
    assert list(config["ExposedPorts"]) == [f"{Settings().metrics_port}/tcp"]
    assert labels["org.opencontainers.image.version"] == __version__
    assert in_image("thaw", "--version").stdout == f"thaw {__version__}\n"
    assert re.fullmatch(r"[0-9a-f]{40}", labels["org.opencontainers.image.revision"])


def test_the_image_cannot_build_or_install() -> None:
    """No compiler, no linker, no pip, and none of what packages bring to be built and tested."""
    done = in_image("sh", "-c", f"for tool in {TOOLS}; do command -v $tool; done; python -m pip --version")
    assert done.stdout == ""
    assert "No module named pip" in done.stderr
    names = "-name setuptools -o -name wheel -o -name clang -o -name tests -o -path */tensorflow/include"
    assert not [path for path in found(*names.split()) if path.startswith("/opt/venv/")]


def test_no_secret_is_in_the_image() -> None:
    """Neither as a file, nor in the environment, nor in its history."""
    named = [word for pattern in SECRET_FILES.split() for word in ("-o", "-name", pattern)][1:]
    assert found("(", *named, ")", "-not", "-empty") == []
    lines = inspected()["Config"]["Env"] + container("history", "--no-trunc", IMAGE).stdout.splitlines()
    assert not [line for line in lines if re.search(r"(?i)password|passwd|token|secret|://[^/]*@|index-url", line)]


def test_only_temporary_folders_are_writable() -> None:
    """For a user of group 0, who owns nothing; on a read-only root not even those are."""
    assert set(found("-writable", "-not", "-type", "l")) <= {"/tmp", "/var/tmp", "/run/lock"}


def test_every_module_is_compiled() -> None:
    """On a read-only root Python cannot do it later, and each start would take longer."""
    sources = found("-path", "/app/*.py", "-o", "-path", "/opt/venv/lib/*.py")
    compiled = found("-name", "*.cpython-*.pyc")
    assert "/app/job/__main__.py" in sources
    assert set(sources) <= {re.sub(r"__pycache__/(.+)\.cpython-\d+\.pyc$", r"\1.py", path) for path in compiled}
