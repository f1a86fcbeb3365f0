"""The images of a place, their labels and splits are found by looking, or an error says what would decide."""

import os
import unicodedata
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from job.data.files.layout import worth_fetching
from job.data.files.listing import FilesRequest, Listing
from job.data.files.names import is_place
from job.data.files.places import open_place
from job.errors import DataUnavailable, InputError, InvalidSettings, ThawError

Files = Iterable[str]
NFC, NFD = (unicodedata.normalize(form, "Café") for form in ("NFC", "NFD"))


def make(root: Path, files: Files) -> Path:
    """Files whose content is their own name; a name that ends with a slash is a folder."""
    for name in files:
        path = root / name
        (path if name.endswith("/") else path.parent).mkdir(parents=True, exist_ok=True)
        if not name.endswith("/"):
            path.write_bytes(os.fsencode(name))
    return root


def zipped(path: Path, files: Files) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in files:
            archive.writestr(name, "" if name.endswith("/") else name)
    return path


@pytest.fixture
def listed(tmp_path: Path) -> Callable[..., Listing]:
    """The listing of files, by name; keywords are those of `FilesRequest`."""

    def open_made(*files: str, **options: Any) -> Listing:
        return open_place(str(make(tmp_path / "place", files)), FilesRequest(**options), scratch=tmp_path)

    return open_made


def labels(listing: Listing) -> dict[str, str]:
    return {image.name: image.label for image in listing.images}


@pytest.mark.parametrize(
    "text",
    ["gs://bucket/cats", "/data", "./cats", "../cats", "~/cats", ".", "..", "a.zip", "a.TAR", "a.tar.gz", "a.tgz",
     "labels.csv", "labels.jsonl", "train.Parquet"],
)  # fmt: skip
def test_a_place_is_told_from_a_name_of_tfds(text: str) -> None:
    """By the text alone."""
    assert is_place(text)


@pytest.mark.parametrize("text", ["cats_vs_dogs", "cats_vs_dogs:4.0.1", "imagenet2012_subset/10pct:5.*.*", "cars/v1.2"])
def test_a_name_of_tfds_is_no_place(text: str) -> None:
    assert not is_place(text)


def test_each_folder_is_a_class_at_any_depth(listed: Callable[..., Listing]) -> None:
    """In order of names; suffixes of images in capitals, and of those that are not read, are images too."""
    listing = listed(
        "Dog/2021/May/1.JPG", "Dog/2.heic", "Cat/10.png", "Cat/9.png", "notes.txt", "LICENSE", "a.1", "b. c\n"
    )
    assert labels(listing) == {
        "Cat/10.png": "Cat",
        "Cat/9.png": "Cat",
        "Dog/2.heic": "Dog",
        "Dog/2021/May/1.JPG": "Dog",
    }
    assert listing.class_names == ("Cat", "Dog")
    assert not listing.has_splits
    assert {image.split for image in listing.images} == {"train"}
    assert listing.left_out == {".txt": 1, "other": 3}
    assert [listing.read(index).decode() for index in range(4)] == [image.name for image in listing.images]


@pytest.mark.parametrize("validation", ["val", "valid", "validation", "Val"])
def test_folders_of_splits_are_the_splits(listed: Callable[..., Listing], validation: str) -> None:
    """One list of classes over all of them; a class that one of them lacks is not an empty one."""
    listing = listed("train/a/1.jpg", "train/b/1.jpg", f"{validation}/a/1.jpg", "test/c/1.jpg", "test/b/")
    assert {(image.name, image.label, image.split) for image in listing.images} == {
        ("train/a/1.jpg", "a", "train"), ("train/b/1.jpg", "b", "train"), (f"{validation}/a/1.jpg", "a", "validation"),
        ("test/c/1.jpg", "c", "test"),
    }  # fmt: skip
    assert listing.has_splits
    assert listing.class_names == ("a", "b", "c")
    assert listing.empty_classes == ()


def test_a_folder_train_alone_is_no_split(listed: Callable[..., Listing]) -> None:
    listing = listed("train/a/1.jpg", "train/b/1.jpg")
    assert (listing.class_names, listing.has_splits) == (("a", "b"), False)


KAGGLE = [f"train/{name}.{number}.jpg" for name in ("cat", "dog") for number in range(3)]
KAGGLE_LABELS = {name: name[6:9] for name in KAGGLE}


def test_kaggles_folder_has_the_class_in_the_names(tmp_path: Path) -> None:
    """`train` itself, or the folder above it; what Kaggle wants to be labelled has no labels."""
    make(tmp_path, [*KAGGLE, "test1/1.jpg", "test1/2.jpg", "sampleSubmission.csv"])
    (tmp_path / "sampleSubmission.csv").write_text("id,label\n1,0\n")
    above = open_place(str(tmp_path), scratch=tmp_path)
    assert labels(above) == KAGGLE_LABELS
    assert above.left_out == {"image without a label": 2, ".csv": 1}
    assert not above.has_splits
    itself = open_place(str(tmp_path / "train"), scratch=tmp_path)
    assert labels(itself) == {name.removeprefix("train/"): label for name, label in KAGGLE_LABELS.items()}


@pytest.mark.parametrize("is_unpacked", [False, True])
def test_kaggles_archive_has_an_archive_in_it(tmp_path: Path, is_unpacked: bool) -> None:
    """`dogs-vs-cats.zip` as it is downloaded, or once unpacked; the inner one is read without unpacking it."""
    place, scratch = tmp_path / "dogs-vs-cats", tmp_path / "scratch"
    place.mkdir()
    scratch.mkdir()
    zipped(place / "train.zip", ["train/", *KAGGLE])
    zipped(place / "test1.zip", ["test1/1.jpg"])
    make(place, ["sampleSubmission.csv"])
    (place / "a folder.jpg").mkdir()
    if not is_unpacked:
        with zipfile.ZipFile(tmp_path / "dogs-vs-cats.zip", "w") as archive:
            for path in place.iterdir():
                archive.write(path, path.name)
        place = tmp_path / "dogs-vs-cats.zip"
    listing = open_place(str(place), scratch=scratch)
    assert labels(listing) == {f"train.zip/{name}": label for name, label in KAGGLE_LABELS.items()}
    assert listing.left_out == {".zip": 1, ".csv": 1}
    assert listing.place == str(place)
    assert listing.read(5) == b"train/dog.2.jpg"
    assert len(list(scratch.iterdir())) == (0 if is_unpacked else 1)


def test_microsofts_archive_has_one_folder_with_the_classes(tmp_path: Path) -> None:
    """It is passed through, whatever lies beside it."""
    members = ["PetImages/Cat/0.jpg", "PetImages/Cat/Thumbs.db", "PetImages/Dog/0.jpg", "MSR-LA - 3467.docx",
               "readme[1].txt"]  # fmt: skip
    listing = open_place(str(zipped(tmp_path / "kagglecatsanddogs_5340.zip", members)), scratch=tmp_path)
    assert labels(listing) == {"PetImages/Cat/0.jpg": "Cat", "PetImages/Dog/0.jpg": "Dog"}
    assert listing.left_out == {".txt": 1, ".docx": 1, "hidden": 1}


def test_what_is_hidden_is_no_class_and_no_image(listed: Callable[..., Listing]) -> None:
    """Of desktops and file systems; a folder of a class without an image is said."""
    hidden = [
        "Cat/.2.jpg",
        "Cat/._1.jpg",
        ".thumbs/a/3.jpg",
        "__MACOSX/Cat/._1.jpg",
        "Dog/Thumbs.db",
        "lost+found/4.jpg",
    ]
    listing = listed("Cat/1.jpg", "Empty/", *hidden, "desktop.ini", "lost+found/4.jpg")
    assert labels(listing) == {"Cat/1.jpg": "Cat"}
    assert listing.empty_classes == ("Dog", "Empty")
    assert set(listing.left_out) == {"hidden"}


def test_names_of_classes_may_hold_anything(listed: Callable[..., Listing]) -> None:
    """Two forms of the same letters are one class."""
    names = ["猫", "a, b", " c", "<script>", "it's", "🐶"]
    listing = listed(*(f"{name}/1.jpg" for name in names), f"{NFC}/1.jpg", f"{NFD}/2.jpg")
    assert listing.class_names == tuple(sorted([*names, NFC]))
    assert Counter(labels(listing).values())[NFC] == 2


def test_a_thousand_classes_are_in_order(listed: Callable[..., Listing]) -> None:
    listing = listed(*(f"{number:03}/1.jpg" for number in range(1000)))
    assert listing.class_names == tuple(f"{number:03}" for number in range(1000))


def test_classes_are_chosen_and_ordered(listed: Callable[..., Listing]) -> None:
    """The images of others are left out and counted."""
    listing = listed("a/1.jpg", "b/1.jpg", f"{NFC}/1.jpg", "a/2.jpg", classes=("b", NFD))
    assert listing.class_names == ("b", NFC)
    assert labels(listing) == {f"{NFC}/1.jpg": NFC, "b/1.jpg": "b"}
    assert listing.left_out == {"image of another class": 2}
    assert listing.read(1) == b"b/1.jpg"


def test_a_class_that_is_not_there_is_named_with_the_nearest(listed: Callable[..., Listing]) -> None:
    with pytest.raises(InvalidSettings, match="no images of 'cat'") as caught:
        listed("Cat/1.jpg", "Dog/1.jpg", classes=("cat", "Dog"))
    assert "did you mean 'Cat'?" in caught.value.hint


@pytest.mark.parametrize(
    ("files", "both", "decides"),
    [
        (["Cat/1.jpg", "Dog/1.jpg", "cat.1.jpg", "dog.2.jpg"], "before the first dot .* a folder for each class",
         "THAW_LABELS=prefix or THAW_LABELS=folder"),
        (["train/a/1.jpg", "train/b/1.jpg", "car/1.jpg"], "'train' look like splits, .* 'car' like classes",
         "THAW_DATASET"),
        (["training_set/a/1.jpg", "test_set/a/1.jpg"], "'test_set', 'training_set' can be a class, or a split",
         "THAW_LABELS=folder"),
        (["Cat/1.jpg", "test/1.jpg"], "'test' can be a class, or a split", "THAW_LABELS=folder"),
        (["a.zip", "b.zip"], "2 archives: 'a.zip', 'b.zip'", "THAW_DATASET"),
    ],
)  # fmt: skip
def test_two_readings_are_an_error_with_what_decides(
    listed: Callable[..., Listing], files: list[str], both: str, decides: str
) -> None:
    with pytest.raises(InvalidSettings, match=both) as caught:
        listed(*files)
    assert decides in caught.value.hint


def test_the_setting_decides_between_readings(tmp_path: Path) -> None:
    place = str(make(tmp_path, ["Cat/1.jpg", "train/b.jpg", "cat.1.jpg", "dog.2.x.jpg"]))
    folder = open_place(place, FilesRequest(labels="folder"), scratch=tmp_path)
    assert labels(folder) == {"Cat/1.jpg": "Cat", "train/b.jpg": "train"}
    prefix = open_place(place, FilesRequest(labels="prefix"), scratch=tmp_path)
    assert labels(prefix) == {"cat.1.jpg": "cat", "dog.2.x.jpg": "dog"}
    assert prefix.left_out == {"image without a label": 2}
    with pytest.raises(InvalidSettings, match=r"'table': .* has no table"):
        open_place(place, FilesRequest(labels="table"), scratch=tmp_path)


def test_a_date_before_a_dot_is_no_class(listed: Callable[..., Listing]) -> None:
    """Only THAW_LABELS=prefix makes one of it."""
    with pytest.raises(InputError, match=r"no image in .* has a label: there are 2, .*2021\.01\.jpg"):
        listed("2021.01.jpg", "Screenshot at 10.11.12.png")
    assert listed(labels="prefix").class_names == ("2021", "Screenshot at 10")


@pytest.mark.parametrize(
    ("files", "kind", "says", "hint"),
    [
        ([], DataUnavailable, "THAW_DATASET='THERE/place': there is no such folder or file", "name a folder"),
        (["a/"], DataUnavailable, "no image file in", ".jpeg"),
        (["notes.txt", ".1.jpg"], DataUnavailable, "no image file in", ".jpeg"),
        (["1.jpg", "2.jpg", "x.csv"], InputError, "there are 2, such as .*'x.csv' without columns", "a folder of its"),
        (["a/1\n.jpg"], InputError, "cannot be printed", "rename it"),
        ([os.fsdecode(b"\xff/1.jpg")], InputError, "cannot be printed", "rename it"),
    ],
)  # fmt: skip
def test_a_place_without_labelled_images_is_one_error(
    tmp_path: Path, files: list[str], kind: type[ThawError], says: str, hint: str
) -> None:
    make(tmp_path / "place", files)
    with pytest.raises(kind, match=says.replace("THERE", str(tmp_path))) as caught:
        open_place(str(tmp_path / "place"), scratch=tmp_path)
    assert hint in caught.value.hint
    caught.value.message.encode()


def test_other_files_are_no_place(tmp_path: Path) -> None:
    make(tmp_path, ["cats.rar"])
    with pytest.raises(DataUnavailable, match="is no folder, archive or table"):
        open_place(str(tmp_path / "cats.rar"), scratch=tmp_path)
    with pytest.raises(DataUnavailable, match="cannot be read: File name too long"):
        open_place(str(tmp_path / ("x" * 300)), scratch=tmp_path)


def test_links_to_folders_are_not_followed_and_pipes_not_waited_for(tmp_path: Path) -> None:
    """A link to a file is a file. What gives no bytes says why."""
    make(tmp_path, ["outside.jpg", "place/a/1.jpg"])
    (tmp_path / "place/b").symlink_to(tmp_path / "place")
    (tmp_path / "place/a/2.jpg").symlink_to(tmp_path / "outside.jpg")
    (tmp_path / "place/a/3.jpg").symlink_to("nothing")
    (tmp_path / "place/a/itself").symlink_to("itself")
    os.mkfifo(tmp_path / "place/a/4.jpg")
    make(tmp_path, ["place/a/5.jpg"]).joinpath("place/a/5.jpg").write_bytes(b"")
    listing = open_place(f"file://{tmp_path}/place", scratch=tmp_path)
    assert list(labels(listing)) == [f"a/{number}.jpg" for number in range(1, 6)]
    assert listing.left_out == {"link to a folder": 1, "other": 1}
    assert listing.read(1) == b"outside.jpg"
    for index, reason in ((2, "is not a file"), (3, "is not a file"), (4, "is empty")):
        with pytest.raises(ValueError, match=reason):
            listing.read(index)


def test_only_what_a_reading_can_need_is_fetched_from_a_bucket() -> None:
    assert worth_fetching(["b/1.JPG", "b/2.heic", "b/.3.jpg", "b/", "x.csv", "x.txt", "y.zip"]) == [
        "b/1.JPG", "b/2.heic", "x.csv",
    ]  # fmt: skip
    assert worth_fetching(["train.zip", "test1.zip", "x.csv"]) == ["train.zip", "x.csv"]


@pytest.mark.real_data
def test_real_photographs_are_the_same_in_a_folder_and_in_kaggles_zip(real_data: Path, tmp_path: Path) -> None:
    folder = open_place(str(real_data / "PetImages"), scratch=tmp_path)
    with zipfile.ZipFile(tmp_path / "train.zip", "w") as archive:
        for index, image in enumerate(folder.images):
            archive.writestr(f"train/{image.label}.{index:05}.jpg", folder.read(index))
    in_zip = open_place(str(tmp_path / "train.zip"), scratch=tmp_path)
    assert folder.class_names == in_zip.class_names == ("Cat", "Dog")
    assert [image.label for image in in_zip.images] == [image.label for image in folder.images]
    assert all(in_zip.read(index) == folder.read(index) for index in range(len(folder.images)))
