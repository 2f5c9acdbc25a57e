"""What the registry is told and what it answers: plain immutable values.

Knows nothing about SQL, files, tensors or HTTP.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from app.errors import InvalidRequest

LATEST = "latest"
"""The alias that every prefix has; it moves to each version that is uploaded."""

_DIGEST = re.compile(r"[0-9a-f]{64}")
_MAX_COUNT = 2**53

Item = TypeVar("Item")


def check_digest(digest: str) -> str:
    """The digest itself, if it is 64 lower-case hexadecimal digits; InvalidRequest otherwise."""
    if not _DIGEST.fullmatch(digest):
        raise InvalidRequest("a version's digest is 64 lower-case hexadecimal digits")
    return digest


@dataclass(frozen=True, kw_only=True)
class VersionInfo:
    """What is known of a prefix file once it is validated; the registry does not look inside.

    `length` and `position_offset` count positions, `nbytes` the bytes of all tensors, `dtype` is
    the file's ("float32"). `digest` is the content's SHA-256 in hex.
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

    @property
    def verified(self) -> bool:
        """Whether the file names the base model that it was trained on."""
        return self.base_fingerprint is not None

    def check(self) -> None:
        """InvalidRequest if a field could not be stored or could harm as part of a file's name."""
        check_digest(self.digest)
        for name in ("length", "position_offset", "nbytes"):
            value = getattr(self, name)
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


@dataclass(frozen=True)
class Tenant:
    """Who owns prefixes. `owner` is the folder of its uploads: random, never made of the id."""

    id: str
    owner: str


@dataclass(frozen=True, kw_only=True)
class PrefixRecord:
    """A name with at least one version; `aliases` maps names (always `latest`) to digests."""

    tenant: str
    name: str
    created_at: int
    versions: int
    aliases: Mapping[str, str] = field(hash=False)

    @property
    def latest(self) -> str:
        """Digest of the version that the bare name stands for."""
        return self.aliases[LATEST]


@dataclass(frozen=True, kw_only=True)
class Alias:
    """A movable name for a version. `etag` (with its quotes) changes with every move."""

    name: str
    digest: str
    etag: str
    updated_at: int


@dataclass(frozen=True, kw_only=True)
class AliasChange:
    """One move of an alias, to `digest`. `reason`: set, upload, seed, rollback or fallback."""

    digest: str
    reason: str
    changed_at: int


@dataclass(frozen=True)
class Page(Generic[Item]):
    """A part of a list; `next_cursor` asks for the following part and is None at the end."""

    items: tuple[Item, ...]
    next_cursor: str | None
