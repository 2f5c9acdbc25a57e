"""`DELETE /v1/users/{user}`: everything that is one user's goes."""

from __future__ import annotations

from fastapi import Response

from app.api.dependencies import CallerDep, TrainingDep
from app.api.routing import Router
from app.api.schemas.users import UserErased
from app.tenancy.auth.principal import Scope

router = Router("users", "/v1/users")


@router.route("DELETE", "/{user:path}", answers=UserErased, scopes=[Scope.PREFIXES_WRITE])
async def erase_user(user: str, training: TrainingDep, caller: CallerDep) -> Response:
    """Erase a user's prefixes, training files and jobs; requests that use the prefixes end.

    No name leads to them afterwards, on any server within a second. Their files are removed from
    the store without the grace of other deletions. A user of whom there is nothing is no error.
    """
    erased = await caller.write(training.erasure.forget, caller.tenant, user)
    removed = await caller.workers.store.finish(caller.tenant, training.erasure.remove, erased)
    return UserErased.reply(user, erased, removed).response()
