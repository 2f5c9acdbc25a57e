"""Prefixes, versions and aliases as JSON objects."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from app.registry.records import Alias, PrefixRecord, Version


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
    """A name with the number of its versions and where its aliases point."""
    return {
        "object": "prefix",
        "name": record.name,
        "versions": record.versions,
        "aliases": dict(record.aliases),
        "created_at": record.created_at,
    }


def alias_object(name: str, alias: Alias) -> dict[str, Any]:
    """Where an alias points."""
    return {
        "object": "prefix.alias",
        "name": name,
        "alias": alias.name,
        "version": alias.digest,
        "updated_at": alias.updated_at,
    }
