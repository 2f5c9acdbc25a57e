"""Prefixes, versions and aliases as JSON objects."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from app.registry.types import (
    Alias,
    AliasChange,
    PrefixRecord,
    Publication,
    PublishedPrefix,
    Version,
)


def version_object(version: Version, lengths: Mapping[str, int]) -> dict[str, Any]:
    """One version; `digest` names it, sizes are in positions (`lengths` by module) and bytes."""
    return {
        "object": "prefix.version",
        "name": version.name,
        "digest": version.digest,
        "length": version.length,
        "lengths": dict(lengths),
        "position_offset": version.position_offset,
        "dtype": version.dtype,
        "nbytes": version.nbytes,
        "base_model": version.base_model,
        "base_fingerprint": version.base_fingerprint,
        "verified": version.verified,
        "input_template": version.input_template,
        "decoding": dict(version.decoding),
        "provenance": dict(version.provenance),
        "created_at": version.created_at,
        "pinned": version.pinned,
    }


def prefix_object(record: PrefixRecord) -> dict[str, Any]:
    """A name with the number of its versions and where its aliases point.

    Of an alias in `splits` (digest → weight) `aliases` has the version with the most weight.
    """
    return {
        "object": "prefix",
        "name": record.name,
        "versions": record.versions,
        "aliases": dict(record.aliases),
        "splits": {alias: dict(split) for alias, split in record.splits.items()},
        "created_at": record.created_at,
    }


def alias_object(name: str, alias: Alias) -> dict[str, Any]:
    """Where an alias points; `split` maps digests to weights, and is null if there is one."""
    return {
        "object": "prefix.alias",
        "name": name,
        "alias": alias.name,
        "version": alias.digest,
        "split": None if alias.split is None else dict(alias.split),
        "updated_at": alias.updated_at,
    }


def change_object(change: AliasChange) -> dict[str, Any]:
    """One move of an alias: to where, why (set, upload, seed, rollback, fallback) and when."""
    return {
        "object": "prefix.alias.change",
        "version": change.digest,
        "split": None if change.split is None else dict(change.split),
        "reason": change.reason,
        "changed_at": change.changed_at,
    }


def publication_object(publication: Publication) -> dict[str, Any]:
    """Who may use a prefix besides its owner."""
    return {
        "object": "prefix.publication",
        "name": publication.name,
        "tenants": list(publication.tenants),
        "everyone": publication.everyone,
    }


def published_object(prefix: PublishedPrefix) -> dict[str, Any]:
    """A prefix that another tenant publishes to the caller: its name, nothing of how it was made.

    `id` is what requests call it.
    """
    return {
        "object": "prefix.published",
        "id": f"{prefix.tenant}/{prefix.name}",
        "tenant": prefix.tenant,
        "name": prefix.name,
        "created_at": prefix.created_at,
    }
