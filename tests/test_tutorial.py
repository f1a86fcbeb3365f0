"""The tutorial's settings, its server, and its request to TensorFlow Serving, as they stand on the page."""

import base64
import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import tensorflow as tf

from job import cli
from tests.conftest import REPOSITORY
from tests.runs import Undisturbed
from tests.shapes import FIRST_OF_TEST, encoded

PAGE = (REPOSITORY / "docs" / "tutorial.md").read_text()


@pytest.fixture(scope="module")
def model(undisturbed_run: Undisturbed, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder `model` of a finished run."""
    folder, store = tmp_path_factory.mktemp("run"), undisturbed_run[0]
    for name in store.list("model/"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        store.download(name, folder / name)
    return folder / "model"


@pytest.fixture(scope="module")
def server(model: Path) -> Iterator[str]:
    """The address of the tutorial's server, started by its command, with another model and port."""
    (code,) = re.findall(r"```python\n(.+?)```", PAGE, re.DOTALL)
    (model.parent / "serve.py").write_text(code)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    assert "    .venv/bin/python serve.py runs/pets/model 8000\n" in PAGE
    process = subprocess.Popen([sys.executable, "serve.py", str(model), str(port)], cwd=model.parent)
    try:
        give_up_at = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < give_up_at:
            with socket.socket() as client:
                if client.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_the_server_answers_as_the_report_does(server: str, undisturbed_run: Undisturbed) -> None:
    """Label, and a probability for each class by its name; what is no image is refused, and the next is answered."""
    expected = json.loads(undisturbed_run[0].read("report/report.json").data)["predictions"][:3]
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(server, data=b"no image")
    assert refused.value.code == 415
    assert "no image" in json.load(refused.value)["error"]
    for row in expected:
        with urllib.request.urlopen(server, data=encoded(FIRST_OF_TEST + row["index"])) as response:
            answer = json.load(response)
        assert answer["label"] == row["predicted"]
        assert answer["probabilities"][row["predicted"]] == pytest.approx(row["probability"], abs=1e-6)
        assert sum(answer["probabilities"].values()) == pytest.approx(1)


def test_the_request_to_tensorflow_serving_fits_the_signature(model: Path, tmp_path: Path) -> None:
    """There is one input, so an instance is its value; outputs have a row for each image, and none a name of bytes,
    which the server would encode. The SavedModel is mounted as a version, under the name that is asked for.
    """
    (making,) = re.findall(r"^ {4}(\(printf .*) > request\.json$", PAGE, re.MULTILINE)
    image = encoded(FIRST_OF_TEST)
    (tmp_path / "photos" / "cat").mkdir(parents=True)
    (tmp_path / "photos" / "cat" / "1.jpg").write_bytes(image * 9)
    made = subprocess.run(["sh", "-c", making], cwd=tmp_path, capture_output=True, check=True, timeout=30)
    (instance,) = json.loads(made.stdout)["instances"]
    assert base64.b64decode(instance["b64"], validate=True) == image * 9
    signature = tf.saved_model.load(model / "saved_model").signatures["serving_default"]
    _, inputs = signature.structured_input_signature
    assert [(it.dtype, it.shape.as_list()) for it in inputs.values()] == [(tf.string, [None])]
    outputs = signature.structured_outputs
    assert sorted(outputs) == sorted(set(re.findall(r"`(label|probabilities|logits|valid)`", PAGE)))
    assert {it.shape[0] for it in outputs.values()} == {None}
    assert not [name for name in outputs if name.endswith("_bytes")]
    (mount,) = re.findall(r'-v "\$PWD/runs/(\w+)/model/saved_model:/models/(\w+)/1:ro"', PAGE)
    (name,) = re.findall(r"-e MODEL_NAME=(\w+)", PAGE)
    (asked,) = re.findall(r"/v1/models/(\w+):predict", PAGE)
    assert {*mount, name, asked} == {"pets"}


def test_the_settings_of_the_page_are_read_and_use_all_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And give the run that its commands name."""
    (block,) = re.findall(r"```\n(THAW_.+?)```", PAGE, re.DOTALL)
    (tmp_path / "pets.env").write_text(block)
    monkeypatch.chdir(tmp_path)
    settings = cli.read("run", ["--env-file", "pets.env"], {}).settings
    assert os.path.relpath(settings.run_uri()) == "runs/pets"
    assert settings.dataset == "./photos"
    assert (settings.train_split, settings.validation_split, settings.test_split) == (
        "train[:70%]", "train[70%:85%]", "train[85%:]",
    )  # fmt: skip
