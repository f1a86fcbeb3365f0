"""`thaw predict`: label and probability of images, by the model of a finished run.

Images are taken a batch at a time, so there may be any number of them.
"""

import sys
from collections.abc import Sequence
from io import BufferedReader
from typing import TYPE_CHECKING, Annotated, Any, cast

from pydantic import Field
from rich.cells import cell_len
from rich.table import Table

from job import memory
from job.cli.arguments import AsJson, CacheDir, CommandOptions, Flag, RunPlace
from job.cli.asked import open_asked
from job.cli.tables import TableConsole, plain, print_json
from job.data.files import image_files
from job.errors import ExitCode, InputError
from job.imports import importing_tensorflow
from job.run.finished import finished
from job.schema import recorded_setting
from job.settings.resources import MAX_EVALUATION_BATCH
from job.storage import scratch

if TYPE_CHECKING:
    from job.cli.labelling import Labelled


class Options(CommandOptions):
    """A table of label and probability on a terminal, and JSON lines elsewhere: one for each image, in order, with
    the probabilities of all classes, or of the first five of more than twenty. An image that cannot be read has an
    error in its place; the others go on, and the exit code is then 4.
    """

    images: Annotated[
        tuple[str, ...],
        Flag(
            "image files; folders, also in buckets, searched for image files at any depth; - for paths and URIs on "
            "standard input, one a line or each ended by a zero byte as `find -print0` does",
            metavar="IMAGE|DIR|URI|-",
            is_word=True,
        ),
    ]
    run: RunPlace
    batch_size: Annotated[
        Annotated[int, Field(ge=1, le=4096)] | None,
        Flag(f"images at a time [default: that of the run, at most {MAX_EVALUATION_BATCH}]", metavar="INT"),
    ] = None
    cache_dir: CacheDir = None
    as_json: AsJson = False


def answer(options: Options) -> ExitCode:
    """Show a label for each image. Raises RunUnavailable, InputError, StorageError; BAD_INPUT when some had none."""
    store = open_asked(options.run)
    record = finished(store)
    with importing_tensorflow():
        from job.cli.labelling import Labeller
        from job.run.finished_model import read_model
        from job.train import device
    if unused := device.use("auto"):
        print(f"warning: the processor is used: {unused}", file=sys.stderr)

    with scratch.folder(options.cache_dir) as folder:
        labeller = Labeller(read_model(store, record, folder))
    console = None if options.as_json or not sys.stdout.isatty() else TableConsole()
    num_images, num_failed = 0, 0
    paths = image_files.find(
        options.images, standard_input=lambda: cast(BufferedReader, sys.stdin.buffer), passed_over=_passed_over
    )
    batch_size = options.batch_size or min(recorded_setting(record.settings, "BATCH_SIZE"), MAX_EVALUATION_BATCH)
    with (
        scratch.folder(options.cache_dir) as folder,
        memory.explained(lambda: f"for {batch_size} images at a time", lambda _: "give a smaller --batch-size"),
    ):
        for batch in labeller.label_files(paths, batch_size, folder):
            if console is None:
                for path, labelled in batch:
                    print_json(_as_json(path, labelled))
            else:
                console.print(_as_table(batch, show_header=num_images == 0, class_names=labeller.class_names))
            num_images += len(batch)
            num_failed += sum(isinstance(labelled, str) for _, labelled in batch)
    if num_images == 0:
        raise InputError("no image was named on standard input", hint="give a path on each line")
    if num_failed:
        print(f"{num_failed} of {num_images} could not be read", file=sys.stderr)
    return ExitCode.BAD_INPUT if num_failed else ExitCode.COMPLETE


def _passed_over(path: str) -> None:
    print(f"{plain(path)}: a link to a folder is not followed; name it to have its images", file=sys.stderr)


def _as_json(path: str, labelled: "Labelled") -> dict[str, Any]:
    return {"image": path, **({"error": labelled} if isinstance(labelled, str) else labelled._asdict())}


def _as_table(batch: Sequence[tuple[str, "Labelled"]], *, show_header: bool, class_names: Sequence[str]) -> Table:
    """The columns of every batch have the same width, so that batches read as one table."""
    table = Table(box=None, show_header=show_header, header_style="bold", padding=(0, 2, 0, 0))
    labels = ["label", *(plain(name).plain for name in class_names)]
    table.add_column("label", width=max(map(cell_len, labels)), no_wrap=True)
    table.add_column("probability", width=len("probability"), justify="right")
    table.add_column("image", overflow="fold")
    for path, labelled in batch:
        if isinstance(labelled, str):
            table.add_row("", "", plain(f"{path}: {labelled}", "red"))
        else:
            table.add_row(plain(labelled.label), f"{labelled.probability:.4f}", plain(path))
    return table
