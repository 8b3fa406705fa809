"""What a test has to know about a running S3 server: where it is and how to get in."""

import secrets
from dataclasses import dataclass, replace
from typing import Any

import boto3
from botocore.config import Config

REGION = "us-east-1"


@dataclass(frozen=True)
class ObjectStore:
    """A running S3 server, or one bucket on it."""

    endpoint_url: str
    key: str
    secret: str
    bucket: str = ""

    @property
    def url(self) -> str:
        """`s3://bucket`, without a slash at the end."""
        return f"s3://{self.bucket}"

    @property
    def storage_options(self) -> dict[str, Any]:
        """For fsspec."""
        return {
            "key": self.key,
            "secret": self.secret,
            "client_kwargs": {"endpoint_url": self.endpoint_url, "region_name": REGION},
        }

    @property
    def environment(self) -> dict[str, str]:
        """The same as variables that every AWS library reads."""
        return {
            "AWS_ACCESS_KEY_ID": self.key,
            "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_ENDPOINT_URL": self.endpoint_url,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def client(self) -> Any:
        """A blocking client that does not come from fsspec, to look at the server from outside."""
        return boto3.session.Session().client(
            "s3",
            endpoint_url=self.endpoint_url,
            region_name=REGION,
            aws_access_key_id=self.key,
            aws_secret_access_key=self.secret,
            config=Config(connect_timeout=5, read_timeout=60, retries={"max_attempts": 5}),
        )

    def with_new_bucket(self) -> "ObjectStore":
        """The same server, an empty bucket that nobody else has."""
        bucket = f"test-{secrets.token_hex(6)}"
        self.client().create_bucket(Bucket=bucket)
        return replace(self, bucket=bucket)

    def keys(self) -> list[str]:
        """Names of all objects of the bucket, sorted."""
        pages = self.client().get_paginator("list_objects_v2").paginate(Bucket=self.bucket)
        return sorted(entry["Key"] for page in pages for entry in page.get("Contents", []))

    def unfinished_uploads(self) -> list[str]:
        """Names of the objects of which parts lie around in uploads that were neither completed nor aborted."""
        found = self.client().list_multipart_uploads(Bucket=self.bucket)
        return sorted(upload["Key"] for upload in found.get("Uploads", []))
