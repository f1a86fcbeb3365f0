"""What is read of a finished run: values, page, card, and the rows of the closing table."""

import io
import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from base64 import b64decode
from collections import Counter
from html.parser import HTMLParser
from typing import Any, get_args

import numpy as np
import pytest
import yaml
from markdown_it import MarkdownIt
from PIL import Image

from job import __version__
from job.observe.ledger import Category
from job.report import plots
from job.report.card import card
from job.report.content import versions
from job.report.page import TIME_MEANINGS
from job.report.pictures import MAX_SIDE, data_uri
from job.report.rendering import duration, percent, setting, share
from job.report.summary import summary
from tests.conftest import REPOSITORY
from tests.reports import content, epoch, render

OUTCOME = {
    "test_accuracy": 0.9656,
    "test_accuracy_interval": (0.94, 0.98),
    "test_loss": 0.0888,
    "model_sha256": "ab" * 32,
}
TEN = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

# Values


def test_versions_are_of_this_process() -> None:
    """The program, Python, and what decides the result, whichever TensorFlow is installed."""
    found = versions()
    assert found["thaw"] == __version__
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert {"tensorflow", "keras", "tensorflow-datasets", "numpy"} <= found.keys()


def test_the_report_is_json_and_every_key_is_documented() -> None:
    """The table of the module is the contract."""
    from job.report import content as room

    report = json.loads(json.dumps(content(), allow_nan=False))
    rows = re.findall(r"^\| (`.+?) \|", room.__doc__ or "", re.MULTILINE)
    assert {name for row in rows for name in re.findall(r"`(\w+)`", row)} == report.keys()
    assert report["splits"] == {"train": 40, "validation": 16, "test": 60}
    assert report["history"] == [
        epoch("head", 0).model_dump(mode="json"),
        epoch("fine_tune", 0).model_dump(mode="json"),
    ]
    assert report["num_attempts"] == 1
    assert report["provenance"]["backbone_sha256"] == "cd" * 32


def test_what_trains_in_a_phase_is_counted() -> None:
    """Statistics never do."""
    assert [(phase["name"], phase["num_trainable"]) for phase in content()["phases"]] == [
        ("head", 9),
        ("fine_tune", 25),
    ]


@pytest.mark.parametrize(("gate", "passed"), [(None, None), (0.95, True), (0.96, False)])
def test_the_gate_is_judged(gate: float | None, passed: bool | None) -> None:
    """57 of 60 are 0.95."""
    assert content(min_test_accuracy=gate)["gate"] == {"min_test_accuracy": gate, "passed": passed}


# The page


def test_the_same_values_give_the_same_bytes() -> None:
    """Nothing in the page is a time, an address in memory, or the order of a set."""
    assert render(content()) == render(content())


@pytest.mark.parametrize(
    ("gate", "words"),
    [(None, "No quality gate"), (0.95, "gate passed: at least 95.0 %"), (0.96, "gate missed: at least 96.0 %")],
)
def test_the_verdict_says_accuracy_and_gate(gate: float | None, words: str) -> None:
    """In words, before anything else."""
    verdict = render(content(min_test_accuracy=gate)).split("<main>")[0]
    assert "95.0 %</p>" in verdict
    assert "57 of 60 images are right" in verdict
    assert words in verdict


def test_a_run_without_mistakes_says_so() -> None:
    """And its accuracy is not rounded to it."""
    html = render(content(wrong=0))
    assert "100.0 %</p>" in html
    assert "every test image is classified correctly" in html
    assert "taken for <b>" not in html


def test_a_run_with_nothing_right_says_so() -> None:
    """A model can be that bad."""
    html = render(content(wrong=60))
    assert "no test image is classified correctly" in html


@pytest.mark.parametrize(
    ("settings", "history"),
    [
        ({"head_epochs": 1, "fine_tune_epochs": 0}, (epoch("head", 0),)),
        ({"head_epochs": 0, "fine_tune_epochs": 2}, (epoch("fine_tune", 0), epoch("fine_tune", 1))),
        ({"head_epochs": 0, "fine_tune_epochs": 400}, tuple(epoch("fine_tune", n) for n in range(400))),
    ],
)
def test_one_phase_is_enough(settings: dict[str, int], history: tuple[Any, ...]) -> None:
    """One epoch, no head phase, many epochs: no unfreezing is marked that did not happen."""
    html = render(content(history=history, **settings))
    assert "unfrozen" not in html
    assert html.count("<svg") == 3


def test_the_unfreezing_is_marked_between_the_phases() -> None:
    """A dashed line more than in a run of one phase, and the names of both."""
    both = plots.learning_curve(
        [e.model_dump() for e in (epoch("head", 0), epoch("fine_tune", 0))], "loss", description=""
    )
    one = plots.learning_curve([e.model_dump() for e in (epoch("head", 0), epoch("head", 1))], "loss", description="")
    assert both.count("stroke-dasharray") == one.count("stroke-dasharray") + 1
    assert [name in both for name in ("head", "fine-tuning")] == [True, True]
    assert "fine-tuning" not in one


def test_ten_classes_have_a_matrix_and_their_confusions() -> None:
    """Each count in its cell, each class a header of its row and its column."""
    html = render(content(TEN, wrong=3))
    matrix = html.split('<table class="matrix')[1].split("</table>")[0]
    assert matrix.count('scope="col"') == matrix.count('scope="row"') == 10
    assert sum(map(int, re.findall(r"\)\">(\d+)", matrix))) == 60
    assert "Most frequent confusions" in html


def test_many_classes_have_their_largest_confusions_instead() -> None:
    """A matrix of a hundred classes is not read."""
    html = render(content(tuple(f"class {n}" for n in range(100)), num_examples=200))
    assert '<table class="matrix' not in html
    assert '<th scope="row">class 0</th><td>class 1</td>' in html


def test_what_comes_from_outside_is_escaped() -> None:
    """Names of classes and places are text in the page."""
    hostile = "<script>alert('x')</script>"
    html = render(content((hostile, "dog & cat"), storage_uri="/runs/<b>", goodput_ratio=0.5))
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


def test_every_picture_and_plot_is_told_in_words() -> None:
    """For those who cannot see it."""
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


def test_the_classes_of_each_split_are_a_table_that_stays_small() -> None:
    """Class by split; of many classes the first."""
    html = render(content())
    assert (
        '<tr><th scope="row">cat</th><td class="number">20</td><td class="number">8</td><td class="number">30</td></tr>'
    ) in html
    assert "Images of each class</caption>" in html
    html = render(content(tuple(f"class {n}" for n in range(100)), num_examples=200))
    assert "Images of each class, the first 20</caption>" in html


def test_images_that_two_splits_share_are_told() -> None:
    """And only those."""
    assert "No image is in two of them" in render(content())
    html = render(content(duplicates={"train_validation": 0, "train_test": 3, "validation_test": 1}))
    assert "No image is in two of them" not in html
    told = re.findall(r"✗ (\d+ of the \w+ images \w+ among the\s\w+) images", html)
    assert [" ".join(text.split()) for text in told] == [
        "3 of the test images are among the train", "1 of the test images is among the validation"
    ]  # fmt: skip


def test_settings_and_provenance_are_all_there() -> None:
    """What it takes to get the result again."""
    html = render(content(seed=1234))
    digests = ["ab" * 32, "cd" * 32, "ef" * 32, "0123456789ab"]
    rows = ["THAW_SEED</code> *</td><td>1234", "THAW_CACHE</code></td><td>memory"]
    for wanted in [*digests, *rows, "a processor", f"thaw {__version__}"]:
        assert wanted in html


def test_every_category_of_time_has_a_meaning() -> None:
    """And no meaning is of one that is gone."""
    assert set(TIME_MEANINGS) == set(get_args(Category))
    html = render(content(goodput_ratio=0.75))
    assert TIME_MEANINGS["compile"] in html
    assert "75 % of it productive" in html
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
    assert [share(value) for value in (0.0, 0.001, 0.5)] == ["0 %", "< 1 %", "50 %"]
    assert [duration(value) for value in (0.421, 41.26, 59.96, 725, 12_034)] == [
        "0.42 s", "41.3 s", "1 min 0 s", "12 min 5 s", "3 h 20 min",
    ]  # fmt: skip
    assert [setting(value) for value in (None, True, 120.0, 1e-5, "x")] == ["not set", "true", "120", "1e-05", "x"]


# The card


def front_matter(text: str) -> dict[str, Any]:
    return dict(yaml.safe_load(text.split("---\n")[1]))


def test_the_card_has_the_metadata_that_model_hubs_read() -> None:
    """The result among it, unrounded, whatever characters names have."""
    report = content(run_id="a-run", dataset="shapes/x:1.0.0", test_split="train[85%:]", wrong=7)
    metadata = front_matter(card(report))
    assert metadata["library_name"] == "keras"
    assert metadata["datasets"] == ["shapes/x:1.0.0"]
    (entry,) = metadata["model-index"]
    assert entry["name"] == "a-run"
    (result,) = entry["results"]
    assert result["dataset"] == {"type": "shapes/x:1.0.0", "name": "shapes/1.0.0", "split": "train[85%:]"}
    assert {metric["type"]: metric["value"] for metric in result["metrics"]} == {
        "accuracy": report["outcome"]["test_accuracy"], "loss": report["outcome"]["test_loss"],
    }  # fmt: skip


HOSTILE = (
    '猫 / cat, "big"',
    "<script>alert(1)</script>\nx: - [y]",
    "a|b`c*d_e",
    "![i](http://h/i.png) [l](javascript:x) <img src=x onerror=y> <http://h> www.h.com a@h.com",
    "**b** ~~s~~ &lt;u&gt; $x$ \\\\ \\",
    "\n\n# H\n\n| a |\n|---|\n\n```\n---\n",
)
"""Names that are Markdown, HTML, YAML, or the end of one."""


class Seen(HTMLParser):
    """The elements and the text of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: Counter[str] = Counter()
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.elements[tag] += 1

    def handle_data(self, data: str) -> None:
        self.text += data


def seen(report: dict[str, Any], *, knows_front_matter: bool) -> Seen:
    """What a viewer shows of the card that lets HTML through."""
    text = card(report)
    viewer = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    return Seen(viewer.render(text.split("---\n", 2)[2] if knows_front_matter else text))


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("knows_front_matter", [True, False])
def test_a_card_shows_every_name_as_it_is(name: str, knows_front_matter: bool) -> None:
    """Whatever it holds: the elements are those of a card of plain names, and the text is the name."""
    plain = seen(content(("x", "y")), knows_front_matter=knows_front_matter)
    report = content((name, "y"), run_id=name)
    report["provenance"]["data"]["dataset"] = name
    report["settings"] |= dict.fromkeys(("weights", "train_split", "validation_split", "test_split"), name)
    shown = seen(report, knows_front_matter=knows_front_matter)
    assert shown.elements == plain.elements
    words, line = " ".join(shown.text.split()), " ".join(name.split())
    assert f"apart: {line}" in words
    assert words.count(line) >= 9


@pytest.mark.parametrize("name", HOSTILE)
def test_the_metadata_of_a_card_holds_every_name_as_it_is(name: str) -> None:
    """A line break in a name does not end the front matter."""
    text = card(content(("x", "y"), run_id=name))
    metadata = front_matter(text)
    assert metadata["model-index"][0]["name"] == name
    assert "<" not in text.split("---\n")[1]


# The closing table


def test_the_summary_shows_accuracy_loss_times_and_place() -> None:
    """The rows of the closing table."""
    rows = summary(OUTCOME, "/runs/r", {"fine_tune": 1234.5})
    assert rows["test accuracy"] == "0.9656  (95 % interval 0.9400 to 0.9800)"
    assert rows["fine tune"] == "1,234.5 s"
    assert rows["results"] == "/runs/r"


def test_the_closing_table_is_made_without_what_draws_the_page() -> None:
    """A finished run is answered in about a second."""
    program = (
        "import sys, job.report.summary; sys.exit(bool({'matplotlib', 'jinja2', 'PIL', 'numpy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, timeout=60).returncode == 0
