"""Where the tensors are kept, as a user writes it: a folder, or `s3://bucket/prefix?…`.

A URL holds no credentials: they come from the standard `AWS_…` variables or the machine's role, and
messages repeat no URL that could hold any.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

from app.errors import InvalidRequest

_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_PREFIX = re.compile(r"([A-Za-z0-9_=-][A-Za-z0-9_.=-]*/?)*")
_REGION = re.compile(r"[A-Za-z0-9-]{1,64}")
_MAX_PREFIX = 256
_OPTIONS = {"endpoint", "region"}


@dataclass(frozen=True)
class S3Location:
    """A part of a bucket; `endpoint` and `region` are the library's defaults if None."""

    bucket: str
    prefix: str = ""
    endpoint: str | None = None
    region: str | None = None


def parse_location(text: str) -> Path | S3Location:
    """What a store's text stands for; InvalidRequest says which part is wrong."""
    if text.startswith("s3://"):
        return _parse_s3(text)
    if "://" in text:
        raise InvalidRequest("a store is a folder, or s3://bucket/prefix")
    if not text:
        raise InvalidRequest("a store is a folder or a URL, not an empty text")
    return Path(text)


def _parse_s3(text: str) -> S3Location:
    try:
        parts = urlsplit(text)
        pairs = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
    except ValueError as fault:
        raise InvalidRequest("the store's URL cannot be read: s3://bucket/prefix?…") from fault
    if "@" in parts.netloc:
        raise InvalidRequest(
            "a store's URL must not contain credentials: set AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY"
        )
    if not _BUCKET.fullmatch(parts.netloc):
        raise InvalidRequest("the store's URL names no bucket: s3://bucket/prefix")
    prefix = parts.path.strip("/")
    if len(prefix) > _MAX_PREFIX or not _PREFIX.fullmatch(prefix):
        raise InvalidRequest(
            "the prefix in the store's URL is made of letters, digits, '_', '-', '=', '.' and '/'"
        )
    options = dict(pairs)
    if parts.fragment or len(options) < len(pairs) or options.keys() - _OPTIONS:
        raise InvalidRequest("a store's URL takes ?endpoint=… and &region=…, each once")
    region = options.get("region")
    if region is not None and not _REGION.fullmatch(region):
        raise InvalidRequest("the region in the store's URL is no region's name")
    endpoint = options.get("endpoint")
    if endpoint is not None:
        _check_endpoint(endpoint)
    return S3Location(parts.netloc, prefix, endpoint, region)


def _check_endpoint(endpoint: str) -> None:
    parts = urlsplit(endpoint)
    try:
        known = parts.scheme in {"http", "https"} and parts.hostname and (parts.port or True)
    except ValueError:
        known = False
    if not known or "@" in parts.netloc or parts.query or parts.fragment:
        raise InvalidRequest(
            "the endpoint in the store's URL is http://host:port or https://host, without "
            "credentials or options"
        )
