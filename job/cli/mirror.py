"""`python -m job mirror`: prepare data and weights where there is a network, and put them into a mirror.

The place is tried before anything else: a wrong bucket is reported at once, without TensorFlow and before a download.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from job.cli.arguments import Flag, Place, SettingsOptions
from job.data import filling
from job.data.tfds import prepared
from job.errors import InvalidSettings, WeightsUnusable
from job.observe.events import MirrorSettings, Observer
from job.observe.log import without_native_notes
from job.settings.settings import Settings
from job.storage import digest_of, open_store, scratch
from job.storage.uri import PLACES, is_bucket

DATA, WEIGHTS = "tfds", "weights"
DIGEST_DIGITS = 12


class Options(SettingsOptions):
    """What is not here is downloaded first."""

    to: Annotated[Place, Flag(f"where to: {PLACES}", metavar="URI")]


def answer(options: Options, *, observer: Observer, check_stop: Callable[[], None]) -> None:
    """Put the settings' data set and weights under a place, and report the settings that read them from there.

    What is not prepared or not in Keras's cache is downloaded. The name of a file of weights carries its digest: under
    the name that a run was given, weights never change. Raises what preparing raises, StorageError, and InvalidSettings
    when the source is a mirror itself.
    """
    settings, to = options.settings, options.to
    _check_sources(settings)
    data_store, weights_store = open_store(f"{to}/{DATA}"), open_store(f"{to}/{WEIGHTS}")
    filling.probe(data_store)
    check_stop()
    values = {"THAW_DATA_DIR": f"{to}/{DATA}"}
    with scratch.folder(settings.cache_dir) as temporary:
        with without_native_notes():
            from job.data.tfds import builders
        builder = builders.prepared_builder(settings.dataset, settings.data_dir)
        check_stop()
        filling.send(data_store, _files(builder), observer=observer, check_stop=check_stop)
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


def _check_sources(settings: Settings) -> None:
    for place in (settings.data_dir or "", settings.weights):
        if is_bucket(place):
            raise InvalidSettings(
                f"{place!r} is a mirror already",
                hint="give a local place, or none: then data and weights are downloaded",
            )
    if settings.weights not in ("imagenet", "none") and not Path(settings.weights).expanduser().is_file():
        raise WeightsUnusable(f"THAW_WEIGHTS={settings.weights!r}: there is no such file", hint="name one, or imagenet")


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
