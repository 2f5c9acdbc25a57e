"""`/admin/tenants`: who may use the server, with which keys and within which limits.

Needs a key with the scope `admin`, of whatever tenant; on all other routes that key is its own
tenant's alone.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import Query, Response

from app.api.dependencies import CallerDep, KeyringDep, TenantsDep
from app.api.routing import JSON, Answer, Router
from app.api.schemas.tenants import (
    KeyBody,
    KeyPage,
    KeyReply,
    LimitsBody,
    NewKeyReply,
    TenantBody,
    TenantDeleted,
    TenantPage,
    TenantPatchBody,
    TenantReply,
)
from app.tenancy.auth.keyring import KeyInfo
from app.tenancy.auth.principal import Scope
from app.tenancy.limits.limits import TenantLimits
from app.tenancy.tenants import Tenant

router = Router("tenants", "/admin/tenants")

_ADMIN = [Scope.ADMIN]
_KEYS = "/{tenant_id}/keys"
_NEW_TENANT = Answer({JSON: TenantReply}, ("location",))
_NEW_KEY = Answer({JSON: NewKeyReply}, ("location",))

Cursor = Annotated[str | None, Query(max_length=512)]
Limit = Annotated[int, Query(ge=1, le=100)]


@router.route("POST", "", answers=_NEW_TENANT, statuses=[201], scopes=_ADMIN, errors=[409])
async def create_tenant(body: TenantBody, tenants: TenantsDep, caller: CallerDep) -> Response:
    """A new tenant, which has no keys yet."""
    limits = TenantLimits.from_json(_given(body.limits))
    made = await caller.write(tenants.create, body.id, limits)
    return _tenant_reply(made).response(201, {"location": f"/admin/tenants/{made.id}"})


@router.route("GET", "", answers=TenantPage, scopes=_ADMIN)
async def list_tenants(
    tenants: TenantsDep, caller: CallerDep, cursor: Cursor = None, limit: Limit = 20
) -> Response:
    """Tenants by id, a page at a time."""
    page = await caller.read(tenants.list, cursor, limit)
    return TenantPage.of(page, data=list(map(_tenant_reply, page.items))).response()


@router.route("GET", "/{tenant_id}", answers=TenantReply, scopes=_ADMIN)
async def get_tenant(tenant_id: str, tenants: TenantsDep, caller: CallerDep) -> Response:
    """One tenant."""
    return _tenant_reply(await caller.read(tenants.get, tenant_id)).response()


@router.route("PATCH", "/{tenant_id}", answers=TenantReply, scopes=_ADMIN)
async def change_tenant(
    tenant_id: str, body: TenantPatchBody, tenants: TenantsDep, caller: CallerDep
) -> Response:
    """Change what is given: limits one by one (null is no limit), or whether it may act at all."""
    limits = None if body.limits is None else _given(body.limits)
    disabled = body.disabled
    changed = await caller.write(tenants.change, tenant_id, limits=limits, disabled=disabled)
    return _tenant_reply(changed).response()


@router.route("DELETE", "/{tenant_id}", answers=TenantDeleted, scopes=_ADMIN, errors=[409])
async def delete_tenant(tenant_id: str, tenants: TenantsDep, caller: CallerDep) -> Response:
    """Delete a tenant with its keys and prefixes; what runs is finished."""
    await caller.write(tenants.delete, tenant_id)
    return TenantDeleted(id=tenant_id).response()


@router.route("POST", _KEYS, answers=_NEW_KEY, statuses=[201], scopes=_ADMIN, errors=[409])
async def create_key(
    tenant_id: str, body: KeyBody, keyring: KeyringDep, caller: CallerDep
) -> Response:
    """A new key; the reply is the only place where it is ever shown."""
    facts = {**body.model_dump(), "scopes": frozenset(body.scopes)}
    info, key = await caller.write(keyring.create, tenant_id, **facts)
    location = f"/admin/tenants/{tenant_id}/keys/{info.kid}"
    return NewKeyReply.of(info, scopes=sorted(info.scopes), key=key.text).response(
        201, {"location": location, "cache-control": "no-store"}
    )


@router.route("GET", _KEYS, answers=KeyPage, scopes=_ADMIN)
async def list_keys(
    tenant_id: str, keyring: KeyringDep, caller: CallerDep, cursor: Cursor = None, limit: Limit = 20
) -> Response:
    """A tenant's keys, revoked ones included, a page at a time."""
    page = await caller.read(keyring.list, tenant_id, cursor, limit)
    return KeyPage.of(page, data=list(map(_key_reply, page.items))).response()


@router.route("GET", f"{_KEYS}/{{kid}}", answers=KeyReply, scopes=_ADMIN)
async def get_key(tenant_id: str, kid: str, keyring: KeyringDep, caller: CallerDep) -> Response:
    """What is known of one key."""
    return _key_reply(await caller.read(keyring.get, tenant_id, kid)).response()


@router.route("DELETE", f"{_KEYS}/{{kid}}", answers=KeyReply, scopes=_ADMIN)
async def revoke_key(tenant_id: str, kid: str, keyring: KeyringDep, caller: CallerDep) -> Response:
    """Revoke a key: refused here at once, and by every replica within a second."""
    return _key_reply(await caller.write(keyring.revoke, tenant_id, kid)).response()


def _tenant_reply(account: Tenant) -> TenantReply:
    is_disabled = account.disabled_at is not None
    return TenantReply.of(account, limits=account.limits.to_json(), disabled=is_disabled)


def _key_reply(info: KeyInfo) -> KeyReply:
    return KeyReply.of(info, scopes=sorted(info.scopes))


def _given(limits: LimitsBody) -> dict[str, object]:
    return limits.model_dump(exclude_unset=True)
