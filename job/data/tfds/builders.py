"""A TFDS data set by its name: prepared data is opened, other data is downloaded, or an error says why not.

Whether it can be learned from is judged in `description`. This module reads no image, and imports no TensorFlow before
data is prepared.
"""

import contextlib
import difflib
import errno
import importlib
import logging
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import absl.logging
import requests
import tensorflow_datasets as tfds
import urllib3
from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError
from tensorflow_datasets.core.download.resource import get_dl_fname

from job.data.tfds import prepared
from job.data.tfds.description import supervision
from job.data.tfds.prepared import DEFAULT_DATA_DIR
from job.errors import DataUnavailable, proxy_hint

BUILT_IN = {"drawn_cats_vs_dogs": "demo.drawn"}
"""The data sets that come with the program, and the module that registers each with TFDS when it is imported."""

LIKENESS = 0.7
"""Of 0 to 1, from which a name may be meant by another; among some 450 of them, less is chance."""

_RIGHTS = "give this user the right to write there"
_OF_THE_DISK = {
    os.strerror(errno.ENOSPC): "free space there",
    os.strerror(errno.EDQUOT): "raise the quota there",
    os.strerror(errno.EROFS): "mount a writable volume there",
    os.strerror(errno.EACCES): _RIGHTS,
    os.strerror(errno.EPERM): _RIGHTS,
}
"""What helps against the errors of a folder for data, by their texts."""

REACH_TRIES = 3
REACH_BACKOFF_SECONDS = 1.0
REACH_TIMEOUT_SECONDS = 10


def find_builder(
    dataset: str, data_dir: str | None, *, place: str | None = None
) -> tuple[tfds.core.DatasetBuilder, bool]:
    """The builder of a data set, and whether its data is prepared.

    `place` is the name of `data_dir` in messages, where that is a copy. Raises DataUnavailable when it is neither
    prepared nor to be had, InputError when it is not safe to open, or has no image and class label.
    """
    place = place or data_dir or DEFAULT_DATA_DIR
    hint = _hint(dataset)
    if (family := prepared.family(dataset)) in BUILT_IN:
        importlib.import_module(BUILT_IN[family])
    folder = Path(data_dir or DEFAULT_DATA_DIR).expanduser()
    prepared.check(folder, dataset)
    others = ", ".join(prepared.versions(folder, dataset))
    others = f"; prepared there: {others}" if others else ""
    try:
        builder = tfds.builder(dataset, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError as error:
        raise DataUnavailable(
            f"there is no data set {dataset!r}: not in {place}, not in TFDS{others}{_nearest(dataset, folder)}",
            hint=hint,
        ) from error
    except Exception as error:
        # What a broken dataset_info.json, or a version that is not there, raises depends on where it is noticed.
        raise DataUnavailable(
            f"data set {dataset!r} in {place} cannot be opened: {error}{others}", hint=hint
        ) from error
    with _without_chatter():
        is_prepared = builder.is_prepared()
    if not is_prepared:
        supervision(builder)
        _reach(builder, f"data set {builder.info.full_name} is not prepared in {place}{others}", hint)
    return builder, is_prepared


def download_bytes(builder: tfds.core.DatasetBuilder) -> int:
    """What TFDS would write, as far as it knows: the files of the source, and the data prepared from them."""
    return int(builder.info.download_size or 0) + int(builder.info.dataset_size or 0)


def prepared_builder(
    dataset: str, data_dir: str | None, *, check_space: Callable[[Path, int], None] = lambda folder, num_bytes: None
) -> tfds.core.DatasetBuilder:
    """The builder of a data set whose data is prepared, now if not before. Raises as `find_builder` does.

    `check_space` is called with the bytes that would be written into a folder, and raises when they do not fit.
    """
    builder, is_prepared = find_builder(dataset, data_dir)
    if is_prepared:
        return builder
    check_space(Path(builder.data_dir_root), download_bytes(builder))
    try:
        with _without_chatter():
            builder.download_and_prepare()
    except Exception as error:
        # Other processes may prepare the same, those of one run among them; the first gives the folder its name.
        if not (isinstance(error, FileExistsError) and builder.is_prepared()):
            # What a download raises depends on the data set and the network; all of it means the data is not here.
            reason, hint = _why(builder, error)
            raise DataUnavailable(
                f"data set {builder.info.full_name} is not prepared in {builder.data_dir}, and cannot be "
                f"prepared there: {reason}",
                hint=hint or _hint(dataset),
            ) from error
    # Another builder: this one does not know the splits of what another process has prepared.
    return find_builder(dataset, data_dir)[0]


def _hint(dataset: str) -> str:
    own = f"own images in a folder here are THAW_DATASET=./{dataset}; or " if Path(dataset).is_dir() else ""
    return (
        f"{own}either point THAW_DATA_DIR at a folder that holds {dataset} as prepared TFDS data, "
        "or start where there is a network, which downloads it, or try `make demo`, whose data is built in"
    )


def _nearest(dataset: str, folder: Path) -> str:
    """The end of a sentence that proposes the name most like one that is not known, or nothing when none is."""
    known = {*prepared.families(folder), *BUILT_IN, *tfds.list_builders(with_community_datasets=False)}
    matches = difflib.get_close_matches(prepared.family(dataset), sorted(known), n=1, cutoff=LIKENESS)
    return f"; did you mean {matches[0]}?" if matches else ""


def _why(builder: tfds.core.DatasetBuilder, error: Exception) -> tuple[str, str]:
    """What a download failed for, and what to do about it, where more of a network would not help."""
    text = str(error).strip()
    reason = f"{type(error).__name__}: {text.splitlines()[0] if text else ''}"
    by_hand = f"put the right file into {_downloads(builder) / 'manual'}, or point THAW_DATA_DIR at prepared data"
    if isinstance(error, NonMatchingChecksumError):
        # TFDS says where the file is, what was expected, and what came, one a line.
        return "\n".join(line.strip() for line in text.splitlines()[:3]), (
            f"the file at its source is not the one that TFDS knows: {by_hand}"
        )
    # Of what is written by TensorFlow's file system only the text of the error is left.
    if problem := next((known for known in _OF_THE_DISK if known in text), None):
        return reason, f"{_OF_THE_DISK[problem]}, or point THAW_DATA_DIR at a folder on another disk"
    if "HTTP code: 4" in text:
        return reason, f"its source does not give the file: {by_hand}"
    return reason, ""


@contextlib.contextmanager
def _without_chatter() -> Iterator[None]:
    """Silence TFDS, which prints, shows progress bars and warns that data is not prepared yet, and urllib3, which logs
    each retry: what fails in the end is an error of ours."""
    verbosity, urllib3_log = absl.logging.get_verbosity(), logging.getLogger("urllib3")
    level = urllib3_log.level
    absl.logging.set_verbosity(absl.logging.ERROR)
    urllib3_log.setLevel(logging.ERROR)
    tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(None):
            yield
    finally:
        absl.logging.set_verbosity(verbosity)
        urllib3_log.setLevel(level)


def _downloads(builder: tfds.core.DatasetBuilder) -> Path:
    """Where TFDS keeps what it downloads, and, in `manual`, what a person has."""
    return Path(builder.data_dir_root) / "downloads"


def _reach(builder: tfds.core.DatasetBuilder, problem: str, hint: str) -> None:
    """Raise DataUnavailable when the places that TFDS would download from do not answer, and nothing is here yet.

    TFDS itself tries each for more than three minutes before it gives up. It knows more files than a data set needs:
    where some are here, only TFDS knows whether those suffice.
    """
    infos = builder.url_infos or {}
    known = {info.filename for info in infos.values()} | {
        get_dl_fname(url, info.checksum) for url, info in infos.items()
    }
    here = {name for _, _, names in os.walk(_downloads(builder)) for name in names}
    if known & here:
        return
    with _without_chatter(), requests.Session() as session:
        retries = urllib3.Retry(total=REACH_TRIES, backoff_factor=REACH_BACKOFF_SECONDS, raise_on_status=False)
        for scheme in ("http://", "https://"):
            session.mount(scheme, requests.adapters.HTTPAdapter(max_retries=retries))
        for url in list(infos)[:1]:
            try:
                session.head(url, timeout=REACH_TIMEOUT_SECONDS)
            except requests.RequestException as error:
                raise DataUnavailable(
                    f"{problem}, and there is no way to {url} from here: {_obstacle(error)}", hint=hint + proxy_hint()
                ) from error


def _obstacle(error: requests.RequestException) -> str:
    """What keeps a request from an answer: the innermost reason, without the objects that it went through."""
    reason = getattr(error.args[0], "reason", None) if error.args else None
    through = ""
    if isinstance(reason, urllib3.exceptions.ProxyError):
        through, reason = "the proxy does not answer: ", reason.original_error
    return through + re.sub(r"^HTTPS?Connection(Pool)?\(.*?\): ", "", str(reason or error))
