"""Work on long texts and large replies beside the event loop, tenants in turn."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from fastapi.responses import Response

from app.api.errors import StrictJSONResponse
from app.api.large_json import encode_json
from app.api.services import Services

Result = TypeVar("Result")

_SHORT_WORK = 2000
"""Characters or tokens that are worked on at once: less than a thread's turn would cost."""


async def off_loop(
    services: Services, tenant: str, size: int, work: Callable[..., Result], *arguments: Any
) -> Result:
    """`work(*arguments)`, in a thread of those for text unless it is short.

    `size` is in characters or tokens.
    """
    if size < _SHORT_WORK:
        return work(*arguments)
    return await services.workers.text.run(tenant, work, *arguments)


async def json_reply(
    services: Services,
    tenant: str,
    size: int,
    make: Callable[[], Any],
    headers: Mapping[str, str] | None = None,
) -> Response:
    """The content that `make` returns, of some `size` tokens, as a response."""
    body = await off_loop(services, tenant, size, lambda: encode_json(make()))
    return Response(body, media_type=StrictJSONResponse.media_type, headers=dict(headers or {}))
