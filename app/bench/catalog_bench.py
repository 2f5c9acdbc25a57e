"""`polyprefix bench catalog`: the cost of a name when one tenant has very many, on SQLite.

Only the catalog is measured, without a model or files. Each prefix has one version; all versions
share a few contents.
"""

from __future__ import annotations

import hashlib
import resource
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from app.db.change_log import ChangeKind, note
from app.prefix.reference import PrefixReference
from app.registry import aliases, versions
from app.registry.open_registry import open_registry
from app.registry.registry import Registry
from app.registry.shipped.import_ import seed
from app.registry.types import LATEST, VersionInfo

_TENANT = "bench"
_OWNER = "bench"
_CONTENTS = 16
_BATCH = 1000
"""Number of prefixes made in one transaction."""
_LOOKS = 1000
"""Number of names that are resolved, each once cold and once warm."""


def run_catalog(*, names: int) -> dict[str, Any]:
    """Measure a catalog with `names` prefixes and an empty one.

    The result has the time to open each, the time to resolve a name that this process has not seen
    and one that it has, and the memory that resolved names take.
    """
    with tempfile.TemporaryDirectory() as scratch:
        empty, full = Path(scratch) / "empty", Path(scratch) / "full"
        _make(empty, 0)
        filled_s = _make(full, names)
        starts = {
            "startup_ms_without": _start_ms(empty),
            "startup_ms": _start_ms(full),
        }
        ours = {"create_us": round(1e6 * filled_s / names, 1), **starts, **_resolving(full, names)}
    return {
        "bench": "catalog",
        "device": f"SQLite, {names} prefixes",
        "names": names,
        "ours": ours,
        "peers": {},
        "ratio": {},
    }


def _open(folder: Path) -> Registry:
    return open_registry(f"sqlite:///{folder}/catalog.sqlite3", folder / "store")


def _make(folder: Path, names: int) -> float:
    """Make a catalog with `names` prefixes; return the seconds that it took."""
    registry = _open(folder)
    registry.ensure_tenant(_TENANT)
    started = time.perf_counter()
    for first in range(0, names, _BATCH):
        with registry.catalog.write() as (connection, epoch):
            note(connection, epoch, ChangeKind.TENANT, _TENANT)
            for index in range(first, min(names, first + _BATCH)):
                row, _ = versions.publish(
                    connection, _TENANT, _name(index), _OWNER, _info(index), file_nbytes=1, now=0
                )
                target = {row.digest: 1}
                aliases.move(
                    connection, epoch, row.prefix_id, LATEST, target, reason="upload", now=0
                )
    taken = time.perf_counter() - started
    registry.close()
    return taken


def _name(index: int) -> str:
    return f"user-{index:08d}"


def _info(index: int) -> VersionInfo:
    digest = hashlib.sha256(bytes([index % _CONTENTS])).hexdigest()
    return VersionInfo(digest=digest, length=10, position_offset=0, dtype="float16", nbytes=1)


def _start_ms(folder: Path) -> float:
    """The best of five starts: open, import shipped prefixes, read the pins."""
    times = []
    for _ in range(5):
        started = time.perf_counter()
        registry = _open(folder)
        seed(registry, folder / "store")
        registry.pinned()
        times.append(time.perf_counter() - started)
        registry.close()
    return round(1e3 * min(times), 2)


def _resolving(folder: Path, names: int) -> dict[str, float]:
    registry = _open(folder)
    registry.catalog.feed.poll()
    looks = [PrefixReference(_name(index)) for index in range(0, names, max(1, names // _LOOKS))]
    cold = sorted(_times(registry, looks))
    registry.catalog.feed.poll()
    warm = _times(registry, looks)
    before = _resident_mib()
    for index in range(names):
        registry.resolve(_TENANT, PrefixReference(_name(index)))
    grown = _resident_mib() - before
    registry.close()
    return {
        "resolve_cold_ms": round(1e3 * statistics.median(cold), 3),
        "resolve_cold_ms_p99": round(1e3 * cold[len(cold) * 99 // 100], 3),
        "resolve_warm_us": round(1e6 * statistics.median(warm), 2),
        "resolved_mib": round(grown, 1),
    }


def _times(registry: Registry, references: Sequence[PrefixReference]) -> list[float]:
    times = []
    for reference in references:
        started = time.perf_counter()
        registry.resolve(_TENANT, reference)
        times.append(time.perf_counter() - started)
    return times


def _resident_mib() -> float:
    """The peak memory of this process in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
