"""A store's text is a folder or a bucket; nothing secret, odd or ambiguous is taken."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.errors import InvalidRequest
from app.registry.open_registry import open_store
from app.registry.storage.url import S3Location, parse_location


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("prefixes", Path("prefixes")),
        ("/var/lib/prefixes", Path("/var/lib/prefixes")),
        ("s3://bucket", S3Location("bucket")),
        ("s3://my.bucket-1/", S3Location("my.bucket-1")),
        ("s3://bucket/a/b.c/", S3Location("bucket", "a/b.c")),
        (
            "s3://bucket/a?endpoint=http://127.0.0.1:9000&region=eu-west-1",
            S3Location("bucket", "a", "http://127.0.0.1:9000", "eu-west-1"),
        ),
        (
            "s3://bucket?endpoint=https%3A%2F%2Fs3.example.org",
            S3Location("bucket", "", "https://s3.example.org"),
        ),
    ],
)
def test_a_text_stands_for_a_folder_or_a_bucket(text: str, expected: Path | S3Location) -> None:
    assert parse_location(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "http://bucket/prefix",
        "gs://bucket",
        "S3://bucket",
        "s3://",
        "s3:///prefix",
        "s3://b",
        "s3://Bucket",
        "s3://bucket:9000/prefix",
        "s3://-bucket",
        "s3://bucket/../other",
        "s3://bucket/a/./b",
        "s3://bucket/a//b",
        "s3://bucket/a b",
        "s3://bucket/é",
        "s3://bucket/" + "a" * 300,
        "s3://bucket/a#b",
        "s3://bucket?region",
        "s3://bucket?region=",
        "s3://bucket?region=a/b",
        "s3://bucket?region=a&region=b",
        "s3://bucket?timeout=1",
        "s3://bucket?endpoint=",
        "s3://bucket?endpoint=example.org",
        "s3://bucket?endpoint=ftp://example.org",
        "s3://bucket?endpoint=http://",
        "s3://bucket?endpoint=http://example.org:port",
        "s3://bucket?endpoint=http://example.org%3Fa=b",
        "s3://[bucket",
    ],
)
def test_what_is_neither_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest):
        parse_location(text)


@pytest.mark.parametrize(
    "text",
    [
        "s3://key:hidden@bucket/prefix",
        "s3://bucket?endpoint=https://key:hidden@example.org",
        "s3://bucket?secret_access_key=hidden",
        "s3://bucket?access_key=hidden&region=a",
    ],
)
def test_a_secret_in_a_url_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_location(text)
    assert "hidden" not in caught.value.message


def test_a_bucket_needs_a_folder_for_files_in_transit() -> None:
    with pytest.raises(InvalidRequest, match="files in transit"):
        open_store("s3://bucket")
