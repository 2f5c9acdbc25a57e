"""What the registry is told and what it answers: plain immutable values."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from app.errors import InvalidRequest

LATEST = "latest"
"""The alias that every prefix has; it moves to each version that is uploaded."""

SHIPPED_OWNER = "shipped"
"""Owner key of the contents that come with the store."""

Weights = Mapping[str, int]
"""Digests with their weights; one alone is where an alias simply points."""

_DIGEST = re.compile(r"[0-9a-f]{64}")
_MAX_COUNT = 2**53


def check_digest(digest: str) -> str:
    """The digest itself, if it is 64 lower-case hexadecimal digits; InvalidRequest otherwise."""
    if not _DIGEST.fullmatch(digest):
        raise InvalidRequest("a version's digest is 64 lower-case hexadecimal digits")
    return digest


@dataclass(frozen=True, kw_only=True)
class VersionInfo:
    """What is known of a prefix file once it is validated; the registry does not look inside.

    `length` and `position_offset` count positions, `nbytes` the bytes of all tensors, `dtype` is
    the file's ("float32"). `digest` is the content's SHA-256 in hex. `lengths` has the positions of
    each attention module, None if nobody has told.
    """

    digest: str
    length: int
    position_offset: int
    dtype: str
    nbytes: int
    base_model: str | None = None
    base_fingerprint: str | None = None
    input_template: str | None = None
    decoding: Mapping[str, Any] = field(default_factory=dict, hash=False)
    provenance: Mapping[str, Any] = field(default_factory=dict, hash=False)
    lengths: Mapping[str, int] | None = field(default=None, hash=False)

    @property
    def verified(self) -> bool:
        """Whether the file names the base model that it was trained on."""
        return self.base_fingerprint is not None

    def check(self) -> None:
        """InvalidRequest if a field could not be stored or could harm as part of a file's name."""
        check_digest(self.digest)
        counts = {name: getattr(self, name) for name in ("length", "position_offset", "nbytes")}
        for name, value in (counts | dict(self.lengths or {})).items():
            if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < _MAX_COUNT:
                raise InvalidRequest(f"{name} of a version must be an integer from 0 to 2^53")


@dataclass(frozen=True, kw_only=True)
class Version(VersionInfo):
    """One immutable set of tensors under a name.

    (`owner`, `digest`) is the key of its content in the store and in caches; `owner` is opaque
    and differs between tenants. `created_at` is in seconds since 1970.
    """

    tenant: str
    owner: str
    name: str
    created_at: int
    pinned: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolved:
    """A version as far as serving it needs; small, since caches hold one a name.

    `tenant` is whose prefix it is, which may be another than the caller. The rest as of `Version`.
    """

    tenant: str
    name: str
    owner: str
    digest: str
    base_model: str | None
    base_fingerprint: str | None
    created_at: int


class ContentKey(NamedTuple):
    """What the store and caches know a content by; `owner` is as of `Version`."""

    owner: str
    digest: str


@dataclass(frozen=True, slots=True)
class Quota:
    """What a tenant may store: prefixes, and bytes of files; None is no bound."""

    max_prefixes: int | None = None
    max_bytes: int | None = None


NO_QUOTA = Quota()
"""No bound."""


@dataclass(frozen=True, kw_only=True)
class PrefixRecord:
    """A name with at least one version; `aliases` maps names (always `latest`) to digests.

    `splits` has the weights by digest of those aliases that are split; for them `aliases` names the
    version with the most weight.
    """

    tenant: str
    name: str
    created_at: int
    versions: int
    aliases: Mapping[str, str] = field(hash=False)
    splits: Mapping[str, Mapping[str, int]] = field(default_factory=dict, hash=False)

    @property
    def latest(self) -> str:
        """Digest of the version that the bare name stands for."""
        return self.aliases[LATEST]


@dataclass(frozen=True, kw_only=True)
class Alias:
    """A movable name for a version. `etag` (with its quotes) changes with every move.

    If it is split, `split` has the weights by digest and `digest` is the one with the most.
    """

    name: str
    digest: str
    etag: str
    updated_at: int
    split: Mapping[str, int] | None = field(default=None, hash=False)


@dataclass(frozen=True, kw_only=True)
class AliasChange:
    """One move of an alias, to `digest` or to a `split` as in `Alias`.

    `reason`: set, upload, seed, rollback or fallback.
    """

    digest: str
    reason: str
    changed_at: int
    split: Mapping[str, int] | None = field(default=None, hash=False)


@dataclass(frozen=True, kw_only=True)
class Publication:
    """Who may use a prefix besides its owner: the tenants named, or everyone."""

    name: str
    tenants: tuple[str, ...]
    everyone: bool


@dataclass(frozen=True, kw_only=True)
class PublishedPrefix:
    """A prefix of another tenant, as those see it to whom it is published."""

    tenant: str
    name: str
    created_at: int
