"""Opens the registry that a database and a store hold."""

from __future__ import annotations

import logging
from pathlib import Path

from app.db.database import Database
from app.errors import InvalidRequest, PolyprefixError
from app.registry.registry import Registry
from app.registry.storage.local import FolderStore
from app.registry.storage.s3 import S3Store
from app.registry.storage.store import ObjectStore
from app.registry.storage.url import parse_location

_log = logging.getLogger(__name__)


def open_registry(database_url: str, store: str | Path, scratch: Path | None = None) -> Registry:
    """The registry over a database and a store, with what crashed uploads left swept away.

    PolyprefixError if either cannot be opened; the rest as of `open_store`.
    """
    objects = open_store(store, scratch)
    registry = Registry(Database(database_url), objects)
    try:
        objects.sweep_temps()
        registry.finish_removals()
    except PolyprefixError as fault:
        _log.warning("what a process left when it died stays for now: %s", fault)
    return registry


def open_store(store: str | Path, scratch: Path | None = None) -> ObjectStore:
    """The store of a folder or of `s3://bucket/prefix?endpoint=…&region=…`.

    `scratch` is a local folder for files in transit to and from a bucket. InvalidRequest if the
    text is no store; PolyprefixError if the store is not there or may not be used.
    """
    location = parse_location(str(store))
    if isinstance(location, Path):
        return FolderStore(location)
    if scratch is None:
        raise InvalidRequest("a store in a bucket needs a local folder for files in transit")
    objects = S3Store(location, scratch)
    objects.check()
    return objects
