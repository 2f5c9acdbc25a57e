"""Who is asking: every route but a few depends on `get_principal`, and no path decides it.

Knows nothing about how keys are stored.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends

from app.api.services import DEMO_TENANT
from app.tenancy.principal import Principal, Scope


def get_principal() -> Principal:
    """The caller. Without keys everybody is tenant `demo` and may do everything."""
    return Principal(DEMO_TENANT, None, frozenset(Scope))


PrincipalDep = Annotated[Principal, Depends(get_principal)]


def get_tenant(principal: PrincipalDep) -> str:
    """The tenant that is asking. Every route that touches a tenant's things goes through here."""
    return principal.tenant


TenantDep = Annotated[str, Depends(get_tenant)]
