"""Runs side by side: results, settings that differ, and whether their models differ on the same test images."""

import csv
import hashlib
import io
import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser

from job import cli
from job.cli import compare as compare_command
from job.errors import ExitCode, InvalidSettings, RunUnavailable
from job.report.files import PREDICTIONS, REPORT
from job.report.predictions import COLUMNS
from job.run.record import RECORD_NAME
from job.schema import StoredFile
from job.storage import MISSING, LocalStore
from tests.recorded import INPUTS, OUTCOME, attempt, epoch, record
from tests.runs import Undisturbed
from tests.test_report_browser import SCREENS, browser, check_fits

__all__ = ["browser"]
Keep = Callable[..., str]
NUM_IMAGES = 40
DATA = INPUTS["data"] | {"split_sha256": {"test": "12" * 32}, "class_names_sha256": "34" * 32}


def predictions(wrong: set[int], classes: tuple[str, str]) -> bytes:
    """Of 40 images of two classes in turn, of which those in `wrong` are taken for the other."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(COLUMNS)
    for index in range(NUM_IMAGES):
        label, other = classes if index % 2 else classes[::-1]
        writer.writerow([index, "", label, other if index in wrong else label, "0.900000"])
    return text.getvalue().encode()


@pytest.fixture
def keep(tmp_path: Path) -> Keep:
    """Keeps a finished run that never was; returns its place."""

    def keep_run(
        run_id: str,
        wrong: set[int],
        *,
        data: Any = DATA,
        leave_out: str = "",
        classes: tuple[str, str] = ("cat", "dog"),
        **fields: Any,
    ) -> str:
        store = LocalStore(tmp_path / run_id)
        files = {PREDICTIONS: predictions(wrong, classes), REPORT: json.dumps({"test": {"auroc": 0.875}}).encode()}
        digests = {
            name: store.write(name, content, if_version=MISSING)
            and StoredFile(size=len(content), sha256=hashlib.sha256(content).hexdigest())
            for name, content in files.items()
            if name != leave_out
        }
        outcome = OUTCOME | {"test_accuracy": 1 - len(wrong) / NUM_IMAGES}
        values = {"run_id": run_id, "state": "done", "files": digests, "inputs": INPUTS | {"data": data}}
        found = record(**({"outcome": outcome, "history": (epoch("head", 0), epoch("head", 1))} | values | fields))
        store.write(RECORD_NAME, found.model_dump_json().encode(), if_version=MISSING)
        return store.uri

    return keep_run


@pytest.fixture
def compared(capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, Any]]:
    """The comparison as JSON."""

    def compare(*runs: str) -> dict[str, Any]:
        options = compare_command.Options(runs=runs, as_json=True)
        assert compare_command.answer(options) == ExitCode.COMPLETE
        return dict(json.loads(capsys.readouterr().out))

    return compare


def test_runs_are_tested_with_the_first_one(keep: Keep, compared: Callable[..., dict[str, Any]]) -> None:
    """Counts of discordant pairs, exact p-values of their binomial distribution, and Holm's for both together."""
    found = compared(keep("a", {0, 1, 2}), keep("b", {2}), keep("c", {0, *range(3, 13)}))
    assert found["tests"] == [
        {"run": 2, "reference": 1, "num_images": 40, "only_reference_right": 0, "only_run_right": 2, "p_value": 0.5,
         "method": "exact", "holm_p_value": 0.5},
        {"run": 3, "reference": 1, "num_images": 40, "only_reference_right": 10, "only_run_right": 2,
         "p_value": 158 / 4096, "method": "exact", "holm_p_value": 2 * 158 / 4096},
    ]  # fmt: skip
    assert [run["test_accuracy"] for run in found["runs"]] == [0.925, 0.975, 0.725]
    assert [(run["number"], run["run_id"], run["auroc"]) for run in found["runs"]] == [
        (1, "a", 0.875), (2, "b", 0.875), (3, "c", 0.875)
    ]  # fmt: skip


def test_names_of_classes_in_other_case_are_the_same(keep: Keep, compared: Callable[..., dict[str, Any]]) -> None:
    """As they are to the identity of the data."""
    (test,) = compared(keep("a", {0, 1}), keep("b", {1}, classes=("Cat", "Dog")))["tests"]
    assert (test["num_images"], test["only_run_right"]) == (NUM_IMAGES, 1)


def test_only_settings_that_differ_are_shown(keep: Keep, compared: Callable[..., dict[str, Any]]) -> None:
    """A setting that an older record does not have counts as its default; the same settings are none."""
    settings = {"HEAD_EPOCHS": 2, "FINE_TUNE_EPOCHS": 2, "BATCH_SIZE": 10}
    old = keep("old", set(), settings=settings)
    same = keep("same", set(), settings=settings | {"DROPOUT": 0.2})
    other = keep("other", set(), settings=settings | {"DROPOUT": 0.5, "FLIP": "none"})
    assert compared(old, same)["settings"] == {}
    assert compared(old, same, other)["settings"] == {
        "DROPOUT": [0.2, 0.2, 0.5], "FLIP": ["horizontal", "horizontal", "none"]
    }  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"state": "head", "outcome": None, "files": {}}, "it is not finished: it is in head"),
        ({"leave_out": PREDICTIONS}, "it was finished by a version that kept no report/predictions.csv"),
        ({"data": INPUTS["data"]}, "a record does not identify the test images"),
        ({"data": DATA | {"split_sha256": [1]}}, "a record does not identify the test images"),
        ({"data": DATA | {"split_sha256": {"test": "56" * 32}}}, "its test images are not those of run 1"),
        ({"data": DATA | {"class_names_sha256": "56" * 32}}, "its test images are not those of run 1"),
        ({"outcome": OUTCOME | {"test_accuracy": 0.5}}, "the predictions that the outcome was computed from"),
        ({"data": DATA | {"splits": {"train": 1, "validation": 1, "test": 41}}}, "that the outcome was computed from"),
    ],
)
def test_runs_that_cannot_be_tested_are_shown_with_the_reason(
    changes: dict[str, Any], reason: str, keep: Keep, compared: Callable[..., dict[str, Any]]
) -> None:
    """All else is shown, and the others are tested."""
    found = compared(keep("a", {1}), keep("b", {2}, **changes), keep("c", {3}))
    assert reason in found["tests"][0]["reason"]
    assert found["tests"][1]["p_value"] == 1.0
    assert len(found["runs"]) == 3


@pytest.mark.parametrize("name", [PREDICTIONS, REPORT])
def test_a_file_that_is_not_as_recorded_is_not_believed(
    name: str, keep: Keep, tmp_path: Path, compared: Callable[..., dict[str, Any]]
) -> None:
    """It is a problem of its run, and what depends on it is missing."""
    runs = keep("a", {1}), keep("b", {2})
    (tmp_path / "b" / name).write_bytes((tmp_path / "b" / name).read_bytes() + b" ")
    found = compared(*runs)
    (problem,) = found["runs"][1]["problems"]
    assert f"{name} is not what the run wrote" in problem
    assert (found["runs"][1]["auroc"] is None) == (name == REPORT)
    assert ("reason" in found["tests"][0]) == (name == PREDICTIONS)


@pytest.mark.parametrize("name", [PREDICTIONS, REPORT])
def test_a_file_that_is_too_large_is_not_fetched(
    name: str,
    keep: Keep,
    tmp_path: Path,
    compared: Callable[..., dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By the size that the record has; it is a problem of its run."""
    runs = keep("a", {1}), keep("b", {2})
    sizes = {path: path.stat().st_size for path in (tmp_path / "b/report").iterdir()}
    monkeypatch.setattr("job.run.artefacts.MAX_BYTES", sizes[tmp_path / "b" / name] - 1)
    problems = compared(*runs)["runs"][1]["problems"]
    assert f"{tmp_path}/b/{name} is larger than {sizes[tmp_path / 'b' / name] - 1:,} bytes" in problems


def test_a_run_that_does_not_exist_is_an_error(keep: Keep, tmp_path: Path) -> None:
    with pytest.raises(RunUnavailable):
        compare_command.answer(compare_command.Options(runs=(keep("a", set()), str(tmp_path / "nothing"))))


@pytest.mark.parametrize("runs", [[], ["./a"], ["./a", "./a/"]])
def test_one_run_alone_is_nothing_to_compare(runs: list[str]) -> None:
    with pytest.raises(InvalidSettings, match=r"compare: URI/RUN-ID(=.+: expected two runs or more|: is missing)"):
        cli.read("compare", runs, {})


def test_a_person_sees_a_table_and_a_page(
    keep: Keep, tmp_path: Path, capsys: pytest.CaptureFixture[str], undisturbed_run: Undisturbed
) -> None:
    """With a real run beside one that never was: results, settings, reason; the page has the same, and no script."""
    runs = undisturbed_run[0].uri, keep("<b>$x$", {1}, attempts=(attempt(end=attempt().start, exit_code=0),))
    pages = [tmp_path / "one.html", tmp_path / "two.html"]
    for page in pages:
        compare_command.answer(compare_command.Options(runs=runs, page=page))
    table = capsys.readouterr().out
    for expected in ("small", "<b>$x$", "DATASET", "two_shapes", "not tested: its test images are not those of run 1"):
        assert expected in table
    text = pages[0].read_text()
    assert pages[1].read_text() == text
    for expected in ("&lt;b&gt;$x$", "two_shapes", "its test images are not those of run 1"):
        assert expected in text
    assert "<b>" not in text
    assert "<script" not in text
    svgs = ["<svg" + part.partition("</svg>")[0] + "</svg>" for part in text.split("<svg")[1:]]
    assert len(svgs) == 2
    for svg in svgs:
        ElementTree.fromstring(svg)
        assert "run 2" in svg
    names = [part.split('"')[0] for part in text.split(' id="')[1:]]
    assert len(names) == len(set(names))


@pytest.mark.slow
@SCREENS
def test_the_page_fits_the_screen_and_can_be_read(
    browser: Browser, keep: Keep, tmp_path: Path, width: int, scheme: str
) -> None:
    """Long names, a reason, a problem and curves."""
    runs = keep("a" * 100, {1}), keep("b", {2, 3}, leave_out=REPORT), keep("c", {4}, data=INPUTS["data"])
    compare_command.answer(compare_command.Options(runs=runs, page=tmp_path / "page.html"))
    check_fits(browser, tmp_path / "page.html", width, scheme, num_texts=60)
