"""The server keeps to its own description, whatever is asked of it with a valid key.

Requests are drawn from the description by schemathesis, well-formed and not, a part of them about
what exists. No reply is the server's fault, or one that is not described to the letter.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from openapi_spec_validator import validate
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.schemas import APIOperation, BaseSchema
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from app.main import create_app
from app.model.frozen import FrozenModel
from app.settings import Settings
from app.tenancy.auth.principal import Scope
from tests.api.guarded import EVERYTHING, endpoints, guarding
from tests.api.stage import Stage
from tests.tiny import random_prefix

AS_DESCRIBED = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    response_headers_conformance,
]
OPERATIONS = sorted(
    route.name for route in create_app(Settings()).routes if route.include_in_schema
)
MODES = [GenerationMode.POSITIVE, GenerationMode.NEGATIVE]
KEYS = {"tenant": EVERYTHING - {Scope.ADMIN}, "admin": EVERYTHING}
FEW, MANY = 4, 30


@pytest.fixture(scope="module")
def stage(tiny_gpt2: FrozenModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    root = tmp_path_factory.mktemp("contract")
    with guarding(tiny_gpt2, root, request_timeout=5, max_body_kib=512) as guarded:
        stage = Stage(guarded, (random_prefix(tiny_gpt2, 3, seed=1), random_prefix(tiny_gpt2, 4)))
        stage.set()
        yield stage


@pytest.fixture(scope="module")
def described(stage: Stage) -> BaseSchema:
    """What the server says of itself."""
    headers = {"authorization": f"Bearer {stage.guarded.key()}"}
    found = schemathesis.openapi.from_url(f"{stage.guarded.url}/openapi.json", headers=headers)
    found.config.generation.update(with_security_parameters=False)
    refusing = found.config.checks.negative_data_rejection
    refusing.expected_statuses = [*refusing.expected_statuses, "413"]
    return found


@pytest.fixture(scope="module")
def session() -> Iterator[requests.Session]:
    with requests.Session() as session:
        yield session


def operation_of(described: BaseSchema, name: str) -> APIOperation:
    found = described.find_operation_by_id(name)
    assert isinstance(found, APIOperation)
    return found


def usable_path(stage: Stage, operation: APIOperation) -> dict[str, str]:
    """What exists, for the operation's path."""
    return {each.name: stage.shown[each.name] for each in operation.path_parameters}


def test_the_description_is_valid_and_has_every_route(stage: Stage) -> None:
    with stage.guarded.client(stage.guarded.key()) as client:
        content = client.get("/openapi.json").json()
    validate(content)
    named = {
        operation["operationId"]: (method.upper(), path)
        for path, methods in content["paths"].items()
        for method, operation in methods.items()
    }
    assert sorted(named) == OPERATIONS
    routes = {
        (endpoint.method, endpoint.path.replace(":path}", "}"))
        for endpoint in endpoints(stage.guarded.server.app)
    }
    pages = ("", "/page.css", "/page.js", "/swagger-ui.css", "/swagger-ui-bundle.js")
    undescribed = {("GET", "/openapi.json"), *(("GET", f"/docs{page}") for page in pages)}
    assert routes - set(named.values()) == undescribed


@pytest.mark.parametrize("name", OPERATIONS)
def test_what_exists_is_answered_as_described(
    stage: Stage, described: BaseSchema, session: requests.Session, name: str
) -> None:
    operation = operation_of(described, name)
    headers = {"authorization": f"Bearer {stage.guarded.key()}"}
    for body in stage.bodies(name):
        stage.restore(name)
        kind = "application/octet-stream" if isinstance(body, bytes) else "application/json"
        kind = "multipart/form-data" if name == "upload_file" else kind
        case = operation.Case(
            path_parameters=usable_path(stage, operation),
            **({} if body is None else {"body": body, "media_type": kind}),
        )
        reply = case.call(session=session, headers=headers)
        assert reply.status_code < 300, (reply.status_code, reply.text)
        case.validate_response(reply, checks=AS_DESCRIBED, headers=headers)
    stage.restore(name)


def ask(
    stage: Stage,
    operation: APIOperation,
    session: requests.Session,
    key: str,
    *,
    mode: GenerationMode,
    max_examples: int,
) -> None:
    """Requests that are drawn for one operation."""
    name = operation.definition.raw["operationId"]
    headers = {"authorization": f"Bearer {key}"}
    checks = list(AS_DESCRIBED)
    if mode is GenerationMode.NEGATIVE:
        checks.append(negative_data_rejection)

    @settings(
        max_examples=max_examples,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(
        case=operation.as_strategy(generation_mode=mode),
        exists=st.booleans(),
        overlay=st.integers(0, 7),
    )
    def asked(case: Case, exists: bool, overlay: int) -> None:
        if exists and mode is GenerationMode.POSITIVE:
            stage.restore(name)
            case.path_parameters = usable_path(stage, operation)
            case.body = overlaid(case.body, stage.bodies(name), overlay)
        if mode is GenerationMode.POSITIVE:
            case.body = without_timeout(case.body)
        case.call_and_validate(session=session, headers=headers, checks=checks)

    try:
        asked()
    finally:
        stage.restore(name)


def overlaid(drawn: Any, known: list[Any], number: int) -> Any:
    """A body that succeeds over the one that was drawn, in half of the cases."""
    if number % 2 or known == [None]:
        return drawn
    chosen = known[number // 2 % len(known)]
    if not isinstance(drawn, dict) or not isinstance(chosen, dict):
        return chosen
    return {
        **drawn,
        **{
            field: {**drawn[field], **value}
            if isinstance(value, dict) and isinstance(drawn.get(field), dict)
            else value
            for field, value in chosen.items()
        },
    }


def without_timeout(body: Any) -> Any:
    """A body with which nothing ends early: 504 would be right then."""
    if not isinstance(body, dict):
        return body
    kept = {name: value for name, value in body.items() if name != "timeout"}
    if "parameters" in kept:
        kept["parameters"] = without_timeout(kept["parameters"])
    return kept


def can_be_wrong(operation: APIOperation) -> bool:
    """Whether the operation takes anything that a request could get wrong."""
    anything = ("model_id", "user")
    places = [each for each in operation.iter_parameters() if each.name not in anything]
    return bool(places or list(operation.body))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", OPERATIONS)
def test_every_reply_is_as_described(
    stage: Stage,
    described: BaseSchema,
    session: requests.Session,
    name: str,
    mode: GenerationMode,
) -> None:
    operation = operation_of(described, name)
    if mode is GenerationMode.POSITIVE or can_be_wrong(operation):
        is_admins = operation.path.startswith("/admin") or name == "metrics"
        key = stage.guarded.key(scopes=KEYS["admin" if is_admins else "tenant"])
        ask(stage, operation, session, key, mode=mode, max_examples=FEW)


@pytest.mark.slow
@pytest.mark.parametrize("whose", KEYS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", OPERATIONS)
def test_every_reply_to_many_requests_is_as_described(
    stage: Stage,
    described: BaseSchema,
    session: requests.Session,
    name: str,
    mode: GenerationMode,
    whose: str,
) -> None:
    operation = operation_of(described, name)
    if mode is GenerationMode.POSITIVE or can_be_wrong(operation):
        key = stage.guarded.key(scopes=KEYS[whose])
        ask(stage, operation, session, key, mode=mode, max_examples=MANY)


@pytest.mark.slow
@pytest.mark.parametrize("name", OPERATIONS)
def test_every_reply_at_the_bounds_is_as_described(
    stage: Stage, described: BaseSchema, session: requests.Session, name: str
) -> None:
    operation = operation_of(described, name)
    headers = {"authorization": f"Bearer {stage.guarded.key()}"}
    cases = described.iter_coverage_cases(
        operation, generation_modes=MODES, generation_config=described.config.generation
    )
    for case in cases:
        case.call_and_validate(
            session=session, headers=headers, checks=[*AS_DESCRIBED, negative_data_rejection]
        )
