"""The access log: one line per request, and the id that all log lines of a request carry.

Never in it: queries, bodies, prompts, keys.
"""

from __future__ import annotations

import logging
import re
from contextvars import ContextVar
from urllib.parse import quote

from starlette.types import Scope

ACCESS = "polyprefix.access"
"""The logger of the access log."""

STORAGE = "polyprefix.storage"
"""The logger of stores and catalogs that are full."""

QUIET = ("/health/live", "/health/ready", "/metrics")
"""Paths that are asked again and again by machines: logged at DEBUG."""

_MAX_PATH = 256
_PLAIN = re.compile(r"[!-~]*")
_SAFE = "/:@!$&'()*+,;=-._~"

_log = logging.getLogger(ACCESS)
_request_id: ContextVar[str | None] = ContextVar("request_id", default=None)


def begin_request(request_id: str) -> None:
    """From here on, log lines of this task and of what it starts carry the id."""
    _request_id.set(request_id)


def current_request() -> str | None:
    """The id of the request that is served here, if one is."""
    return _request_id.get()


def log_request(
    scope: Scope, *, client_id: str | None, status: int, seconds: float, size: int
) -> None:
    """Write the line of a request that has ended with `status` after a reply of `size` bytes.

    `client_id` is the client's own request id, printable and bounded.
    """
    level = logging.DEBUG if scope["path"] in QUIET else logging.INFO
    if not _log.isEnabledFor(level):
        return
    principal = scope.get("state", {}).get("principal")
    client = scope.get("client")
    fields = {
        "method": scope["method"],
        "path": _shown(scope["path"]),
        "status": status,
        "ms": round(seconds * 1000, 1),
        "bytes": size,
        "client": _shown(client[0]) if client else "-",
        "tenant": principal.tenant if principal else "-",
    }
    if client_id is not None:
        fields["client_request_id"] = client_id
    _log.log(level, "%s", _Line(fields), extra={"access": fields})


class _Line:
    """The fields as text, made only where a line of text is written."""

    def __init__(self, fields: dict[str, object]) -> None:
        self._fields = fields

    def __str__(self) -> str:
        named = dict(self._fields)
        head = f"{named.pop('method')} {named.pop('path')} {named.pop('status')}"
        return " ".join([head, *(f"{name}={value}" for name, value in named.items())])


def _shown(path: str) -> str:
    """A path in printable ASCII without blanks, cut if it is long."""
    cut = path[:_MAX_PATH]
    shown = cut if _PLAIN.fullmatch(cut) else quote(cut, safe=_SAFE, errors="replace")
    return shown if len(path) <= _MAX_PATH else shown + "…"
