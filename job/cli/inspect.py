"""`thaw inspect`: what a run would find in a person's own images, before there is one.

Every image is read and decoded once, without TensorFlow; only numbers are kept of it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from rich.console import Group
from rich.table import Table

from job.cli import page_file
from job.cli.arguments import AsJson, Flag, SettingsOptions
from job.cli.asked import Warnings
from job.cli.tables import plain, show, table
from job.cli.waits import image_bar, waiting
from job.data.files import inspection, survey
from job.data.files.names import is_place
from job.data.files.places import open_place
from job.data.mirror import Fetcher
from job.errors import ExitCode, InvalidSettings
from job.settings.fields import LocalPath
from job.settings.settings import Settings
from job.storage import scratch
from job.wording import counted, numbered, size

COLORS = {"error": "red", "warning": "yellow", "note": ""}
MAX_CLASSES = 20


class Options(SettingsOptions):
    """For own images: THAW_DATASET names a folder, an archive or a table. The exit code is the one with which a start
    would end at once because of them; 0 when it would begin.
    """

    page: Annotated[LocalPath | None, Flag("also write a page with pictures of each class", metavar="FILE")] = None
    as_json: AsJson = False


def answer(options: Options) -> ExitCode:
    """Show what the images are. Raises InvalidSettings, InputError and StorageError when they cannot be listed."""
    settings = options.settings
    if not is_place(settings.dataset):
        raise InvalidSettings(
            f"THAW_DATASET={settings.dataset!r} names a TFDS data set, and inspect is for own images",
            hint="thaw plan shows what is known of it; own images are a folder, an archive or a table",
        )
    page_file.check(options.page)
    request = settings.files_request()
    with scratch.folder(settings.cache_dir) as folder:
        listing = open_place(_local(settings, folder), request, scratch=folder)
        with image_bar(len(listing.images)) as advance:
            seen = survey.look(listing, advance)
        content = inspection.content(
            listing, seen, settings.specs(), settings.resizing(),
            stratify=request.stratify, skips=settings.on_unreadable == "skip",
        )  # fmt: skip
        if options.page is not None:
            from job.report import contact_sheet

            page_file.write(options.page, contact_sheet.page(content, listing, seen))
    show(content, _as_table(content, options.page), as_json=options.as_json)
    return ExitCode(content["exit_code"])


def _local(settings: Settings, folder: Path) -> str:
    """The place on this machine, where a run would fetch it to."""
    if "://" not in settings.dataset:
        return settings.dataset
    fetcher = Fetcher(settings.cache_dir, scratch=folder, observer=Warnings(), check_stop=lambda: None)
    with waiting(f"fetching {settings.dataset}"):
        return fetcher.images(settings.dataset)


def _as_table(content: Mapping[str, Any], page: Path | None) -> Group:
    rows = Table.grid(padding=(0, 2))
    rows.add_row("images", f"{content['num_images']:,} of {numbered(len(content['classes']), 'class')}")
    rows.add_row("in", plain(content["place"], "bold"))
    rows.add_row("read as", plain(content["layout"]))
    if sizes := content["sizes"]:
        rows.add_row("pixels", _spread({name: f"{width} x {height}" for name, (width, height) in sizes.items()}))
        rows.add_row("bytes", _spread({name: size(number) for name, number in content["bytes"].items()}))
        rows.add_row("formats", counted(content["formats"]))
    if content["traits"]:
        rows.add_row("of these", counted(content["traits"]))
    said = Table.grid(padding=(0, 2))
    for finding in content["findings"]:
        lines = [plain(line, COLORS[finding["level"]]) for line in finding["text"].splitlines()]
        examples = [plain(f"  {example}", "dim") for example in finding["examples"]]
        hint = [plain(f"hint: {finding['advice']}")] if finding["advice"] else []
        said.add_row(finding["level"], Group(*lines, *examples, *hint))
    means = "these images are refused" if content["exit_code"] else "it would begin"
    said.add_row("exit code", f"{content['exit_code']}, as of a start: {means}")
    if page is not None:
        said.add_row("page", plain(str(page)))
    return Group(rows, "", _classes(content), "", said)


def _classes(content: Mapping[str, Any]) -> Table:
    numbers = ("images", "unreadable", *content["splits"])
    shown = table("class", *numbers, right=numbers)
    for row in content["classes"][:MAX_CLASSES]:
        shown.add_row(plain(row["name"]), *_numbers(row["num_images"], row["num_unreadable"], *row["splits"].values()))
    more = content["classes"][MAX_CLASSES:]
    if more:
        shown.add_row(f"and {len(more):,} more")
    sums = _numbers(content["num_images"], len(content["unreadable"]), *content["splits"].values())
    shown.add_row("together", *sums, style="bold")
    return shown


def _numbers(*numbers: int) -> list[str]:
    return [f"{number:,}" for number in numbers]


def _spread(values: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())
