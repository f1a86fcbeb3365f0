"""The words after `python -m job`: six commands beside the run, and one clear answer to every mistake."""

import re
from pathlib import Path

import pytest

from job import __main__ as door
from job import cli
from job.cli.arguments import SUMMARIES, ListRuns, Mirror, Plan, Predict, Run, Status, Verify, read_command
from job.errors import InvalidSettings
from tests.conftest import job
from tests.test_end_to_end import Environment

QUESTIONS = {
    "plan": [],
    "status": ["--run", "r"],
    "list": ["place"],
    "predict": ["--run", "r", "cat.jpg"],
    "verify": ["--run", "r"],
    "repair": ["--run", "r"],
}


def test_without_a_name_the_words_are_settings_of_a_run() -> None:
    """And `run` may be said."""
    for words in (["--seed", "3"], ["run", "--seed", "3"]):
        command = read_command(words, {})
        assert isinstance(command, Run)
        assert command.settings.seed == 3


def test_each_command_has_its_arguments() -> None:
    """As typed values."""
    assert read_command(["status", "--run", "gs://bucket/runs/a/", "--watch"], {}) == Status(
        run="gs://bucket/runs/a", watch=True, as_json=False
    )
    assert read_command(["list", "runs", "--json"], {}) == ListRuns(storage_uri="runs", as_json=True)
    predict = read_command(["predict", "a.jpg", "--run", "r", "-", "--batch-size", "8"], {"THAW_CACHE_DIR": "/cache"})
    assert predict == Predict(run="r", images=("a.jpg", "-"), batch_size=8, cache_dir=Path("/cache"), as_json=False)
    assert read_command(["verify", "--run", "r", "--json"], {}) == Verify(run="r", cache_dir=None, as_json=True)
    mirror = read_command(["mirror", "--to", "gs://bucket/m", "--dataset", "cifar10"], {})
    assert isinstance(mirror, Mirror)
    assert (mirror.to, mirror.settings.dataset) == ("gs://bucket/m", "cifar10")


def test_a_plan_knows_where_each_setting_came_from(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flags win over the environment, which wins over defaults."""
    monkeypatch.setenv("THAW_SEED", "1")
    monkeypatch.setenv("THAW_DROPOUT", "0.5")
    environ = {"THAW_SEED": "1", "THAW_DROPOUT": "0.5"}
    plan = read_command(["plan", "--json", "--seed", "2"], environ)
    assert isinstance(plan, Plan)
    assert (plan.settings.seed, plan.settings.dropout, plan.as_json) == (2, 0.5, True)
    assert [plan.origins[name] for name in ("seed", "dropout", "flip")] == ["flag", "environment", "default"]


def test_the_run_is_by_default_the_one_that_the_environment_describes(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a pod, `python -m job status` is about the pod's own run."""
    for name, value in {"THAW_STORAGE_URI": "gs://bucket/runs", "THAW_RUN_ID": "a"}.items():
        monkeypatch.setenv(name, value)
    status = read_command(["status"], {"THAW_STORAGE_URI": "gs://bucket/runs", "THAW_RUN_ID": "a"})
    assert isinstance(status, Status)
    assert status.run == "gs://bucket/runs/a"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["stauts"], "'stauts': no such command; did you mean status?"),
        (["help"], "did you mean --help?"),
        (["cat.jpg"], "'cat.jpg': no such command"),
        (["status", "--rnu", "x"], "--rnu: no such flag; did you mean --run?"),
        (["status", "--run"], "--run: expected one argument"),
        (["status", "--watch", "--json"], "not allowed with"),
        (["status", "--run", ""], "an empty URI"),
        (["list", "a", "b"], "'b': unexpected"),
        (["list", "gs://B"], "expected gs://bucket/prefix"),
        (["predict", "--run", "r"], "no image is named"),
        (["predict", "--run", "r", "--batch-size", "0", "a"], "--batch-size=0: must be 1 to 4096"),
        (["predict", "--run", "r", "--batch-size", "many", "a"], "--batch-size: invalid int value: 'many'"),
        (["mirror", "--dataset", "cifar10"], "it is not said where to"),
        (["plan", "--jsn"], "--jsn: no such flag; did you mean --json?"),
        (["plan", "--batch-size", "0"], "--batch-size='0': must be greater than or equal to 1"),
    ],
)
def test_a_mistake_is_told_with_what_was_meant(words: list[str], expected: str) -> None:
    """And with the way out."""
    with pytest.raises(InvalidSettings) as caught:
        read_command(words, {})
    assert expected in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize("name", list(SUMMARIES))
def test_every_command_has_a_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Which ends well, and says what the command does."""
    with pytest.raises(SystemExit) as caught:
        read_command([name, "--help"], {})
    assert caught.value.code == 0
    text = re.sub(r"\s+", " ", capsys.readouterr().out)
    assert text.startswith("usage: python -m job")
    assert SUMMARIES[name][1:] in text


def test_the_door_knows_which_commands_are_questions() -> None:
    """They are carried out without the run's signals and termination message."""
    assert set(QUESTIONS) == door.QUESTIONS
    for name, words in QUESTIONS.items():
        assert isinstance(read_command([name, *words], {}), cli.Question)


def test_a_question_writes_no_termination_message(environment: Environment, tmp_path: Path) -> None:
    """Asked in the pod of a run, it would write over the run's own."""
    message = tmp_path / "message"
    done = job("status", "--run", str(tmp_path / "nothing"), env=environment(termination_log=message))
    assert done.returncode == 4
    assert done.stderr.startswith(f"error: there is no run at {tmp_path}/nothing")
    assert not message.exists()
