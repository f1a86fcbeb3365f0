"""Buckets of S3 and containers of Azure under faults, refusals and rivals: on MinIO and Azurite."""

import hashlib
import hmac
import json
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from urllib.request import Request, urlopen
from xml.etree import ElementTree

import obstore
import pytest

from job.errors import (
    AccessDenied,
    InputError,
    ObjectDamaged,
    ObjectMissing,
    PreconditionFailed,
    StorageError,
    StorageRefused,
)
from job.storage import MISSING, Digest, LocalStore, ObjectStore, s3_azure
from job.storage.probe import probe, try_conditional_writes
from job.storage.retrying import RetryingStore
from job.storage.s3_azure import S3AzureStore
from tests import services
from tests.conftest import REPOSITORY
from tests.fault_proxy import CORRUPT, FAULTS, OTHER_ETAG, SLOW, TRICKLE, TRUNCATED, WITHOUT_ETAG, Canned, FaultProxy
from tests.servers import BUCKET, Azurite, Minio, StoreServer

OLD, NEW = b"old bytes", b"new bytes, and more of them"
ENDPOINTS = {Minio: ("AWS_ENDPOINT_URL", ""), Azurite: ("AZURE_STORAGE_ENDPOINT", f"/{Azurite.account}")}


def digest(data: bytes) -> Digest:
    return Digest(len(data), hashlib.sha256(data).hexdigest())


def new_store(server: StoreServer, **limits: float) -> S3AzureStore:
    return S3AzureStore(f"{server.uri}/{secrets.token_hex(8)}", **limits)


@pytest.fixture(params=["minio", "azurite"])
def server(request: pytest.FixtureRequest) -> StoreServer:
    return request.getfixturevalue(request.param)


but_azurite_slowly = pytest.mark.parametrize(
    "server", ["minio", pytest.param("azurite", marks=pytest.mark.slow)], indirect=True
)
"""For what takes long, and is our own code more than the server's."""


@pytest.fixture
def proxy(server: StoreServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """A proxy in front of the server, which new stores go through."""
    variable, path = ENDPOINTS[type(server)]
    with FaultProxy(server.url, stall_seconds=4.0) as between:
        monkeypatch.setenv(variable, between.url + path)
        yield between


@pytest.fixture
def s3_proxy(minio: Minio, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    with FaultProxy(minio.url) as between:
        monkeypatch.setenv("AWS_ENDPOINT_URL", between.url)
        yield between


def file_of(folder: Path, data: bytes) -> Path:
    path = folder / "source"
    path.write_bytes(data)
    return path


CALLS: dict[str, tuple[str, Callable[[S3AzureStore, str, Path], Any]]] = {
    "read": ("GET", lambda store, version, folder: store.read("a")),
    "download": ("GET", lambda store, version, folder: store.download("a", folder / "target")),
    "holds": ("GET", lambda store, version, folder: store.holds("a", OLD)),
    "version": ("HEAD", lambda store, version, folder: store.version("a")),
    "list": ("GET", lambda store, version, folder: store.list("")),
    "folders": ("GET", lambda store, version, folder: store.folders()),
    "write": ("PUT", lambda store, version, folder: store.write("a", NEW, if_version=version)),
    "upload": ("PUT", lambda store, version, folder: store.upload("a", file_of(folder, NEW), if_version=version)),
    "delete": ("", lambda store, version, folder: store.delete("a")),
}
"""Each method, with that of its request; a batch of Azure deletes by POST."""


@pytest.mark.parametrize(
    ("call", "fault"),
    [
        pytest.param(call, fault, marks=() if call == "write" or fault == "503 before" else pytest.mark.slow)
        for call in CALLS
        for fault in FAULTS
    ],
)
def test_a_fault_of_the_moment_is_no_refusal_and_the_object_is_old_or_new(
    server: StoreServer, proxy: FaultProxy, tmp_path: Path, call: str, fault: str
) -> None:
    """One request is made, and its status is known; whoever calls tries again."""
    store = new_store(server)
    version = store.write("a", OLD, if_version=MISSING)
    method, act = CALLS[call]
    proxy.fail(fault, method=method)
    before = len(proxy.requests)
    limits = {"timeout_seconds": 1.0, "file_timeout_seconds": 1.0} if fault == "stall" else {}
    with pytest.raises(StorageError) as caught:
        act(S3AzureStore(store.uri, **limits), version, tmp_path)
    assert type(caught.value) is StorageError, caught.value
    assert caught.value.code == (fault[:3] if fault[:3].isdigit() else "error")
    assert ("Timeout" in caught.value.message) == (fault == "stall")
    assert len(proxy.requests) == before + 1
    assert caught.value.hint
    is_done = fault.endswith("after")
    if call == "delete":
        assert store.list("") == ([] if is_done else ["a"])
    else:
        assert store.read("a").data == (NEW if is_done and method == "PUT" else OLD)


@pytest.mark.slow
def test_a_file_may_take_long_to_come_and_no_longer_silence(
    server: StoreServer, proxy: FaultProxy, tmp_path: Path
) -> None:
    """A small object may not: its limit is for all of it."""
    store = new_store(server)
    store.write("a", OLD, if_version=MISSING)
    store = S3AzureStore(store.uri, timeout_seconds=2.4, file_timeout_seconds=2.4)
    proxy.fail(TRICKLE, method="GET")
    began = time.monotonic()
    assert store.download("a", tmp_path / "target") == digest(OLD)
    assert time.monotonic() - began > 2.4
    proxy.fail(TRICKLE, method="GET")
    with pytest.raises(StorageError):
        store.read("a")


@pytest.mark.slow
def test_a_file_may_take_the_longer_to_go_the_larger_it_is(
    server: StoreServer, proxy: FaultProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing tells the client how far it is."""
    source = file_of(tmp_path, NEW)
    proxy.fail(SLOW, method="PUT")
    with pytest.raises(StorageError, match="Timeout"):
        new_store(server, file_timeout_seconds=0.5).upload("a", source, if_version=MISSING)
    monkeypatch.setattr(s3_azure, "SLOWEST_BYTES_PER_SECOND", 1)
    proxy.fail(SLOW, method="PUT")
    new_store(server, file_timeout_seconds=0.5).upload("a", source, if_version=MISSING)


@pytest.mark.parametrize("call", ["read", "download", "holds", "list", "folders"])
def test_half_an_answer_is_a_fault_of_the_moment(
    server: StoreServer, proxy: FaultProxy, tmp_path: Path, call: str
) -> None:
    """A connection that breaks off is not the end of an object."""
    store = new_store(server)
    version = store.write("a", OLD, if_version=MISSING)
    proxy.fail(TRUNCATED, method="GET")
    with pytest.raises(StorageError) as caught:
        CALLS[call][1](store, version, tmp_path)
    assert type(caught.value) is StorageError


@pytest.mark.parametrize("call", ["read", "download"])
def test_bytes_that_were_altered_on_their_way_here_are_damage(
    server: StoreServer, proxy: FaultProxy, tmp_path: Path, call: str
) -> None:
    """They are compared with the SHA-256 that was written with the object; the next time they are right."""
    store = new_store(server)
    store.write("a", OLD, if_version=MISSING)
    proxy.fail(CORRUPT, method="GET")
    with pytest.raises(ObjectDamaged, match=digest(OLD).sha256) as caught:
        CALLS[call][1](store, "", tmp_path)
    assert caught.value.code == "damaged"
    assert store.read("a").data == OLD


@pytest.mark.parametrize("call", ["write", "upload"])
def test_bytes_that_were_altered_on_their_way_there_are_damage(
    server: StoreServer, proxy: FaultProxy, tmp_path: Path, call: str
) -> None:
    """S3 refuses them, and the old ones stay; Azure takes them, which is noticed when they are read back."""
    store = new_store(server)
    version = store.write("a", OLD, if_version=MISSING)
    proxy.fail(CORRUPT, method="PUT")
    with pytest.raises(ObjectDamaged):
        CALLS[call][1](store, version, tmp_path)
    if isinstance(server, Minio):
        assert store.read("a").data == OLD
    else:
        with pytest.raises(ObjectDamaged):
            store.read("a")
    assert store.holds("a", NEW) is None


@pytest.mark.parametrize("call", ["write", "upload"])
@pytest.mark.parametrize("is_new", [True, False])
def test_bytes_that_were_altered_on_their_way_there_are_sent_again(
    server: StoreServer, proxy: FaultProxy, tmp_path: Path, call: str, is_new: bool
) -> None:
    """Otherwise the record of a run could never be read again."""
    store = RetryingStore(new_store(server), first_delay_seconds=0.01)
    version = MISSING if is_new else store.write("a", OLD, if_version=MISSING)
    proxy.fail(CORRUPT, method="PUT", times=2)
    done = CALLS[call][1](store, version, tmp_path)
    assert store.read("a").data == NEW
    assert done == (store.version("a") if call == "write" else digest(NEW))


def test_a_write_whose_answer_was_lost_is_found_by_its_bytes(server: StoreServer, proxy: FaultProxy) -> None:
    """The second try is refused, and `holds` says that the first had succeeded."""
    store = new_store(server)
    proxy.fail("reset after", method="PUT")
    with pytest.raises(StorageError):
        store.write("a", NEW, if_version=MISSING)
    with pytest.raises(PreconditionFailed):
        store.write("a", NEW, if_version=MISSING)
    assert store.holds("a", NEW) == store.read("a").version
    assert store.holds("a", OLD) is None
    assert store.holds("a", NEW[:-1] + b"!") is None
    assert store.holds("b", NEW) is None


def test_the_version_of_a_write_is_right_also_when_its_answer_has_another(
    server: StoreServer, proxy: FaultProxy
) -> None:
    """The object is read back; an answer without any is not understood."""
    store = new_store(server)
    proxy.fail(OTHER_ETAG, method="PUT")
    version = store.write("a", OLD, if_version=MISSING)
    assert version == store.version("a")
    proxy.fail(WITHOUT_ETAG, method="PUT")
    with pytest.raises(StorageError, match=r"(?i)\betag\b") as caught:
        store.write("a", NEW, if_version=version)
    assert type(caught.value) is StorageError


@pytest.mark.parametrize("rival", ["write", "delete"])
def test_a_write_that_a_rival_replaces_before_it_is_confirmed_was_done(
    azurite: Azurite, monkeypatch: pytest.MonkeyPatch, rival: str
) -> None:
    """The rival has read it. What a rival removed is not there: it is written again."""
    other = new_store(azurite)

    def act() -> None:
        if rival == "delete":
            other.delete("a")
        else:
            other.write("a", NEW, if_version=other.version("a"))

    with FaultProxy(azurite.url) as between:
        monkeypatch.setenv("AZURE_STORAGE_ENDPOINT", f"{between.url}/{azurite.account}")
        between.fail(act, method="PUT")
        store = RetryingStore(S3AzureStore(other.uri), first_delay_seconds=0.01)
        version = store.write("a", OLD, if_version=MISSING)
    assert (other.read("a").data, other.version("a") == version) == ((OLD, True) if rival == "delete" else (NEW, False))


XML = "<Error><Code>{}</Code><Message>{}</Message></Error>"


@pytest.mark.parametrize(
    ("answer", "error", "named"),
    [
        (Canned(301), StorageRefused, "AWS_REGION"),
        (
            Canned(400, XML.format("AuthorizationHeaderMalformed", "expecting 'eu'")),
            StorageRefused,
            "AWS_REGION",
        ),
        (Canned(400, XML.format("RequestTimeout", "Your socket was idle")), StorageError, "nothing is lost"),
        (Canned(400, XML.format("ExpiredToken", "The token has expired")), AccessDenied, "credentials"),
        (Canned(401), AccessDenied, "credentials"),
        (Canned(403, XML.format("AccessDenied", "Access Denied")), AccessDenied, "s3:PutObject"),
        (Canned(404, XML.format("NoSuchBucket", "It does not exist")), StorageRefused, "THAW_STORAGE_URI"),
        (Canned(408), StorageError, "nothing is lost"),
        (Canned(409, XML.format("ConditionalRequestConflict", "Try again")), StorageError, "nothing is lost"),
        (Canned(412, XML.format("PreconditionFailed", "No")), PreconditionFailed, ""),
        (Canned(500, "<html>not XML"), StorageError, "nothing is lost"),
        (Canned(501, XML.format("NotImplemented", "A header is not implemented")), StorageRefused, "AWS_ENDPOINT_URL"),
    ],
)
@pytest.mark.parametrize("if_version", [MISSING, "0123456789abcdef0123456789abcdef"])
def test_each_answer_to_a_write_is_a_refusal_a_conflict_or_a_fault_of_the_moment(
    s3_proxy: FaultProxy, answer: Canned, error: type[StorageError], named: str, if_version: str
) -> None:
    """By its status and the code in its body; the hint says what a person does."""
    store = S3AzureStore(Minio.uri)
    s3_proxy.fail(answer, method="PUT")
    with pytest.raises(StorageError) as caught:
        store.write("a", NEW, if_version=if_version)
    assert type(caught.value) is error, caught.value
    assert named in caught.value.hint
    assert caught.value.code == (str(answer.status) if answer.status != 301 else "refused")


def listing(*keys: str) -> Canned:
    contents = "".join(
        f"<Contents><Key>{key}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
        f"<ETag>&quot;{number}&quot;</ETag><Size>{0 if key.endswith('/') else 1}</Size></Contents>"
        for number, key in enumerate(keys)
    )
    return Canned(200, f"<ListBucketResult><KeyCount>{len(keys)}</KeyCount>{contents}</ListBucketResult>")


def test_a_folder_of_a_console_is_no_object(s3_proxy: FaultProxy) -> None:
    """It is an object without bytes, whose name ends with a slash."""
    s3_proxy.fail(listing("runs/model/", "runs/model/a", "runs/model/b/", "runs/model/b/c"))
    assert S3AzureStore("s3://bucket/runs").list("") == ["model/a", "model/b/c"]


def test_a_listing_with_names_that_cannot_be_names_is_refused(s3_proxy: FaultProxy) -> None:
    """As a whole, with the name: it would be another object's. What lies elsewhere is a fault of the answer."""
    s3_proxy.fail(listing("runs/a//b"))
    with pytest.raises(StorageRefused, match="a//b") as caught:
        S3AzureStore("s3://bucket/runs").list("")
    assert "rename" in caught.value.hint
    s3_proxy.fail(listing("others/a"))
    with pytest.raises(StorageError, match="others/a"):
        S3AzureStore("s3://bucket/runs").list("")


def test_a_listing_that_is_not_understood_is_not_an_empty_bucket(s3_proxy: FaultProxy) -> None:
    """The client takes XML of another kind for an empty listing (obstore 0.12): it is requested again."""
    remote = S3AzureStore(f"s3://{BUCKET}/{secrets.token_hex(8)}")
    store = RetryingStore(remote)
    store.write("x/a", b"", if_version=MISSING)
    for ask, found in ((lambda: store.list(""), ["x/a"]), (store.folders, ["x"])):
        s3_proxy.fail(Canned(200, XML.format("SlowDown", "Slow down")), method="GET")
        assert ask() == found
    s3_proxy.fail(Canned(200, "half an ans"), method="GET")
    with pytest.raises(StorageError):
        remote.list("")


def test_objects_carry_their_checksum_and_their_kind(server: StoreServer, tmp_path: Path) -> None:
    """Other programs can check them too."""
    store = new_store(server)
    store.write("run.json", b"{}", if_version=MISSING)
    store.upload("model", file_of(tmp_path, NEW), if_version=MISSING)
    prefix = store.uri.rpartition("/")[2]
    for name, data, kind in (("run.json", b"{}", "application/json"), ("model", NEW, "application/octet-stream")):
        attributes = obstore.get(store.client, f"{prefix}/{name}").attributes
        assert attributes == {"sha256": digest(data).sha256, "Content-Type": kind}


@pytest.mark.parametrize("stated", ["", "no SHA-256"])
def test_what_another_program_wrote_is_read_and_verified(
    server: StoreServer, proxy: FaultProxy, tmp_path: Path, stated: str
) -> None:
    """By its ETag on S3; on Azure it is fetched twice, and both have to be the same."""
    store = new_store(server)
    path = f"{store.uri.rpartition('/')[2]}/a"
    obstore.put(store.client, path, OLD, attributes={"sha256": stated} if stated else None)
    proxy.requests.clear()
    assert store.read("a").data == OLD
    assert len(proxy.requests) == (1 if isinstance(server, Minio) else 2)
    proxy.fail(CORRUPT, method="GET")
    with pytest.raises(ObjectDamaged, match="in two ways"):
        store.download("a", tmp_path / "target")


def test_an_object_with_the_checksum_of_other_bytes_is_damaged(server: StoreServer, tmp_path: Path) -> None:
    """Each time, and not only on its way."""
    store = new_store(server)
    obstore.put(store.client, f"{store.uri.rpartition('/')[2]}/a", OLD, attributes={"sha256": digest(NEW).sha256})
    for _ in range(2):
        with pytest.raises(ObjectDamaged, match="is damaged"):
            store.download("a", tmp_path / "target")
    assert store.holds("a", OLD) is None


def test_a_missing_bucket_is_refused_and_no_missing_object(server: StoreServer, tmp_path: Path) -> None:
    """Also where the answer has no body that says so."""
    store = S3AzureStore(f"{server.uri.partition(':')[0]}://no-such-bucket/runs")
    for method, act in CALLS.values():
        with pytest.raises(StorageRefused) as caught:
            act(store, MISSING, tmp_path)
        assert "THAW_STORAGE_URI" in caught.value.hint, method


def test_a_wrong_key_is_refused_and_not_shown(
    server: StoreServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither in the message nor in the hint, nor what signs the request."""
    secret = "c2VjcmV0IG9mIHRoZSB0ZXN0cw=="
    name = "AWS_SECRET_ACCESS_KEY" if isinstance(server, Minio) else "AZURE_STORAGE_ACCOUNT_KEY"
    monkeypatch.setenv(name, secret)
    store = new_store(server)
    for method, act in CALLS.values():
        with pytest.raises(StorageRefused) as caught:
            act(store, MISSING, tmp_path)
        shown = caught.value.message + caught.value.hint + str(caught.value.__cause__)
        assert secret not in shown
        assert "Signature=" not in shown
        assert caught.value.code == "403", method


def test_a_signature_in_a_url_is_not_shown(azurite: Azurite, monkeypatch: pytest.MonkeyPatch) -> None:
    """That of Azure, which is a part of every URL."""
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_KEY")
    monkeypatch.setenv("AZURE_STORAGE_SAS_TOKEN", "sv=2021-12-02&sig=c2VjcmV0")
    with pytest.raises(StorageRefused) as caught:
        new_store(azurite).list("")
    assert "c2VjcmV0" not in caught.value.message + caught.value.hint + str(caught.value.__cause__)


@pytest.mark.parametrize("uri", ["s3://bucket/runs", "az://bucket/runs"])
def test_without_credentials_a_store_is_refused_at_once(uri: str, server: StoreServer, monkeypatch: Any) -> None:
    """It names the variables, and searches for no server of credentials; a half is none."""
    for name in server.environment:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "half")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "half")
    with pytest.raises(StorageRefused, match=f"no credentials for {uri[:11]}") as caught:
        S3AzureStore(uri)
    assert ("AWS_SECRET_ACCESS_KEY" if uri.startswith("s3") else "AZURE_STORAGE_ACCOUNT_KEY") in caught.value.message
    assert "in a cluster" in caught.value.hint


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("AWS_ENDPOINT_URL", "", "AWS_ENDPOINT_URL is set to an empty value"),
        ("AWS_REGION", " ", "AWS_REGION is set to an empty value"),
        ("AWS_ENDPOINT_URL_S3", "minio:9000", "AWS_ENDPOINT_URL_S3='minio:9000' is no URL"),
        ("AWS_CA_BUNDLE", "/no/such/file", "AWS_CA_BUNDLE='/no/such/file' cannot be read: No such file"),
    ],
)
def test_variables_that_cannot_be_meant_are_refused(
    minio: Minio, monkeypatch: pytest.MonkeyPatch, name: str, value: str, text: str
) -> None:
    """The client would fail on some of them without an error of its own (obstore 0.12)."""
    monkeypatch.setenv(name, value)
    with pytest.raises(StorageRefused, match=text) as caught:
        S3AzureStore(minio.uri)
    assert caught.value.hint


def test_a_key_that_is_no_key_is_refused_and_not_shown(azurite: Azurite, monkeypatch: pytest.MonkeyPatch) -> None:
    """Azure's are base64."""
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", "a secret")
    with pytest.raises(StorageRefused, match="Invalid Access Key") as caught:
        S3AzureStore(azurite.uri)
    assert "a secret" not in caught.value.message + caught.value.hint


def test_the_names_of_azures_own_tools_are_read_too(azurite: Azurite, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of its command line."""
    for name, other in (
        ("AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_ACCOUNT"),
        ("AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_KEY"),
    ):
        monkeypatch.setenv(other, azurite.environment[name])
        monkeypatch.delenv(name)
    assert new_store(azurite).list("") == []


def only_env(monkeypatch: pytest.MonkeyPatch, minio: Minio, **variables: str) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


def test_eks_pod_identity_gives_credentials(minio: Minio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a server in the node, which is shown a token."""
    (tmp_path / "token").write_text("token")
    given = {
        "AccessKeyId": minio.user,
        "SecretAccessKey": minio.password,
        "Token": "",
        "Expiration": "2099-01-01T00:00:00Z",
    }
    with FaultProxy("http://127.0.0.1:9") as agent:
        agent.fail(Canned(200, json.dumps(given)), method="GET", times=9)
        only_env(
            monkeypatch,
            minio,
            AWS_CONTAINER_CREDENTIALS_FULL_URI=f"{agent.url}/v1/credentials",
            AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE=str(tmp_path / "token"),
        )
        assert new_store(minio).write("a", OLD, if_version=MISSING) == hashlib.md5(OLD).hexdigest()
        assert agent.requests[0] == ("GET", "/v1/credentials")


ASSUMED = """<AssumeRoleWithWebIdentityResponse><AssumeRoleWithWebIdentityResult><Credentials>
<SessionToken></SessionToken><SecretAccessKey>{}</SecretAccessKey><Expiration>2099-01-01T00:00:00Z</Expiration>
<AccessKeyId>{}</AccessKeyId></Credentials></AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>"""


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return services.certificate(tmp_path_factory.mktemp("tls"))


def test_a_role_of_a_service_account_gives_credentials(
    minio: Minio, certificate: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """IRSA; without its token, or when the role is refused, a person has to change something."""
    (tmp_path / "token").write_text("token of the pod")
    with FaultProxy("http://127.0.0.1:9", certificate=certificate) as sts:
        only_env(
            monkeypatch,
            minio,
            AWS_ROLE_ARN="arn:aws:iam::1:role/thaw",
            AWS_WEB_IDENTITY_TOKEN_FILE=str(tmp_path / "token"),
            AWS_ENDPOINT_URL_STS=sts.url,
            SSL_CERT_FILE=str(certificate),
        )
        store = new_store(minio)
        sts.fail(Canned(403, XML.format("AccessDenied", "Not authorized to perform sts:AssumeRoleWithWebIdentity")))
        with pytest.raises(StorageRefused, match="AssumeRoleWithWebIdentity") as caught:
            store.list("")
        assert "token of the pod" not in caught.value.message + str(caught.value.__cause__)
        sts.fail(Canned(503))
        with pytest.raises(StorageError) as caught:
            store.list("")
        assert type(caught.value) is StorageError
        sts.fail(Canned(200, ASSUMED.format(minio.password, minio.user)))
        assert store.list("") == []
        monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", "/no/such/token")
        with pytest.raises(StorageRefused, match="/no/such/token"):
            new_store(minio).list("")


@pytest.mark.parametrize("variable", ["AWS_CA_BUNDLE", "SSL_CERT_FILE"])
def test_a_server_with_a_certificate_of_ones_own_is_trusted_where_that_is_named(
    minio: Minio, certificate: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    """And refused elsewhere: whoever it is, it may be another."""
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    with FaultProxy(minio.url, certificate=certificate) as tls:
        monkeypatch.setenv("AWS_ENDPOINT_URL", tls.url)
        with pytest.raises(StorageRefused, match="certificate") as caught:
            new_store(minio).list("")
        assert "AWS_CA_BUNDLE" in caught.value.hint
        monkeypatch.setenv(variable, str(certificate))
        assert new_store(minio).list("") == []


def session(minio: Minio, *actions: str) -> dict[str, str]:
    """Credentials of MinIO that allow only these actions: AssumeRole of STS, signed by hand (Signature Version 4)."""
    policy = {
        "Version": "2012-10-17",
        "Statement": [{"Effect": "Allow", "Action": actions, "Resource": "arn:aws:s3:::*"}],
    }
    body = urlencode({"Action": "AssumeRole", "Version": "2011-06-15", "Policy": json.dumps(policy)}).encode()
    now = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    scope = f"{now[:8]}/us-east-1/sts/aws4_request"
    headers = {"host": minio.url.removeprefix("http://"), "x-amz-date": now}
    hashed = hashlib.sha256(body).hexdigest()
    shown = [f"{key}:{value}" for key, value in headers.items()]
    canonical = "\n".join(["POST", "/", "", *shown, "", ";".join(headers), hashed])
    signed = f"AWS4-HMAC-SHA256\n{now}\n{scope}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
    key = f"AWS4{minio.password}".encode()
    for part in (*scope.split("/"), signed):
        key = hmac.digest(key, part.encode(), "sha256")
    headers["Authorization"] = (
        f"AWS4-HMAC-SHA256 Credential={minio.user}/{scope}, SignedHeaders={';'.join(headers)}, Signature={key.hex()}"
    )
    answer = ElementTree.fromstring(urlopen(Request(minio.url, data=body, headers=headers), timeout=10).read())
    found = {tag: answer.findtext(f".//{{*}}{tag}", "") for tag in ("AccessKeyId", "SecretAccessKey", "SessionToken")}
    names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
    return dict(zip(names, found.values(), strict=True))


def test_a_missing_permission_is_refused_and_named(minio: Minio, monkeypatch: pytest.MonkeyPatch) -> None:
    """The account of this session may read and write, but not delete; its credentials are never shown."""
    credentials = session(minio, "s3:GetObject", "s3:PutObject", "s3:ListBucket")
    for name, value in credentials.items():
        monkeypatch.setenv(name, value)
    store = new_store(minio)
    store.write("a", OLD, if_version=MISSING)
    assert store.list("") == ["a"]
    with pytest.raises(StorageRefused, match="HTTP 403 AccessDenied") as caught:
        store.delete("a")
    assert "s3:DeleteObject" in caught.value.hint
    shown = caught.value.message + caught.value.hint + str(caught.value.__cause__)
    assert not [name for name, value in credentials.items() if value in shown]
    assert store.read("a").data == OLD


def test_a_request_without_a_signature_is_sent_where_that_is_asked_for(minio: Minio, monkeypatch: Any) -> None:
    """For public buckets; this one is none."""
    only_env(monkeypatch, minio, AWS_SKIP_SIGNATURE="true")
    with pytest.raises(StorageRefused, match="HTTP 403 AccessDenied"):
        new_store(minio).read("a")


@but_azurite_slowly
def test_of_writers_that_race_exactly_one_wins(server: StoreServer) -> None:
    """Eight count to ten each, and no count is lost; then eight create the same object."""
    store = new_store(server)
    store.write("counter", b"0", if_version=MISSING)
    created: list[int] = []

    def count(number: int) -> None:
        for _ in range(10):
            while True:
                stored = store.read("counter")
                try:
                    store.write("counter", str(int(stored.data) + 1).encode(), if_version=stored.version)
                    break
                except PreconditionFailed:
                    pass
        try:
            store.write("created", str(number).encode(), if_version=MISSING)
            created.append(number)
        except PreconditionFailed:
            pass

    threads = [threading.Thread(target=count, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.read("counter").data == b"80"
    assert [store.read("created").data] == [str(number).encode() for number in created]


@pytest.mark.parametrize("name", ["../a", "/etc/passwd", "a//b", "a/", "", "a\nb"])
def test_a_name_that_would_be_another_objects_is_refused(minio: Minio, name: str) -> None:
    """The client would correct some of them."""
    for ask in (new_store(minio).read, new_store(minio).version, new_store(minio).delete):
        with pytest.raises(StorageRefused, match="not a safe name"):
            ask(name)


def test_a_store_sees_nothing_beside_its_prefix(server: StoreServer) -> None:
    """Also of a name that begins with it; the whole bucket is a store too."""
    store = new_store(server)
    beside = S3AzureStore(f"{store.uri}-2")
    beside.write("x/a", b"", if_version=MISSING)
    assert (store.list(""), store.folders(), beside.list(""), beside.folders()) == ([], [], ["x/a"], ["x"])
    folder = beside.uri.rpartition("/")[2]
    assert f"{folder}/x/a" in S3AzureStore(server.uri).list(folder)
    assert folder in S3AzureStore(server.uri).folders()


def test_a_file_that_one_request_cannot_carry_is_refused(
    minio: Minio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its size and the limit; nothing is sent."""
    monkeypatch.setattr(s3_azure, "LARGEST_BYTES", len(NEW) - 1)
    store = new_store(minio)
    with pytest.raises(StorageRefused, match=f"/a would have {len(NEW)} bytes: expected at most {len(NEW) - 1}"):
        store.upload("a", file_of(tmp_path, NEW), if_version=MISSING)
    assert store.list("") == []


MOVE_A_FILE = """
import sys, threading, time
from pathlib import Path
from job.storage.s3_azure import S3AzureStore

def anonymous_kb():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon"))

peak, uri, folder = [0], sys.argv[1], Path(sys.argv[2])
def sample():
    while True:
        peak[0] = max(peak[0], anonymous_kb())
        time.sleep(0.005)
store = S3AzureStore(uri)
before = anonymous_kb()
threading.Thread(target=sample, daemon=True).start()
store.upload("big", folder / "big", if_version="")
store.download("big", folder / "back")
print((peak[0] - before) // 1024)
"""


@pytest.mark.slow
def test_a_large_file_is_never_in_memory(server: StoreServer, tmp_path: Path) -> None:
    """Neither on its way there, nor when it is read back, nor on its way here."""
    with (tmp_path / "big").open("wb") as file:
        for _ in range(300):
            file.write(secrets.token_bytes(1 << 20))
    command = [sys.executable, "-c", MOVE_A_FILE, f"{server.uri}/{secrets.token_hex(8)}", str(tmp_path)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 100
    assert (tmp_path / "back").read_bytes() == (tmp_path / "big").read_bytes()


class Forgetful:
    """A store that takes no notice of one kind of condition."""

    def __init__(self, store: ObjectStore, *, missing: bool) -> None:
        self._store = store
        self._missing = missing
        self.uri = store.uri

    def write(self, name: str, data: bytes, *, if_version: str) -> str:
        if (if_version == MISSING) == self._missing:
            if_version = self._store.version(name)
        return self._store.write(name, data, if_version=if_version)

    def delete(self, name: str) -> None:
        self._store.delete(name)


@pytest.mark.parametrize(("missing", "header"), [(True, "If-None-Match"), (False, "If-Match")])
def test_a_store_without_conditional_writes_is_refused(tmp_path: Path, missing: bool, header: str) -> None:
    """It names the header that was not honoured, and stores that do; nothing is left."""
    store = LocalStore(tmp_path)
    with pytest.raises(InputError, match=f"does not honour conditional writes.* {header}") as caught:
        try_conditional_writes(Forgetful(store, missing=missing))
    assert "MinIO" in caught.value.hint
    assert store.list("") == []


def test_a_store_with_conditional_writes_passes_the_trial(server: StoreServer) -> None:
    """And has nothing in it afterwards."""
    store = new_store(server)
    try_conditional_writes(store)
    probe(store)
    assert store.list("") == []
    with pytest.raises(ObjectMissing):
        store.age_seconds("a")
