"""What TFDS downloads: what is here already is used without a network, and an error says what failed."""

import errno
import hashlib
import http.server
import logging
import os
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.core.download import checksums, resource

from job.data.tfds import builders, prepared
from job.errors import DataUnavailable, InputError
from tests.shapes import draw

CONTENT = b"an archive"
SHA256 = hashlib.sha256(CONTENT).hexdigest()
CLOSED = "http://127.0.0.1:9"


class Archived(tfds.core.GeneratorBasedBuilder):
    """Data that is made once its archive is here."""

    VERSION = tfds.core.Version("1.0.0")
    URL: ClassVar[str] = f"{CLOSED}/a.zip"
    SHA256: ClassVar[str] = SHA256
    LABEL: ClassVar[Any] = tfds.features.ClassLabel(names=["disc", "bar"])

    @property
    def url_infos(self) -> dict[str, Any]:
        return {
            self.URL: checksums.UrlInfo(size=len(CONTENT), checksum=self.SHA256, filename="a.zip"),
            f"{CLOSED}/of-another-version.zip": checksums.UrlInfo(size=1, checksum="0" * 64, filename="b.zip"),
        }

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features.FeaturesDict({"image": tfds.features.Image(), "label": self.LABEL})
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        assert Path(dl_manager.download(self.URL)).read_bytes() == CONTENT
        return {"train": self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[int, dict[str, Any]]]:
        yield from ((index, {"image": draw(index % 2, index), "label": index % 2}) for index in range(4))


class ArchivedTexts(Archived):
    LABEL: ClassVar[Any] = tfds.features.Text()


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    """A server that has `a.zip` and nothing else."""
    (tmp_path / "served").mkdir()
    (tmp_path / "served/a.zip").write_bytes(CONTENT)
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path / "served"))
    handler.log_message = lambda *_: None  # type: ignore[attr-defined]
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def put(path: Path) -> None:
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT)


def test_an_archive_that_was_downloaded_before_needs_no_network(tmp_path: Path) -> None:
    """Where TFDS itself put it, under the data set's name."""
    name = resource.get_dl_fname(Archived.URL, SHA256)
    path = tmp_path / "downloads/archived" / name
    put(path)
    resource.write_info_file(
        url=Archived.URL, path=path, dataset_name="archived", original_fname="a.zip",
        url_info=checksums.UrlInfo(size=len(CONTENT), checksum=SHA256, filename="a.zip"),
    )  # fmt: skip
    assert builders.prepared_builder("archived", str(tmp_path)).is_prepared()


def test_an_archive_that_a_person_put_there_needs_no_network(tmp_path: Path) -> None:
    """In `downloads/manual`, under the name that the data set gives it."""
    put(tmp_path / "downloads/manual/a.zip")
    assert builders.prepared_builder("archived", str(tmp_path)).is_prepared()


@pytest.mark.parametrize("when", ["download_and_prepare", "_split_generators"])
def test_another_process_may_prepare_the_same_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """As soon as this one has found it missing, or while this one is at it: what the other prepared is opened."""
    put(tmp_path / "downloads/manual/a.zip")
    own = getattr(Archived, when)

    def after_another(builder: Archived, *args: Any) -> Any:
        monkeypatch.setattr(Archived, when, own)
        Archived(data_dir=tmp_path).download_and_prepare()
        return own(builder, *args)

    monkeypatch.setattr(Archived, when, after_another)
    builder = builders.prepared_builder("archived", str(tmp_path))
    assert builder.info.splits["train"].num_examples == 4
    assert [path.name for path in (tmp_path / "archived").iterdir()] == ["1.0.0"]


def test_without_network_and_archive_one_error_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The libraries below keep quiet about each of their tries."""
    monkeypatch.setattr(builders, "REACH_BACKOFF_SECONDS", 0.0)
    expected = rf"there is no way to {CLOSED}/a\.zip from here: Failed .* Connection refused$"
    with caplog.at_level(logging.WARNING), pytest.raises(DataUnavailable, match=expected) as caught:
        builders.find_builder("archived", str(tmp_path))
    assert caplog.records == []
    assert "proxy" not in caught.value.hint


def test_a_proxy_that_leads_nowhere_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without its password: a person may have forgotten that it is set."""
    monkeypatch.setattr(builders, "REACH_BACKOFF_SECONDS", 0.0)
    monkeypatch.setattr(Archived, "URL", "https://thaw.invalid/a.zip")
    for name in ("https_proxy", "no_proxy"):
        monkeypatch.delenv(name.upper(), raising=False)
        monkeypatch.setenv(name, "http://user:secret@127.0.0.1:9" if name == "https_proxy" else "")
    with pytest.raises(DataUnavailable, match=r"the proxy does not answer: .* Connection refused$") as caught:
        builders.find_builder("archived", str(tmp_path))
    assert "127.0.0.1:9 is in use: correct it, or unset it" in caught.value.hint
    assert "secret" not in caught.value.hint


def test_a_folder_of_own_images_is_not_taken_for_a_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`photos` is a name of TFDS; the hint says how the folder is written."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    with pytest.raises(DataUnavailable, match="there is no data set 'photos'") as caught:
        builders.find_builder("photos", None)
    assert "own images in a folder here are THAW_DATASET=./photos" in caught.value.hint


def test_data_that_cannot_be_learned_from_is_not_downloaded(tmp_path: Path) -> None:
    """Its description says so before."""
    with pytest.raises(InputError, match="label: Text"):
        builders.find_builder("archived_texts", str(tmp_path))


@pytest.mark.parametrize(
    ("name", "sha256", "expected", "hint"),
    [("a.zip", "0" * 64, rf"(?s){'0' * 64}.*{SHA256}|{SHA256}.*{'0' * 64}", "is not the one that TFDS knows"),
     ("gone.zip", SHA256, "404", "does not give the file")],
)  # fmt: skip
def test_a_download_that_a_better_network_would_not_help_says_why(
    tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch, name: str, sha256: str, expected: str, hint: str
) -> None:
    """Another file than TFDS knows, with both digests, or none; the hint is to put the right one there by hand."""
    monkeypatch.setattr(Archived, "URL", f"{url}/{name}")
    monkeypatch.setattr(Archived, "SHA256", sha256)
    with pytest.raises(DataUnavailable, match=expected) as caught:
        builders.prepared_builder("archived", str(tmp_path))
    assert hint in caught.value.hint
    assert str(tmp_path / "downloads/manual") in caught.value.hint
    assert "network" not in caught.value.hint


@pytest.mark.parametrize(
    ("number", "hint"),
    [(errno.ENOSPC, "free space there"), (errno.EACCES, "give this user the right"), (errno.EROFS, "mount a writable")],
)
def test_a_folder_that_takes_no_data_is_no_matter_of_the_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, hint: str
) -> None:
    """Python's errors have a number, those of TensorFlow's file system only the text."""

    def write(*_: Any) -> Any:
        raise RuntimeError(f"ResourceExhaustedError: {tmp_path}/a.tfrecord; {os.strerror(number)}")

    put(tmp_path / "downloads/manual/a.zip")
    monkeypatch.setattr(Archived, "_split_generators", write)
    with pytest.raises(DataUnavailable, match=f"cannot be prepared there: .*{os.strerror(number)}") as caught:
        builders.prepared_builder("archived", str(tmp_path))
    assert caught.value.hint.startswith(hint)
    assert "network" not in caught.value.hint


def test_the_default_folder_is_that_of_tfds() -> None:
    """Which takes long to import."""
    assert Path(prepared.DEFAULT_DATA_DIR).expanduser() == Path(tfds.core.constants.DATA_DIR)
