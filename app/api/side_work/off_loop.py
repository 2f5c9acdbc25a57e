"""Work on long texts and large replies beside the event loop, tenants in turn."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from fastapi.responses import Response

from app.api.errors import StrictJSONResponse
from app.api.large_json import encode_json
from app.runtime.workers import WorkerPool

Result = TypeVar("Result")

_SHORT_WORK = 2000
"""Characters or tokens that are worked on at once: less than a thread's turn would cost."""


async def off_loop(
    pool: WorkerPool, tenant: str, size: int, work: Callable[..., Result], *arguments: Any
) -> Result:
    """`work(*arguments)`, in a thread of `pool` unless it is short.

    `size` is in characters or tokens.
    """
    if size < _SHORT_WORK:
        return work(*arguments)
    return await pool.run(tenant, work, *arguments)


async def json_reply(
    pool: WorkerPool,
    tenant: str,
    size: int,
    make: Callable[[], Any],
    headers: Mapping[str, str] | None = None,
) -> Response:
    """The content that `make` returns, of some `size` tokens, as a response."""
    if size < _SHORT_WORK:
        return StrictJSONResponse(make(), headers=headers)
    body = await pool.run(tenant, lambda: encode_json(make()))
    return Response(body, media_type=StrictJSONResponse.media_type, headers=headers)
