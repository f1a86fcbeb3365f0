"""What TFDS downloads: what is here already is used without a network, and what failed is told with its reason."""

import hashlib
import http.server
import logging
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.core.download import checksums, resource

from job.data import tfds_source
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
    assert tfds_source.prepared_builder("archived", str(tmp_path)).is_prepared()


def test_an_archive_that_a_person_put_there_needs_no_network(tmp_path: Path) -> None:
    """In `downloads/manual`, under the name that the data set gives it."""
    put(tmp_path / "downloads/manual/a.zip")
    assert tfds_source.prepared_builder("archived", str(tmp_path)).is_prepared()


def test_without_network_and_archive_one_error_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The libraries below keep quiet about each of their tries."""
    monkeypatch.setattr(tfds_source, "REACH_BACKOFF_SECONDS", 0.0)
    with caplog.at_level(logging.WARNING), pytest.raises(DataUnavailable, match="there is no way to"):
        tfds_source.find_builder("archived", str(tmp_path))
    assert caplog.records == []


def test_data_that_cannot_be_learned_from_is_not_downloaded(tmp_path: Path) -> None:
    """Its description says so before."""
    with pytest.raises(InputError, match="label: Text"):
        tfds_source.find_builder("archived_texts", str(tmp_path))


def test_a_wrong_checksum_is_told_with_both(tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hint does not say that a network would help."""
    monkeypatch.setattr(Archived, "URL", f"{url}/a.zip")
    monkeypatch.setattr(Archived, "SHA256", "0" * 64)
    with pytest.raises(DataUnavailable) as caught:
        tfds_source.prepared_builder("archived", str(tmp_path))
    assert SHA256 in caught.value.message
    assert "0" * 64 in caught.value.message
    assert str(tmp_path / "downloads/manual") in caught.value.hint
    assert "network" not in caught.value.hint


def test_a_file_that_is_gone_is_told_as_that(tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the status of the answer."""
    monkeypatch.setattr(Archived, "URL", f"{url}/gone.zip")
    with pytest.raises(DataUnavailable, match="404") as caught:
        tfds_source.prepared_builder("archived", str(tmp_path))
    assert "does not give the file" in caught.value.hint
