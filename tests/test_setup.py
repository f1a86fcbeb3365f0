"""What a person sees who installs the program where something is missing: one error, with what to do."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

Setup = Callable[..., subprocess.CompletedProcess[str]]
LOCK = f"absl-py==2.5.1 --hash=sha256:{'0' * 64}\n"


@pytest.fixture
def setup(tmp_path: Path) -> Setup:
    """Installs a lock of one package into a new folder; keywords are the environment."""

    def install(python: str = sys.executable, **environ: str) -> subprocess.CompletedProcess[str]:
        (tmp_path / "dev.txt").write_text(LOCK)
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "PYTHON"))}
        return subprocess.run(
            [REPOSITORY / "requirements/setup", python, ".venv", "dev.txt"],
            cwd=tmp_path,
            env=clean | {"PIP_CONFIG_FILE": os.devnull} | environ,
            capture_output=True,
            text=True,
        )

    return install


def program(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def check(done: subprocess.CompletedProcess[str], error: str, hint: str) -> None:
    """It ended with this error and this hint, as patterns, and said nothing else."""
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(f"error: {error}\nhint: {hint}\n", done.stderr), done.stderr


def test_without_python_it_says_which_to_install(setup: Setup) -> None:
    """And how another one is named."""
    check(
        setup("python4"),
        "there is no program python4 here",
        r"install Python 3.11, 3.12 or 3.13 \(Debian.*python3-venv\), or name another: make PYTHON=python3.12 setup",
    )


def test_another_version_of_python_is_named_with_those_that_it_may_be(setup: Setup, tmp_path: Path) -> None:
    """Before anything is written."""
    done = setup(program(tmp_path / "python", "echo 3.9"))
    check(done, ".*/python is Python 3.9, and Thaw needs Python 3.11, 3.12 or 3.13", "install Python.*")
    assert not (tmp_path / ".venv").exists()


def test_a_python_that_does_not_start_is_told_apart(setup: Setup, tmp_path: Path) -> None:
    """As a shim of a version manager, which leads to no Python."""
    done = setup(program(tmp_path / "python", "exit 127"))
    check(done, ".*/python does not start", "install Python.*")


def test_a_python_without_venv_names_the_package(setup: Setup, tmp_path: Path) -> None:
    """Debian has it in a package of its own."""
    (tmp_path / "ensurepip.py").write_text("raise ImportError")
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    done = setup(PYTHONPATH=str(tmp_path))
    check(done, f"Python {version} is here without its module venv", rf".*apt-get install python{version}-venv\).*")


@pytest.mark.parametrize("kind", ["file", "link"])
def test_what_is_at_the_place_of_the_environment_is_left_alone(setup: Setup, tmp_path: Path, kind: str) -> None:
    """A file cannot be a folder, and `venv --clear` would empty what a link leads to."""
    (tmp_path / "other").mkdir()
    (tmp_path / "other/file").write_text("precious")
    if kind == "link":
        (tmp_path / ".venv").symlink_to(tmp_path / "other")
        check(setup(), f".venv is a link to {tmp_path}/other, which a new installation would empty", "remove the link")
        assert (tmp_path / "other/file").read_text() == "precious"
    else:
        (tmp_path / ".venv").write_text("")
        check(setup(), f"{tmp_path}/.venv cannot be written by user .+", f"give that user .* in {tmp_path}, or copy.*")


def test_a_full_disk_is_told_before_the_packages_are_fetched(setup: Setup, tmp_path: Path) -> None:
    """With what is free, and what is needed."""
    program(tmp_path / "df", "echo Filesystem; echo tmpfs 100000 90000 10240 90% /work")
    done = setup(PATH=f"{tmp_path}:{os.environ['PATH']}")
    check(done, f"the disk of {tmp_path}/.venv has 10 MB free, and the packages need 2500 MB", "free space there, .*")


def test_an_installation_leaves_standard_output_to_the_target(setup: Setup, tmp_path: Path) -> None:
    """The first `make render > runs/weekly.yaml` of a clone installs too. Here a program has the part of Python."""
    does = 'case "$*" in *version_info*) echo 3.11 ;; "-m venv"*) mkdir .venv/bin; cp "$0" .venv/bin ;; esac'
    done = setup(program(tmp_path / "python", does))
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert done.stderr.startswith("Installing the packages of dev.txt into .venv, for Python 3.11: ")
    assert (tmp_path / ".venv/.installed").exists()


@pytest.mark.slow
def test_without_a_network_it_says_so_and_not_that_there_is_no_such_package(setup: Setup, tmp_path: Path) -> None:
    """With the proxy that is set, without its password. What is not complete is no environment of the program."""
    proxy = "http://user:secret@127.0.0.1:9"
    done = setup(PIP_RETRIES="1", https_proxy=proxy, http_proxy=proxy, no_proxy="")
    assert done.returncode == 1
    assert re.fullmatch(
        "Installing the packages of .*\n"
        "error: the packages cannot be fetched: ProxyError.*Connection refused.*\n"
        r"hint: .*set https_proxy to your proxy \(now: http://\*\*\*@127\.0\.0\.1:9\), or PIP_INDEX_URL to a mirror\n",
        done.stderr,
    ), done.stderr
    (tmp_path / "bin").mkdir()
    shutil.copy(REPOSITORY / "bin/thaw", tmp_path / "bin")
    started = subprocess.run([tmp_path / "bin/thaw"], capture_output=True, text=True)
    assert (started.returncode, started.stderr) == (
        1,
        f"error: what the program needs is not installed in {tmp_path}/.venv\nhint: make -C {tmp_path} setup\n",
    )


def test_an_environment_whose_python_is_gone_is_made_again(tmp_path: Path) -> None:
    """As after the system has another Python: `make setup` alone would find it installed."""
    (tmp_path / "bin").mkdir()
    shutil.copy(REPOSITORY / "bin/thaw", tmp_path / "bin")
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / ".venv/.installed").touch()
    (tmp_path / ".venv/bin/python").symlink_to("/nowhere/python")
    done = subprocess.run([tmp_path / "bin/thaw"], capture_output=True, text=True)
    hint = f"rm -r {tmp_path}/.venv; make -C {tmp_path} setup"
    assert (done.returncode, done.stderr) == (
        1,
        f"error: the Python of {tmp_path}/.venv is gone, or closed to this user\nhint: {hint}\n",
    )
