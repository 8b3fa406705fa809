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
    "a name that nobody has thought of": [STORAGE, f'{{"pwd": "{CANARY}"}}'],
    "short for password": [STORAGE, f'{{"username": "u", "pw": "{CANARY}"}}'],
    "a connection string by another name": [STORAGE, f'{{"connect": "AccountKey={CANARY}"}}'],
    "the same name twice": [STORAGE, f'{{"pwd": "{CANARY}", "pwd": null}}'],
    "escaped": [STORAGE, '{"endpoint_url": "http:\\/\\/u:c4nary@h"}'],
    "a key in a harmless place": [STORAGE, '{"region_name": "AKIA' + "ABCDEFGHIJKLMNOP" + '"}'],
    "token as the user": ["https://ghp_c4nary@host/x"],
    "key in a query": ["https://h/x?key=AIza90125"],
    "nothing but a token as the query": ["https://h/x?c4nary"],
    "key in the query of a bucket": ["s3://b/x?key=c4nary"],
    "slash in the password": ["s3://AKIDX:c4nary/w@h/x"],
    "two colons in the password": ["s3://AKIDX:c4nary::w@h/x"],
    "within a chain": ["simplecache::zip://a.nc::https://u:c4nary@h/x.zip"],
}

MALFORMED = {
    "Python's quotes": "{'key':'A','secret':'c4nary'}",
    "cut": '{"secret": "c4nary',
    "nested without end": "[" * 100_000,
    "no object": '["c4nary"]',
    "no JSON at all": "c4nary",
}

WITHOUT = {
    "place": [STORAGE, '{"endpoint_url": "https://minio:9000", "client_kwargs": {"region_name": "eu-west-1"}}'],
    "anonymous": [STORAGE, '{"anon": true, "token": "anon", "key": null, "secret": ""}'],
    "profile": [STORAGE, '{"profile": "climate"}'],
    "signature's version": [STORAGE, '{"config_kwargs": {"signature_version": "s3v4", "tcp_keepalive": true}}'],
    "known settings": [
        STORAGE,
        '{"requester_pays": true, "default_block_size": 5242880, "use_ssl": false, "config_kwargs": {"s3": '
        '{"addressing_style": "path"}, "retries": {"max_attempts": 9}}, "s3_additional_kwargs": {"SSEKMSKeyId": "x"}}',
    ],
    "token's place": [STORAGE, '{"token": "google_default", "project": "p"}'],
    "container of Azure": ["abfs://container@account.dfs.core.windows.net/a.zarr"],
    "access point": ["s3://arn:aws:s3:eu-west-1:123456789012:accesspoint/p/a.zarr"],
    "ports": ["https://host:8443/t2m@850.nc", "http://[::1]:9000/a.nc", "hdfs://name:8020/a@b"],
    "chain": ["zip://a.nc::s3://b/run:3/x@y.zip"],
    "pattern": ["s3://b/run?/time=3/200?-[01]*.zarr"],
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


@pytest.mark.parametrize("option", [[STORAGE], [f"{STORAGE}="]], ids=["two arguments", "one"])
@pytest.mark.parametrize("case", MALFORMED)
def test_storage_options_that_do_not_parse_are_refused_and_not_repeated(case: str, option: list[str]) -> None:
    arguments = [*option, MALFORMED[case]] if option == [STORAGE] else [option[0] + MALFORMED[case]]
    with pytest.raises(ConfigError, match=r"^--storage-options: (not JSON|expected a JSON object)") as error:
        refuse_credentials(["compress", *arguments])
    assert "c4nary" not in str(error.value)
    assert error.value.__cause__ is None  # json's error holds the whole text
