"""Opens the registry that a database and a folder hold.

Knows nothing about what is in it.
"""

from __future__ import annotations

import logging
from pathlib import Path

from app.errors import PolyprefixError
from app.registry.catalog import Catalog
from app.registry.folder import FolderStore
from app.registry.registry import Registry

_log = logging.getLogger(__name__)


def open_registry(database_url: str, store: Path) -> Registry:
    """The registry over a database and a folder, with what crashed uploads left swept away.

    PolyprefixError if either cannot be opened.
    """
    objects = FolderStore(store)
    registry = Registry(Catalog(database_url), objects)
    try:
        objects.sweep_temps()
    except PolyprefixError as fault:
        _log.warning("temporary files stay for now: %s", fault)
    return registry
