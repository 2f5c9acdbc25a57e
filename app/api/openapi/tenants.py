"""Schemas of tenants and keys, of what they used and what they changed."""

from __future__ import annotations

from app.api.openapi.shapes import (
    COUNT,
    DIGEST,
    MOMENT,
    NUMBER,
    SCORE,
    SWITCH,
    TEXT,
    TIME,
    Schema,
    deleted,
    just,
    list_of,
    object_of,
    page_of,
)
from app.tenancy.auth.principal import Scope

_LIMITS = (
    "requests_per_minute",
    "tokens_per_minute",
    "max_rows",
    "max_queue",
    "max_prefixes",
    "max_bytes",
)
_KEY: dict[str, Schema] = {
    "object": just("api_key"),
    "kid": TEXT,
    "tenant": TEXT,
    "label": TEXT,
    "scopes": list_of(just(*Scope)),
    "created_at": TIME,
    "not_before": MOMENT,
    "expires_at": MOMENT,
    "revoked_at": MOMENT,
    "last_used_at": MOMENT,
}

TENANTS: dict[str, Schema] = {
    "Tenant": object_of(
        {
            "object": just("tenant"),
            "id": TEXT,
            "created_at": TIME,
            "disabled": SWITCH,
            "disabled_at": MOMENT,
            "limits": object_of({"weight": NUMBER}, **dict.fromkeys(_LIMITS, COUNT)),
        }
    ),
    "TenantPage": page_of("Tenant"),
    "TenantDeleted": deleted("tenant", "id"),
    "Key": object_of(_KEY),
    "KeyPage": page_of("Key"),
    "NewKey": object_of({**_KEY, "key": TEXT}),
    "AuditRecord": {
        **object_of(
            {"replica": TEXT, "sequence": COUNT, "at": TIME, "tenant": TEXT, "hash": DIGEST}
        ),
        "additionalProperties": True,
    },
    "AuditPage": page_of("AuditRecord"),
    "Usage": object_of(
        {
            "object": just("usage"),
            "requests": COUNT,
            "failed": COUNT,
            "tokens_in": COUNT,
            "tokens_out": COUNT,
            "mean_first_token_ms": SCORE,
            "mean_total_ms": SCORE,
        },
        start=TIME,
        end=TIME,
        prefix=TEXT,
        version=TEXT,
    ),
    "UsagePage": page_of("Usage"),
}
"""By name."""
