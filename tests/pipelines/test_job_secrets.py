"""Command lines that hold credentials are found out; all others pass."""

import pytest

from pipelines.job_secrets import refuse_credentials
from vcinr_batch.errors import ConfigError

CANARY = "c4nary-Value/9"
STORAGE = "--storage-options"

WITH_CREDENTIALS = {
    "key": [STORAGE, f'{{"key": "{CANARY}"}}'],
    "secret": [STORAGE, f'{{"anon": false, "secret": "{CANARY}"}}'],
    "session token": [STORAGE, f'{{"token": "{CANARY}"}}'],
    "password": [STORAGE, f'{{"username": "me", "password": "{CANARY}"}}'],
    "nested": [STORAGE, f'{{"client_kwargs": {{"aws_secret_access_key": "{CANARY}"}}}}'],
    "in a list": [STORAGE, f'{{"layers": [{{"account_key": "{CANARY}"}}]}}'],
    "an object of them": [STORAGE, f'{{"credentials": {{"type": "{CANARY}"}}}}'],
    "a number": [STORAGE, '{"password": 90125}'],
    "connection string": [STORAGE, f'{{"connection_string": "{CANARY}"}}'],
    "shared access signature": [STORAGE, f'{{"sas_token": "{CANARY}"}}'],
    "header": [STORAGE, f'{{"headers": {{"X-Any": "{CANARY}"}}}}'],
    "with an equals sign": [f'{STORAGE}={{"secret": "{CANARY}"}}'],
    "password in a URL": [f"ftp://me:{CANARY.replace('/', '')}@host/fields.nc"],
    "password in a proxy's URL": [STORAGE, '{"client_kwargs": {"proxy": "http://me:c4nary@proxy:3128"}}'],
    "signed URL": [f"https://bucket.s3.amazonaws.com/f.nc?X-Amz-Expires=60&X-Amz-Signature={CANARY}"],
    "signed URL of Azure": [f"https://account.blob.core.windows.net/c/f.nc?sv=2024&sig={CANARY}"],
    "access key": ["--variable", "AKIA" + "ABCDEFGHIJKLMNOP"],
}

WITHOUT = {
    "place": [STORAGE, '{"endpoint_url": "https://minio:9000", "client_kwargs": {"region_name": "eu-west-1"}}'],
    "anonymous": [STORAGE, '{"anon": true, "token": "anon", "key": null, "secret": ""}'],
    "profile": [STORAGE, '{"profile": "climate"}'],
    "signature's version": [STORAGE, '{"config_kwargs": {"signature_version": "s3v4", "tcp_keepalive": true}}'],
    "not JSON": [STORAGE, "{anon"],
    "user without password": ["sftp://me@host/fields.nc"],
    "at and colon in a path": ["s3://bucket/run:3/t2m@850.zarr", "--select", "time=2019-03-01T02:00..2019-03-01T03:00"],
    "key in a path": ["s3://monkey/token=1/secret.nc"],
    "query": ["https://host/f.nc?version=3"],
}


@pytest.mark.parametrize("case", WITH_CREDENTIALS)
def test_credentials_are_refused_and_not_repeated(case: str) -> None:
    with pytest.raises(
        ConfigError, match=r"readable on the cluster's dashboard.*environment, a profile or a role"
    ) as error:
        refuse_credentials(["compress", *WITH_CREDENTIALS[case], "--output", "s3://bucket/archive"])
    for secret in (CANARY, CANARY.replace("/", ""), "c4nary", "90125", "ABCDEFGHIJKLMNOP"):
        assert secret not in str(error.value)


@pytest.mark.parametrize("case", WITHOUT)
def test_what_is_no_secret_passes(case: str) -> None:
    refuse_credentials(["compress", *WITHOUT[case]])
