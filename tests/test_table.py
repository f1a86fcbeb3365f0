"""A table gives images their labels and splits; what it says of files that are not there is one error."""

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from job.data.files import table
from job.data.files.listing import FilesRequest, Image, Listing
from job.data.files.places import open_place
from job.errors import InputError, InvalidSettings
from tests.test_places import NFC, NFD, make

Rows = list[dict[str, Any]]
IMAGES = ["images/1.jpg", "images/b/2.png", "images/3.jpg", "images/4.jpg"]
ROWS: Rows = [
    {"path": "images/1.jpg", "label": "cat", "split": "train"},
    {"path": "./images/b/2.png", "label": "a, b", "split": "Valid"},
    {"path": "images\\3.jpg", "label": " cat ", "split": "test"},
]
FOUND = (
    Image("images/1.jpg", "cat", "train"),
    Image("images/3.jpg", "cat", "test"),
    Image("images/b/2.png", "a, b", "validation"),
)


def written(path: Path, rows: Rows) -> Path:
    """A table of the kind that its suffix says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        lines = [rows[0].keys(), *(row.values() for row in rows)]
        path.write_text("\n".join(",".join(f'"{value}"' for value in line) for line in lines), encoding="utf-8-sig")
    return path


@pytest.fixture
def listed(tmp_path: Path) -> Callable[..., Listing]:
    """The listing of a table with these rows beside the four images."""

    def open_made(rows: Rows, name: str = "labels.csv", **options: Any) -> Listing:
        make(tmp_path, IMAGES)
        return open_place(str(written(tmp_path / name, rows)), FilesRequest(**options), scratch=tmp_path)

    return open_made


@pytest.mark.parametrize("name", ["labels.csv", "labels.jsonl", "labels.parquet", "Labels.CSV"])
def test_a_table_has_a_row_for_each_image(listed: Callable[..., Listing], name: str) -> None:
    """In any order; images that it does not name are counted."""
    listing = listed(ROWS[::-1], name)
    assert listing.images == FOUND
    assert listing.class_names == ("a, b", "cat")
    assert listing.has_splits
    assert listing.left_out == {"image not in the table": 1}
    assert listing.read(2) == b"images/b/2.png"


@pytest.mark.parametrize(
    "columns", [("file_name", "label"), (" File ", "CLASS"), ("filename", "category"), ("image", "label")]
)
def test_columns_have_the_usual_names(listed: Callable[..., Listing], columns: tuple[str, str]) -> None:
    """Without a column of splits there is one, train. A label may be a number."""
    listing = listed([dict(zip(columns, row, strict=True)) for row in (("images/1.jpg", 10), ("images/3.jpg", 9))])
    assert listing.images == (Image("images/1.jpg", "10"), Image("images/3.jpg", "9"))
    assert listing.class_names == ("10", "9")
    assert not listing.has_splits


@pytest.mark.parametrize("delimiter", [";", "\t"])
def test_a_csv_may_be_of_a_spreadsheet(tmp_path: Path, delimiter: str) -> None:
    """Of another country, or separated by tabs."""
    make(tmp_path, IMAGES)
    lines = ["path,label", "images/1.jpg,cat", "images/3.jpg,dog", ""]
    (tmp_path / "labels.csv").write_text("\r\n".join(lines).replace(",", delimiter))
    assert open_place(str(tmp_path / "labels.csv"), scratch=tmp_path).class_names == ("cat", "dog")


def test_empty_cells_behind_the_last_column_are_passed_over(tmp_path: Path) -> None:
    """As a spreadsheet leaves them."""
    make(tmp_path, IMAGES)
    (tmp_path / "labels.csv").write_text("path,label\nimages/1.jpg,cat,\nimages/3.jpg,dog,,\n")
    assert open_place(str(tmp_path), scratch=tmp_path).class_names == ("cat", "dog")


def test_a_table_in_a_place_is_found(tmp_path: Path) -> None:
    """In a folder and in an archive, where one folder that holds all is passed through; other tables are left out."""
    make(tmp_path, [f"pets/{name}" for name in IMAGES])
    written(tmp_path / "pets/labels.csv", ROWS)
    written(tmp_path / "pets/sizes.csv", [{"path": "images/1.jpg", "width": 10}])
    with zipfile.ZipFile(tmp_path / "pets.zip", "w") as archive:
        for path in (tmp_path / "pets").rglob("*.*"):
            archive.write(path, path.relative_to(tmp_path))
    listing = open_place(str(tmp_path / "pets"), scratch=tmp_path)
    assert listing.images == FOUND
    assert listing.left_out == {"image not in the table": 1, ".csv": 1}
    in_zip = open_place(str(tmp_path / "pets.zip"), scratch=tmp_path)
    assert [(image.name, image.split) for image in in_zip.images] == [(f"pets/{i.name}", i.split) for i in FOUND]


def test_each_split_may_have_a_table(tmp_path: Path) -> None:
    """`metadata.csv` in the folder of each, as the Hugging Face Hub has it; its paths begin there."""
    make(tmp_path, ["train/1.jpg", "test/1.jpg"])
    for split, label in (("train", "cat"), ("test", "dog")):
        written(tmp_path / split / "metadata.csv", [{"file_name": "1.jpg", "label": label}])
    listing = open_place(str(tmp_path), scratch=tmp_path)
    assert listing.images == (Image("test/1.jpg", "dog", "test"), Image("train/1.jpg", "cat", "train"))


def test_a_table_beside_folders_of_classes_is_another_reading(tmp_path: Path) -> None:
    """The setting decides, or the name of the table."""
    make(tmp_path, ["Cat/1.jpg", "Dog/1.jpg"])
    name = str(
        written(tmp_path / "labels.csv", [{"path": "Cat/1.jpg", "label": "x"}, {"path": "Dog/1.jpg", "label": "y"}])
    )
    with pytest.raises(InvalidSettings, match=r"the table labels\.csv or a folder for each class") as caught:
        open_place(str(tmp_path), scratch=tmp_path)
    assert caught.value.hint == "set THAW_LABELS=table or THAW_LABELS=folder"
    by_folder = open_place(str(tmp_path), FilesRequest(labels="folder"), scratch=tmp_path)
    by_table = open_place(str(tmp_path), FilesRequest(labels="table"), scratch=tmp_path)
    assert (by_folder.class_names, by_table.class_names) == (("Cat", "Dog"), ("x", "y"))
    assert open_place(name, scratch=tmp_path).images == by_table.images
    with pytest.raises(InvalidSettings, match="which has the labels itself"):
        open_place(name, FilesRequest(labels="folder"), scratch=tmp_path)


LABELLED = "path,label\n2019/1.jpg,Bär\n2020/1.jpg,cat\n"


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("x.csv", LABELLED.encode("cp1252"), "byte 23 is no text in UTF-8"),
        ("x.csv", LABELLED.encode("utf-16"), "byte 0 is no text in UTF-8"),
        ("x.csv", b'path,label\n"2019/1.jpg,cat\n', "unexpected end of data"),
        ("x.csv", b"path,label\n", "has no rows"),
        ("x.csv", b'"path\n","label"\n\xff', "byte 16 is no text in UTF-8"),
        ("x.jsonl", b'{"path": "2019/1.jpg", "label": "cat"}\n{"path\n', "row 2 is no JSON"),
        ("x.jsonl", b'{"path\n[1]\n{"path": "2019/1.jpg"}\n{"label": "\xff"}\n', "is no text in UTF-8"),
    ],
)
def test_a_table_that_is_wrong_below_its_header_is_not_passed_over(
    tmp_path: Path, name: str, data: bytes, says: str
) -> None:
    """Folders beside it would become the classes in silence. Asked for, it says what is wrong."""
    make(tmp_path, ["2019/1.jpg", "2020/1.jpg"])
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InvalidSettings, match=f"the table {name} or a folder for each class"):
        open_place(str(tmp_path), scratch=tmp_path)
    with pytest.raises(InputError, match=f"the table {name} .*{says}"):
        open_place(str(tmp_path), FilesRequest(labels="table"), scratch=tmp_path)
    assert open_place(str(tmp_path), FilesRequest(labels="folder"), scratch=tmp_path).class_names == ("2019", "2020")


def test_a_parquet_table_that_is_damaged_below_its_header_is_not_passed_over(tmp_path: Path) -> None:
    make(tmp_path, ["2019/1.jpg", "2020/1.jpg"])
    path = written(tmp_path / "x.parquet", [{"path": f"{year}/1.jpg", "label": "cat"} for year in (2019, 2020)])
    data = bytearray(path.read_bytes())
    data[4:40] = b"\xff" * 36
    path.write_bytes(data)
    with pytest.raises(InvalidSettings, match=r"the table x\.parquet or a folder for each class"):
        open_place(str(tmp_path), scratch=tmp_path)
    with pytest.raises(InputError, match=r"the table x\.parquet cannot be read"):
        open_place(str(tmp_path), FilesRequest(labels="table"), scratch=tmp_path)


@pytest.mark.parametrize(
    ("name", "says"), [("x.csv", "is empty"), ("x.parquet", "magic bytes"), ("y.csv", "is not a file")]
)
def test_a_table_that_cannot_be_read_is_not_passed_over(tmp_path: Path, name: str, says: str) -> None:
    """Beside folders there is a choice, without them the error of the table."""
    make(tmp_path, ["2019/1.jpg", "2020/1.jpg"])
    if name == "y.csv":
        (tmp_path / name).symlink_to("gone")
    else:
        (tmp_path / name).write_bytes(b"" if name == "x.csv" else b"PAR1 cut")
    with pytest.raises(InvalidSettings, match=f"the table {name} or a folder for each class"):
        open_place(str(tmp_path), scratch=tmp_path)
    with pytest.raises(InputError, match=f"the table {name} cannot be read: .*{says}"):
        open_place(str(tmp_path), FilesRequest(labels="table"), scratch=tmp_path)
    assert open_place(str(tmp_path), FilesRequest(labels="folder"), scratch=tmp_path).class_names == ("2019", "2020")


@pytest.mark.parametrize("above", ["", "\r\n \n", ";;\n"])
def test_rows_without_content_above_the_header_are_passed_over(tmp_path: Path, above: str) -> None:
    """As a spreadsheet may have them; rows are counted as in the file."""
    make(tmp_path, IMAGES)
    text = f"{above}path;label\nimages/1.jpg;cat\nnone.jpg;dog\n"
    (tmp_path / "labels.csv").write_text(text, newline="")
    row = 3 + above.count("\n")
    with pytest.raises(InputError, match=rf"labels\.csv has rows .*: 1 name files .* \(row {row}: 'none\.jpg'\)"):
        open_place(str(tmp_path), scratch=tmp_path)


def test_two_tables_are_an_error_that_names_them(tmp_path: Path) -> None:
    make(tmp_path, IMAGES)
    for name in ("a.csv", "b.jsonl"):
        written(tmp_path / name, ROWS)
    with pytest.raises(InvalidSettings, match=r"'a\.csv', 'b\.jsonl'"):
        open_place(str(tmp_path), scratch=tmp_path)


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_all_that_is_wrong_with_the_rows_is_one_error(listed: Callable[..., Listing], suffix: str) -> None:
    """With the number of rows of each kind, and a few of them."""
    rows = [
        *({"path": f"gone/{number}.jpg", "label": "cat", "split": "train"} for number in range(1000)),
        {"path": "images/1.jpg", "label": "", "split": "train"},
        {"path": "images/1.jpg", "label": "cat", "split": "holdout"},
        {"path": "images/3.jpg", "label": "a\x07b", "split": "test"},
        *({"path": path, "label": "cat", "split": "train"} for path in ("../1.jpg", "/etc/passwd", "")),
    ]  # fmt: skip
    first = 2 if suffix == "csv" else 1
    with pytest.raises(InputError) as caught:
        listed(rows, f"labels.{suffix}")
    for says in (
        f"1,000 name files that are not there (row {first}: 'gone/0.jpg', row {first + 1}: 'gone/1.jpg', row",
        "and 997 more)",
        f"1 have no label (row {first + 1000}: 'images/1.jpg')",
        f"1 name a file again (row {first + 1001}: 'images/1.jpg')",
        f"1 have a split other than train, validation and test (row {first + 1001}: 'holdout')",
        f"1 have a label that cannot be printed (row {first + 1002}: 'a\\x07b')",
        f"3 have a path that cannot be used (row {first + 1003}: '../1.jpg' is not a safe name",
    ):
        assert says in caught.value.message


def test_a_label_may_have_any_kind_of_space(listed: Callable[..., Listing]) -> None:
    """As the name of a folder may."""
    (image,) = listed([{"path": "images/1.jpg", "label": "red\u00a0panda\u3000猫"}], "labels.jsonl").images
    assert image.label == "red\u00a0panda\u3000猫"


def test_a_label_is_text_or_a_whole_number(listed: Callable[..., Listing]) -> None:
    """pandas makes 1.0 of 1 where another row has none; the value is named, and the hint is not one on paths."""
    with pytest.raises(
        InputError, match=r"1 have a label that is neither text nor a whole number \(row 1: 1.0\)"
    ) as caught:
        listed([{"path": "images/1.jpg", "label": 1.0}], "labels.jsonl")
    assert caught.value.hint == "correct these rows"


def test_a_row_may_lack_a_column(listed: Callable[..., Listing]) -> None:
    """In JSON lines each row has columns of its own."""
    with pytest.raises(InputError) as caught:
        listed([ROWS[0], {"path": "images/3.jpg"}, {"label": "cat", "split": "test"}], "labels.jsonl")
    for says in ("no label (row 2: 'images/3.jpg')", "train, validation and test (row 2: '')", "used (row 3: none)"):
        assert says in caught.value.message


def test_two_forms_of_the_same_letters_are_the_same(tmp_path: Path) -> None:
    """Of a table and a disk, and of labels."""
    make(tmp_path, [f"{NFD}/1.jpg", "2.jpg"])
    name = written(tmp_path / "x.csv", [{"path": f"{NFC}/1.jpg", "label": NFC}, {"path": "2.jpg", "label": NFD}])
    listing = open_place(str(name), scratch=tmp_path)
    assert [image.name for image in listing.images] == ["2.jpg", f"{NFD}/1.jpg"]
    assert listing.class_names == (NFC,)


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("x.csv", b"", "is empty"),
        ("x.csv", b"path,label\n", "has no rows"),
        ("x.csv", b"id,label\n1,cat\n", "no column path or file_name"),
        ("x.csv", b"path,file,label\n1,1,cat\n", "several columns for the same, 'path', 'file'"),
        ("x.csv", "path,label\nKätzchen,x\n".encode("latin-1"), "byte 12 is no text in UTF-8: save it as UTF-8"),
        ("x.csv", b'path,label\n"1.jpg,cat\n', "after line 1: unexpected end of data"),
        ("x.csv", b"path,x,label\n1.jpg,a,b\n2.jpg,a cat, sitting,cat\n", "row 3 has more cells .*quote .* ',' in"),
        ("x.csv", b"path;label\n1.jpg;a;b\n", "row 2 has more cells .*quote .* ';' in"),
        ("x.csv", b"path,caption,label\n1.jpg,a\n", r"1 have no label \(row 2: '1\.jpg'\)"),
        ("x.jsonl", b'{"path": "1.jpg", "label": "a"}\n[1]\n', "row 2 is no JSON object"),
        ("x.jsonl", b'{"path": \n', "row 1 is no JSON"),
        ("x.jsonl", b"[" * 100_000, "row 1 is no JSON"),
        ("x.parquet", b"PAR1 and no more", "cannot be read"),
    ],
)
def test_a_table_that_cannot_be_read_says_why(tmp_path: Path, name: str, data: bytes, says: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=rf"the table {name} .*{says}"):
        open_place(str(tmp_path / name), scratch=tmp_path)


@pytest.mark.parametrize(
    ("image", "kind"),
    [
        ({"bytes": b"x", "path": "1.jpg"}, None), (b"x", pa.binary()), (b"x", pa.large_binary()), (b"x", pa.binary(1)),
        (b"x", pa.binary_view()),
    ],
)  # fmt: skip
def test_a_parquet_file_with_the_images_in_it_is_no_table(tmp_path: Path, image: Any, kind: Any) -> None:
    """As the Hugging Face Hub makes them, or as bytes alone: they are not read."""
    table = pa.table({"image": pa.array([image], kind), "label": [1]})
    pq.write_table(table, tmp_path / "x.parquet")
    with pytest.raises(InputError, match=r"no column path or file_name .*; it has 'label'"):
        open_place(str(tmp_path / "x.parquet"), scratch=tmp_path)


@pytest.mark.parametrize("name", ["x.csv", "x.jsonl", "x.parquet"])
def test_the_paths_in_a_table_are_what_a_bucket_must_give(tmp_path: Path, name: str) -> None:
    """Each once, and none that leads elsewhere."""
    assert table.paths(written(tmp_path / name, [*ROWS, ROWS[0]])) == ["images/1.jpg", "images/b/2.png", "images/3.jpg"]
    with pytest.raises(InputError, match=r"row \d: '\.\./1\.jpg' is not a safe name"):
        table.paths(written(tmp_path / name, [{"path": "../1.jpg", "label": "x"}]))
