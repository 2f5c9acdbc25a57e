"""Server-sent events: status and headers go out with the first event, or with an error instead."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import suppress

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from app.api.errors import error_body, error_response
from app.api.generation.generation import cancel_on_disconnect
from app.errors import PolyprefixError, RequestCancelled

_log = logging.getLogger(__name__)


class EventStream(Response):
    """Sends `parts`, each one or more complete events, as they come.

    If the client goes away, or in any other case in the end, `close` is called at once. An error
    before the first part is an ordinary error reply; later it is an event.
    """

    def __init__(
        self,
        parts: AsyncIterator[bytes],
        headers: Callable[[], Mapping[str, str]],
        close: Callable[[], None],
    ) -> None:
        super().__init__(media_type="text/event-stream", headers={"cache-control": "no-cache"})
        # no length: the body is sent in pieces
        del self.headers["content-length"]
        self._parts, self._late_headers, self._close = parts, headers, close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        try:
            with suppress(RequestCancelled):
                await cancel_on_disconnect(receive, self._pump(scope, receive, send))
        finally:
            self._close()

    async def _pump(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            first = await anext(self._parts)
        except PolyprefixError as error:
            await error_response(error, scope)(scope, receive, send)
            return
        self.headers.update(self._late_headers())
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        await _send_part(send, first)
        try:
            async for part in self._parts:
                await _send_part(send, part)
        except PolyprefixError as error:
            await _send_part(send, write_event(error_body(error, scope)))
        except Exception:
            _log.exception("a stream failed")
            failure = PolyprefixError("internal error")
            await _send_part(send, write_event(error_body(failure, scope)))
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _send_part(send: Send, part: bytes) -> None:
    await send({"type": "http.response.body", "body": part, "more_body": True})


def write_event(content: Mapping[str, object]) -> bytes:
    """One event with JSON data."""
    data = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return b"data: " + data.encode() + b"\n\n"
