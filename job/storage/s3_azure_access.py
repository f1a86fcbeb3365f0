"""The client of an S3 bucket or an Azure container: its address and its credentials, from the provider's own variables.

obstore reads nearly all of them itself (0.12; the page of each provider's `config` in its documentation lists them).
Here is what it lacks: other names of a variable, plain HTTP, certificates, and an error instead of minutes in search of
a metadata server where there are no credentials.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeAlias

from obstore.exceptions import BaseError
from obstore.store import AzureStore, S3Store

from job.errors import AccessDenied, StorageRefused
from job.storage.s3_azure_errors import Hints, reason

CONNECT = timedelta(seconds=10)
CERTIFICATES = "AWS_CA_BUNDLE"
"""A file of certificates, in PEM, that are trusted besides those of the system. obstore reads SSL_CERT_FILE itself."""

Client: TypeAlias = S3Store | AzureStore


@dataclass(frozen=True)
class Provider:
    """What differs from one provider to the other, where obstore leaves a difference."""

    client: type[Client]
    hints: Hints
    credentials: tuple[tuple[str, ...], ...]
    """Groups of variables: each group is enough to sign requests, or to get the credentials for that."""
    endpoints: tuple[str, ...]
    """Variables with the URL of the server, the first that is set counts."""
    endpoint: str
    """The client's own setting of it, which comes before those of the variables."""
    others: Mapping[str, str]
    """Variables that the client does not read, and its setting for each."""
    more: tuple[str, ...]
    """More variables that count."""
    config: Mapping[str, Any]
    states_md5: bool
    """Whether the ETag of an object is the MD5 of its bytes, unless it is encrypted with a key of KMS."""


PROVIDERS = {
    "s3": Provider(
        client=S3Store,
        hints=Hints(
            credentials="give this process credentials: IRSA or EKS Pod Identity in a cluster, or AWS_ACCESS_KEY_ID "
            'with AWS_SECRET_ACCESS_KEY; on a desk: eval "$(aws configure export-credentials --format env)"',
            permissions="to {action} in bucket {bucket} was denied: the identity of this process needs s3:GetObject, "
            "s3:PutObject and s3:DeleteObject on its objects, s3:ListBucket on the bucket, and with a key of KMS "
            "kms:GenerateDataKey and kms:Decrypt",
            address="check AWS_REGION, which has to be that of the bucket, and AWS_ENDPOINT_URL",
        ),
        credentials=(
            ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"),
            ("AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_ROLE_ARN"),
            ("AWS_CONTAINER_CREDENTIALS_FULL_URI", "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"),
            ("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",),
            # The role of the node, only where somebody asks for it: elsewhere its server is searched for a minute.
            ("AWS_METADATA_ENDPOINT",),
            ("AWS_SKIP_SIGNATURE",),
        ),
        endpoints=("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"),
        endpoint="aws_endpoint_url_s3",
        others={},
        more=("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_SESSION_TOKEN", CERTIFICATES),
        # Deleting one object is one plain request, which every server of the protocol knows.
        config={"checksum_algorithm": "SHA256", "disable_bulk_delete": True},
        states_md5=True,
    ),
    "az": Provider(
        client=AzureStore,
        hints=Hints(
            credentials="give this process credentials: Workload Identity in a cluster (AZURE_CLIENT_ID, "
            "AZURE_TENANT_ID, AZURE_FEDERATED_TOKEN_FILE), AZURE_STORAGE_ACCOUNT_KEY, or AZURE_STORAGE_SAS_TOKEN",
            permissions="to {action} in container {bucket} was denied: the identity of this process needs the role "
            "Storage Blob Data Contributor on it",
            address="check AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ENDPOINT",
        ),
        credentials=(
            ("AZURE_STORAGE_ACCOUNT_KEY",), ("AZURE_STORAGE_ACCESS_KEY",), ("AZURE_STORAGE_KEY",),
            ("AZURE_STORAGE_SAS_TOKEN",), ("AZURE_STORAGE_SAS_KEY",), ("AZURE_STORAGE_TOKEN",),
            ("AZURE_CLIENT_ID", "AZURE_TENANT_ID", "AZURE_FEDERATED_TOKEN_FILE"),
            ("AZURE_CLIENT_ID", "AZURE_TENANT_ID", "AZURE_CLIENT_SECRET"),
            # The identity of the node, or of the Azure CLI, only where somebody asks for it.
            ("AZURE_MSI_ENDPOINT",), ("AZURE_IDENTITY_ENDPOINT",), ("AZURE_CREDENTIAL_TYPE",), ("AZURE_USE_AZURE_CLI",),
            ("AZURE_STORAGE_USE_EMULATOR",), ("AZURE_SKIP_SIGNATURE",),
        ),
        endpoints=("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT"),
        endpoint="endpoint",
        others={"AZURE_STORAGE_ACCOUNT": "account_name", "AZURE_STORAGE_KEY": "account_key"},
        more=("AZURE_STORAGE_ACCOUNT_NAME",),
        config={},
        states_md5=False,
    ),
}  # fmt: skip
"""By the scheme of a URI."""


def connect(scheme: str, bucket: str, *, timeout: timedelta, read_timeout: timedelta) -> Client:
    """A client that tries each request once. `timeout` is for a request and its answer, `read_timeout` for silence.

    Nothing is requested yet. Raises StorageRefused when the variables cannot be used, or there are no credentials.
    """
    provider = PROVIDERS[scheme]
    given = _given(provider, os.environ)
    if not any(all(name in given for name in group) for group in provider.credentials):
        names = " or ".join(" with ".join(group) for group in provider.credentials)
        raise AccessDenied(
            f"there are no credentials for {scheme}://{bucket}: none of the variables {names} is set",
            hint=provider.hints.credentials,
        )
    config = {**provider.config, **{its: given[name] for name, its in provider.others.items() if name in given}}
    limits = {"timeout": timeout, "read_timeout": read_timeout, "connect_timeout": min(timeout, CONNECT)}
    options: dict[str, Any] = dict(limits)
    name = next((name for name in provider.endpoints if name in given), "")
    if name:
        config[provider.endpoint] = _checked_url(name, given[name])
        options["allow_http"] = given[name].startswith("http://")
    if CERTIFICATES in given:
        options["root_certificate"] = _certificates(given[CERTIFICATES])
    try:
        return provider.client(bucket, config=config, client_options=options, retry_config={"max_retries": 0})
    except (BaseError, ValueError) as error:
        raise StorageRefused(
            f"cannot open {scheme}://{bucket}: {reason(error)}", hint=provider.hints.address
        ) from error


def _given(provider: Provider, environ: Mapping[str, str]) -> dict[str, str]:
    """The provider's variables that are set. Raises StorageRefused for one without a value: obstore would take it."""
    names = {*provider.endpoints, *provider.others, *provider.more}.union(*provider.credentials)
    given = {name: environ[name] for name in sorted(names) if name in environ}
    for name, value in given.items():
        if not value.strip():
            raise StorageRefused(f"{name} is set to an empty value", hint=f"unset {name}, or give it a value")
    return given


def _checked_url(name: str, url: str) -> str:
    if not url.startswith(("http://", "https://")):
        raise StorageRefused(f"{name}={url!r} is no URL", hint="begin it with https:// or http://")
    return url


def _certificates(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        failed = f"{CERTIFICATES}={path!r} cannot be read: {error.strerror}"
        raise StorageRefused(failed, hint="name a file of certificates in PEM") from error
