"""`/v1/models`: the base model, the caller's prefixes and those that are published to it, as
OpenAI lists models."""

from __future__ import annotations

from fastapi import Response

from app.api.dependencies import (
    CallerDep,
    GenerationsDep,
    ModelDep,
    PrefixCacheDep,
    RegistryDep,
)
from app.api.routes.prefixes.prefixes import forget_prefix
from app.api.routing import Router
from app.api.schemas.server import ModelDeleted, ModelListReply, ModelReply
from app.errors import InUse, InvalidRequest, PrefixNotFound
from app.prefix.spec import BaseModelSpec
from app.registry.registry import Registry
from app.registry.types import PublishedPrefix
from app.tenancy.auth.principal import Scope

router = Router("models")

_READING = [(Scope.GENERATE, Scope.PREFIXES_READ)]
MAX_LISTED = 1000
"""The caller's prefixes in the list, and others'."""
_PAGE = 100


@router.route("GET", "/v1/models", answers=ModelListReply, scopes=_READING)
async def list_models(model: ModelDep, registry: RegistryDep, caller: CallerDep) -> Response:
    """The base model, the caller's prefixes by name, and those published to it, as `acme/e2e`.

    At most 1,000 of each; `/v1/prefixes` and `/v1/published` have all, in pages.
    """
    mine = await caller.read(registry.list_names, caller.tenant, MAX_LISTED)
    others = await caller.read(_published, registry, caller.tenant)
    data = [_base_card(model.spec)]
    data += [_card(model.spec, name, created, caller.tenant) for name, created in mine]
    data += [
        _card(model.spec, f"{prefix.tenant}/{prefix.name}", prefix.created_at, prefix.tenant)
        for prefix in others
    ]
    return ModelListReply(data=data).response()


@router.route(
    "GET", "/v1/models/{model_id:path}", answers=ModelReply, scopes=_READING, errors=[409]
)
async def get_model(model_id: str, generations: GenerationsDep, caller: CallerDep) -> Response:
    """One model: the base model, or a prefix by any form of its name."""
    model, tenant = generations.model, caller.tenant
    if model_id == model.spec.model_id:
        return _base_card(model.spec).response()
    selector = generations.selector
    versions = [
        await selector.resolve(tenant, reference, user="")  # of a split always the same one
        for reference in selector.parse(model_id)
    ]
    created = max(version.created_at for version in versions)
    owner = tenant if len(versions) > 1 else versions[0].tenant
    return _card(model.spec, model_id, created, owner).response()


@router.route(
    "DELETE",
    "/v1/models/{model_id:path}",
    answers=ModelDeleted,
    scopes=[Scope.PREFIXES_WRITE],
    errors=[409],
)
async def delete_model(
    model_id: str,
    generations: GenerationsDep,
    registry: RegistryDep,
    prefix_cache: PrefixCacheDep,
    caller: CallerDep,
) -> Response:
    """Delete a prefix with all its versions; the base model cannot be deleted."""
    if model_id == generations.model.spec.model_id:
        raise InUse("the base model cannot be deleted")
    reference, *more = generations.selector.parse(model_id)
    if more or reference.selector is not None:
        raise InvalidRequest("only a prefix as a whole can be deleted here", param="model")
    if reference.tenant not in (None, caller.tenant):
        raise PrefixNotFound(f"prefix '{reference}' does not exist", param="model")
    await forget_prefix(registry, prefix_cache, caller, reference.name)
    return ModelDeleted(id=model_id).response()


def _published(registry: Registry, tenant: str) -> list[PublishedPrefix]:
    found: list[PublishedPrefix] = []
    cursor: str | None = None
    while len(found) < MAX_LISTED:
        page = registry.publications.offered(tenant, cursor, _PAGE)
        found.extend(page.items)
        cursor = page.next_cursor
        if cursor is None:
            break
    return found[:MAX_LISTED]


def _base_card(spec: BaseModelSpec) -> ModelReply:
    return _card(spec, spec.model_id, 0, "polyprefix").model_copy(update={"parent": None})


def _card(spec: BaseModelSpec, model_id: str, created: int, owner: str) -> ModelReply:
    return ModelReply(
        id=model_id,
        created=created,
        owned_by=owner,
        root=model_id,
        parent=spec.model_id,
        max_model_len=spec.context_limit,
    )
