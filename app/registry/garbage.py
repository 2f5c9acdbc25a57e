"""Contents that no version needs any more.

They are removed while the catalog's writers wait, after a second look at the references, so that
none of them can get a row meanwhile. Only the folders of this catalog's own tenants are searched:
what is shipped with the project, and what another catalog keeps in the same store, stays.
"""

from __future__ import annotations

from app.registry import scope
from app.registry.catalog import Catalog
from app.registry.changes import ChangeKind, note
from app.registry.objects import ObjectStore
from app.registry.versions import digests_of, is_referenced

_BATCH = 64
"""Contents that are removed in one turn of the writers, so that none waits long."""


def collect(catalog: Catalog, objects: ObjectStore, grace_s: float) -> int:
    """Removes unneeded contents older than the grace; how many."""
    candidates = _unneeded(catalog, objects, grace_s)
    removed = 0
    for start in range(0, len(candidates), _BATCH):
        with catalog.write() as (connection, epoch):
            note(connection, epoch, ChangeKind.CONTENT, "")
            for owner, digest in candidates[start : start + _BATCH]:
                if not is_referenced(connection, owner, digest):
                    removed += objects.delete(owner, digest, older_than_s=grace_s)
    return removed


def _unneeded(catalog: Catalog, objects: ObjectStore, grace_s: float) -> list[tuple[str, str]]:
    """(owner, digest) of contents that seem to be garbage, without keeping any writer waiting."""
    with catalog.read() as connection:
        needed = {owner: digests_of(connection, owner) for owner in scope.owners(connection)}
    return [
        (owner, stored.digest)
        for owner, digests in needed.items()
        for stored in objects.objects(owner)
        if stored.age_s >= grace_s and stored.digest not in digests
    ]
