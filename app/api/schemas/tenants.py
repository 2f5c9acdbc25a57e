"""Tenants, keys, usage and the audit log: bodies and replies."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import MISSING, ConfigDict, Field, StrictBool, StrictInt

from app.api.schemas.base import Count, Digest, PageReply, Reply, Seconds, StrictBody
from app.tenancy.auth.principal import TENANT_SCOPES, Scope


class LimitsBody(StrictBody):
    """Limits of a tenant; null is no limit. Their bounds are the limits' own."""

    requests_per_minute: StrictInt | None = None
    tokens_per_minute: StrictInt | None = None
    max_rows: StrictInt | None = None
    max_queue: StrictInt | None = None
    max_prefixes: StrictInt | None = None
    max_bytes: StrictInt | None = None
    max_queued_jobs: StrictInt | None = None
    max_running_jobs: StrictInt | None = None
    training_tokens_per_day: StrictInt | None = None
    max_training_bytes: StrictInt | None = None
    weight: Annotated[float, Field(strict=True, allow_inf_nan=False)] | None = None


class TenantBody(StrictBody):
    """`POST /admin/tenants`."""

    id: Annotated[str, Field(max_length=256)]
    limits: LimitsBody = LimitsBody()


class TenantPatchBody(StrictBody):
    """`PATCH /admin/tenants/{id}`: what is left out stays."""

    limits: LimitsBody | None = None
    disabled: StrictBool | None = None


class KeyBody(StrictBody):
    """`POST …/keys`. Times are in seconds since 1970."""

    scopes: Annotated[list[Scope], Field(min_length=1, max_length=16, fail_fast=True)] = sorted(
        TENANT_SCOPES
    )
    label: Annotated[str, Field(max_length=128)] = ""
    not_before: Annotated[StrictInt, Field(ge=0, le=2**40)] | None = None
    expires_at: Annotated[StrictInt, Field(ge=0, le=2**40)] | None = None


class LimitsReply(Reply):
    """The limits of a tenant; what is not limited is left out."""

    requests_per_minute: Count | MISSING = MISSING
    tokens_per_minute: Count | MISSING = MISSING
    max_rows: Count | MISSING = MISSING
    max_queue: Count | MISSING = MISSING
    max_prefixes: Count | MISSING = MISSING
    max_bytes: Count | MISSING = MISSING
    max_queued_jobs: Count | MISSING = MISSING
    max_running_jobs: Count | MISSING = MISSING
    training_tokens_per_day: Count | MISSING = MISSING
    max_training_bytes: Count | MISSING = MISSING
    weight: float


class TenantReply(Reply):
    """One tenant."""

    object: Literal["tenant"] = "tenant"
    id: str
    created_at: Seconds
    disabled_at: Seconds | None
    limits: LimitsReply
    disabled: bool


class TenantPage(PageReply[TenantReply]):
    """Tenants by id."""


class TenantDeleted(Reply):
    """A tenant that is gone."""

    object: Literal["tenant"] = "tenant"
    id: str
    deleted: Literal[True] = True


class KeyReply(Reply):
    """One API key, without its secret part."""

    object: Literal["api_key"] = "api_key"
    kid: str
    tenant: str
    label: str
    scopes: list[Scope]
    created_at: Seconds
    not_before: Seconds | None
    expires_at: Seconds | None
    revoked_at: Seconds | None
    last_used_at: Seconds | None


class NewKeyReply(KeyReply):
    """A key that was just made, with its whole text."""

    key: str


class KeyPage(PageReply[KeyReply]):
    """Keys of a tenant."""


class AuditRecordReply(Reply):
    """One record; its further fields say who did what to what, and how it ended."""

    model_config = ConfigDict(extra="allow")

    replica: str
    sequence: Count
    at: Seconds
    tenant: str
    hash: Digest


class AuditPage(PageReply[AuditRecordReply]):
    """Records by time."""


class UsageReply(Reply):
    """What was used by one group; without `group_by` there is one group, of everything."""

    object: Literal["usage"] = "usage"
    start: Seconds | MISSING = MISSING
    end: Seconds | MISSING = MISSING
    prefix: str | MISSING = MISSING
    version: str | MISSING = MISSING
    requests: Count
    failed: Count
    tokens_in: Count
    tokens_out: Count
    tokens_trained: Count
    mean_first_token_ms: float | None
    mean_total_ms: float | None


class UsagePage(PageReply[UsageReply]):
    """Usage by group."""
