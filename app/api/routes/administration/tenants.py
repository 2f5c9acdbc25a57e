"""`/admin/tenants`: who may use the server, with which keys and within which limits.

Needs a key with the scope `admin`, of whatever tenant; on all other routes that key is its own
tenant's alone.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Response

from app.api.dependencies import ActorDep, TenantDep, requires
from app.api.errors import StrictJSONResponse
from app.api.schemas.generation import KeyBody, LimitsBody, TenantBody, TenantPatchBody
from app.api.services import ServicesDep
from app.tenancy.auth.keyring import KeyInfo
from app.tenancy.auth.principal import Scope
from app.tenancy.limits.limits import TenantLimits
from app.tenancy.tenants import Account

router = APIRouter(prefix="/admin/tenants", dependencies=requires(Scope.ADMIN))

Cursor = Annotated[str | None, Query(max_length=512)]
Limit = Annotated[int, Query(ge=1, le=100)]


@router.post("")
async def create_tenant(
    body: TenantBody, services: ServicesDep, caller: TenantDep, actor: ActorDep
) -> Response:
    """A new tenant, which has no keys yet."""
    limits = TenantLimits.from_json(_given(body.limits))
    made = await services.workers.writes.finish(
        caller, services.accounts.create, body.id, limits, actor=actor
    )
    return StrictJSONResponse(tenant_object(made), 201, {"location": f"/admin/tenants/{made.id}"})


@router.get("")
async def list_tenants(
    services: ServicesDep, caller: TenantDep, cursor: Cursor = None, limit: Limit = 20
) -> Response:
    """Tenants by id, a page at a time."""
    page = await services.workers.catalog.run(caller, services.accounts.list, cursor, limit)
    data = [tenant_object(account) for account in page.items]
    return StrictJSONResponse({"object": "list", "data": data, "next_cursor": page.next_cursor})


@router.get("/{tenant_id}")
async def get_tenant(tenant_id: str, services: ServicesDep, caller: TenantDep) -> Response:
    """One tenant."""
    found = await services.workers.catalog.run(caller, services.accounts.get, tenant_id)
    return StrictJSONResponse(tenant_object(found))


@router.patch("/{tenant_id}")
async def change_tenant(
    tenant_id: str, body: TenantPatchBody, services: ServicesDep, caller: TenantDep, actor: ActorDep
) -> Response:
    """Change what is given: limits one by one (null is no limit), or whether it may act at all."""
    limits = None if body.limits is None else _given(body.limits)
    changed = await services.workers.writes.finish(
        caller,
        services.accounts.change,
        tenant_id,
        limits=limits,
        disabled=body.disabled,
        actor=actor,
    )
    return StrictJSONResponse(tenant_object(changed))


@router.delete("/{tenant_id}")
async def delete_tenant(
    tenant_id: str, services: ServicesDep, caller: TenantDep, actor: ActorDep
) -> Response:
    """Delete a tenant with its keys and prefixes; what runs is finished."""
    await services.workers.writes.finish(caller, services.accounts.delete, tenant_id, actor=actor)
    return StrictJSONResponse({"object": "tenant", "id": tenant_id, "deleted": True})


@router.post("/{tenant_id}/keys")
async def create_key(
    tenant_id: str, body: KeyBody, services: ServicesDep, caller: TenantDep, actor: ActorDep
) -> Response:
    """A new key; the reply is the only place where it is ever shown."""
    info, key = await services.workers.writes.finish(
        caller,
        services.keyring.create,
        tenant_id,
        scopes=frozenset(body.scopes),
        label=body.label,
        not_before=body.not_before,
        expires_at=body.expires_at,
        actor=actor,
    )
    return StrictJSONResponse(
        {**key_object(info), "key": key.text},
        201,
        {
            "location": f"/admin/tenants/{tenant_id}/keys/{info.kid}",
            "cache-control": "no-store",
        },
    )


@router.get("/{tenant_id}/keys")
async def list_keys(
    tenant_id: str,
    services: ServicesDep,
    caller: TenantDep,
    cursor: Cursor = None,
    limit: Limit = 20,
) -> Response:
    """A tenant's keys, revoked ones included, a page at a time."""
    page = await services.workers.catalog.run(
        caller, services.keyring.list, tenant_id, cursor, limit
    )
    data = [key_object(info) for info in page.items]
    return StrictJSONResponse({"object": "list", "data": data, "next_cursor": page.next_cursor})


@router.get("/{tenant_id}/keys/{kid}")
async def get_key(tenant_id: str, kid: str, services: ServicesDep, caller: TenantDep) -> Response:
    """What is known of one key."""
    found = await services.workers.catalog.run(caller, services.keyring.get, tenant_id, kid)
    return StrictJSONResponse(key_object(found))


@router.delete("/{tenant_id}/keys/{kid}")
async def revoke_key(
    tenant_id: str, kid: str, services: ServicesDep, caller: TenantDep, actor: ActorDep
) -> Response:
    """Revoke a key: refused here at once, and by every replica within a second."""
    revoked = await services.workers.writes.finish(
        caller, services.keyring.revoke, tenant_id, kid, actor=actor
    )
    return StrictJSONResponse(key_object(revoked))


def tenant_object(account: Account) -> dict[str, Any]:
    """A tenant as replies show it."""
    return {"object": "tenant", **account.to_json(), "disabled": account.disabled_at is not None}


def key_object(info: KeyInfo) -> dict[str, Any]:
    """A key as lists show it: everything but the key."""
    return {"object": "api_key", **info.to_json()}


def _given(limits: LimitsBody) -> dict[str, object]:
    return limits.model_dump(exclude_unset=True)
