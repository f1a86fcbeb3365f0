"""Real servers of object stores: MinIO for S3, Azurite for Azure, each for as long as a `with` block.

`environment` has the provider's variables for the server; `uri` is a bucket there.
"""

import base64
import hmac
import os
import shutil
from collections.abc import Mapping, Sequence
from email.utils import formatdate
from pathlib import Path
from typing import ClassVar, Self
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import pytest

from tests.ports import free_port
from tests.services import Service

REPOSITORY = Path(__file__).parent.parent
SERVICES = (REPOSITORY / ".services/bin", REPOSITORY / ".services/node_modules/.bin")
"""Where `make setup-services` puts what is no Debian package."""
BUCKET = "bucket"


def installed(name: str, builder: str) -> str:
    """The path of a server's program. Without it a test is skipped, also in CI: not every machine can build it."""
    found = shutil.which(name, path=os.pathsep.join([os.environ["PATH"], *map(str, SERVICES)]))
    if found is None:
        pytest.skip(f"{name} is not installed: `make setup-services` installs it where there is {builder}")
    return found


class StoreServer(Service):
    """A server of objects, with one bucket, in a folder."""

    uri: ClassVar[str]

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"

    def _make_bucket(self) -> None:
        """Once the server answers."""
        raise NotImplementedError

    @property
    def environment(self) -> Mapping[str, str]:
        raise NotImplementedError

    def use(self, monkeypatch: pytest.MonkeyPatch) -> Self:
        """Set its variables, and none of another server or account."""
        for name in [name for name in os.environ if name.startswith(("AWS_", "AZURE_"))]:
            monkeypatch.delenv(name)
        for name, value in self.environment.items():
            monkeypatch.setenv(name, value)
        return self

    def _is_ready(self) -> bool:
        try:
            urlopen(self.url, timeout=5)
        except HTTPError as error:
            if error.code >= 500:
                return False
        except URLError:
            return False
        self._make_bucket()
        return True


class Minio(StoreServer):
    """A server of the S3 protocol. A folder beside its objects is a bucket."""

    program = "minio"
    uri = f"s3://{BUCKET}"
    user, password = "thaw-tests", "a password of tests"

    def _command(self) -> Sequence[str]:
        address = f"127.0.0.1:{self.port}"
        return (installed(self.program, "go"), "server", str(self.folder / "objects"), "--address", address, "--quiet")

    def _variables(self) -> Mapping[str, str]:
        return {"MINIO_ROOT_USER": self.user, "MINIO_ROOT_PASSWORD": self.password, "MINIO_BROWSER": "off"}

    def _make_bucket(self) -> None:
        (self.folder / "objects" / BUCKET).mkdir()

    @property
    def environment(self) -> Mapping[str, str]:
        return {
            "AWS_ACCESS_KEY_ID": self.user,
            "AWS_SECRET_ACCESS_KEY": self.password,
            "AWS_ENDPOINT_URL": self.url,
        }


class Azurite(StoreServer):
    """Microsoft's emulator of Blob Storage, with its one account and the key that every copy has."""

    program = "azurite-blob"
    uri = f"az://{BUCKET}"
    account = "devstoreaccount1"
    key = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="

    def _command(self) -> Sequence[str]:
        return (
            installed(self.program, "npm"),
            "--blobHost", "127.0.0.1", "--blobPort", str(self.port), "--location", str(self.folder / "blobs"),
            "--silent", "--skipApiVersionCheck", "--disableTelemetry",
        )  # fmt: skip

    def _make_bucket(self) -> None:
        """One request, signed with the key: learn.microsoft.com/rest/api/storageservices/authorize-with-shared-key."""
        headers = {"x-ms-date": formatdate(usegmt=True), "x-ms-version": "2021-12-02"}
        place = f"{self.account}/{BUCKET}"
        signed = ["PUT", *[""] * 11, *(f"{key}:{value}" for key, value in sorted(headers.items()))]
        signed += [f"/{self.account}/{place}", "restype:container"]
        signature = hmac.new(base64.b64decode(self.key), "\n".join(signed).encode(), "sha256").digest()
        headers["Authorization"] = f"SharedKey {self.account}:{base64.b64encode(signature).decode()}"
        request = Request(f"{self.url}/{place}?restype=container", method="PUT", data=b"", headers=headers)
        # Or urllib would name one, which belongs to what is signed.
        request.add_unredirected_header("Content-Type", "")
        urlopen(request, timeout=10).close()

    @property
    def environment(self) -> Mapping[str, str]:
        return {
            "AZURE_STORAGE_ACCOUNT_NAME": self.account,
            "AZURE_STORAGE_ACCOUNT_KEY": self.key,
            "AZURE_STORAGE_ENDPOINT": f"{self.url}/{self.account}",
        }
