"""The model card: its metadata, names from outside, and its code against what the program says of the same images."""

import json
import re
import subprocess
import sys
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from markdown_it import MarkdownIt
from PIL import Image

from job.cli import predict
from job.data.pixels import decode_bytes
from job.data.resizing import Resizing
from job.report import saved_model
from job.report.card import card
from job.train import evaluation
from tests.classifiers import build
from tests.conftest import CALIBRATED_RUN
from tests.reports import content, epoch
from tests.runs import Whole

MORE = """
import sys
assert not any(name.split(".")[0] == "job" for name in sys.modules)
for path in sys.argv[1:]:
    answer = classify(encoded_images=tf.constant([open(path, "rb").read()]))
    label = answer["label"][0].numpy().decode()
    served = label, float(answer["probabilities"][0][names.index(label)])
    print(json.dumps([served, label_and_probability(path)]))
"""
"""Both ways to use the model, over images; `classify` and `label_and_probability` are the card's."""

Answer = tuple[str, float]


@pytest.fixture
def photographs(tmp_path: Path) -> list[Path]:
    """Larger and smaller than the model's input, of another shape, with details that a smoother resizing would lose.

    Some are so thin that less than a pixel of their width is left.
    """
    rng = np.random.default_rng(0)
    paths = []
    for index in range(24):
        height, width = ((61, 83), (150, 97), (240, 320), (11, 14), (400, 6))[index % 5]
        y, x = np.mgrid[:height, :width]
        stripes = 90 * ((x // (1 + index % 3) + y) % 2)
        bright = 120 * ((x - width / 2) ** 2 + (y - height / 2) ** 2 < (height / 3) ** 2)
        pixels = rng.integers(0, 40, (height, width, 3)) + (stripes if index % 2 else bright)[..., np.newaxis]
        paths.append(tmp_path / f"{index:02d}.{('jpg', 'jpg', 'png')[index % 3]}")
        Image.fromarray(pixels.astype(np.uint8)).save(paths[-1])
    return paths


def answers_of_the_card(folder: Path, images: list[Path]) -> list[list[Answer]]:
    """Label and probability by the SavedModel and by Keras, from a process in the folder of the model."""
    (folder / "image.jpg").write_bytes(images[0].read_bytes())
    code = "\n".join(re.findall(r"```python\n(.+?)```", (folder / "README.md").read_text(), re.DOTALL))
    done = subprocess.run(
        [sys.executable, "-c", code + MORE, *map(str, images)], cwd=folder, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    by_name, by_keras, *lines = done.stdout.splitlines()
    answers = [[(label, probability) for label, probability in json.loads(line)] for line in lines]
    assert (by_name.split()[0], by_keras.split()[0]) == tuple(label for label, _ in answers[0])
    return answers


def assert_the_same(answers: list[list[Answer]], expected: list[Answer]) -> None:
    for of_image, (label, probability) in zip(answers, expected, strict=True):
        assert of_image == [(label, pytest.approx(probability, abs=1e-6))] * 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings", [{}, CALIBRATED_RUN, {"resize": "crop"}, {"resize": "pad"}],
    ids=["small", "calibrated", "crop", "pad"],
)  # fmt: skip
def test_its_code_answers_as_predict_does(
    photographs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], whole: Whole, settings: dict[str, Any]
) -> None:
    """The label, and the probability to within 1e-6, without this package; with temperature and threshold too."""
    store = whole(**settings)[0]
    for name in store.list("model/"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        store.download(name, path)
    predict.answer(predict.Options(run=store.uri, images=tuple(map(str, photographs)), as_json=True))
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    expected = [(line["label"], line["probability"]) for line in lines]
    assert len({label for label, _ in expected}) == 2
    assert_the_same(answers_of_the_card(tmp_path / "model", photographs), expected)


@pytest.mark.slow
def test_its_code_answers_for_three_classes(photographs: list[Path], tmp_path: Path) -> None:
    """An output for each."""
    names, model = ("a", "b", "c"), build(num_classes=3).export()
    model.save(tmp_path / "model.keras")
    saved_model.save(model, names, tmp_path / "saved_model")
    (tmp_path / "labels.json").write_text(json.dumps(names))
    (tmp_path / "README.md").write_text(card(content(names, image_size=16)))
    images = np.stack([decode_bytes(path.read_bytes(), Resizing(16)) for path in photographs])
    probabilities = evaluation.probabilities(np.array(model(images, training=False), np.float64))
    expected = [(names[row.argmax()], float(row.max())) for row in probabilities]
    assert_the_same(answers_of_the_card(tmp_path, photographs), expected)


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


@pytest.mark.parametrize(("weights", "base"), [("imagenet", "Xception"), ("none", None), ("/mine.weights.h5", None)])
def test_the_card_names_a_base_only_when_it_is_known_and_never_a_licence(weights: str, base: str | None) -> None:
    """Weights of one's own are from anywhere."""
    metadata = front_matter(card(content(backbone="Xception", weights=weights, image_size=71)))
    assert metadata.get("base_model") == base
    assert metadata.get("base_model_relation") == ("finetune" if base else None)
    assert "license" not in metadata


@pytest.mark.parametrize(
    ("weights", "head"),
    [
        ("imagenet", "a new head"),
        ("gs://bucket/runs/cats", "the head of an earlier run, for the classes that both have"),
    ],
)
def test_it_says_whether_the_head_was_new(weights: str, head: str) -> None:
    assert f"Xception with {head},\n" in card(content(backbone="Xception", weights=weights, image_size=71))


def test_the_card_of_own_images_names_no_data_set_of_a_hub() -> None:
    metadata = front_matter(card(content(dataset="./photos")))
    assert "datasets" not in metadata
    assert metadata["model-index"][0]["results"][0]["dataset"]["type"] == "imagefolder"


def test_it_says_what_was_done_and_not_what_was_meant() -> None:
    """A phase that stopped early has the epochs that it trained, and test images may be among the training images."""
    history = (epoch("head", 0), epoch("head", 1), epoch("fine_tune", 0))
    usual = card(content(history=history, head_epochs=100, patience=3))
    assert ", not used in training |" in usual
    assert "- head: the head, 2 epochs of Adam at a learning rate of 0.001" in usual
    settings = {"keep": "best", "weight_decay": 0.01}
    other = card(content(history=history, duplicates={"train_test": 1040, "train_validation": 2}, **settings))
    assert ", 1,040 of which are among the training images too |" in other
    assert ", 1 epoch of AdamW at a learning rate of 1e-05, 25 parameters, of which the best epoch is kept" in other
    assert "not used in training" not in other


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


def seen(text: str) -> Seen:
    """What a viewer shows of Markdown that lets HTML through."""
    return Seen(MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).render(text))


@pytest.mark.parametrize("name", HOSTILE)
def test_a_card_shows_every_name_as_it_is(name: str) -> None:
    """The elements are those of a card of plain names, with or without front matter, and the text is the name."""
    report = content((name, "y"), run_id=name)
    report["provenance"]["data"]["dataset"] = name
    report["settings"] |= dict.fromkeys(("weights", "train_split", "validation_split", "test_split"), name)
    text, plain = card(report), card(content(("x", "y")))
    assert seen(text).elements == seen(plain).elements
    body = seen(text.split("---\n", 2)[2])
    assert body.elements == seen(plain.split("---\n", 2)[2]).elements
    words, line = " ".join(body.text.split()), " ".join(name.split())
    assert f"classes: {line}" in words
    assert words.count(line) >= 9
    # A line break in a name does not end the front matter.
    assert front_matter(text)["model-index"][0]["name"] == name
    assert "<" not in text.split("---\n")[1]
