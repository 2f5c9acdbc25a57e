"""`/v1/prefixes/{name}/aliases/{alias}/gate`: what a version must score before the alias moves.

Whoever then moves the alias to a version, by itself, in a split or with an upload, is refused if
that scores less: nothing moves. So is one that the alias served before it had this gate. A
rollback is never refused.
"""

from __future__ import annotations

from fastapi import Response

from app.api.dependencies import CallerDep, RegistryDep
from app.api.routing import Router
from app.api.schemas.evaluations import AliasGateDeleted, AliasGateReply, GateBody
from app.errors import InvalidRequest
from app.registry.quality_gates import QualityGate
from app.tenancy.auth.principal import Scope

router = Router("aliases", "/v1/prefixes/{name}/aliases/{alias}/gate")

_MAX_CHARACTERS = 1 << 18
"""Of all examples of one gate: they are kept in the catalog."""


@router.route("GET", "", answers=AliasGateReply, scopes=[Scope.PREFIXES_READ])
async def get_gate(name: str, alias: str, registry: RegistryDep, caller: CallerDep) -> Response:
    """The alias's gate with its examples."""
    found = await caller.read(registry.gates.get, caller.tenant, name, alias)
    return AliasGateReply.of(found, name=name, alias=alias).response()


@router.route("PUT", "", answers=AliasGateReply, scopes=[Scope.PREFIXES_WRITE], errors=[409])
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


@router.route("DELETE", "", answers=AliasGateDeleted, scopes=[Scope.PREFIXES_WRITE])
async def remove_gate(name: str, alias: str, registry: RegistryDep, caller: CallerDep) -> Response:
    """Take the alias's gate away."""
    await caller.write(registry.gates.remove, caller.tenant, name, alias)
    return AliasGateDeleted(name=name, alias=alias).response()
