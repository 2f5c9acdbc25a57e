"""Who is asking and whether they may: each route says with `requires` what a key must allow.

What the gate let in is in the request's state; no path and no header decides anything here. Knows
nothing about keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from fastapi import Depends, Request, params

from app.api.middleware.request_rate import COUNTED
from app.tenancy.auth.authenticator import refusal
from app.tenancy.auth.principal import Principal, Scope


async def get_principal(request: Request) -> Principal:
    """The caller, as the gate knows them; InvalidKey if it has let nobody in."""
    principal = getattr(request.state, "principal", None)
    if not isinstance(principal, Principal):
        raise refusal()
    return principal


PrincipalDep = Annotated[Principal, Depends(get_principal)]


async def get_tenant(principal: PrincipalDep) -> str:
    """The tenant that is asking. Every route that touches a tenant's things goes through here."""
    return principal.tenant


TenantDep = Annotated[str, Depends(get_tenant)]


class Requires:
    """A dependency: the key must allow one of `scopes`; any valid key will do if there are none."""

    def __init__(self, *scopes: Scope) -> None:
        self.scopes = scopes

    async def __call__(self, principal: PrincipalDep) -> None:
        """InsufficientScope unless the caller's key allows one of them."""
        principal.require(*self.scopes)


def requires(*scopes: Scope) -> Sequence[params.Depends]:
    """The `dependencies` of a route, or of a router, that wants one of these scopes.

    Routes that change prefixes are counted too: each leaves a record for ever.
    """
    counted = COUNTED if Scope.PREFIXES_WRITE in scopes else ()
    return [Depends(Requires(*scopes)), *counted]
