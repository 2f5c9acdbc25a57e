"""Prefixes, versions, aliases and publications: bodies and replies."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import MISSING, Field, StrictBool, StrictInt, model_validator

from app.api.schemas.base import (
    Count,
    Digest,
    PageReply,
    Reply,
    Seconds,
    StrictBody,
    Weights,
    few_keys,
)
from app.api.schemas.patterns import HEXADECIMAL
from app.registry.publications import MAX_GRANTEES
from app.registry.splits import MAX_VERSIONS, MAX_WEIGHT, MIN_VERSIONS

DigestStart = Annotated[str, Field(min_length=6, max_length=64, pattern=HEXADECIMAL)]
Weight = Annotated[StrictInt, Field(ge=1, le=MAX_WEIGHT)]
TenantId = Annotated[str, Field(min_length=1, max_length=64)]


class AliasBody(StrictBody):
    """`PUT …/aliases/{alias}`: a version, or several with their weights; digests or unique starts
    of them."""

    version: DigestStart | None = None
    split: (
        Annotated[
            dict[DigestStart, Weight],
            Field(min_length=MIN_VERSIONS, max_length=MAX_VERSIONS),
            few_keys(MAX_VERSIONS, "versions"),
        ]
        | None
    ) = None

    @model_validator(mode="after")
    def _one_of_both(self) -> AliasBody:
        if (self.version is None) == (self.split is None):
            raise ValueError("give either version or split")
        return self


class PublicationBody(StrictBody):
    """`PUT …/publication`: the tenants by their ids, or everyone."""

    tenants: Annotated[list[TenantId], Field(max_length=MAX_GRANTEES, fail_fast=True)] = []
    everyone: StrictBool = False


class VersionReply(Reply):
    """One version: its digest names it, `lengths` has its positions by module."""

    object: Literal["prefix.version"] = "prefix.version"
    name: str
    digest: Digest
    length: Count
    lengths: dict[str, Count]
    position_offset: Count
    dtype: str
    nbytes: Count
    base_model: str | None
    base_fingerprint: Digest | None
    verified: bool
    input_template: str | None
    decoding: dict[str, Any]
    provenance: dict[str, Any]
    created_at: Seconds
    pinned: bool
    warnings: list[str] | MISSING = MISSING


class VersionPage(PageReply[VersionReply]):
    """Versions of a prefix."""


class VersionDeleted(Reply):
    """A version that is gone."""

    object: Literal["prefix.version"] = "prefix.version"
    name: str
    digest: Digest
    deleted: Literal[True] = True


class PrefixReply(Reply):
    """A name with the number of its versions and where its aliases point.

    For an alias in `splits`, `aliases` has the version with the most weight.
    """

    object: Literal["prefix"] = "prefix"
    name: str
    versions: Count
    aliases: dict[str, Digest]
    splits: dict[str, Weights]
    created_at: Seconds


class PrefixPage(PageReply[PrefixReply]):
    """Prefixes of the caller."""


class PrefixDeleted(Reply):
    """A prefix that is gone."""

    object: Literal["prefix"] = "prefix"
    name: str
    deleted: Literal[True] = True


class AliasReply(Reply):
    """Where an alias points; `split` maps digests to weights."""

    object: Literal["prefix.alias"] = "prefix.alias"
    name: str
    alias: str
    version: Digest
    split: Weights | None
    updated_at: Seconds


class AliasChangeReply(Reply):
    """One move of an alias: where it pointed then, why and since when."""

    object: Literal["prefix.alias.change"] = "prefix.alias.change"
    version: Digest
    split: Weights | None
    reason: Literal["set", "upload", "seed", "rollback", "fallback"]
    changed_at: Seconds


class AliasHistoryReply(Reply):
    """The last moves of an alias, the latest first."""

    object: Literal["list"] = "list"
    data: list[AliasChangeReply]


class PublicationReply(Reply):
    """Who may use a prefix besides its owner."""

    object: Literal["prefix.publication"] = "prefix.publication"
    name: str
    tenants: list[str]
    everyone: bool


class PublicationDeleted(Reply):
    """A publication that has ended."""

    object: Literal["prefix.publication"] = "prefix.publication"
    name: str
    deleted: Literal[True] = True


class PublishedReply(Reply):
    """A prefix that another tenant publishes to the caller; requests name it by `id`."""

    object: Literal["prefix.published"] = "prefix.published"
    id: str
    tenant: str
    name: str
    created_at: Seconds


class PublishedPage(PageReply[PublishedReply]):
    """Prefixes that others publish to the caller."""
