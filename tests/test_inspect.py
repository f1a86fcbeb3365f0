"""What a run would find in a person's own images: the right counts, what is odd by name, and the exit code of a run."""

import io
import json
import random
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from playwright.sync_api import Browser

from job import cli
from job.cli import page_file
from job.data.files import inspection, listing, survey
from job.data.files.listing import Listing
from job.data.resizing import Resizing
from job.data.split_spec import DEFAULT_SPECS, SPLIT_NAMES
from job.data.threads import AHEAD
from job.errors import ExitCode, Interrupted, InvalidSettings
from job.report import contact_sheet
from tests.conftest import process_environment
from tests.gcs_server import BUCKET, GcsServer
from tests.processes import run_without
from tests.test_report_browser import SCREENS, browser, check_fits

__all__ = ["browser"]

ALL_OF_IT = ("train[:50%]", "train[50%:75%]", "train[75%:]")
SQUARE = Resizing(20)
HEIC = b"\0\0\0\x18ftypheic" + b"\0" * 40


def picture(
    number: int, mode: str = "RGB", kind: str = "PNG", size: tuple[int, int] = (20, 30), **options: Any
) -> bytes:
    """An image file; each number is another image."""
    noise = random.Random(number).randbytes(size[0] * size[1] * 4)
    image = Image.frombytes("I;16", size, noise[: size[0] * size[1] * 2]) if mode == "I;16" else (
        Image.frombytes("RGBA", size, noise).convert(mode)
    )  # fmt: skip
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def listed(files: Mapping[str, bytes], *, has_splits: bool = False, **fields: Any) -> Listing:
    """A place with these files: class/name, or split/class/name."""
    images = []
    for name in sorted(files):
        *split, label, _ = name.split("/")
        images.append(listing.Image(name, label, *split))
    content = [files[image.name] for image in images]
    values = {
        "place": "/photos",
        "layout": "folders",
        "images": tuple(images),
        "class_names": tuple(sorted({image.label for image in images})),
        "has_splits": has_splits,
        "left_out": {},
        "empty_classes": (),
        "read": content.__getitem__,
    }
    return Listing(**(values | fields))


def inspected(
    of: Listing, specs: tuple[str, ...] = ALL_OF_IT, *, skips: bool = False, resizing: Resizing = SQUARE
) -> tuple[dict[str, Any], list[survey.Facts]]:
    seen = survey.look(of, lambda: None)
    of_splits = dict(zip(SPLIT_NAMES, specs, strict=True))
    content = inspection.content(of, seen, of_splits, resizing, stratify=True, skips=skips)
    assert json.loads(json.dumps(content)) == content
    return content, seen


def by_kind(content: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    return {finding["kind"]: finding for finding in content["findings"]}


TWO_CLASSES = {
    f"{label}/{number}.png": picture(start + number)
    for label, start in (("cat", 0), ("dog", 100))
    for number in range(24)
}


@pytest.mark.parametrize(
    ("size", "resizing", "says"),
    [
        ((80, 80), Resizing(20), None),
        ((80, 81), Resizing(20), "24.7% of the pixels of the median image are used"),
        ((40, 20), Resizing(20), None),
        ((20, 41), Resizing(20), "its sides are as 1 to 2.0"),
        ((200, 50), Resizing(20), "16.0% of the pixels of the median image are used, its sides are as 1 to 4.0"),
        ((200, 50), Resizing(20, "crop"), None),
        ((200, 50), Resizing(20, "pad"), None),
    ],
)
def test_images_that_lose_much_when_they_are_stretched_are_a_warning(
    size: tuple[int, int], resizing: Resizing, says: str | None
) -> None:
    """Four pixels of an image are used for each of the square; the other ways lose nothing of the kind."""
    files = {f"{label}/{number}.png": picture(number, size=size) for number, label in enumerate(["cat", "dog"] * 12)}
    found = by_kind(inspected(listed(files), resizing=resizing)[0])
    if says is None:
        assert "stretched" not in found
    else:
        assert found["stretched"]["text"] == f"images are stretched to 20 x 20 pixels: {says}"
        assert "THAW_RESIZE=crop" in found["stretched"]["advice"]


@pytest.mark.parametrize(
    ("encoded", "kind", "traits"),
    [
        (picture(1), "PNG", ()),
        (picture(1, kind="JPEG"), "JPEG", ()),
        (picture(1, "L", "JPEG"), "JPEG", ("grey",)),
        (picture(1, "I;16"), "PNG", ("grey", "16 bit")),
        (picture(1, "RGBA", "WEBP"), "WEBP", ("transparent",)),
        (picture(1, "P", "BMP"), "BMP", ("palette",)),
        (picture(1, "CMYK", "JPEG"), "JPEG", ("CMYK",)),
        (
            picture(1, "P", "GIF", save_all=True, append_images=[Image.new("P", (20, 30), 7)]),
            "GIF",
            ("palette", "several frames"),
        ),
    ],
)
def test_what_is_special_in_a_file_is_told(encoded: bytes, kind: str, traits: tuple[str, ...]) -> None:
    """And the size in pixels."""
    facts = survey.facts_of(encoded)
    assert (facts.format, facts.traits, facts.reason) == (kind, traits, "")
    assert (facts.width, facts.height, facts.num_bytes) == (20, 30, len(encoded))


def test_the_size_of_a_turned_image_is_that_which_a_viewer_shows() -> None:
    """EXIF 6 is a quarter turn."""
    exif = Image.Exif()
    exif[0x0112] = 6
    facts = survey.facts_of(picture(1, kind="JPEG", exif=exif))
    assert (facts.width, facts.height, facts.traits) == (30, 20, ("turned by EXIF",))


def test_what_is_odd_is_told_with_names_and_what_to_do() -> None:
    """Counts by class and split, unreadable files by kind, copies, empty folders, what was left out."""
    files = TWO_CLASSES | {
        "bird/only.png": picture(200),
        "cat/again.png": picture(3),
        "dog/is a cat.png": picture(5),
        "dog/phone.heic": HEIC,
        "dog/cut.jpg": picture(7, kind="JPEG")[:-200],
        "dog/empty.jpg": b"",
    }
    content, _ = inspected(listed(files, left_out={"hidden": 2, ".txt": 1}, empty_classes=("fox",)))
    assert [(row["name"], row["num_images"], row["num_unreadable"]) for row in content["classes"]] == [
        ("bird", 1, 0), ("cat", 25, 0), ("dog", 28, 3)
    ]  # fmt: skip
    assert content["splits"] == {"train": 27, "validation": 13, "test": 14}
    assert content["formats"] == {"PNG": 51}
    assert content["sizes"] == {name: [20, 30] for name in ("smallest", "median", "largest")}
    assert [image["name"] for image in content["unreadable"]] == ["dog/cut.jpg", "dog/empty.jpg", "dog/phone.heic"]
    assert content["copies"] == [["cat/3.png", "cat/again.png"], ["cat/5.png", "dog/is a cat.png"]]
    found = by_kind(content)
    assert found["unreadable"]["level"] == "error"
    assert "3 of 54 images" in found["unreadable"]["text"]
    assert "dog/phone.heic: is HEIC, which is not read: convert it to JPEG or PNG" in found["unreadable"]["examples"]
    assert found["two_labels"]["examples"] == ["cat/5.png (cat) = dog/is a cat.png (dog)"]
    assert found["copies"]["examples"] == ["cat/3.png = cat/again.png"]
    assert found["class_missing"]["examples"] == ["bird"]
    assert found["class_rare"]["examples"] == ["bird"]
    assert found["empty_class"]["examples"] == ["fox"]
    assert found["left_out"]["text"] == "3 other files left out (hidden: 2, .txt: 1)"
    assert all(finding["advice"] for finding in content["findings"])


def test_the_same_image_in_two_splits_that_the_data_brings_is_named() -> None:
    """With both of its places."""
    files = {
        f"{split}/{name}": content
        for shift, split in enumerate(("train", "validation", "test"))
        for name, content in ((name, picture(1000 * shift + number)) for number, name in enumerate(TWO_CLASSES))
    }
    content, _ = inspected(listed(files, has_splits=True), DEFAULT_SPECS)
    assert (content["findings"], content["exit_code"]) == ([], 0)
    assert content["splits"] == {"train": 48, "validation": 48, "test": 48}
    files["test/cat/again.png"] = files["train/cat/3.png"]
    found = by_kind(inspected(listed(files, has_splits=True), DEFAULT_SPECS)[0])
    assert found.keys() == {"two_splits"}
    assert found["two_splits"]["examples"] == ["test/cat/again.png (test) = train/cat/3.png (train)"]


@pytest.mark.parametrize(
    ("files", "fields", "exit_code"),
    [
        (TWO_CLASSES, {}, ExitCode.COMPLETE),
        (TWO_CLASSES | {"dog/empty.jpg": b""}, {}, ExitCode.BAD_INPUT),
        (TWO_CLASSES | {"dog/empty.jpg": b""}, {"skips": True}, ExitCode.COMPLETE),
        (
            TWO_CLASSES | {"dog/heic.heic": HEIC},
            {"specs": ("train[:2]", "train[2:4]", "train[4:6]")},
            ExitCode.COMPLETE,
        ),
        ({name: TWO_CLASSES[name] for name in TWO_CLASSES if "cat" in name}, {}, ExitCode.BAD_INPUT),
        (
            {name: TWO_CLASSES[name] if "cat" in name else HEIC for name in TWO_CLASSES},
            {"skips": True},
            ExitCode.BAD_INPUT,
        ),
        (TWO_CLASSES, {"specs": ("train[:50%]", "train[40%:60%]", "train[60%:]")}, ExitCode.INVALID_SETTINGS),
        ({}, {}, ExitCode.BAD_INPUT),
    ],
)
def test_the_exit_code_is_that_of_a_start(
    files: Mapping[str, bytes], fields: dict[str, Any], exit_code: ExitCode
) -> None:
    """What a run refuses is an error among the findings, and nothing else is."""
    content, _ = inspected(listed(files), **fields)
    assert content["exit_code"] == exit_code
    assert any(finding["level"] == "error" for finding in content["findings"]) == bool(exit_code)


def test_a_stop_ends_it_before_all_images_are_read() -> None:
    """What the progress raises leaves the work."""
    files = {f"cat/{number}.png": picture(0) for number in range(4 * AHEAD * survey.NUM_THREADS)}
    num_read = 0

    def read(index: int) -> bytes:
        nonlocal num_read
        num_read += 1
        return b""

    def stop() -> None:
        raise Interrupted("stopped")

    with pytest.raises(Interrupted):
        survey.look(listed(files, read=read), stop)
    assert num_read <= AHEAD * survey.NUM_THREADS


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder for each of two classes, with one file that is no image."""
    for name, content in (TWO_CLASSES | {"dog/phone.heic": HEIC, "dog/.DS_Store": b"", "notes.txt": b""}).items():
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return tmp_path / "photos"


def ask(*words: str) -> ExitCode:
    return cli.answer("inspect", words, {})


def test_a_folder_is_inspected_without_tensorflow(photos: Path, tmp_path: Path) -> None:
    """As JSON, with a page beside it."""
    words = ["--dataset", str(photos), "--json", "--page", str(tmp_path / "page.html"), "--cache-dir", str(tmp_path)]
    words += [f"--{name}-split={spec}" for name, spec in zip(SPLIT_NAMES, ALL_OF_IT, strict=True)]
    done = run_without("tensorflow", "inspect", *words, env=process_environment({}))
    assert (done.returncode, done.stderr) == (ExitCode.BAD_INPUT, "")
    content = json.loads(done.stdout)
    assert (content["place"], content["num_images"], content["exit_code"]) == (str(photos), 49, ExitCode.BAD_INPUT)
    assert content["unreadable"] == [
        {"name": "dog/phone.heic", "reason": "is HEIC, which is not read: convert it to JPEG or PNG"}
    ]
    assert sum(content["left_out"].values()) == 2
    assert (tmp_path / "page.html").read_text("utf-8").startswith("<!doctype html>")


def test_the_table_says_what_a_person_needs(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Counts of each class, what is wrong, and what helps."""
    assert ask("--dataset", str(photos), "--cache-dir", str(tmp_path), "--on-unreadable", "skip") == ExitCode.COMPLETE
    shown = " ".join(capsys.readouterr().out.split())
    assert "images 49 of 2 classes" in shown
    assert "dog 25 1 10 2 3" in shown
    assert "warning 1 of 49 images cannot be read (is HEIC: 1)" in shown
    assert "exit code 0, as of a start: it would begin" in shown


def test_a_place_in_a_bucket_is_fetched(gcs: GcsServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And named as it was given."""
    for name, content in TWO_CLASSES.items():
        gcs.put(f"photos/{name}", content, None)
    place = f"gs://{BUCKET}/photos"
    assert ask("--dataset", place, "--json", "--cache-dir", str(tmp_path)) == ExitCode.COMPLETE
    content = json.loads(capsys.readouterr().out)
    assert (content["place"], content["num_images"], content["formats"]) == (place, 48, {"PNG": 48})
    assert "19 of 48 images in no split of the run" in [finding["text"] for finding in content["findings"]]
    gcs.put("photos/1.png", picture(1), None)
    with pytest.raises(InvalidSettings, match=place):
        ask("--dataset", place, "--labels", "prefix", "--cache-dir", str(tmp_path))


def test_what_cannot_be_inspected_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    """A data set of TFDS, and a page that has no place."""
    with pytest.raises(InvalidSettings, match="'cats_vs_dogs' names a TFDS data set") as caught:
        ask("--dataset", "cats_vs_dogs")
    assert "thaw plan" in caught.value.hint
    with pytest.raises(InvalidSettings, match=r"--page=.*: is not a file in a folder that exists"):
        ask("--dataset", str(tmp_path), "--page", str(tmp_path / "none" / "page.html"))


NASTY = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a class whose name is no text and no harm, and of one with an unreadable image."""
    names = {"cat": NASTY, "dog": "d" * 80}
    files = {name.replace(name[:3], names[name[:3]]): content for name, content in TWO_CLASSES.items()}
    of = listed(files | {f"{NASTY}/\udcff.heic": HEIC, "b/1.jpg": picture(9, kind="JPEG", size=(900, 20))})
    content, seen = inspected(of)
    path = tmp_path_factory.mktemp("page") / "index.html"
    page_file.write(path, contact_sheet.page(content, of, seen))
    return path


def test_the_page_escapes_names_and_has_some_pictures_of_each_class(page: Path) -> None:
    """At most twelve, each a small one of its own."""
    text = page.read_text("utf-8")
    assert NASTY not in text
    assert "<script" not in text
    assert "&lt;img src=x onerror=alert(1)&gt;/\\udcff.heic: is HEIC" in text
    pictures = re.findall(r'<img src="(data:image/\w+;base64,[^"]+)"', text)
    assert len(pictures) == len(set(pictures)) == 2 * contact_sheet.PICTURES_A_CLASS + 1
    assert len(text) < 100_000


def test_a_page_of_many_classes_shows_the_first_and_says_how_many_more_there_are() -> None:
    """Each class is counted all the same."""
    of = listed({f"class {number:04}/1.png": picture(number) for number in range(1000)})
    content, seen = inspected(of)
    text = contact_sheet.page(content, of, seen)
    assert text.count("<img ") == contact_sheet.MAX_SHEETS
    assert "And 960 more classes." in text
    assert text.count("class 0999") == 1


@pytest.mark.slow
@SCREENS
def test_the_page_fits_the_screen_and_can_be_read(browser: Browser, page: Path, width: int, scheme: str) -> None:
    check_fits(browser, page, width, scheme, num_texts=10)
