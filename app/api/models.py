"""`/v1/models`: the base model and the caller's prefixes, as OpenAI lists models."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Response

from app.api.auth import TenantDep
from app.api.choosing import resolve
from app.api.errors import StrictJSONResponse
from app.api.services import Services, ServicesDep
from app.errors import InUse, InvalidRequest, PrefixNotFound
from app.prefix.reference import parse_model_field
from app.registry.records import PrefixRecord

router = APIRouter()

_MAX_LISTED = 1000
_PAGE = 100


@router.get("/v1/models")
async def list_models(services: ServicesDep, tenant: TenantDep) -> Response:
    """The base model, then the caller's prefixes by name (at most 1,000; see `/v1/prefixes`)."""
    records = await asyncio.to_thread(_all_prefixes, services, tenant)
    data = [_base_card(services), *(_prefix_card(services, record) for record in records)]
    return StrictJSONResponse({"object": "list", "data": data})


@router.get("/v1/models/{model_id:path}")
async def get_model(model_id: str, services: ServicesDep, tenant: TenantDep) -> Response:
    """One model: the base model, or a prefix by any form of its name."""
    if model_id == services.model.spec.model_id:
        return StrictJSONResponse(_base_card(services))
    versions = [
        await resolve(services, tenant, reference) for reference in parse_model_field(model_id)
    ]
    created = max(version.created_at for version in versions)
    return StrictJSONResponse(_card(services, model_id, created, tenant))


@router.delete("/v1/models/{model_id:path}")
async def delete_model(model_id: str, services: ServicesDep, tenant: TenantDep) -> Response:
    """Delete a prefix with all its versions; the base model cannot be deleted."""
    if model_id == services.model.spec.model_id:
        raise InUse("the base model cannot be deleted")
    reference, *more = parse_model_field(model_id)
    if more or reference.selector is not None:
        raise InvalidRequest("only a prefix as a whole can be deleted here", param="model")
    if reference.tenant not in (None, tenant):
        raise PrefixNotFound(f"prefix '{reference}' does not exist", param="model")
    await asyncio.to_thread(services.registry.delete_prefix, tenant, reference.name)
    return StrictJSONResponse({"id": model_id, "object": "model", "deleted": True})


def _all_prefixes(services: Services, tenant: str) -> list[PrefixRecord]:
    found: list[PrefixRecord] = []
    cursor: str | None = None
    while len(found) < _MAX_LISTED:
        page = services.registry.list_prefixes(tenant, cursor, _PAGE)
        found.extend(page.items)
        cursor = page.next_cursor
        if cursor is None:
            break
    return found[:_MAX_LISTED]


def _base_card(services: Services) -> dict[str, Any]:
    card = _card(services, services.model.spec.model_id, 0, "polyprefix")
    return {**card, "parent": None}


def _prefix_card(services: Services, record: PrefixRecord) -> dict[str, Any]:
    return _card(services, record.name, record.created_at, record.tenant)


def _card(services: Services, model_id: str, created: int, owner: str) -> dict[str, Any]:
    spec = services.model.spec
    return {
        "id": model_id,
        "object": "model",
        "created": created,
        "owned_by": owner,
        "root": model_id,
        "parent": spec.model_id,
        "max_model_len": spec.context_limit,
    }
