"""A route says everything about itself: one function is described, guarded and audited."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import httpx
import pytest
from fastapi import Response
from openapi_spec_validator import validate

from app.api.dependencies import CallerDep
from app.api.errors import ErrorShape
from app.api.openapi import document
from app.api.routing import Router
from app.api.schemas.base import Reply, StrictBody
from app.errors import InvalidRequest
from app.model.frozen import FrozenModel
from app.tenancy.audit.chain import list_records
from app.tenancy.auth.principal import Scope
from tests.api.guarded import EVERYTHING, Guarded, guarding

router = Router("notes")


class NoteBody(StrictBody):
    text: str


class NoteReply(Reply):
    object: Literal["note"] = "note"
    tenant: str
    text: str


@router.route(
    "POST",
    "/v1/notes",
    answers=NoteReply,
    statuses=[201],
    scopes=[Scope.TRAIN],
    error_shape=ErrorShape.TGI,
    errors=[409],
)
async def create_note(body: NoteBody, caller: CallerDep) -> Response:
    """A note of the caller's."""
    if body.text == "wrong":
        raise InvalidRequest("this is wrong", param="text")
    return NoteReply(tenant=caller.tenant, text=body.text).response(201)


@pytest.fixture(scope="module")
def guarded(tiny_gpt2: FrozenModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    with guarding(tiny_gpt2, tmp_path_factory.mktemp("routing")) as guarded:
        guarded.server.app.router.routes.extend(router.routes)
        yield guarded


@pytest.fixture(scope="module")
def client(guarded: Guarded) -> Iterator[httpx.Client]:
    with guarded.client(guarded.key(scopes=frozenset({Scope.TRAIN}))) as client:
        yield client


def records(guarded: Guarded, reply: httpx.Response) -> list[dict[str, object]]:
    """The audit records of one call."""
    page = list_records(guarded.server.services.registry.catalog)
    request_id = reply.headers["x-request-id"]
    return [dict(one) for one in page.items if one.get("request_id") == request_id]


def test_a_route_is_described_by_what_it_says(guarded: Guarded) -> None:
    content = document(guarded.server.app)
    validate(content)
    operation = content["paths"]["/v1/notes"]["post"]
    assert operation["operationId"] == "create_note"
    assert operation["tags"] == ["notes"]
    assert operation["description"] == "A note of the caller's."
    assert operation["security"] == [{"bearer": ["train"]}]
    shown = {
        status: response["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
        for status, response in operation["responses"].items()
    }
    errors = ("400", "401", "403", "409", "413", "415", "422", "429", "500", "503", "507")
    assert shown == {"201": "Note", **dict.fromkeys(errors, "TgiError")}
    note = content["components"]["schemas"]["Note"]
    assert note["required"] == ["object", "tenant", "text"]
    assert note["additionalProperties"] is False


def test_a_route_is_answered_and_recorded(guarded: Guarded, client: httpx.Client) -> None:
    reply = client.post("/v1/notes", json={"text": "hello"})
    assert (reply.status_code, reply.json()) == (
        201,
        {"object": "note", "tenant": "acme", "text": "hello"},
    )
    [record] = records(guarded, reply)
    assert (record["action"], record["tenant"]) == ("create_note", "acme")
    assert record["outcome"] == {"status": "unchanged"}


def test_a_route_needs_a_key_with_its_scopes(guarded: Guarded) -> None:
    with guarded.client() as client:
        assert client.post("/v1/notes", json={"text": "hello"}).status_code == 401
    with guarded.client(guarded.key(scopes=EVERYTHING - {Scope.TRAIN})) as client:
        reply = client.post("/v1/notes", json={"text": "hello"})
    assert reply.status_code == 403
    assert reply.json() == {"error": "this key lacks the scope 'train'", "error_type": "validation"}
    [record] = records(guarded, reply)
    assert record["outcome"] == {"status": 403, "code": "insufficient_scope"}


@pytest.mark.parametrize(
    ("content", "status"),
    [(b'{"text": "wrong"}', 400), (b'{"txt": "a"}', 422), (b'{"text": "a"', 422), (b"\0", 400)],
)
def test_every_refusal_has_the_shape_of_the_route_and_is_recorded(
    guarded: Guarded, client: httpx.Client, content: bytes, status: int
) -> None:
    reply = client.post("/v1/notes", content=content, headers={"content-type": "application/json"})
    assert reply.status_code == status
    assert reply.json().keys() == {"error", "error_type"}
    [record] = records(guarded, reply)
    assert record["outcome"]["status"] == status


def test_another_method_of_the_path_is_refused_and_leaves_no_record(
    guarded: Guarded, client: httpx.Client
) -> None:
    reply = client.delete("/v1/notes")
    assert (reply.status_code, reply.headers["allow"]) == (405, "POST")
    assert records(guarded, reply) == []


def test_a_scope_may_have_alternatives_and_all_that_are_named_are_needed() -> None:
    made = Router("notes", "/v1/notes")
    made.route("GET", "", answers=NoteReply, scopes=[Scope.TRAIN, (Scope.ADMIN, Scope.GENERATE)])(
        create_note
    )
    [route] = made.routes
    assert route.path == "/v1/notes"
    assert route.scopes == (
        frozenset({Scope.TRAIN}),
        frozenset({Scope.ADMIN, Scope.GENERATE}),
    )
    assert not route.audited
