"""Routes that say everything about themselves: who may call them, what they answer, how they err.

A resource's module makes a `Router` and decorates its functions with `router.route`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict, TypeVar, Unpack

from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.routing import BaseRoute
from starlette.types import Receive, Send
from starlette.types import Scope as Connection

from app.api.bodies import checked_body
from app.api.errors import ErrorShape, error_response
from app.api.middleware.audit import AuditedSend
from app.api.middleware.http import count_request
from app.api.route_advice import RouteAdvice
from app.api.schemas.base import StrictJSONResponse
from app.errors import InvalidRequest, NotFound, PolyprefixError
from app.prefix.strict_json import printable
from app.tenancy.auth.principal import Scope, insufficient_scope

JSON = "application/json"
EVENTS = "text/event-stream"
FILE = "application/octet-stream"
FORM = "multipart/form-data"
TEXT = "text/plain"

READING = frozenset({"GET", "HEAD"})
"""Methods that change nothing."""

Endpoint = TypeVar("Endpoint", bound=Callable[..., Any])


@dataclass(frozen=True)
class Events:
    """A stream: each event holds the JSON of `item` or of an error; the last may be `end`."""

    item: type[BaseModel]
    end: str | None = None


@dataclass(frozen=True)
class Answer:
    """A good reply: what it holds by media type, None for plain text or bytes."""

    content: Mapping[str, type[BaseModel] | Events | None]
    headers: tuple[str, ...] = ()


class RouteFacts(TypedDict, total=False):
    """What a route says of itself."""

    statuses: Sequence[int]
    """Statuses of good replies; 200 if not given."""
    scopes: Sequence[Scope | Sequence[Scope]]
    """What a key must allow: all of these, and one of each sequence in them."""
    is_open: bool
    """The route may be read without a key."""
    audited: bool
    """Calls leave a record in the audit log; as the method says if not given."""
    counted: bool
    """A call is one of the tenant's requests per minute; generation routes count by themselves."""
    takes_file: bool
    """The body is a file that the route streams; else a body is JSON and bounded."""
    takes_form: type[BaseModel] | None
    """The body is a form of these fields, one of them a file, that the route streams."""
    error_shape: ErrorShape
    errors: Sequence[int]
    """Statuses of errors beyond those that follow from the other facts."""
    tag: str
    """The group in the description; the router's if not given."""
    described: bool
    """Part of `GET /openapi.json`."""


class Route(APIRoute):
    """One method of one path. It checks the caller and the body before its function runs."""

    def __init__(
        self,
        method: str,
        path: str,
        endpoint: Callable[..., Any],
        answers: type[BaseModel] | Answer,
        facts: RouteFacts,
    ) -> None:
        super().__init__(
            path,
            endpoint,
            methods=[method],
            tags=[facts["tag"]],
            operation_id=endpoint.__name__,
            response_model=None,
            response_class=StrictJSONResponse,
            include_in_schema=facts.get("described", True),
        )
        self.method = method
        self.answers = answers if isinstance(answers, Answer) else Answer({JSON: answers})
        self.statuses = tuple(facts.get("statuses", (200,)))
        self.scopes = tuple(
            frozenset([wanted] if isinstance(wanted, Scope) else wanted)
            for wanted in facts.get("scopes", ())
        )
        self.is_open = facts.get("is_open", False)
        self.audited = facts.get("audited", method not in READING)
        writes = frozenset({Scope.PREFIXES_WRITE}) in self.scopes
        self.counted = facts.get("counted", writes)  # what changes prefixes is recorded for ever
        self.takes_file = facts.get("takes_file", False)
        self.takes_form = facts.get("takes_form")
        self.error_shape = facts.get("error_shape", ErrorShape.POLYPREFIX)
        self.errors = tuple(facts.get("errors", ()))

    async def handle(self, scope: Connection, receive: Receive, send: Send) -> None:
        """ASGI: checks scopes, the body and the tenant's requests per minute, then runs it."""
        is_meant = scope["method"] == self.method
        if self.audited and is_meant:
            send = AuditedSend(scope, receive, send)
        try:
            if is_meant:
                self._check_scopes(scope)
            _check_query(scope["query_string"])
            body: Receive | None = receive
            if scope["method"] not in READING:
                takes_file, takes_form = self.takes_file, self.takes_form is not None
                body = await checked_body(
                    scope,
                    receive,
                    takes_file=takes_file and is_meant,
                    takes_form=takes_form and is_meant,
                )
            if is_meant and self.counted:
                await count_request(scope)
        except PolyprefixError as error:
            await error_response(error, scope)(scope, receive, send)
            return
        if body is not None:  # the client is there
            await super().handle(scope, body, send)

    def _check_scopes(self, scope: Connection) -> None:
        for alternatives in self.scopes:
            if alternatives.isdisjoint(scope["state"]["principal"].scopes):
                raise insufficient_scope(alternatives)


class Router:
    """The routes of one resource; `tag` groups them in the description."""

    def __init__(self, tag: str, prefix: str = "") -> None:
        self.routes: list[Route] = []
        self._tag, self._prefix = tag, prefix

    def route(
        self,
        method: str,
        path: str,
        *,
        answers: type[BaseModel] | Answer,
        **facts: Unpack[RouteFacts],
    ) -> Callable[[Endpoint], Endpoint]:
        """Makes the decorated function a route, named as the function is.

        `answers` is what good replies hold; a class is the JSON of one.
        """
        facts.setdefault("tag", self._tag)

        def add(endpoint: Endpoint) -> Endpoint:
            route = Route(method, self._prefix + path, endpoint, answers, facts)
            self.routes.append(route)
            return endpoint

        return add


async def no_route(scope: Connection, receive: Receive, send: Send) -> None:
    """ASGI: 404, unless the body is refused first, as that of any route."""
    if scope["type"] != "http":
        return
    try:
        if scope["method"] not in READING:
            await checked_body(scope, receive, takes_file=False)
        raise NotFound(RouteAdvice.of(scope["app"]).missing(scope["method"], scope["path"]))
    except PolyprefixError as error:
        await error_response(error, scope)(scope, receive, send)


def _check_query(query: bytes) -> None:
    """InvalidRequest for a NUL, which PostgreSQL keeps in no text and no name has."""
    for name, _, value in (pair.partition(b"=") for pair in query.split(b"&")):
        if b"%00" in name + value:
            shown = printable(name.decode("latin-1"))[1:-1]
            raise InvalidRequest(f"{shown}: the query holds a NUL (%00)", param=shown)


def open_paths(routes: Iterable[BaseRoute]) -> frozenset[str]:
    """The paths that may be read without a key."""
    return frozenset(route.path for route in routes if isinstance(route, Route) and route.is_open)
