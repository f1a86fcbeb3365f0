"""`thaw mirror`: put data, weights and own images into a mirror.

The place is tried before anything else: a wrong bucket is reported at once, without TensorFlow and before a download.
"""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from job.cli import checks
from job.cli.arguments import AttemptOptions, Flag, Place
from job.data import filling
from job.data.files.layout import worth_fetching
from job.data.files.listing import FilesRequest
from job.data.files.names import is_place, is_table
from job.data.files.places import Folder, open_place
from job.data.tfds import prepared
from job.errors import InputError, InvalidSettings
from job.imports import importing_tensorflow
from job.observe.data_events import MirrorSettings
from job.observe.observer import Observer
from job.paths import UnsafeName, check_names
from job.settings.settings import Settings
from job.storage import digest_of, open_store, scratch
from job.storage.uri import PLACES, is_bucket, local_folder

DATA, WEIGHTS, IMAGES = "tfds", "weights", "images"
DIGEST_DIGITS = 12


class Images(NamedTuple):
    """Own images: their folder in a mirror, the archive or table in it ("" when it is all of it), and the files."""

    folder: str
    name: str
    files: dict[str, Path]


class Options(AttemptOptions):
    """What is not here is downloaded first."""

    to: Annotated[Place, Flag(f"where to: {PLACES}", metavar="URI")]


def answer(options: Options, *, observer: Observer, check_stop: Callable[[], None]) -> None:
    """Put the settings' data and weights under a place, and report the settings that read them from there.

    What is not prepared or not in Keras's cache is downloaded. The name of a file of weights carries its digest: under
    the name that a run was given, weights never change. Raises what preparing raises, or for own images what listing
    them raises, StorageError, and InvalidSettings when the source is a mirror itself.
    """
    settings, to = options.settings, options.to
    _check_sources(settings)
    weights_store = open_store(f"{to}/{WEIGHTS}")
    with scratch.folder(settings.cache_dir) as temporary:
        images = _images(settings, temporary) if is_place(settings.dataset) else None
        data_store = open_store(f"{to}/{images.folder if images else DATA}")
        filling.probe(data_store)
        check_stop()
        if images:
            files, values = images.files, {"THAW_DATASET": f"{data_store.uri}/{images.name}".rstrip("/")}
        else:
            with importing_tensorflow():
                from job.data.tfds import builders
            files = _files(builders.prepared_builder(settings.dataset, settings.data_dir))
            values = {"THAW_DATA_DIR": f"{to}/{DATA}"}
        check_stop()
        filling.send(
            data_store, files, is_all=bool(images and not images.name), observer=observer, check_stop=check_stop
        )
        if settings.weights != "none":
            path = _weights_file(settings, temporary)
            name = _name_with_digest(path)
            filling.send(weights_store, {name: path}, observer=observer, check_stop=check_stop)
            values["THAW_WEIGHTS"] = f"{to}/{WEIGHTS}/{name}"
    observer.event(MirrorSettings(**values))


def _files(builder: Any) -> dict[str, Path]:
    """What a mirror needs of a prepared data set, by name below its data_dir."""
    folder = Path(builder.data_dir)
    parent = folder.parents[len(Path(builder.info.full_name).parts) - 1]
    files = [path for path in folder.iterdir() if path.is_file() and prepared.is_needed(path.name)]
    return {path.relative_to(parent).as_posix(): path for path in files}


def _images(settings: Settings, temporary: Path) -> Images:
    """What a mirror needs of own images. Raises what listing them raises, InputError."""
    place = local_folder(settings.dataset)
    assert place is not None, settings.dataset
    # A link keeps its own name.
    place = Path(os.path.abspath(place))  # noqa: PTH100
    name = re.sub(r"[^\w.-]+", "-", place.name)
    listing = open_place(settings.dataset, FilesRequest(labels=settings.labels), scratch=temporary)
    if place.is_dir():
        names = worth_fetching(Folder(place).names)
        found = Images(_folder(place), "", {name: place / name for name in names})
    elif is_table(name):
        files = {image.name: place.parent / image.name for image in listing.images}
        found = Images(_folder(place.parent), name, {name: place} | files)
    else:
        found = Images(IMAGES, name, {name: place})
    try:
        check_names(found.files)
    except UnsafeName as error:
        raise InputError(f"THAW_DATASET={settings.dataset!r}: {error}", hint="rename it") from error
    for path in found.files.values():
        if not path.is_file():
            raise InputError(f"{path} is not a file, or a link to none", hint="remove it, or mend the link")
    return found


def _folder(place: Path) -> str:
    """The folder of a mirror for one of this machine; its name is not that of an archive or a table."""
    return f"{IMAGES}/{re.sub(r'[^a-zA-Z0-9_-]+', '-', place.name).strip('-') or IMAGES}"


def _check_sources(settings: Settings) -> None:
    if settings.begins_with_run():
        raise InvalidSettings(
            f"THAW_WEIGHTS={settings.weights!r} is a run, and a mirror has files of weights",
            hint="copy the folder of the run, or name its file model/model.keras, of which the backbone is taken",
        )
    for place in (settings.dataset, settings.data_dir or "", settings.weights):
        if is_bucket(place):
            raise InvalidSettings(
                f"{place!r} is a mirror already",
                hint="give a local place, or none: then data and weights are downloaded",
            )
    checks.weights(settings)


def _weights_file(settings: Settings, folder: Path) -> Path:
    if settings.weights != "imagenet":
        return Path(settings.weights).expanduser()
    from job.model import networks

    path = folder / f"{settings.backbone}_imagenet_{settings.image_size}px_notop.weights.h5"
    with scratch.explained(path):
        networks.save_imagenet_weights(settings.backbone, settings.image_size, path)
    return path


def _name_with_digest(path: Path) -> str:
    """`x.weights.h5` -> `x-0123456789ab.weights.h5`: the endings stay, they are the kind of the file."""
    ending = ".weights.h5" if path.name.endswith(".weights.h5") else path.suffix
    return f"{path.name.removesuffix(ending)}-{digest_of(path).sha256[:DIGEST_DIGITS]}{ending}"
