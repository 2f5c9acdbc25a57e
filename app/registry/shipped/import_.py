"""Imports the prefixes that are shipped with a store into a catalog that lacks them.

Each addition to the manifest is imported once, and each name is published to all tenants once: what
a user deletes, moves or withdraws afterwards stays as the user left it. Contents are checked when
they are loaded.
"""

from __future__ import annotations

import logging
import shutil
import time
from pathlib import Path

from sqlalchemy import Connection, exists, insert, select

from app.db.change_log import ChangeKind, note
from app.db.schema import prefixes, publications, seeded
from app.db.schema import versions as version_rows
from app.registry import aliases, quality_gates, versions
from app.registry.registry import Registry
from app.registry.scope import EVERYONE, get_prefix_id
from app.registry.shipped.manifest import ShippedPrefix, ShippedVersion, read_manifest
from app.registry.storage.local import FolderStore
from app.registry.types import LATEST, SHIPPED_OWNER

DEMO_TENANT = "demo"
"""The tenant of the shipped prefixes, and of everybody on a server without keys."""

_COPY_BYTES = 2**20
_PUBLISHED = "published"
"""Noted instead of a digest among what was imported: the name has been published once."""

_log = logging.getLogger(__name__)


def seed(
    registry: Registry,
    folder: Path,
    tenant: str = DEMO_TENANT,
    *,
    base_fingerprint: str | None = None,
    publish: bool = True,
) -> int:
    """Makes the tenant if it is new and imports what it lacks of the manifest; how many versions.

    The manifest and its files are in a local folder. Where the registry's store is another, a file
    that it lacks or has cut short is stored there first. With `base_fingerprint`, what names
    another base model is left for a server that has that one. `latest` moves to what was added
    after it last moved; other aliases are made if they are
    missing and have no gate. A file that is missing or has
    another size is reported in the log and left out. With `publish`, all tenants may use the names
    that hold nothing but shipped versions. PolyprefixError if the manifest is not understood.
    """
    manifest = read_manifest(folder)
    registry.ensure_tenant(tenant)
    with registry.catalog.read() as connection:
        known = _known(connection, tenant)
        private = _unpublished(connection, tenant) if publish else set()
    imported = 0
    for name, prefix in manifest.prefixes.items():
        new = [
            version
            for version in prefix.versions
            if (name, version.digest, version.added_at) not in known
            and base_fingerprint in (None, version.base_fingerprint or base_fingerprint)
            and _is_stored(registry, folder, name, version)
        ]
        if new or name in private:
            with registry.catalog.write() as (connection, epoch):
                note(connection, epoch, ChangeKind.PREFIX, tenant, name)
                # again, as another replica may have started at the same time
                known = _known(connection, tenant)
                new = [v for v in new if (name, v.digest, v.added_at) not in known]
                _import(connection, epoch, tenant, name, prefix, new)
                if publish and name in _unpublished(connection, tenant):
                    _publish(connection, tenant, name, int(time.time()))
        imported += len(new)
    return imported


def _known(connection: Connection, tenant: str) -> set[tuple[str, str, int]]:
    """(name, digest, when it was added) of what was imported before."""
    query = select(seeded.c.name, seeded.c.digest, seeded.c.added_at)
    rows = connection.execute(query.where(seeded.c.tenant_id == tenant))
    return {(row.name, row.digest, row.added_at) for row in rows}


def _unpublished(connection: Connection, tenant: str) -> set[str]:
    """Names of the tenant's prefixes that were not published yet and hold shipped versions alone:
    an upload of the tenant's own must not become everybody's."""
    mine = version_rows.c.prefix_id == prefixes.c.id
    query = select(prefixes.c.name).where(
        prefixes.c.tenant_id == tenant,
        ~exists().where(mine, version_rows.c.owner != SHIPPED_OWNER),
        ~exists().where(
            seeded.c.tenant_id == tenant,
            seeded.c.name == prefixes.c.name,
            seeded.c.digest == _PUBLISHED,
        ),
    )
    return set(connection.scalars(query))


def _publish(connection: Connection, tenant: str, name: str, now: int) -> None:
    """Lets all tenants use the prefix unless somebody has said who may; done once for each name."""
    prefix_id = get_prefix_id(connection, tenant, name)
    if connection.execute(select(publications).filter_by(prefix_id=prefix_id)).first() is None:
        row = {"prefix_id": prefix_id, "grantee": EVERYONE, "created_at": now}
        connection.execute(insert(publications).values(row))
    key = {"tenant_id": tenant, "name": name, "digest": _PUBLISHED, "added_at": 0}
    connection.execute(insert(seeded).values(key))


def _is_stored(registry: Registry, folder: Path, name: str, version: ShippedVersion) -> bool:
    """Whether the registry's store has the file, from now on if need be."""
    if registry.objects.size(SHIPPED_OWNER, version.digest) == version.file_nbytes:
        return True
    shipped = FolderStore(folder)
    size = shipped.size(SHIPPED_OWNER, version.digest)
    file = None
    if size == version.file_nbytes:
        file = shipped.open(SHIPPED_OWNER, version.digest)
    if file is not None:
        with file, registry.stage() as staged:
            shutil.copyfileobj(file, staged, _COPY_BYTES)
            registry.objects.commit(SHIPPED_OWNER, version.digest, staged.path)
        return True
    _log.warning(
        "the shipped prefix '%s' is left out: its file %s.safetensors %s",
        name,
        version.digest,
        "is missing" if size is None else f"has {size} bytes, not {version.file_nbytes}",
    )
    return False


def _import(
    connection: Connection,
    epoch: int,
    tenant: str,
    name: str,
    prefix: ShippedPrefix,
    new: list[ShippedVersion],
) -> None:
    for version in new:
        now = version.added_at
        row, _ = versions.publish(
            connection,
            tenant,
            name,
            SHIPPED_OWNER,
            version.info(),
            file_nbytes=version.file_nbytes,
            now=now,
        )
        weights = {version.digest: 1}
        latest = aliases.find_alias(connection, row.prefix_id, LATEST)
        if latest is None or latest.updated_at <= now:
            aliases.move(connection, epoch, row.prefix_id, LATEST, weights, reason="seed", now=now)
        for alias, digest in prefix.aliases.items():
            present = aliases.find_alias(connection, row.prefix_id, alias)
            gate = quality_gates.find(connection, row.prefix_id, alias)
            if digest == version.digest and present is None and gate is None:
                aliases.move(
                    connection, epoch, row.prefix_id, alias, weights, reason="seed", now=now
                )
        key = {"tenant_id": tenant, "name": name, "digest": version.digest, "added_at": now}
        connection.execute(insert(seeded).values(key))
