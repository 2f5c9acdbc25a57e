"""Contents that no version needs any more.

They are removed while the catalog's writers wait, after a second look at the references, so that
none of them can get a row meanwhile; and a content that was stored or lost a row of late is young,
which saves the upload that has stored its content and has no row yet. Only the folders of this
catalog's own tenants are searched, those that were deleted included: what is shipped with the
project, and what another catalog keeps in the same store, stays.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from itertools import islice

from sqlalchemy import delete, select

from app.registry import scope
from app.registry.catalog import Catalog
from app.registry.changes import ChangeKind, note
from app.registry.objects import ObjectStore
from app.registry.schema import retired_owners
from app.registry.versions import digests_of, is_referenced

_BATCH = 64
_TURN_S = 0.25
"""How many contents are removed in one turn of the writers, and for how long, so that none waits
long: a store may be far away."""


def collect(
    catalog: Catalog, objects: ObjectStore, grace_s: float, is_over: Callable[[], bool]
) -> int:
    """Removes unneeded contents older than the grace, until `is_over`; how many.

    Several processes may collect at one time. Unavailable if the store or the catalog is; what was
    removed until then stays removed.
    """
    with catalog.read() as connection:
        owners = scope.owners(connection)
        query = select(retired_owners.c.owner)
        before = int(time.time() - grace_s)
        retired = connection.scalars(query.where(retired_owners.c.retired_at <= before)).all()
    removed = 0
    for owner in (*owners, *retired):
        candidates = _unneeded(catalog, objects, owner, grace_s, is_over)
        while waiting := deque(islice(candidates, _BATCH)):
            while waiting and not is_over():
                removed += _remove_some(catalog, objects, owner, waiting, grace_s)
    for owner in retired:
        if not is_over() and next(objects.objects(owner), None) is None:
            with catalog.write() as (connection, epoch):
                note(connection, epoch, ChangeKind.CONTENT, "")
                connection.execute(delete(retired_owners).where(retired_owners.c.owner == owner))
    return removed


def _remove_some(
    catalog: Catalog, objects: ObjectStore, owner: str, waiting: deque[str], grace_s: float
) -> int:
    """Takes as many digests from the left as fit into one turn; how many were removed."""
    removed = 0
    with catalog.write() as (connection, epoch):
        note(connection, epoch, ChangeKind.CONTENT, "")
        end = time.monotonic() + _TURN_S
        while waiting:
            digest = waiting.popleft()
            if not is_referenced(connection, owner, digest):
                removed += objects.delete(owner, digest, older_than_s=grace_s)
            if time.monotonic() > end:
                break
    return removed


def _unneeded(
    catalog: Catalog,
    objects: ObjectStore,
    owner: str,
    grace_s: float,
    is_over: Callable[[], bool],
) -> Iterator[str]:
    """Digests that seem to be garbage, without keeping any writer waiting."""
    if is_over():
        return
    with catalog.read() as connection:
        needed = digests_of(connection, owner)
    for stored in objects.objects(owner):
        if is_over():
            return
        if stored.age_s >= grace_s and stored.digest not in needed:
            yield stored.digest
