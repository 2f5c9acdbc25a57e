"""Errors as replies: a tenant's limits are told apart from the server's, and say when to return."""

from __future__ import annotations

import json
from types import SimpleNamespace

from app.api.errors import ErrorShape, error_response
from app.errors import Overloaded, PolyprefixError, RateLimited, TenantQueueFull

PLAIN = {"route": SimpleNamespace(error_shape=ErrorShape.POLYPREFIX)}
TGI = {"route": SimpleNamespace(error_shape=ErrorShape.TGI)}
"""Requests that have reached a route with errors of one shape."""


def test_a_limit_is_answered_with_its_headers_and_whole_seconds_to_wait() -> None:
    error = RateLimited(
        "100 requests a minute are used up",
        retry_after=2.1,
        headers={"x-ratelimit-remaining-requests": "0"},
        param="limits",
    )
    reply = error_response(error, PLAIN)
    assert reply.status_code == 429
    assert reply.headers["retry-after"] == "3"
    assert reply.headers["x-ratelimit-remaining-requests"] == "0"
    assert json.loads(bytes(reply.body)) == {
        "error": {
            "message": "100 requests a minute are used up",
            "type": "rate_limit_error",
            "param": "limits",
            "code": "rate_limit_exceeded",
        }
    }


def test_a_limit_that_waiting_does_not_lift_names_no_time() -> None:
    reply = error_response(RateLimited("too many prefixes", retry_after=None), PLAIN)
    assert "retry-after" not in reply.headers


def test_a_tenants_full_queue_is_not_the_servers() -> None:
    ours = error_response(TenantQueueFull("10 requests wait"), PLAIN)
    server = error_response(Overloaded("the server's queue is full"), PLAIN)
    assert (ours.status_code, ours.headers["retry-after"]) == (429, "1")
    assert (server.status_code, server.headers["retry-after"]) == (503, "1")
    assert json.loads(bytes(ours.body))["error"]["code"] == "tenant_queue_full"
    tgi = error_response(TenantQueueFull("10 requests wait"), TGI)
    assert json.loads(bytes(tgi.body)) == {"error": "10 requests wait", "error_type": "overloaded"}


def test_headers_of_one_error_are_not_those_of_the_next() -> None:
    first = RateLimited("a", headers={"x-ratelimit-mode": "local"})
    assert (dict(RateLimited("b").headers), dict(PolyprefixError("c").headers)) == ({}, {})
    assert dict(first.headers) == {"x-ratelimit-mode": "local"}
