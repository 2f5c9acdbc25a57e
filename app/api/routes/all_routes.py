"""All routes of the server, one module per resource."""

from __future__ import annotations

from app.api.routes.administration import audit, operations, tenants, usage
from app.api.routes.generation import completions, models, tgi, tokenize
from app.api.routes.prefixes import (
    aliases,
    evaluations,
    from_text,
    prefixes,
    publications,
    users,
    versions,
)
from app.api.routes.training import files, jobs
from app.api.routing import Route

_RESOURCES = (
    completions,
    tgi,
    models,
    tokenize,
    prefixes,
    versions,
    aliases,
    publications,
    operations,
    tenants,
    audit,
    usage,
    evaluations,
    from_text,
    files,
    jobs,
    users,
)

ALL_ROUTES: tuple[Route, ...] = tuple(
    route for resource in _RESOURCES for route in resource.router.routes
)
