"""A sweep: one file, a row of settings for each run, and an index that picks one."""

from pathlib import Path
from typing import Any

import pytest

from job import cli
from job.errors import InvalidSettings
from job.settings.settings import Settings
from tests.test_settings import read

INDEX = "JOB_COMPLETION_INDEX"
ROWS = """\
# two rates

THAW_FINE_TUNE_LEARNING_RATE=1e-5 THAW_SEED=7   # the article's
  THAW_FINE_TUNE_LEARNING_RATE=3e-5 THAW_TRAIN_SPLIT='train[:30%] + train[90%:]'
THAW_SEED=3 THAW_RUN_ID=third
"""


@pytest.fixture
def sweep(tmp_path: Path) -> str:
    (tmp_path / "rows").write_text(ROWS)
    return str(tmp_path / "rows")


def problems_of(*argv: str, **environ: str) -> list[str]:
    with pytest.raises(InvalidSettings) as caught:
        read(*argv, **environ)
    return [line.strip() for line in caught.value.message.splitlines()[1:]]


def test_each_index_has_the_settings_of_its_row(sweep: str) -> None:
    """Blank lines and comments are no rows; quotes are those of a shell; a row without a value has that of all."""
    environ = {"THAW_SWEEP": sweep, "THAW_BATCH_SIZE": "64", "THAW_SEED": "1"}
    found = [read(**environ, **{INDEX: str(index)}) for index in range(3)]
    assert [it.seed for it in found] == [7, 1, 3]
    assert [it.fine_tune_learning_rate for it in found] == [1e-5, 3e-5, 1e-5]
    assert found[1].train_split == "train[:30%] + train[90%:]"
    assert {it.batch_size for it in found} == {64}
    assert [it.worker for it in found] == [None] * 3, "the index is that of the row, and of nothing else"


def test_a_value_is_never_cut_off(sweep: str) -> None:
    """A # inside a word is part of it, as in a shell; a comment may have any quotes."""
    Path(sweep).write_text("THAW_DATASET=./a#b THAW_CLASSES='cat,big dog' # it's # one\n  #it's another\n")
    found = read(THAW_SWEEP=sweep, **{INDEX: "0"})
    assert (found.dataset, found.classes) == ("./a#b", "cat,big dog")


def test_a_row_wins_over_variables_and_files_and_a_flag_over_the_row(sweep: str, tmp_path: Path) -> None:
    """The plan says which one a value is from."""
    (tmp_path / "a.env").write_text("THAW_SEED=5\nTHAW_DROPOUT=0.5\n")
    flags = ["--env-file", str(tmp_path / "a.env"), "--sweep", sweep, "--sweep-index", "0", "--batch-size", "8"]
    options = cli.read("plan", flags, {"THAW_SEED": "6"})
    assert (options.settings.seed, options.settings.dropout, options.settings.batch_size) == (7, 0.5, 8)
    assert [options.origins[name] for name in ("seed", "dropout", "batch_size")] == ["sweep", "file", "flag"]
    assert read(*flags, "--fine-tune-learning-rate", "0.1").fine_tune_learning_rate == 0.1


def test_runs_are_named_by_their_settings_and_not_by_their_row(sweep: str) -> None:
    """So rows that are done stay done when others come before them. A name for all gets the fingerprint of each."""
    environ = {"THAW_SWEEP": sweep}

    def names() -> list[str]:
        return [read(**environ, **{INDEX: str(index)}).resolved_run_id() for index in range(3)]

    before = names()
    assert before[0] == f"cats_vs_dogs-{Settings(seed=7).fingerprint()}"
    assert before[2] == "third"
    Path(sweep).write_text("THAW_SEED=99\n" + ROWS)
    assert names()[1:] == before[:2]
    environ |= {"THAW_RUN_ID": "rates"}
    assert names()[1] == f"rates-{Settings(seed=7).fingerprint()}"


def test_workers_and_rows_cannot_share_the_index(sweep: str) -> None:
    """Each worker may be told which one it is: then the index is free for the row."""
    (problem,) = problems_of(THAW_SWEEP=sweep, THAW_WORKERS="2", **{INDEX: "0"})
    assert "THAW_WORKERS=2: with THAW_SWEEP the index of a pod is that of its row" in problem
    assert problems_of("--sweep", sweep, THAW_WORKERS="2", **{INDEX: "0"}) == [problem]
    found = read("--workers", "2", "--worker", "1", THAW_SWEEP=sweep, **{INDEX: "0"})
    assert (found.worker, found.seed) == (1, 7)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "rows: has no row"),
        ("# THAW_SEED=1\n", "rows: has no row"),
        ("THAW_SEED=1\nTHAW_SEDE=2", "rows:2: THAW_SEDE: no such setting; did you mean THAW_SEED?"),
        ("THAW_SEED=1\n\nTHAW_SEED=x", "row 1: {place}:3: THAW_SEED='x': must be a whole number"),
        ("THAW_SEED=1 THAW_SEED=2", "rows:1: THAW_SEED: was given before in this row"),
        ("THAW_SEED= THAW_DROPOUT=0", "THAW_SEED='': is empty"),
        ("THAW_SEED = 1", "rows:1: expected THAW_NAME=value"),
        ("SEED=1", "rows:1: expected THAW_NAME=value"),
        ("THAW_SEED='1", "rows:1: no closing quotation"),
        ("THAW_GRACE_SECONDS=1", "THAW_GRACE_SECONDS: is not of a row, but of the whole sweep"),
        ("THAW_STORAGE_URI=gs://other/runs", "THAW_STORAGE_URI: is not of a row, but of the whole sweep"),
        ("THAW_SWEEP=rows", "THAW_SWEEP: is not of a row, but of the whole sweep"),
        ("THAW_SEED=1\nTHAW_SEED=2\nTHAW_SEED=01", "row 2: is the same run as row 0"),
        ("THAW_DROPOUT=0.2\nTHAW_BATCH_SIZE=32", "row 1: is the same run as row 0"),
        ("THAW_RUN_ID=a\nTHAW_SEED=1 THAW_RUN_ID=a", "row 1: is the same run as row 0: a"),
        ("THAW_RUN_ID=a\nTHAW_RUN_ID=b", "row 1: is the same run as row 0"),
        ("THAW_SEED=1\nTHAW_IMAGE_SIZE=32", "row 1: {place}:2: THAW_IMAGE_SIZE='32': Xception needs at least"),
        ("\n".join(f"THAW_SEED={seed}" for seed in range(1025)), "rows: has 1,025 rows, expected at most 1,024"),
    ],
)  # fmt: skip
def test_a_wrong_row_is_refused_by_every_start(text: str, problem: str, sweep: str) -> None:
    """With its number, before anything trains: also by the starts of other rows."""
    Path(sweep).write_text(text)
    (found,) = problems_of(THAW_SWEEP=sweep, **{INDEX: "0"})
    assert problem.format(place=sweep) in found


def test_what_is_wrong_for_all_rows_is_said_once(sweep: str) -> None:
    """It is not in the file."""
    assert problems_of(THAW_SWEEP=sweep, THAW_DROPOUT="x", **{INDEX: "0"}) == [
        "THAW_DROPOUT='x': must be a number"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("environ", "problem"),
    [
        ({}, "THAW_SWEEP: THAW_SWEEP_INDEX does not say which row is that of this start"),
        ({INDEX: "3"}, "JOB_COMPLETION_INDEX='3': must be a row from 0 to 2"),
        ({INDEX: "x"}, "JOB_COMPLETION_INDEX='x': must be a whole number"),
        ({INDEX: "0", "THAW_SWEEP_INDEX": "-1"}, "THAW_SWEEP_INDEX='-1': must be greater than or equal to 0"),
        ({INDEX: "0", "THAW_SWEEP": "/nothing"}, "THAW_SWEEP='/nothing': No such file or directory"),
        ({INDEX: "0", "THAW_SWEEP": "/dev"}, "THAW_SWEEP='/dev': is not a file"),
    ],
)
def test_a_start_without_its_row_is_refused(environ: dict[str, str], problem: str, sweep: str) -> None:
    (found,) = problems_of(**({"THAW_SWEEP": sweep} | environ))
    assert problem in found


def test_an_index_is_the_row_of_a_sweep_or_nothing() -> None:
    """Kubernetes' index is in every pod of an Indexed Job; one that a person names must be of use."""
    assert read(**{INDEX: "3"}).resolved_run_id() == Settings().resolved_run_id()
    (problem,) = problems_of(THAW_SWEEP_INDEX="3")
    assert problem == "THAW_SWEEP_INDEX: is the row of a file that THAW_SWEEP must name"


def test_a_question_in_a_pod_is_about_the_run_of_its_row(sweep: str) -> None:
    """`thaw status` without words."""
    environ: dict[str, Any] = {"THAW_SWEEP": sweep, INDEX: "2", "THAW_STORAGE_URI": "gs://bucket/runs"}
    assert cli.read("status", [], environ).run == "gs://bucket/runs/third"
