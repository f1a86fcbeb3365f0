"""The report of a finished run: values, page, and the rows of the closing table."""

import ast
import io
import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from base64 import b64decode
from html import unescape
from typing import Any, get_args

import numpy as np
import pytest
from PIL import Image

from job import __version__
from job.data.composition import Skipped
from job.observe.ledger import Category
from job.report import content as content_module
from job.report import plots
from job.report.page import TIME_MEANINGS
from job.report.pictures import MAX_SIDE, data_uri
from job.report.rendering import duration, percent, setting, share
from job.settings.environment import read_settings
from job.settings.settings import Settings
from tests.conftest import REPOSITORY
from tests.reports import content, draw, epoch, render

OUTCOME = {
    "test_accuracy": 0.9656,
    "test_accuracy_interval": (0.94, 0.98),
    "test_loss": 0.0888,
    "model_sha256": "ab" * 32,
}
TEN = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def test_the_report_is_json_and_every_key_is_documented() -> None:
    """The table of the module is the contract."""
    report = json.loads(json.dumps(content(), allow_nan=False))
    rows = re.findall(r"^\| (`.+?) \|", content_module.__doc__ or "", re.MULTILINE)
    assert {name for row in rows for name in re.findall(r"`(\w+)`", row)} == report.keys()
    assert report["splits"] == {"train": 40, "validation": 16, "test": 60}
    assert report["history"] == [epoch(phase, 0).model_dump(mode="json") for phase in ("head", "fine_tune")]
    # The means and variances of BatchNorm never train.
    assert [(phase["name"], phase["num_trainable"]) for phase in report["phases"]] == [("head", 9), ("fine_tune", 25)]
    assert (report["num_attempts"], report["goodput_ratio"]) == (1, 0.75)
    assert report["durations_seconds"] == {"head": 4.0, "fine_tune": 4.0}
    assert report["provenance"]["backbone_sha256"] == "cd" * 32
    versions = report["provenance"]["versions"]
    assert versions["thaw"] == __version__
    assert versions["python"] == ".".join(map(str, sys.version_info[:3]))
    assert {"tensorflow", "keras", "tensorflow-datasets", "numpy"} <= versions.keys()


def test_the_same_values_give_the_same_bytes() -> None:
    """Nothing in the page is a time, or an address in memory."""
    assert draw(content()) == draw(content())


@pytest.mark.parametrize(
    ("gate", "passed", "words"),
    [
        (None, None, "No quality gate"),
        (0.95, True, "gate passed: at least 95 %"),
        (0.95001, False, "gate missed: at least 95.001 %"),
    ],
)
def test_the_verdict_says_accuracy_and_gate(gate: float | None, passed: bool | None, words: str) -> None:
    """In words, before anything else. 57 of 60 are 0.95."""
    report = content(min_test_accuracy=gate)
    assert report["gate"] == {"min_test_accuracy": gate, "min_test_balanced_accuracy": None, "passed": passed}
    verdict = render(report).split("<main>")[0]
    for wanted in ("95.0 %</p>", "57 of 60 images are classified correctly", words):
        assert wanted in verdict


def test_the_verdict_names_the_gate_of_the_balanced_accuracy() -> None:
    """Alone, and beside the other one; either of them can be the one that is missed."""
    alone = render(content(min_test_balanced_accuracy=0.9))
    assert "gate passed: at least 90 % balanced accuracy was required" in alone
    both = render(content(min_test_accuracy=0.5, min_test_balanced_accuracy=0.99))
    assert "gate missed: at least 50 % and 99 % balanced accuracy was required" in both


@pytest.mark.slow
def test_the_page_says_how_images_were_augmented() -> None:
    """Only what was done, in words; the settings have the numbers, too."""
    assert "use: flip horizontal, rotation up to 36° either way; the outside" in render(content())
    many = content(flip="none", rotation=0, zoom=0.25, hue=0.05, randaugment_operations=2, randaugment_magnitude=7)
    assert "use: zoom up to 25 %, hue up to 18°, RandAugment (operations: 2, magnitude: 7); the outside" in render(many)
    assert "Augmentation is off" in render(content(flip="none", rotation=0))


@pytest.mark.slow
def test_a_run_with_only_right_or_only_wrong_answers_says_so() -> None:
    """And its accuracy is not rounded to it."""
    html = render(content(wrong=0))
    assert "100.0 %</p>" in html
    assert "every test image is classified correctly" in html
    assert "predicted as <b>" not in html
    assert "no test image is classified correctly" in render(content(wrong=60))


@pytest.mark.parametrize(
    ("settings", "history"),
    [
        ({"head_epochs": 1, "fine_tune_epochs": 0}, (epoch("head", 0),)),
        ({"head_epochs": 0, "fine_tune_epochs": 90}, tuple(epoch("fine_tune", n) for n in range(90))),
    ],
)
def test_one_phase_is_enough(settings: dict[str, int], history: tuple[Any, ...]) -> None:
    """One epoch, no head phase, many epochs: no unfreezing is marked that did not happen."""
    html = render(content(history=history, **settings))
    assert "unfrozen" not in html
    assert html.count("<svg") == 5


def test_the_unfreezing_is_marked_between_the_phases() -> None:
    """A dashed line more than in a run of one phase, and the names of both."""
    both = plots.learning_curve(
        [e.model_dump() for e in (epoch("head", 0), epoch("fine_tune", 0))], "loss", description=""
    )
    one = plots.learning_curve([e.model_dump() for e in (epoch("head", 0), epoch("head", 1))], "loss", description="")
    assert both.count("stroke-dasharray") == one.count("stroke-dasharray") + 1
    assert [name in both for name in ("head", "fine-tuning")] == [True, True]
    assert "fine-tuning" not in one


def test_few_classes_have_a_matrix_and_many_their_largest_confusions() -> None:
    """Each count in its cell, each class a header of its row and its column; a table of a hundred is not read."""
    html = render(content(TEN, wrong=3))
    matrix = html.split('<table class="matrix')[1].split("</table>")[0]
    assert matrix.count('scope="col"') == matrix.count('scope="row"') == 10
    assert sum(map(int, re.findall(r"\)\">(\d+)", matrix))) == 60
    assert "Most frequent confusions" in html
    html = render(content(tuple(f"class {n}" for n in range(100)), num_examples=200))
    assert '<table class="matrix' not in html
    assert '<th scope="row">class 0</th><td>class 1</td>' in html
    assert "Images of each class, the first 20</caption>" in html


@pytest.mark.slow
def test_many_classes_begin_with_the_worst_and_the_best() -> None:
    """Twenty each by F1; one without images is in neither, all are in the folded table, which paper does not get."""
    names = tuple(f"class {number:03}" for number in range(100))
    # Of three images of each, two of the first 30 are taken for the next class; the last class is not in the test.
    report = content(names, num_examples=300, wrong=30)
    report["test"]["per_class"][99] |= {"num_examples": 0, "precision": None, "recall": None, "f1": None}
    html = render(report)
    lowest, highest, every = (
        re.findall(r'<th scope="row">(class \d+)</th>', html.split(f'aria-label="{label}">')[1].split("</table>")[0])
        for label in ("The classes with the lowest F1", "The classes with the highest F1", "Every class in numbers")
    )
    assert lowest == sorted(names[1:30], key=lambda name: report["test"]["per_class"][int(name[-3:])]["f1"])[:20]
    assert set(highest) <= set(names[31:99])
    assert len(highest) == 20
    assert every == list(names)
    assert "20 of 100 classes: the lowest F1" in html
    assert "<details class=on-screen>\n<summary>Every class in numbers" in html
    assert "lowest F1" not in render(content(TEN))


def test_what_comes_from_outside_is_escaped() -> None:
    """Names of classes and places are text in the page."""
    hostile = "<script>alert('x')</script>"
    html = render(content((hostile, "dog & cat"), storage_uri="/runs/<b>"))
    assert "<script" not in html
    assert "&lt;script&gt;alert" in html
    assert "/runs/&lt;b&gt;" in html


def test_the_page_needs_nothing_from_elsewhere() -> None:
    """No script, no address but data: and identifiers, and a policy that says so."""
    html = render(content())
    assert "<script" not in html
    assert "default-src 'none'" in html
    addresses = re.findall(r'(?:src|href)="([^"]{0,12})', html) + re.findall(r"url\(([^)]{0,12})", html)
    assert addresses
    assert all(address.startswith(("data:", "#")) for address in addresses)
    assert "@import" not in html


def test_identifiers_are_there_once() -> None:
    """Three plots share a page, and what they refer to is in it."""
    html = render(content(TEN))
    identifiers = re.findall(r'\bid="([^"]+)"', html)
    assert len(identifiers) == len(set(identifiers))
    wanted = re.findall(r'(?:href="#|url\(#|aria-labelledby=")([^")]+)', html)
    assert set(wanted) <= set(identifiers)


def test_every_picture_and_plot_is_described() -> None:
    """For readers who cannot see it."""
    html = render(content(TEN))
    assert all(re.search(r'alt="[^"]{10,}"', image) for image in re.findall(r"<img [^>]+>", html))
    assert all(re.search(r'role="img" aria-label="[^"]{20,}"', plot) for plot in re.findall(r"<svg [^>]+>", html))


def test_plots_are_svg_in_the_colours_of_the_page() -> None:
    """Well formed, with text as text, and no colour that a dark page would swallow."""
    history = [epoch("head", 0).model_dump(), epoch("fine_tune", 0).model_dump()]
    drawn = [
        plots.learning_curve(history, "accuracy", description="up"),
        plots.reliability_diagram(content()["test"]["calibration"], num_classes=2, description="close"),
    ]
    for svg in drawn:
        ElementTree.fromstring(svg)
        assert "<text" in svg
        assert "var(--ink)" in svg
        assert not re.search(r"(fill|stroke): (#|black|white)", svg)


@pytest.mark.slow
def test_classes_and_shared_images_of_the_splits_are_shown() -> None:
    """Class by split; and only the pairs of splits that share an image."""
    html = render(content())
    row = ["cat", 20, 8, 30]
    cells = "".join(f'<td class="number">{number}</td>' for number in row[1:])
    assert f'<tr><th scope="row">{row[0]}</th>{cells}</tr>' in html
    assert "No image is in two of them" in html
    html = render(content(duplicates={"train_validation": 0, "train_test": 3, "validation_test": 1}))
    assert "No image is in two of them" not in html
    found = re.findall(r"✗ (\d+ of the \w+ images \w+ among the\s\w+) images", html)
    assert [" ".join(text.split()) for text in found] == [
        "3 of the test images are among the train", "1 of the test images is among the validation"
    ]  # fmt: skip


def test_what_to_copy_trains_the_same_again() -> None:
    """The shell gives the settings of the run, and only those that are not the default; the run is another one."""
    given = {
        "dataset": "./my 'photos'", "classes": '["a b", "c$d"]', "stratify": False, "rotation": 0.123456789,
        "data_dir": "/data", "head_epochs": 2, "min_test_accuracy": 0.5, "cache": "disk",
    }  # fmt: skip
    (block,) = re.findall(r"<pre><code>(.+?)</code></pre>", render(content(run_id="r" * 128, **given)), re.DOTALL)
    *lines, command = unescape(block).split("\n")
    assert command == "thaw"
    done = subprocess.run(["env", "-i", "sh", "-c", "\n".join([*lines, "env -0"])], capture_output=True, check=True)
    variables = dict(text.split("=", 1) for text in done.stdout.decode().split("\0") if text.startswith("THAW_"))
    read, run = read_settings(variables), Settings(**(content(**given)["settings"]))
    assert read.fingerprint() == run.fingerprint()
    assert (read.data_dir, read.run_id) == ("/data", "r" * 122 + "-again")
    others = {"THAW_RUN_ID", "THAW_BACKBONE", "THAW_WEIGHTS", "THAW_IMAGE_SIZE", "THAW_FINE_TUNE_EPOCHS"}
    left_out = {"min_test_accuracy", "cache"}
    assert variables.keys() == {f"THAW_{name.upper()}" for name in given.keys() - left_out} | others


def test_each_section_is_in_the_contents() -> None:
    """In its order, under its title, and its heading is a link to itself."""
    page = render(content())
    contents = page.split('<nav aria-label="Contents">')[1].split("</nav>")[0]
    links = re.findall(r'<a href="#(\w+)">(.+?)</a>', contents)
    assert links == re.findall(r'<h2 id="(?:\w+)"><a href="#(\w+)">(.+?)</a></h2>', page)
    assert len(links) == page.count("<h2 ") == page.count("<section aria-labelledby")


def test_a_photograph_has_its_name_or_its_number() -> None:
    """Escaped; TFDS data has no names."""
    names = tuple(f"cat/<{index}>.jpg" for index in range(60))
    (surest, *_) = content(names=names)["most_confident"]["wrong"]
    assert f'<span class="name">cat/&lt;{surest["index"]}&gt;.jpg</span>' in render(content(names=names))
    assert f'<span class="name">image {surest["index"]}</span>' in render(content())


def test_images_that_were_left_out_are_listed() -> None:
    """With the reason, and escaped; none without any."""
    assert "left out" not in render(content())
    image = Skipped("train", "<cat>/1.png", "is empty", "ab" * 32)
    html = render(content(skipped=(image,)))
    assert "1 of the images cannot be read and was left out" in html
    assert "<li>&lt;cat&gt;/1.png (train): is empty</li>" in html


def test_settings_provenance_and_times_are_all_there() -> None:
    """All that is needed to get the result again; and each category of time has a meaning."""
    assert set(TIME_MEANINGS) == set(get_args(Category))
    html = render(content(seed=1234))
    digests = ["ab" * 32, "cd" * 32, "ef" * 32, "0123456789ab"]
    rows = ["THAW_SEED</code> *</td><td><b>1234</b><small>default: 0<", "THAW_CACHE</code></td><td>memory<"]
    times = [TIME_MEANINGS["compile"], "75 % of it productive"]
    for wanted in [*digests, *rows, *times, "a processor", f"thaw {__version__}"]:
        assert wanted in html
    assert TIME_MEANINGS["recompute"] not in html


@pytest.mark.parametrize(("side", "kind"), [(24, "PNG"), (64, "JPEG"), (1024, "JPEG")])
def test_pictures_are_small_and_of_the_right_size(side: int, kind: str) -> None:
    """Never enlarged, and reduced to what a page shows."""
    address = data_uri(np.full((side, side, 3), 77, dtype=np.uint8))
    image = Image.open(io.BytesIO(b64decode(address.partition("base64,")[2])))
    assert (image.format, image.size) == (kind, (min(side, MAX_SIDE),) * 2)
    assert abs(np.asarray(image).astype(int) - 77).max() <= 2


def test_numbers_are_shown_for_people() -> None:
    """And only all is 100 %."""
    assert [percent(value) for value in (0.0, 0.00001, 0.973, 0.99999, 1.0)] == [
        "0.0 %", "0.1 %", "97.3 %", "99.9 %", "100.0 %",
    ]  # fmt: skip
    assert [share(value) for value in (0.0, 0.001, 0.5, 0.998, 1)] == ["0 %", "< 1 %", "50 %", "> 99 %", "100 %"]
    assert [duration(value) for value in (0.421, 41.26, 59.96, 725, 12_034)] == [
        "0.42 s", "41.3 s", "1 min 0 s", "12 min 5 s", "3 h 20 min",
    ]  # fmt: skip
    assert [setting(value) for value in (None, True, 120.0, 1e-5, 1.0000001e-3, "x")] == [
        "not set", "true", "120", "1e-05", "0.0010000001", "x",
    ]  # fmt: skip


def test_the_closing_table_shows_accuracy_loss_times_and_place_and_imports_nothing_slow() -> None:
    """A finished run is answered in about a second."""
    program = (
        f"from job.report.summary import summary; print(summary({OUTCOME}, '/runs/r', {{'fine_tune': 1234.5}})); "
        "import sys; sys.exit(bool({'matplotlib', 'jinja2', 'PIL', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, timeout=240)
    rows = ast.literal_eval(done.stdout)
    assert done.returncode == 0
    assert rows["test accuracy"] == "0.9656  (95 % interval 0.9400 to 0.9800)"
    assert rows["fine tune"] == "1,234.5 s"
    assert rows["results"] == "/runs/r"
