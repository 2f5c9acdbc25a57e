"""Logging to stderr: one line per event, as text or JSON, with request ids."""

from __future__ import annotations

import json
import logging
import logging.config
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Literal

from app.api.errors import STORAGE
from app.api.middleware.http import ACCESS, current_request
from app.tenancy.auth.keys import redact_keys

LogFormat = Literal["text", "json"]

_LINE = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"
_SPARING_S = 60.0
_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160))} | {
    ord("\n"): "\\n",
    ord("\r"): "\\r",
    ord("\t"): "\\t",
    0x2028: "\\u2028",
    0x2029: "\\u2029",
}
"""Escapes for characters that could start a new line or command a terminal."""


class _Text(logging.Formatter):
    """Formats a record as one line of text; API keys are redacted."""

    def format(self, record: logging.LogRecord) -> str:
        return redact_keys(super().format(record))

    def formatMessage(self, record: logging.LogRecord) -> str:
        line = super().formatMessage(record).translate(_CONTROLS)
        request = current_request()
        return f"{line} [{request}]" if request else line

    def formatException(self, ei: Any) -> str:
        """The traceback, indented so that no line of it looks like a log line."""
        lines = super().formatException(ei).split("\n")
        return "\n".join("    " + line.translate(_CONTROLS) for line in lines)


class _Json(logging.Formatter):
    """Formats a record as one JSON object; API keys are redacted."""

    def format(self, record: logging.LogRecord) -> str:
        """Time (UTC), level, logger, message, request id and the access log's fields."""
        shown: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        request = current_request()
        if request:
            shown["request_id"] = request
        shown |= getattr(record, "access", {})
        if record.exc_info:
            shown["exception"] = self.formatException(record.exc_info)
        return redact_keys(json.dumps(shown))


class Sparing(logging.Filter):
    """Passes one record of a kind per minute; the next one tells how many were dropped."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._kinds: dict[str, tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether to write the record; its kind is the message before formatting."""
        now, kind = self._clock(), str(record.msg)
        written_at, left_out = self._kinds.get(kind, (float("-inf"), 0))
        if now - written_at < _SPARING_S:
            self._kinds[kind] = written_at, left_out + 1
            return False
        self._kinds[kind] = now, 0
        if left_out:
            record.msg = f"{record.msg} ({left_out} more like it since the last line)"
        return True


def configure_logging(level: str, log_format: LogFormat = "text", *, access: bool = True) -> None:
    """Log our events from `level` and libraries' from WARNING; `access` adds one per request."""
    ours = level.upper()
    others = "ERROR" if ours == "ERROR" else "WARNING"
    formatter = {"text": {"()": _Text, "fmt": _LINE}, "json": {"()": _Json}}[log_format]
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {"line": formatter},
            "filters": {"sparing": {"()": Sparing}},
            "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
            "root": {"level": others, "handlers": ["stderr"]},
            "loggers": {
                "app": {"level": ours},
                ACCESS: {"level": ours if access else "CRITICAL"},
                STORAGE: {"level": ours, "filters": ["sparing"]},
                # it warns about every request that is not HTTP
                "uvicorn": {"level": "ERROR"},
                "absl": {"level": others},
            },
        }
    )
