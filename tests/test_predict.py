"""Labels of images: the numbers of the report, whatever is among the images."""

import csv
import io
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from PIL import Image

from job.cli import predict
from job.data.resizing import Way
from job.errors import ExitCode, InputError, RunUnavailable
from job.report.files import PREDICTIONS
from job.storage import MISSING, LocalStore, digest_of, open_store
from tests.conftest import REPOSITORY, job, slowly
from tests.gcs_server import BUCKET, GcsServer
from tests.runs import ONE_PHASE, Small, Undisturbed, result_of, start
from tests.shapes import FIRST_OF_TEST, draw, encoded, write_images
from tests.terminal import run_in_terminal


@pytest.fixture(scope="module")
def test_split(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The images of the small run's test split, as files."""
    folder = tmp_path_factory.mktemp("images")
    for index in range(24):
        (folder / f"{index:02d}.png").write_bytes(encoded(FIRST_OF_TEST + index))
    return folder


@pytest.fixture
def ask(undisturbed_run: Undisturbed, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, list[Any]]]:
    """Exit code and lines of an answer, in this process."""

    def ask_of(*images: str | Path, run: str | None = None, batch_size: int | None = None) -> tuple[int, list[Any]]:
        names = tuple(str(image) for image in images)
        options = predict.Options(run=run or undisturbed_run[0].uri, images=names, batch_size=batch_size, as_json=True)
        code = predict.answer(options)
        return int(code), [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    return ask_of


def reported(store: Any) -> list[tuple[str, float]]:
    report = json.loads(store.read("report/report.json").data)
    return [(entry["predicted"], pytest.approx(entry["probability"], abs=1e-6)) for entry in report["predictions"]]


def answers(lines: list[Any]) -> list[tuple[str, float]]:
    return [(line["label"], line["probability"]) for line in lines]


def test_the_numbers_are_those_of_the_report(
    ask: Callable[..., Any], undisturbed_run: Undisturbed, test_split: Path
) -> None:
    """Label and probability of the same images, from their files, and the accuracy; whatever the batch."""
    for batch_size in (None, 64, 5):
        code, lines = ask(test_split, batch_size=batch_size)
        assert code == ExitCode.COMPLETE
        assert [line["image"] for line in lines] == sorted(str(path) for path in test_split.iterdir())
        assert answers(lines)[:16] == reported(undisturbed_run[0])
        for line in lines:
            assert max(line["probabilities"], key=line["probabilities"].get) == line["label"]
            assert line["probabilities"][line["label"]] == line["probability"]
            assert sum(line["probabilities"].values()) == pytest.approx(1)
        right = [line["label"] == ("disc", "bar")[index % 2] for index, line in enumerate(lines)]
        assert sum(right) / 24 == result_of(undisturbed_run[0])["outcome"]["test_accuracy"]


@pytest.mark.slow
@pytest.mark.parametrize(("way", "other"), [("pad", "crop"), *slowly(("crop", "pad"), ("stretch", "pad"))])
def test_wide_and_tall_images_are_resized_as_in_the_run(
    ask: Callable[..., Any], small: Small, store: LocalStore, tmp_path: Path, way: Way, other: Way
) -> None:
    """In each way to a square; another one in the record gives other numbers."""
    folder = write_images(tmp_path / "photos")
    for number, path in enumerate(sorted(folder.rglob("*.png"))):
        sides = [(0, 0), (3, 12)] if number % 2 else [(3, 12), (0, 0)]
        Image.fromarray(np.pad(np.asarray(Image.open(path)), [*sides, (0, 0)], mode="reflect")).save(path)
    splits = {"train_split": "train[:40%]", "validation_split": "train[40%:50%]", "test_split": "train[50%:]"}
    start(small(run_id="run", dataset=str(folder), resize=way, **splits, **ONE_PHASE), store)
    rows = list(csv.DictReader(store.read(PREDICTIONS).data.decode().splitlines()))
    expected = [(row["predicted"], pytest.approx(float(row["probability"]), abs=2e-6)) for row in rows]
    files = [folder / row["name"] for row in rows]
    assert answers(ask(*files, run=store.uri)[1]) == expected
    rewrite_settings(store.root, RESIZE=other)
    assert answers(ask(*files, run=store.uri)[1]) != expected


def test_a_run_from_before_the_ways_to_resize_is_answered_as_it_was(
    ask: Callable[..., Any], undisturbed_run: Undisturbed, copied: Path, test_split: Path
) -> None:
    """Its record says nothing of them."""
    rewrite_settings(copied, RESIZE=None)
    assert answers(ask(test_split, run=str(copied))[1])[:16] == reported(undisturbed_run[0])


def test_images_that_cannot_be_read_are_named_and_the_others_go_on(
    ask: Callable[..., Any], undisturbed_run: Undisturbed, test_split: Path, tmp_path: Path
) -> None:
    """One line each, in order; the exit code says that not all were done. The ending of a name does not matter."""
    good = test_split / "00.png"
    (tmp_path / "half.png").write_bytes(good.read_bytes()[:300])
    (tmp_path / "text.jpg").write_text("no image")
    (tmp_path / "good").write_bytes(good.read_bytes())
    (tmp_path / "empty.jpg").write_bytes(b"")
    names = [tmp_path / name for name in ("half.png", good, "text.jpg", "nothing.jpg", "empty.jpg", "good")]
    code, lines = ask(*names, batch_size=4)
    assert code == ExitCode.BAD_INPUT
    assert [line["image"] for line in lines] == [str(name) for name in names]
    assert answers([lines[1], lines[5]]) == [reported(undisturbed_run[0])[0]] * 2
    reasons = [line.get("error", "") for line in lines]
    for index, expected in {0: "cannot be decoded", 2: "no image of a format", 3: "No such", 4: "empty"}.items():
        assert expected in reasons[index]
    assert ask(tmp_path / "half.png")[0] == ExitCode.BAD_INPUT


def test_a_run_that_is_not_finished_is_refused(ask: Callable[..., Any], copied: Path, tmp_path: Path) -> None:
    """As is one that is not there; both with the way on."""
    with pytest.raises(RunUnavailable, match="there is no run") as caught:
        ask("a.png", run=str(tmp_path / "nothing"))
    assert "thaw list" in caught.value.hint
    rewrite_record(copied, state="export", outcome=None)
    with pytest.raises(RunUnavailable, match="is not finished: it is in export") as caught:
        ask("a.png", run=str(copied))
    assert "thaw status" in caught.value.hint


def with_another_rescaling(path: Path) -> None:
    """The same weights, of which a digest of weights says nothing."""
    changed = keras.saving.load_model(path)
    changed.get_layer("rescaling").scale = [0.001] * 3
    changed.save(path)


def with_swapped_names(path: Path) -> None:
    path.write_text(json.dumps(json.loads(path.read_text())[::-1]))


@pytest.mark.parametrize(
    ("name", "harm"),
    [("model/model.keras", with_another_rescaling), ("model/labels.json", with_swapped_names)],
)
def test_a_file_that_the_run_did_not_write_is_refused(
    ask: Callable[..., Any], copied: Path, name: str, harm: Callable[[Path], Any]
) -> None:
    """Before it is loaded, by its name, with both digests; so are one that is missing, and a record without digests."""
    harm(copied / name)
    with pytest.raises(InputError, match=rf"{name} is not what the run wrote: .* expected \d+ bytes with \w{{12}}"):
        ask("a.png", run=str(copied))
    (copied / name).unlink()
    with pytest.raises(InputError, match=f"there is no object .*{name}"):
        ask("a.png", run=str(copied))
    rewrite_record(copied, files={})
    with pytest.raises(InputError, match=r"has no digest of model/model\.keras") as caught:
        ask("a.png", run=str(copied))
    assert "train it again" in caught.value.hint


def test_names_of_classes_are_checked_even_when_the_record_has_their_digest(
    ask: Callable[..., Any], copied: Path
) -> None:
    """A list of strings, as many as the model has classes."""
    path, files = copied / "model/labels.json", json.loads((copied / "run.json").read_text())["files"]
    for content, expected in {
        b'["one", "two", "three"]': "3 names, and the model has 2 classes",
        b'["one", 2]': "is not a list of names",
        b'{"one": "two"}': "is not a list of names",
    }.items():
        path.write_bytes(content)
        digest = digest_of(path)
        rewrite_record(copied, files=files | {"model/labels.json": {"size": digest.size, "sha256": digest.sha256}})
        with pytest.raises(InputError, match=expected):
            ask("a.png", run=str(copied))


def rewrite_settings(run: Path, **changes: Any) -> None:
    """Those that are None are taken away."""
    settings = json.loads((run / "run.json").read_text())["settings"] | changes
    rewrite_record(run, settings={name: value for name, value in settings.items() if changes.get(name, 0) is not None})


def rewrite_record(run: Path, **changes: Any) -> None:
    path = run / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_paths_come_on_standard_input(
    ask: Callable[..., Any], undisturbed_run: Undisturbed, test_split: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where - is named; that there are none is an error."""
    lines = "\n".join(str(path) for path in sorted(test_split.iterdir())).encode()
    for content in (lines, b""):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(io.BytesIO(content))))
        if content:
            code, found = ask("-")
            assert (code, answers(found)[:16]) == (ExitCode.COMPLETE, reported(undisturbed_run[0]))
        else:
            with pytest.raises(InputError, match="no image was named"):
                ask("-")


@pytest.mark.slow
def test_a_run_and_images_in_a_bucket_answer_a_process(
    undisturbed_run: Undisturbed, gcs: GcsServer, test_split: Path, tmp_path: Path
) -> None:
    """JSON lines on standard output and nothing else; standard error counts what could not be read."""
    store, _, _ = undisturbed_run
    uri = f"gs://{BUCKET}/runs/small"
    bucket = open_store(uri)
    for name in store.list(""):
        bucket.upload(name, store.root / name, if_version=MISSING)
    photos = open_store(f"gs://{BUCKET}/photos")
    for path in test_split.iterdir():
        photos.upload(path.name, path, if_version=MISSING)
    (tmp_path / "text.jpg").write_text("no image")
    Image.fromarray(draw(0, 1)).save(tmp_path / "odd.jpg", exif=b"Exif\0\0MM\0\x2a\0\0\0\x08\0\x01\x01\x12")
    (tmp_path / "linked").symlink_to(test_split)
    done = job(
        "predict", "--run", uri, f"gs://{BUCKET}/photos", str(tmp_path), f"gs://{BUCKET}/nothing.png",
        env={name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"},
    )  # fmt: skip
    assert done.returncode == ExitCode.BAD_INPUT
    note, count = done.stderr.splitlines()
    assert note == f"{tmp_path}/linked: a link to a folder is not followed; name it to have its images"
    assert count == "2 of 27 could not be read"
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["image"] for line in lines[:24]] == [f"gs://{BUCKET}/photos/{index:02d}.png" for index in range(24)]
    assert answers(lines[:16]) == reported(store)
    assert ["error" in line for line in lines[24:]] == [False, True, True]


@pytest.mark.slow
def test_a_terminal_gets_one_table(undisturbed_run: Undisturbed, test_split: Path, tmp_path: Path) -> None:
    """Over all batches; a name from outside does not reach the terminal as it is."""
    odd = tmp_path / "[red]\x1b[31m.png"
    odd.write_bytes(b"no image")
    command = ["predict", "--run", undisturbed_run[0].uri, "--batch-size", "5", str(test_split), str(odd)]
    code, text = run_in_terminal(command, cwd=REPOSITORY)
    assert code == ExitCode.BAD_INPUT
    rows = text.splitlines()
    assert sum("probability" in row for row in rows) == 1
    assert sum(str(test_split) in row for row in rows) == 24
    assert r"[red]\x1b[31m.png" in text.replace("\n", "")
