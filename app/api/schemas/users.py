"""Users of tenants: what an erasure answers."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import Query
from pydantic import Field

from app.api.schemas.base import Count, Reply
from app.jobs.erasure import MAX_USER, Erasure

UserQuery = Annotated[str | None, Query(min_length=1, max_length=MAX_USER)]
"""Whose something is: what the tenant calls one of its users."""

_MAX_LISTED = 1000
_REMAINS = (
    "backups of the catalog and of the store that were made before; they are the operator's",
    "the audit log: names of prefixes in records of earlier calls, and the record of this one",
    "usage: sums of tokens under the names of the prefixes",
    "prefixes and training files that were uploaded without this user",
    "prefixes that finished jobs of others have made from this user's files or prefixes",
    "versions and training files that were deleted earlier, until their grace ends",
    "what a lost worker was storing when it was lost, until its grace ends",
)


class UserErased(Reply):
    """What was removed and what remains; of long lists the first 1000 are named.

    `cancelled_jobs` are open jobs that are not the user's and needed the user's files, to train on
    or to validate, or were trained behind the user's prefixes.
    `objects` counts files in the store: those removed, those that a background task still removes,
    and those that stay because something that is not the user's has the same content.
    """

    object: Literal["user.erasure"] = "user.erasure"
    user: str
    prefixes: Annotated[list[str], Field(max_length=_MAX_LISTED)]
    training_files: Annotated[list[str], Field(max_length=_MAX_LISTED)]
    training_jobs: Annotated[list[str], Field(max_length=_MAX_LISTED)]
    cancelled_jobs: Annotated[list[str], Field(max_length=_MAX_LISTED)]
    counts: dict[str, Count]
    objects: dict[Literal["removed", "pending", "shared"], Count]
    remains: list[str]

    @classmethod
    def reply(cls, user: str, erased: Erasure, removed: int) -> UserErased:
        """The reply to an erasure of which so many files are gone."""
        return cls(
            user=user,
            prefixes=erased.prefixes[:_MAX_LISTED],
            training_files=erased.training_files[:_MAX_LISTED],
            training_jobs=erased.training_jobs[:_MAX_LISTED],
            cancelled_jobs=erased.cancelled[:_MAX_LISTED],
            counts={
                "prefixes": len(erased.prefixes),
                "versions": erased.versions,
                "training_files": len(erased.training_files),
                "training_jobs": len(erased.training_jobs),
                "cancelled_jobs": len(erased.cancelled),
            },
            objects={
                "removed": removed,
                "pending": len(erased.begun) - removed,
                "shared": erased.shared,
            },
            remains=list(_REMAINS),
        )
