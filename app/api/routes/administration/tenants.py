"""`/admin/tenants`: who may use the server, with which keys and within which limits.

Needs a key with the scope `admin`, of whatever tenant; on all other routes that key is its own
tenant's alone.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import Query, Response

from app.api.dependencies import (
    ActorDep,
    KeyringDep,
    TenantDep,
    TenantsDep,
    WorkersDep,
)
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

Cursor = Annotated[str | None, Query(max_length=512)]
Limit = Annotated[int, Query(ge=1, le=100)]


@router.route(
    "POST",
    "",
    answers=Answer({JSON: TenantReply}, ("location",)),
    statuses=[201],
    scopes=_ADMIN,
    errors=[409],
)
async def create_tenant(
    body: TenantBody, tenants: TenantsDep, workers: WorkersDep, caller: TenantDep, actor: ActorDep
) -> Response:
    """A new tenant, which has no keys yet."""
    limits = TenantLimits.from_json(_given(body.limits))
    made = await workers.writes.finish(caller, tenants.create, body.id, limits, actor=actor)
    return _tenant_reply(made).response(201, {"location": f"/admin/tenants/{made.id}"})


@router.route("GET", "", answers=TenantPage, scopes=_ADMIN)
async def list_tenants(
    tenants: TenantsDep,
    workers: WorkersDep,
    caller: TenantDep,
    cursor: Cursor = None,
    limit: Limit = 20,
) -> Response:
    """Tenants by id, a page at a time."""
    page = await workers.catalog.run(caller, tenants.list, cursor, limit)
    data = [_tenant_reply(account) for account in page.items]
    return TenantPage.of(page, data=data).response()


@router.route("GET", "/{tenant_id}", answers=TenantReply, scopes=_ADMIN)
async def get_tenant(
    tenant_id: str, tenants: TenantsDep, workers: WorkersDep, caller: TenantDep
) -> Response:
    """One tenant."""
    found = await workers.catalog.run(caller, tenants.get, tenant_id)
    return _tenant_reply(found).response()


@router.route("PATCH", "/{tenant_id}", answers=TenantReply, scopes=_ADMIN)
async def change_tenant(
    tenant_id: str,
    body: TenantPatchBody,
    tenants: TenantsDep,
    workers: WorkersDep,
    caller: TenantDep,
    actor: ActorDep,
) -> Response:
    """Change what is given: limits one by one (null is no limit), or whether it may act at all."""
    limits = None if body.limits is None else _given(body.limits)
    changed = await workers.writes.finish(
        caller,
        tenants.change,
        tenant_id,
        limits=limits,
        disabled=body.disabled,
        actor=actor,
    )
    return _tenant_reply(changed).response()


@router.route("DELETE", "/{tenant_id}", answers=TenantDeleted, scopes=_ADMIN, errors=[409])
async def delete_tenant(
    tenant_id: str, tenants: TenantsDep, workers: WorkersDep, caller: TenantDep, actor: ActorDep
) -> Response:
    """Delete a tenant with its keys and prefixes; what runs is finished."""
    await workers.writes.finish(caller, tenants.delete, tenant_id, actor=actor)
    return TenantDeleted(id=tenant_id).response()


@router.route(
    "POST",
    "/{tenant_id}/keys",
    answers=Answer({JSON: NewKeyReply}, ("location",)),
    statuses=[201],
    scopes=_ADMIN,
    errors=[409],
)
async def create_key(
    tenant_id: str,
    body: KeyBody,
    keyring: KeyringDep,
    workers: WorkersDep,
    caller: TenantDep,
    actor: ActorDep,
) -> Response:
    """A new key; the reply is the only place where it is ever shown."""
    info, key = await workers.writes.finish(
        caller,
        keyring.create,
        tenant_id,
        scopes=frozenset(body.scopes),
        label=body.label,
        not_before=body.not_before,
        expires_at=body.expires_at,
        actor=actor,
    )
    return NewKeyReply.of(info, scopes=sorted(info.scopes), key=key.text).response(
        201,
        {
            "location": f"/admin/tenants/{tenant_id}/keys/{info.kid}",
            "cache-control": "no-store",
        },
    )


@router.route("GET", "/{tenant_id}/keys", answers=KeyPage, scopes=_ADMIN)
async def list_keys(
    tenant_id: str,
    keyring: KeyringDep,
    workers: WorkersDep,
    caller: TenantDep,
    cursor: Cursor = None,
    limit: Limit = 20,
) -> Response:
    """A tenant's keys, revoked ones included, a page at a time."""
    page = await workers.catalog.run(caller, keyring.list, tenant_id, cursor, limit)
    data = [_key_reply(info) for info in page.items]
    return KeyPage.of(page, data=data).response()


@router.route("GET", "/{tenant_id}/keys/{kid}", answers=KeyReply, scopes=_ADMIN)
async def get_key(
    tenant_id: str, kid: str, keyring: KeyringDep, workers: WorkersDep, caller: TenantDep
) -> Response:
    """What is known of one key."""
    found = await workers.catalog.run(caller, keyring.get, tenant_id, kid)
    return _key_reply(found).response()


@router.route("DELETE", "/{tenant_id}/keys/{kid}", answers=KeyReply, scopes=_ADMIN)
async def revoke_key(
    tenant_id: str,
    kid: str,
    keyring: KeyringDep,
    workers: WorkersDep,
    caller: TenantDep,
    actor: ActorDep,
) -> Response:
    """Revoke a key: refused here at once, and by every replica within a second."""
    revoked = await workers.writes.finish(caller, keyring.revoke, tenant_id, kid, actor=actor)
    return _key_reply(revoked).response()


def _tenant_reply(account: Tenant) -> TenantReply:
    is_disabled = account.disabled_at is not None
    return TenantReply.of(account, limits=account.limits.to_json(), disabled=is_disabled)


def _key_reply(info: KeyInfo) -> KeyReply:
    return KeyReply.of(info, scopes=sorted(info.scopes))


def _given(limits: LimitsBody) -> dict[str, object]:
    return limits.model_dump(exclude_unset=True)
