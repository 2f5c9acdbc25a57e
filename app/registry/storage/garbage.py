"""Contents that no version needs any more.

A content that has been idle for the grace is first noted as being removed, while the catalog's
writers wait; then it is removed, while nobody waits; then its note goes. If it is not known how a
removal has ended, the note stays, and uploads of the content are refused, until nothing can be
under way. Only the folders of this catalog's own tenants are searched, those that were deleted
included: what is shipped with the project, and what another catalog keeps in the same store, stays.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

from sqlalchemy import Connection, delete, select

from app.db.change_log import ChangeKind, note
from app.db.database import Database
from app.db.schema import retired_owners, tenants
from app.registry.storage import contents
from app.registry.storage.contents import Content
from app.registry.storage.store import ObjectStore

Item = TypeVar("Item")

_TURN_S = 0.05
"""Seconds between two tries to get the right to remove."""
_BATCH = 16
"""Contents that are noted as being removed at a time: uploads of them are refused meanwhile."""


@dataclass(frozen=True)
class GarbageCollector:
    """Collects garbage once. `grace_s` is in seconds, `clock` gives seconds since 1970."""

    catalog: Database
    objects: ObjectStore
    grace_s: float
    clock: Callable[[], float]
    is_over: Callable[[], bool] = lambda: False

    def collect(self) -> int:
        """Removes unneeded contents older than the grace, until `is_over`; how many.

        Several processes may collect at one time. Unavailable if the store or the catalog is; what
        was removed until then stays removed.
        """
        with self.objects.removing() as settled_s:
            if settled_s is None:  # another process of this machine collects
                return 0
            cut_before = int(self.clock() - settled_s)
            removed = self._remove_known(cut_before)
            for owner in self._owners():
                removed += self._remove_unknown(owner)
            self._forget_retired()
        return removed

    def erase(self, begun: Sequence[Content], *, wait_s: float) -> int:
        """Removes contents whose removal `contents.begin_erasure` has noted; how many are gone.

        Waits `wait_s` seconds at most while another process removes; what is left then, or when the
        store fails, is removed by a later `finish`.
        """
        deadline = self.clock() + wait_s
        while True:
            with self.objects.removing() as settled_s:
                if settled_s is not None:
                    with self.catalog.read() as connection:
                        mine = contents.still_removing(connection, begun)
                    self._remove(mine)
                    return len(begun)
            if self.clock() >= deadline:
                return 0
            time.sleep(_TURN_S)

    def finish(self) -> None:
        """Ends removals that were cut short when a process died; removes what has no grace."""
        with self.objects.removing() as settled_s:
            if settled_s is not None:
                self._remove_known(int(self.clock() - settled_s), before=contents.NO_GRACE)

    def _remove_known(self, cut_before: int, *, before: int | None = None) -> int:
        removed = 0
        while not self.is_over():
            before_now = int(self.clock() - self.grace_s) if before is None else before
            with self.catalog.read() as connection:
                found = contents.find_unneeded(connection, before_now, cut_before)
            taken = 0
            for batch in _batches(found):
                if self.is_over():
                    break
                begun = self._begin(batch, before_now, cut_before)
                taken += len(begun)
                removed += self._remove(begun)
            if not taken:
                break
        return removed

    def _begin(self, batch: Sequence[Content], before: int, cut_before: int) -> list[Content]:
        with self.catalog.write() as (connection, epoch):
            note(connection, epoch, ChangeKind.CONTENT, "")
            now = int(self.clock())
            return [
                content
                for content in batch
                if contents.begin_removal(connection, content, before, cut_before, now)
            ]

    def _remove_unknown(self, owner: str) -> int:
        """What died before its note, or was stored before there were notes."""
        removed = 0
        for batch in _batches(self._unknown(owner)):
            if self.is_over():
                break
            with self.catalog.write() as (connection, epoch):
                note(connection, epoch, ChangeKind.CONTENT, "")
                now = int(self.clock())
                begun = [
                    content
                    for digest in batch
                    if (
                        content := contents.begin_removal_of_unknown(connection, owner, digest, now)
                    )
                ]
            removed += self._remove(begun)
        return removed

    def _unknown(self, owner: str) -> Iterator[str]:
        if self.is_over():
            return
        stored = self.objects.objects(owner)
        old = [content.digest for content in stored if content.age_s >= self.grace_s]
        with self.catalog.read() as connection:
            # after the list was made: whoever stores a content notes it first
            noted = contents.noted_digests(connection, owner)
        yield from (digest for digest in old if digest not in noted)

    def _remove(self, begun: Sequence[Content]) -> int:
        """Removes what is noted as being removed; how many were there."""
        gone: list[Content] = []
        count, tried = 0, 0
        try:
            for content in begun:
                if self.is_over():
                    break
                tried += 1
                count += self.objects.delete(content.owner, content.digest)
                gone.append(content)
        finally:
            # one whose removal has failed keeps its note: the request may be carried out late
            with self.catalog.append() as connection:
                contents.end_removals(connection, gone, begun[tried:])
        return count

    def _owners(self) -> list[str]:
        with self.catalog.read() as connection:
            return [*connection.scalars(select(tenants.c.owner)), *self._retired(connection)]

    def _retired(self, connection: Connection) -> list[str]:
        before = int(self.clock() - self.grace_s)
        query = select(retired_owners.c.owner).where(retired_owners.c.retired_at <= before)
        return list(connection.scalars(query))

    def _forget_retired(self) -> None:
        with self.catalog.read() as connection:
            retired = self._retired(connection)
        for owner in retired:
            if not self.is_over() and next(self.objects.objects(owner), None) is None:
                with self.catalog.write() as (connection, epoch):
                    note(connection, epoch, ChangeKind.CONTENT, "")
                    connection.execute(
                        delete(retired_owners).where(retired_owners.c.owner == owner)
                    )


def _batches(items: Iterable[Item]) -> Iterator[list[Item]]:
    rest = iter(items)
    while batch := list(islice(rest, _BATCH)):
        yield batch
