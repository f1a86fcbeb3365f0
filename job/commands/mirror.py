"""`python -m job mirror`: prepare data and weights where there is a network, and put them into a mirror."""

from collections.abc import Callable
from pathlib import Path

from job import dataset, mirror, model, scratch
from job.errors import InvalidSettings, WeightsUnusable
from job.events import MIRROR_SETTINGS, Reader
from job.settings import Settings
from job.storage import open_store

DATA, WEIGHTS = "tfds", "weights"


def fill(settings: Settings, *, to: str, reader: Reader, check_stop: Callable[[], None]) -> None:
    """Put the settings' data set and weights under `to`, and tell the settings that read them from there.

    What is not prepared or not in Keras's cache is downloaded. Raises what preparing raises, StorageError, and
    InvalidSettings when the source is a mirror itself.
    """
    for place in (settings.data_dir or "", settings.weights):
        if mirror.is_remote(place):
            raise InvalidSettings(
                f"{place!r} is a mirror already",
                hint="give a local place, or none: then data and weights are downloaded",
            )
    to = to.rstrip("/")
    builder = dataset.prepared_builder(settings.dataset, settings.data_dir)
    check_stop()
    folder = Path(builder.data_dir)
    parent = folder.parents[len(Path(builder.info.full_name).parts) - 1]
    files = {path.relative_to(parent).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    mirror.send(open_store(f"{to}/{DATA}"), files, reader=reader, check_stop=check_stop)
    values = {"THAW_DATA_DIR": f"{to}/{DATA}"}
    if settings.weights != "none":
        with scratch.folder(settings.cache_dir) as temporary:
            path = _weights_file(settings, temporary)
            mirror.send(open_store(f"{to}/{WEIGHTS}"), {path.name: path}, reader=reader, check_stop=check_stop)
        values["THAW_WEIGHTS"] = f"{to}/{WEIGHTS}/{path.name}"
    reader.event(MIRROR_SETTINGS, **values)


def _weights_file(settings: Settings, folder: Path) -> Path:
    if settings.weights == "imagenet":
        path = folder / f"{settings.backbone}_imagenet_{settings.image_size}px_notop.weights.h5"
        model.save_imagenet_weights(settings.backbone, settings.image_size, path)
        return path
    path = Path(settings.weights).expanduser()
    if not path.is_file():
        raise WeightsUnusable(f"THAW_WEIGHTS={settings.weights!r}: there is no such file", hint="name one, or imagenet")
    return path
