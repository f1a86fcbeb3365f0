"""The page of the runs of a store: what it says of real runs, of hostile records, and of many."""

import json
import re
import xml.etree.ElementTree as ElementTree
from datetime import UTC, datetime, timedelta
from html import unescape
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from playwright.sync_api import Browser

from job.cli import list as list_command
from job.cli import page_file
from job.errors import InvalidSettings
from job.report import plots, runs_page
from job.report.files import PAGE
from job.run.record import RECORD_NAME
from job.schema import StoredFile
from job.storage import MISSING, LocalStore
from tests.gcs_server import BUCKET, GcsServer
from tests.recorded import NOON, OUTCOME, attempt, epoch, record
from tests.test_report_browser import SCREENS, browser, check_fits

__all__ = ["browser"]

RECIPE = {"HEAD_EPOCHS": 2, "FINE_TUNE_EPOCHS": 2, "BATCH_SIZE": 10}
NASTY = "<img src=x onerror=alert(1)>$\\frac{$"
FILES = {PAGE: StoredFile(size=1, sha256="ab" * 32)}


def finished(run_id: str, accuracy: float, *, hours: int = 0, **settings: Any) -> bytes:
    """The record of a run that ended so many hours after noon, 90 s after its start."""
    end = NOON + timedelta(hours=hours)
    ended = attempt(start=end, end=end, exit_code=0, seconds={"head": {"productive": 80.0, "compile": 10.0}})
    outcome = OUTCOME | {"test_accuracy": accuracy, "test_accuracy_interval": [accuracy - 0.03, accuracy + 0.02]}
    history = epoch("head", 0, 900.0), epoch("fine_tune", 0, 111.0), epoch("fine_tune", 1, 222.5)
    values: dict[str, Any] = {"settings": RECIPE | settings, "outcome": outcome, "history": history}
    return record(run_id=run_id, state="done", attempts=(ended,), files=FILES, **values).model_dump_json().encode()


def keep(folder: Path, runs: dict[str, bytes]) -> str:
    store = LocalStore(folder)
    for name, content in runs.items():
        store.write(f"{name}/{RECORD_NAME}", content, if_version=MISSING)
    return store.uri


def page_of(place: str, file: Path, **options: Any) -> str:
    list_command.answer(list_command.Options(storage_uri=place, page=file, **options))
    return file.read_text("utf-8")


def cells(html: str) -> list[list[str]]:
    """The texts of the table of runs, by row."""
    rows = re.findall(r"<tr>(.*?)</tr>", html.split('<table class="runs">')[1].split("</table>")[0], re.DOTALL)
    texts = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL) for row in rows]
    return [[unescape(re.sub(r"<[^>]+>", "", text)).strip() for text in row] for row in texts]


def links(html: str) -> list[str]:
    return [unescape(href) for href in re.findall(r'<a href="([^"]*)"', html)]


@pytest.mark.parametrize("where", ["elsewhere", "."])
def test_a_real_run_is_shown_with_a_link_to_its_report(copied: Path, where: str) -> None:
    """From wherever on the disk the page is; what it says is what the record says."""
    folder = copied.parent / where
    folder.mkdir(exist_ok=True)
    html = page_of(str(copied.parent), folder / "runs.html")
    outcome = json.loads((copied / RECORD_NAME).read_text())["outcome"]
    (link,) = links(html)
    assert (folder / unquote(link)).resolve() == copied / PAGE
    row = dict(zip(*cells(html), strict=True))
    assert (row["Run"], row["State"], row["Data set"], row["Backbone"]) == ("small", "done", "two_shapes", "Tiny")
    assert float(row["Test accuracy"].removesuffix(" %")) == pytest.approx(100 * outcome["test_accuracy"], abs=0.1)
    assert "All other settings that change the result are the same." in html


def test_a_row_has_the_facts_of_its_run_and_the_settings_that_differ(tmp_path: Path) -> None:
    """The speed is the median of the last phase. Only data set and backbone have a column where they are the same."""
    runs = {"a": finished("a", 0.9, DROPOUT=0.5, SEED=7), "b": finished("b", 0.8, hours=30, SEED=7)}
    running = record(run_id="c", state="head", settings=RECIPE | {"SEED": 7}).model_dump_json().encode()
    html = page_of(keep(tmp_path, runs | {"c": running, "broken": b"{"}), tmp_path / "page.html", sort="name")
    header, *rows = cells(html)
    assert header[3:] == [
        "95 % interval", "Last change (UTC)", "Time", "Images/s", "Data set", "Backbone", "DROPOUT"
    ]  # fmt: skip
    assert rows[0][:2] == ["a", "done"]
    assert rows[0][2:] == [
        "90.0 %", "87.0–92.0 %", "2026-01-01 12:00:00", "1 min 30 s", "166.8", "cats_vs_dogs", "Xception", "0.5"
    ]  # fmt: skip
    assert rows[1][4] == "2026-01-02 18:00:00"
    assert rows[1][-1] == "0.2"
    assert rows[2][0] == "broken"
    assert rows[2][1].startswith("damaged: ")
    assert rows[3][:4] == ["c", "killed in head", "", ""]
    assert "2 done, 1 damaged, 1 killed" in " ".join(html.split())
    assert [unquote(link) for link in links(html)] == [f"./{run}/{PAGE}" for run in ("a", "b")]


def test_each_data_set_has_its_own_plot_of_finished_runs(tmp_path: Path) -> None:
    """By the time of the end, whatever the order of the table."""
    runs = {"a": finished("a", 0.9, hours=2), "b": finished("b", 0.92, hours=1), "c": finished("c", 0.7, DATASET="x")}
    running = record(run_id="d", state="head").model_dump_json().encode()
    html = page_of(keep(tmp_path, runs | {"d": running}), tmp_path / "page.html", sort="accuracy")
    described = re.findall(r'role="img" aria-label="([^"]+)"', html)
    assert described == [
        "Test accuracy by the end of the run, finished runs: 2; the best 92.0 %, the newest 90.0 %.",
        "Test accuracy by the end of the run, finished runs: 1; the best 70.0 %, the newest 70.0 %.",
    ]
    assert re.findall(r"<figcaption><b>(.+?)</b>", html) == ["cats_vs_dogs", "x"]
    assert "No run is finished." in page_of(keep(tmp_path / "none", {}), tmp_path / "page.html")


def test_hostile_records_are_text_and_their_links_stay_relative(tmp_path: Path) -> None:
    """No markup, no scheme, no formula, nothing that moves a cursor; an interval that does not hold its accuracy."""
    odd = json.loads(finished("javascript:alert(1)", 0.9, DATASET=NASTY, **{f"{NASTY}{n}": 1 for n in range(100)}))
    odd["outcome"]["test_accuracy_interval"] = [0.95, 0.2]
    runs = {
        "javascript:alert(1)": json.dumps(odd).encode(),
        '"><script>': finished('"><script>', 0.5, DATASET="y" * 100_000),
    }
    place = keep(tmp_path / "runs<b>", runs)
    for name in ("a\x1b[2J\u202e", "\udcff"):
        (tmp_path / "runs<b>" / name).mkdir()
        (tmp_path / "runs<b>" / name / RECORD_NAME).write_bytes(b"{}")
    html = page_of(place, tmp_path / "page.html")
    assert not re.search(r"<script|<img|<b>/|onerror=alert\(1\)&gt;\$.*</svg>|\x1b|\u202e", html)
    assert len(links(html)) == 2
    for link in links(html):
        assert re.fullmatch(r"\./runs%3Cb%3E/[A-Za-z0-9%._/-]+/report/index\.html", link)
    assert "&lt;img src=x onerror=alert(1)&gt;$\\frac{$" in html
    assert "a\\x1b[2J\\u202e" in html
    assert f"the first\n{runs_page.MAX_SETTINGS} of 100" in html
    assert len(html) < 150_000
    for svg in re.findall(r"<svg.+?</svg>", html, re.DOTALL):
        ElementTree.fromstring(svg)
    addresses = re.findall(r'(?:src|href)="([^"]{0,12})', html) + re.findall(r"url\(([^)]{0,12})", html)
    assert all(address.startswith(("data:", "#", "./")) for address in addresses)


def test_of_many_runs_a_page_has_the_first_and_says_how_many_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thousand, unless another number is asked for."""
    assert runs_page.MAX_RUNS == 1000
    monkeypatch.setattr(runs_page, "MAX_RUNS", 3)
    place = keep(tmp_path / "runs", {f"{number}": finished(f"{number}", 0.9) for number in range(5)})
    for limit, num_shown in ((None, 3), (2, 2), (4, 4), (9, 5)):
        html = page_of(place, tmp_path / "page.html", sort="name", limit=limit)
        assert [row[0] for row in cells(html)[1:]] == [f"{number}" for number in range(num_shown)]
        assert (f"These are {num_shown} of 5 runs" in html) == (num_shown < 5)


def test_runs_of_a_bucket_are_linked_as_if_the_page_lay_beside_them(gcs: GcsServer, tmp_path: Path) -> None:
    """And the page says where that is."""
    for run in ("a", "b"):
        gcs.put(f"runs/{run}/{RECORD_NAME}", finished(run, 0.9), None)
    html = page_of(f"gs://{BUCKET}/runs", tmp_path / "page.html", sort="name")
    assert links(html) == [f"./{run}/{PAGE}" for run in ("a", "b")]
    assert f"where this page lies beside the runs, in gs://{BUCKET}/runs" in html


def test_a_page_is_replaced_as_a_whole(tmp_path: Path) -> None:
    """Who reads the old one reads it to its end; a link stays one; what cannot be written leaves nothing behind."""
    file, link = tmp_path / "page.html", tmp_path / "link.html"
    file.write_bytes(b"old")
    link.symlink_to(file)
    with file.open("rb") as reader:
        page_file.write(link, "new")
        assert reader.read() == b"old"
    assert (file.read_bytes(), link.is_symlink()) == (b"new", True)
    with pytest.raises(InvalidSettings, match="cannot be written: No space left"):
        page_file.write(Path("/dev/full"), "new" * 10_000)
    with pytest.raises(InvalidSettings, match="cannot be written: No such file"):
        page_file.write(tmp_path / "none" / "page.html", "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link.html", "page.html"]


def test_many_runs_in_a_plot_are_small(tmp_path: Path) -> None:
    """A thousand of them, some at the same moment, are less than half a megabyte."""
    moments = [datetime(2026, 1, 1, tzinfo=UTC) + timedelta(minutes=number // 2) for number in range(1000)]
    accuracies = [0.5 + number / 4000 for number in range(1000)]
    intervals = [(accuracy - 0.1, accuracy + 0.1) for accuracy in accuracies]
    svg = plots.accuracy_over_time(moments, accuracies, intervals, name="many", description="many")
    ElementTree.fromstring(svg)
    assert svg.count("<use") >= 1000
    assert len(svg) < 500_000


@pytest.mark.slow
@SCREENS
def test_the_page_fits_the_screen_and_can_be_read(browser: Browser, tmp_path: Path, width: int, scheme: str) -> None:
    """Long names, and runs that failed or are damaged."""
    runs = {f"{n}-{'r' * 100}": finished(f"{n}-{'r' * 100}", 0.9, hours=n, DATASET="d" * 80, SEED=n) for n in range(4)}
    failed = record(run_id="failed", state="head", attempts=(attempt(end=NOON, exit_code=5),)).model_dump_json()
    page_of(keep(tmp_path / "runs", runs | {"failed": failed.encode(), "broken": b"{"}), tmp_path / "page.html")
    check_fits(browser, tmp_path / "page.html", width, scheme, num_texts=60)
