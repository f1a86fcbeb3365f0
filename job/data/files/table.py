"""Tables of images: a row for each, with its path, its label and perhaps its split.

A path is relative to the folder of the table. Nothing here trusts one: it must be the name of a file that is there.
"""

import codecs
import contextlib
import csv
import io
import itertools
import json
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from job.data.files import image_files
from job.data.files.listing import Image
from job.data.files.names import SPLITS, normal
from job.errors import InputError
from job.paths import UnsafeName, checked_name, is_one_line
from job.wording import some

PATHS = ("path", "file_name", "file", "filename", "filepath", "file_path", "image", "image_path")
LABELS = ("label", "class", "category")
SPLIT = "split"
MAX_ROWS = 10_000_000

_OTHER_LABEL = "have a label that is neither text nor a whole number"
_PATH_HINT = "paths are relative to the folder of the table; links to folders are not followed"
_KNOWN = {*PATHS, *LABELS, SPLIT}
_HINT = f"expected a column {', '.join(PATHS[:4])} or image, and one of {', '.join(LABELS)}; split is optional"

Row = dict[str, Any]


def is_labelled(name: str, read: Callable[[str], bytes]) -> bool:
    """Whether a table has columns of paths and of labels. One that is text without a header that can be read has none.

    One that cannot be read counts as labelled, so that it is not passed over: to use it raises the error, as it does
    for what is wrong below the header.
    """
    found: set[str] = set()
    try:
        for columns in _headers(name, read(name)):
            found.update(map(_column, columns))
            if not (found.isdisjoint(PATHS) or found.isdisjoint(LABELS)):
                return True
    except csv.Error:
        return False
    except ValueError:
        return True
    return False


def paths(file: Path) -> list[str]:
    """The paths in a table that is a file of this machine, each once, in order. Raises InputError."""
    table = _Table(file.name, lambda _: image_files.content(file))
    found = [path for _, path, _ in table.rows_with_paths()]
    table.check()
    return list(dict.fromkeys(found))


def images(tables: Mapping[str, str], names: Collection[str], read: Callable[[str], bytes]) -> tuple[Image, ...]:
    """The images of tables, given as names with the split of each, that are among `names`.

    A table's own column of splits comes first. Raises InputError, with all kinds of problems in one message.
    """
    # A table and a disk may have different forms of the same letters.
    files = {normal(name): name for name in names} | {name: name for name in names}
    found: dict[str, Image] = {}
    for name, split in tables.items():
        table = _Table(name, read)
        above = name[: name.rfind("/") + 1]
        for number, path, row in table.rows_with_paths():
            file = files.get(above + path) or files.get(normal(above + path))
            label, of_row = _text(row.get(table.label)), split
            if table.split is not None:
                value = _text(row.get(table.split))
                of_row = SPLITS.get(value.casefold(), "")
                if not of_row:
                    table.note("have a split other than train, validation and test", number, repr(value))
            if not label:
                given = row.get(table.label)
                is_other = given is not None and not isinstance(given, str)
                table.note(_OTHER_LABEL if is_other else "have no label", number, repr(given if is_other else path))
            if not is_one_line(label):
                table.note("have a label that cannot be printed", number, repr(label))
            if file is None:
                table.note("name files that are not there", number, repr(path))
            elif file in found:
                table.note("name a file again", number, repr(path))
            else:
                found[file] = Image(file, label, of_row)
        table.check()
    return tuple(found.values())


class _Table:
    """The rows of a table with their numbers, which columns have what, and what is wrong with rows, by kind."""

    def __init__(self, name: str, read: Callable[[str], bytes]) -> None:
        try:
            self._rows = _rows(name, read(name))
        except ValueError as error:
            raise InputError(f"the table {name} cannot be read: {error}") from error
        if not self._rows:
            raise InputError(f"the table {name} has no rows", hint=_HINT)
        columns = {column for _, row in self._rows for column in row}
        self._name = name
        self._path = _one_of(name, columns, PATHS)
        self.label = _one_of(name, columns, LABELS)
        self.split = SPLIT if SPLIT in columns else None
        self._problems: dict[str, list[str]] = defaultdict(list)

    def rows_with_paths(self) -> Iterator[tuple[int, str, Row]]:
        """Number, path and content of each row whose path can be that of a file; of others a problem is noted."""
        for number, row in self._rows:
            try:
                path = _path(row.get(self._path))
            except ValueError as error:
                self.note("have a path that cannot be used", number, error)
            else:
                yield number, path, row

    def note(self, kind: str, number: int, value: object) -> None:
        self._problems[kind].append(f"row {number}: {value}")

    def check(self) -> None:
        """Raise InputError for all problems that were noted."""
        if self._problems:
            kinds = [f"{len(rows):,} {kind} ({some(rows, shown=str)})" for kind, rows in self._problems.items()]
            is_of_paths = any("path" in kind or "files" in kind for kind in self._problems)
            raise InputError(
                f"the table {self._name} has rows that cannot be used: {'; '.join(kinds)}",
                hint=_PATH_HINT if is_of_paths else "correct these rows",
            )


def _one_of(table: str, columns: Collection[str], known: Sequence[str]) -> str:
    found = [name for name in known if name in columns]
    if len(found) == 1:
        return found[0]
    reason = f"several columns for the same, {some(found)}" if found else f"no column {' or '.join(known)}"
    raise InputError(f"the table {table} has {reason}; it has {some(sorted(columns))}", hint=_HINT)


def _path(value: object) -> str:
    """The path in a cell, as the name of a file. Raises ValueError."""
    if not isinstance(value, str) or not value:
        raise UnsafeName(f"{value!r}" if value is not None else "none")
    return checked_name(value.replace("\\", "/").removeprefix("./"))


def _text(value: object) -> str:
    """A label or a split in a cell: text, or a whole number; empty when it is neither."""
    is_number = isinstance(value, int) and not isinstance(value, bool)
    return normal(value.strip()) if isinstance(value, str) else str(value) if is_number else ""


def _column(name: object) -> str:
    return str(name).strip().casefold()


def _headers(name: str, data: bytes) -> Iterator[Iterable[str]]:
    """The names of a table's columns; in JSON lines, those of each row in turn that can be read.

    Raises ValueError, csv.Error.
    """
    suffix = Path(name).suffix.lower()
    if suffix == ".parquet":
        with _parquet(data) as (_, columns):
            yield columns
        return
    # No other encoding is read, but the header shows what the table is for.
    is_utf_16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    file = io.TextIOWrapper(
        io.BytesIO(data),
        "utf-16" if is_utf_16 else "utf-8-sig",
        errors="replace",
        newline="\n" if suffix == ".jsonl" else "",
    )
    if suffix == ".jsonl":
        for line in file:
            with contextlib.suppress(ValueError, RecursionError):
                row = json.loads(line)
                yield row if isinstance(row, dict) else ()
    else:
        yield _header(_csv_reader(file))


def _rows(name: str, data: bytes) -> list[tuple[int, Row]]:
    """The rows with their numbers, as a person counts them in the file; columns in small letters. Raises ValueError."""
    suffix = Path(name).suffix.lower()
    rows: Iterable[tuple[int, Any]]
    if suffix == ".parquet":
        rows = enumerate(_parquet_rows(data), start=1)
    elif suffix == ".jsonl":
        rows = _jsonl(_decoded(data))
    else:
        rows = _csv(_decoded(data))
    found = []
    for number, row in rows:
        if not isinstance(row, dict):
            raise ValueError(f"row {number} is no JSON object")
        found.append((number, {_column(column): value for column, value in row.items()}))
    return found


def _decoded(data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {error.start:,} is no text in UTF-8: save it as UTF-8, or as CSV UTF-8") from error


def _jsonl(text: str) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"row {number} is no JSON: {error}") from error


def _csv(text: str) -> list[tuple[int, Row]]:
    reader = _csv_reader(io.StringIO(text, newline=""))
    try:
        reader.fieldnames = _header(reader)
        rows = []
        for row in reader:
            # A spreadsheet leaves empty cells at the end.
            if any(row.pop(None, ())):
                raise ValueError(
                    f"row {reader.line_num} has more cells than the header: quote what has "
                    f"{reader.reader.dialect.delimiter!r} in it"
                )
            rows.append((reader.line_num, row))
        return rows
    except csv.Error as error:
        raise ValueError(f"after line {reader.line_num}: {error}") from error


def _csv_reader(file: TextIO) -> "csv.DictReader[str]":
    beginning = [file.readline()]
    while beginning[-1].isspace():
        beginning.append(file.readline())
    # As spreadsheets of several countries write it.
    delimiter = max(",;\t", key=beginning[-1].count)
    return csv.DictReader(itertools.chain(beginning, file), delimiter=delimiter, strict=True)


def _header(reader: "csv.DictReader[str]") -> list[str]:
    """The first row that is not empty: a spreadsheet keeps empty ones above it. Raises csv.Error."""
    return next((row for row in reader.reader if "".join(row).strip()), [])


def _parquet_rows(data: bytes) -> list[Row]:
    with _parquet(data) as (file, columns):
        if file.metadata.num_rows > MAX_ROWS:
            raise ValueError(f"it has {file.metadata.num_rows:,} rows, more than {MAX_ROWS:,}")
        rows: list[Row] = file.read(columns=columns).to_pylist()
        return rows


@contextlib.contextmanager
def _parquet(data: bytes) -> Iterator[tuple[Any, list[str]]]:
    """A parquet file, and those of its columns that a table may have. Raises ValueError, as long as it is read."""
    # Imported here: it takes a quarter of a second.
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(pa.BufferReader(data))
        # A column of images is a structure, as the Hugging Face Hub makes them, or bytes.
        is_no_text = (
            pa.types.is_nested, pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view,
            pa.types.is_fixed_size_binary,
        )  # fmt: skip
        columns = [field.name for field in file.schema_arrow if not any(is_so(field.type) for is_so in is_no_text)]
        yield file, [name for name in columns if _column(name) in _KNOWN]
    except (pa.ArrowNotImplementedError, pa.ArrowKeyError, OSError) as error:
        raise ValueError(str(error)) from error
