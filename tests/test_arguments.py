"""The words after `thaw`: the options of each command, and one clear answer to every mistake."""

import os
import re
import shutil
import subprocess
import tomllib
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from job import __version__, cli
from job.errors import ExitCode, InvalidSettings
from tests.conftest import REPOSITORY, job
from tests.processes import Environment


def read(words: str, **environ: str) -> Any:
    return cli.read(*cli.split(words.split()), environ)


def test_the_options_of_each_command_are_typed_values() -> None:
    """Words without a command's name are settings of `run`, which may be named too."""
    assert read("--seed 3").settings.seed == read("run --seed 3").settings.seed == 3
    status = read("status --run gs://bucket/runs/a/ --watch")
    assert (status.run, status.watch, status.as_json) == ("gs://bucket/runs/a", True, False)
    listed = read("list runs --json --sort accuracy --limit 9").model_dump()
    assert listed == {
        "storage_uri": "runs", "sort": "accuracy", "limit": 9, "differing": False, "page": None, "as_json": True
    }  # fmt: skip
    assert read("predict a.jpg --run r - --batch-size 8", THAW_CACHE_DIR="/cache").model_dump() == {
        "run": "r", "images": ("a.jpg", "-"), "batch_size": 8, "cache_dir": Path("/cache"), "as_json": False
    }  # fmt: skip
    assert read("verify --run r --cache-dir here", THAW_CACHE_DIR="/cache").cache_dir == Path("here")
    assert read("repair --run r --yes").is_confirmed
    mirror = read("mirror --to gs://bucket/m --dataset cifar10")
    assert (mirror.to, mirror.settings.dataset) == ("gs://bucket/m", "cifar10")


def test_a_question_is_about_the_run_that_the_environment_or_a_file_describes(tmp_path: Path) -> None:
    """In a pod, `thaw status` is about the pod's own run; of a run that is named nothing else is read."""
    (tmp_path / "a.env").write_text("THAW_RUN_ID=b\nTHAW_STORAGE_URI=/runs\n")
    assert read("status", THAW_STORAGE_URI="gs://bucket/runs", THAW_RUN_ID="a").run == "gs://bucket/runs/a"
    assert read(f"status --env-file {tmp_path}/a.env", THAW_STORAGE_URI="gs://bucket/runs").run == "gs://bucket/runs/b"
    assert read(f"list --env-file {tmp_path}/a.env").storage_uri == "/runs"
    (tmp_path / "b.env").write_text("THAW_RUN_ID=c\n")
    assert read(f"status --env-file {tmp_path}/a.env --env-file={tmp_path}/b.env").run == "/runs/c"
    assert read("status --run r", THAW_SEED="many").run == "r"


def test_flags_win_over_the_environment_which_wins_over_a_file(tmp_path: Path) -> None:
    """A plan shows where each value came from."""
    path = tmp_path / "a.env"
    path.write_text("# the recipe\n\nTHAW_SEED=1\nexport THAW_DROPOUT='0.5'\n  THAW_FLIP=none  # no flip\nTHAW_XLA=on")
    plan = read(f"plan --json --seed 3 --env-file {path}", THAW_SEED="2", THAW_DROPOUT="0.4")
    settings, origins = plan.settings, plan.origins
    assert read(f"--env-file {REPOSITORY}/k8s/base/settings.env").origins["cache_dir"] == "file"
    assert (settings.seed, settings.dropout, settings.flip, settings.xla, plan.as_json) == (3, 0.4, "none", "on", True)
    assert origins == {"seed": "flag", "dropout": "environment", "flip": "file", "xla": "file"}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("stauts", "'stauts': no such command; did you mean status?"),
        ("help", "did you mean --help?"),
        ("status --rnu x", "--rnu: no such flag; did you mean --run?"),
        ("status --storage-uri x", "--storage-uri: no such flag; it is a setting: give it as THAW_STORAGE_URI, or in"),
        ("status --run", "--run: expected one argument"),
        ("status --run= ", "--run='': is empty"),
        ("status --watch --json --run r", "--watch: not allowed with --json"),
        ("status --json=hunter2 --run r", "--json: takes no value"),
        ("list a b", "'b': unexpected"),
        ("list gs://B", "STORAGE-URI='gs://B': expected gs://bucket/prefix"),
        ("predict --run r", "IMAGE|DIR|URI|-: is missing"),
        ("predict --run r --batch-size 0 a", "--batch-size='0': must be greater than or equal to 1"),
        ("predict --run r --batch-size many a", "--batch-size='many': must be a whole number"),
        ("mirror --dataset cifar10", "--to: is missing"),
        ("mirror --to=", "1 problem with the settings; nothing was started.\n  --to='': is empty"),
        ("status -x", "-x: no such flag"),
        ("verify --run r --cache-dir ~no-such-user/x", "the home folder ~no-such-user is not known"),
        ("list ~no-such-user/runs", "the home folder ~no-such-user is not known"),
        ("plan --weights ~no-such-user/a.h5", "the home folder ~no-such-user is not known"),
        ("status --env-file ~no-such-user/a.env", "the home folder ~no-such-user is not known"),
        ("plan --batch 8", "--batch: no such flag"),
        ("plan --batch-size 0 --seed 1.5", "2 problems with the settings"),
        ("completion tcsh", "must be 'bash', 'zsh' or 'fish'"),
    ],
)
def test_a_mistake_is_reported_with_what_was_probably_meant(words: str, expected: str) -> None:
    """And with a hint; no flag may be abbreviated, and no value of an unknown one is shown."""
    with pytest.raises(InvalidSettings) as caught:
        read(words)
    assert expected in caught.value.message
    assert "hunter2" not in caught.value.message
    assert caught.value.hint


def test_a_question_says_where_the_settings_are_listed() -> None:
    """When one of them is wrong: the help of the question does not list them."""
    with pytest.raises(InvalidSettings) as caught:
        read("status", THAW_SEDE="1")
    assert caught.value.message == "status: THAW_SEDE: no such setting; did you mean THAW_SEED?"
    assert caught.value.hint == "thaw --help lists every setting with its unit and default"


def make_nothing(path: Path) -> None:
    pass


def content(data: bytes) -> Callable[[Path], Any]:
    return lambda path: path.write_bytes(data)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (make_nothing, "No such file or directory"),
        (Path.mkdir, "is not a file"),
        (os.mkfifo, "is not a file"),
        (content(b"THAW_SEED=\xff"), "is not text in UTF-8"),
        (content(b"\0"), "is not text"),
        (content(b"#" * 1_000_001), "is larger than 1,000,000 bytes"),
        (content(b"THAW_SEED=1\n\nTHAW_SEED=2"), ":3: THAW_SEED: was given before, at "),
        (content(b"\n\n# hunter2\nhunter2\n"), ":4: is not a line of the form KEY=value"),
        (content(b"https://u:hunter2@h?a=hunter2"), ":1: is not a line of the form KEY=value"),
        (content(b"\nTHAW_SEDE=hunter2"), ":2: THAW_SEDE: no such setting; did you mean THAW_SEED?"),
        (content(b"PATH=hunter2"), ":1: no such setting: its name does not begin with THAW_"),
        (content(b"hunter2=="), ":1: no such setting"),
        (content(b"THAW_CACHE="), ":1: THAW_CACHE='': is empty"),
        (content(b"THAW_SEED=${HOME}"), ":1: THAW_SEED='${HOME}': must be a whole number"),
    ],
)
def test_what_is_wrong_with_a_file_is_reported_with_its_line(
    tmp_path: Path, make: Callable[[Path], Any], expected: str
) -> None:
    """In one message with the problems of flags and variables; what is no setting is not shown with its value."""
    make(path := tmp_path / "a.env")
    with pytest.raises(InvalidSettings) as caught:
        read(f"plan --env-file {path} --nope", THAW_DROPOUT="2")
    lines = caught.value.message.splitlines()
    assert any(str(path) in line and expected in line for line in lines)
    assert "hunter2" not in caught.value.message
    for other in ("--nope: no such flag", "THAW_DROPOUT='2': must be less than 1"):
        assert any(other in line for line in lines)


def test_every_command_has_a_help(capsys: pytest.CaptureFixture[str]) -> None:
    """Which ends well, and says what the command does; that of the program has every command and exit code."""
    for name, summary in cli.COMMANDS.items():
        with pytest.raises(SystemExit) as caught:
            read(f"{name} --help")
        assert caught.value.code == 0
        text = re.sub(r"\s+", " ", capsys.readouterr().out)
        assert text.startswith("usage: thaw")
        assert summary[1:] in text
        if name == "run":
            assert all(other in text for other in cli.COMMANDS.values())
            assert all(f" {int(code)} {code.meaning}" in text for code in ExitCode)


def test_the_program_is_one_command_from_any_folder(tmp_path: Path) -> None:
    """Here with the environment of the project, whatever the shell has; elsewhere as the script of the wheel."""
    (tmp_path / "job").mkdir()
    (tmp_path / "job/__main__.py").write_text("a module of another program")
    (tmp_path / "link").symlink_to(REPOSITORY / "bin/thaw")
    for command in (REPOSITORY / "bin/thaw", tmp_path / "link"):
        done = subprocess.run(
            [command, "--version"], cwd=tmp_path, env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, f"thaw {__version__}\n", "")
    scripts = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["scripts"]
    module, _, function = scripts["thaw"].partition(":")
    assert callable(getattr(import_module(module), function))


@pytest.mark.slow
def test_a_shell_completes_commands_flags_and_values() -> None:
    """By the script that is printed for it."""
    pytest.importorskip("shtab")
    script = job("completion", "bash", env=dict(os.environ)).stdout
    assert "#compdef thaw" in job("completion", "zsh", env=dict(os.environ)).stdout
    for words, expected in {
        "thaw stat": "status",
        "thaw --fine-tune-e": "--fine-tune-epochs",
        "thaw status --run x --w": "--watch",
        "thaw plan --precision b": "bfloat16",
        "thaw --backbone ResNet1": "ResNet101 ResNet152 ResNet101V2 ResNet152V2",
    }.items():
        ask = f'COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); _shtab_thaw; echo "${{COMPREPLY[@]}}"'
        done = subprocess.run(["bash", "-c", f"{script}\n{ask}"], capture_output=True, text=True, check=True)
        assert done.stdout.split() == expected.split()
    done = subprocess.run(["bash", "-c", f"{script}\nthaw --version"], cwd="/", capture_output=True, text=True)
    assert done.stdout == f"thaw {__version__}\n"


@pytest.mark.slow
def test_fish_completes_commands_flags_and_values(tmp_path: Path) -> None:
    """By a script of its own language; where there is no fish, only that it is printed."""
    pytest.importorskip("shtab")
    script = job("completion", "fish", env=dict(os.environ)).stdout
    assert script.startswith("function thaw; env ")
    if shutil.which("fish") is None:
        pytest.skip("no fish here")
    (tmp_path / "thaw.fish").write_text(script)
    for words, expected in {
        "thaw stat": "status", "thaw --fine-tune-e": "--fine-tune-epochs", "thaw plan --precision b": "bfloat16"
    }.items():  # fmt: skip
        ask = f"source {tmp_path}/thaw.fish; complete -C '{words}'"
        done = subprocess.run(["fish", "--no-config", "-c", ask], capture_output=True, text=True, check=True)
        assert [line.partition("\t")[0] for line in done.stdout.splitlines()] == [expected]


def test_a_question_writes_no_termination_message(environment: Environment, tmp_path: Path) -> None:
    """Asked in the pod of a run, it would write over the run's own."""
    message = tmp_path / "message"
    done = job("status", "--run", str(tmp_path / "nothing"), env=environment(termination_log=message))
    assert done.returncode == 4
    assert done.stderr.startswith(f"error: there is no run at {tmp_path}/nothing")
    assert not message.exists()
