"""`/v1/prefixes/{name}/aliases`: movable names for versions, with ETag, If-Match and rollback.

An alias may be split over several versions, to try a new one on a part of the users. Its gate says
what a version must score before the alias moves to it, by itself, in a split or with an upload:
else nothing moves. So it is for a version that the alias served before it had this gate. A rollback
is never refused.
"""

from __future__ import annotations

from functools import partial
from typing import Annotated

from fastapi import Header, Request, Response

from app.api.dependencies import CallerDep, EvaluationsDep, RegistryDep
from app.api.generation.generation import cancel_on_disconnect
from app.api.routing import JSON, Answer, Router
from app.api.schemas.evaluations import AliasGateDeleted, AliasGateReply, GateBody
from app.api.schemas.prefixes import AliasBody, AliasChangeReply, AliasHistoryReply, AliasReply
from app.errors import InvalidRequest
from app.registry.quality_gates import QualityGate, write_when_scored
from app.registry.types import Alias
from app.tenancy.auth.principal import Scope

router = Router("aliases", "/v1/prefixes/{name}/aliases/{alias}")

_READING, _WRITING = [Scope.PREFIXES_READ], [Scope.PREFIXES_WRITE]
_ALIAS = Answer({JSON: AliasReply}, ("etag",))

_MAX_CHARACTERS = 1 << 18
"""Of all examples of one gate: they are kept in the catalog."""

IfMatch = Annotated[str | None, Header(max_length=1024)]


@router.route("GET", "", answers=_ALIAS, scopes=_READING)
async def get_alias(name: str, alias: str, registry: RegistryDep, caller: CallerDep) -> Response:
    """Where an alias points; its state is the ETag."""
    return _reply(name, await caller.read(registry.aliases.get, caller.tenant, name, alias))


@router.route("PUT", "", answers=_ALIAS, scopes=_WRITING, errors=[409, 412, 504])
async def set_alias(
    name: str,
    alias: str,
    body: AliasBody,
    request: Request,
    registry: RegistryDep,
    evaluations: EvaluationsDep,
    caller: CallerDep,
    if_match: IfMatch = None,
) -> Response:
    """Point an alias at a version, or split it; with `If-Match` only if nobody moved it meanwhile.

    A `user` of requests stays with one version of a split; without one they are drawn. Versions
    that have not passed the alias's gate, if it has one, are scored first.
    """
    target = body.version or body.split or {}
    move = registry.aliases.set
    write = partial(caller.write, move, caller.tenant, name, alias, target, if_match=if_match)

    async def score(digest: str, gate: QualityGate) -> float:
        scoring = evaluations.gate_score(caller.principal, name, digest, gate)
        return await cancel_on_disconnect(request.receive, scoring)

    return _reply(name, await write_when_scored(write, score))


@router.route("POST", "/rollback", answers=_ALIAS, scopes=_WRITING, errors=[409, 412])
async def rollback_alias(
    name: str, alias: str, registry: RegistryDep, caller: CallerDep, if_match: IfMatch = None
) -> Response:
    """Point an alias at the version before; again, further back."""
    rollback = registry.aliases.rollback
    return _reply(name, await caller.write(rollback, caller.tenant, name, alias, if_match=if_match))


@router.route("GET", "/history", answers=AliasHistoryReply, scopes=_READING)
async def alias_history(
    name: str, alias: str, registry: RegistryDep, caller: CallerDep
) -> Response:
    """The alias's last moves, at most 100, the latest first."""
    changes = await caller.read(registry.aliases.history, caller.tenant, name, alias)
    data = [AliasChangeReply.of(change, version=change.digest) for change in changes]
    return AliasHistoryReply(data=data).response()


@router.route("GET", "/gate", answers=AliasGateReply, scopes=_READING)
async def get_gate(name: str, alias: str, registry: RegistryDep, caller: CallerDep) -> Response:
    """The alias's gate with its examples."""
    found = await caller.read(registry.gates.get, caller.tenant, name, alias)
    return AliasGateReply.of(found, name=name, alias=alias).response()


@router.route("PUT", "/gate", answers=AliasGateReply, scopes=_WRITING, errors=[409])
async def set_gate(
    name: str, alias: str, body: GateBody, registry: RegistryDep, caller: CallerDep
) -> Response:
    """Give the alias a gate, or another one; where it points now stays as it is."""
    examples = [{"input": one.input, "output": list(one.references)} for one in body.examples]
    size = sum(len(one.input) + sum(map(len, one.references)) for one in body.examples)
    if size > _MAX_CHARACTERS:
        raise InvalidRequest(
            f"the examples have {size} characters; a gate takes {_MAX_CHARACTERS}",
            param="examples",
        )
    gate = QualityGate(metric=body.metric, min_score=body.min_score, examples=examples)
    made = await caller.write(registry.gates.set, caller.tenant, name, alias, gate)
    return AliasGateReply.of(made, name=name, alias=alias).response()


@router.route("DELETE", "/gate", answers=AliasGateDeleted, scopes=_WRITING)
async def remove_gate(name: str, alias: str, registry: RegistryDep, caller: CallerDep) -> Response:
    """Take the alias's gate away."""
    await caller.write(registry.gates.remove, caller.tenant, name, alias)
    return AliasGateDeleted(name=name, alias=alias).response()


def _reply(name: str, alias: Alias) -> Response:
    reply = AliasReply.of(alias, name=name, alias=alias.name, version=alias.digest)
    return reply.response(headers={"etag": alias.etag})
