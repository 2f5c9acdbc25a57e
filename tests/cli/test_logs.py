"""The log of a server process: requests, ids and the stop, and nothing secret."""

from __future__ import annotations

import json
import logging
import socket
import subprocess
import sys
import textwrap
from typing import Any

import httpx
import pytest

from app.cli.logs import Sparing

SERVE = textwrap.dedent(
    """
    import asyncio, contextlib, logging, sys
    from starlette.responses import PlainTextResponse
    from app.api.errors import error_response
    from app.api.middleware.http import RequestMiddleware
    from app.cli.logs import configure_logging
    from app.runtime.http_server import Server, bind, configuration
    from app.errors import InsufficientStorage
    from app.tenancy.auth.principal import Principal

    log = logging.getLogger("app.test")

    async def app(scope, receive, send):
        scope["state"]["principal"] = Principal("acme", "kid", frozenset())
        if scope["path"] == "/full":
            error = InsufficientStorage("the store is full")
            error.__cause__ = OSError(28, "No space left on device", "/data/x")
            await error_response(error, scope)(scope, receive, send)
            return
        if scope["path"] == "/fault":
            raise ValueError("first\\n2026-01-01 INFO forged: line")
        log.info("serving %s", scope["path"])
        await asyncio.to_thread(log.info, "in a thread")
        logging.getLogger("absl").info("Using default tokenizer.")
        logging.getLogger("httpx").info("chatter")
        await PlainTextResponse("answer")(scope, receive, send)

    @contextlib.asynccontextmanager
    async def lifespan():
        yield {}

    async def drain():
        pass

    level, form, access = sys.argv[1:]
    configure_logging(level, form, access=access == "yes")
    door = bind("127.0.0.1", 0)
    ready = lambda: print(door.getsockname()[1], flush=True)
    config = configuration(RequestMiddleware(app))
    Server(config, lifespan=lifespan(), ready=ready, drain=drain).run([door])
    """
)


def logged(
    *targets: str, level: str = "info", form: str = "text", access: str = "yes"
) -> tuple[list[str], list[httpx.Response]]:
    """The lines of a server that is asked for raw targets, stopped in order; and its replies."""
    with subprocess.Popen(
        [sys.executable, "-c", SERVE, level, form, access],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout
            port = process.stdout.readline()
            assert port, process.communicate()[1]
            url = f"http://127.0.0.1:{int(port)}"
            headers = {"x-request-id": "mine-7"}
            replies = [httpx.get(url + target, headers=headers) for target in targets]
            with socket.create_connection(("127.0.0.1", int(port))) as stranger:
                stranger.sendall(b"\x16\x03\x01 no HTTP\r\n\r\n")
                stranger.recv(1000)
            process.terminate()
            return process.communicate(timeout=30)[1].splitlines(), replies
        finally:
            process.kill()


KEY = "pfx_abcdefghijkl_" + "s" * 32 + "_000000"


def test_each_request_has_a_line_and_all_its_lines_have_its_id() -> None:
    lines, _ = logged("/v1/models?secret=query", "/health/live", "/metrics")
    access = [line for line in lines if "polyprefix.access" in line]
    assert len(access) == 1
    assert "INFO    polyprefix.access: GET /v1/models 200 ms=" in access[0]
    assert "bytes=6 client=127.0.0.1 tenant=acme client_request_id=mine-7 [req-" in access[0]
    identity = access[0][access[0].index("[req-") :]
    assert [identity in line for line in lines if "in a thread" in line][0]
    assert [identity in line for line in lines if "serving /v1/models" in line] == [True]
    everything = "\n".join(lines)
    assert "secret" not in everything
    assert "chatter" not in everything
    assert "tokenizer" not in everything
    assert "Invalid HTTP" not in everything
    assert "app.runtime.http_server: stopping: 0 requests run and may finish" in lines[-2]
    assert "app.runtime.http_server: stopped" in lines[-1]


def test_json_lines_are_objects_with_the_same_fields() -> None:
    lines, _ = logged("/v1/models", "/fault", form="json")
    records: list[dict[str, Any]] = [json.loads(line) for line in lines]
    [access, failed] = [one for one in records if one["logger"] == "polyprefix.access"]
    assert access["method"] == "GET"
    assert access["path"] == "/v1/models"
    assert access["status"] == 200
    assert access["tenant"] == "acme"
    assert access["bytes"] == 6
    assert access["ms"] > 0
    assert access["client_request_id"] == "mine-7"
    assert access["request_id"].startswith("req-")
    assert failed["status"] == 500
    [fault] = [one for one in records if "exception" in one]
    assert fault["request_id"] == failed["request_id"]
    assert "ValueError: first\n2026" in fault["exception"]


def test_nothing_that_a_client_sends_begins_a_line_of_its_own() -> None:
    targets = [
        "/a%0A2026-01-01%20ERROR%20forged",
        "/a%0D%1B%5B31mred%C2%85%E2%80%A8",
        f"/v1/{KEY}",
        "/" + "x" * 2000,
        "/fault",
    ]
    lines, replies = logged(*targets)
    assert len(replies) == 5
    for line in lines:
        assert line[:4].isdigit() or line.startswith("    "), line
        assert all(character.isprintable() for character in line)
        assert len(line) < 2300
    assert not any("s" * 32 in line for line in lines)
    assert any("pfx_abcdefghijkl_…" in line for line in lines)
    [forged] = [line for line in lines if "forged" in line and "access" in line]
    assert "GET /a%0A2026-01-01%20ERROR%20forged 200" in forged


def test_the_access_log_can_be_switched_off_and_health_is_seen_at_debug() -> None:
    lines, _ = logged("/v1/models", access="no")
    assert not any("polyprefix.access" in line for line in lines)
    assert any("serving /v1/models" in line for line in lines)
    lines, _ = logged("/health/live", level="debug")
    assert any("DEBUG   polyprefix.access: GET /health/live 200" in line for line in lines)


def test_a_full_disk_is_logged_once_with_what_and_where() -> None:
    lines, replies = logged("/full", "/full", "/full")
    assert [reply.status_code for reply in replies] == [507] * 3
    [line] = [line for line in lines if "polyprefix.storage" in line]
    assert "ERROR" in line
    assert "no room: the store is full ([Errno 28] No space left on device: '/data/x')" in line


def test_what_was_left_out_is_counted(caplog: pytest.LogCaptureFixture) -> None:
    now = [0.0]
    logger = logging.getLogger("test of sparing")
    sparing = Sparing(lambda: now[0])
    logger.addFilter(sparing)
    try:
        for _ in range(10):
            logger.error("full: %s", "x")
        logger.error("another kind")
        now[0] = 61
        logger.error("full: %s", "y")
    finally:
        logger.removeFilter(sparing)
    said = [record.getMessage() for record in caplog.records]
    assert said == ["full: x", "another kind", "full: y (9 more like it since the last line)"]
