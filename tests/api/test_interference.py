"""Two tenants of one server are answered what each would be answered by a server of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from app.model.frozen import FrozenModel
from app.prefix.codec import encode
from tests.api.guarded import Guarded, guarding
from tests.tiny import random_prefix

BOTH = ("acme", "rival")
PASSING = {"id", "created", "created_at", "updated_at", "changed_at", "timings"} | {
    "mean_first_token_ms",
    "mean_total_ms",
    "start",
    "end",
}
"""Fields that differ from one moment to the next."""
TELLING = ("x-prefix-version", "x-prefix-tier", "location", "content-type")
LIMITS = {"max_prefixes": 2, "max_rows": 4}

Step = tuple[str, str, Any]

NAMES = st.sampled_from(["a", "b", "c"])
MODELS = st.sampled_from(["tiny-gpt2", "a", "b@calm", "a+b", "acme/a", "rival/a", "nothing"])


@pytest.fixture(scope="module")
def files(tiny_gpt2: FrozenModel) -> list[bytes]:
    return [encode(random_prefix(tiny_gpt2, 3, seed=seed)) for seed in (1, 2)]


@pytest.fixture(scope="module")
def servers(
    tiny_gpt2: FrozenModel, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Guarded]]:
    """One for both tenants, and one for each."""
    with ExitStack() as stack:
        made = {
            whose: stack.enter_context(guarding(tiny_gpt2, tmp_path_factory.mktemp(whose)))
            for whose in ("shared", *BOTH)
        }
        for guarded in made.values():
            for tenant in BOTH:
                guarded.server.services.tenants.change(tenant, limits=LIMITS)
        yield made


def calls(number: int, name: str, model: str, which: int) -> tuple[str, str, Any]:
    """One of the calls that a tenant makes; `which` of two files or digests."""
    at = f"/v1/prefixes/{name}"
    generated = {"model": model, "prompt": "the", "max_tokens": 3, "temperature": 0, "user": "u"}
    made: list[tuple[str, str, Any]] = [
        ("POST", f"{at}/versions", which),
        ("POST", f"{at}/versions", which),
        ("POST", "/v1/completions", generated),
        ("GET", "/v1/models", None),
        ("GET", f"{at}/versions?limit=1", None),
        ("PUT", f"{at}/aliases/calm", {"version": which}),
        ("POST", f"{at}/aliases/calm/rollback", None),
        ("GET", f"{at}/aliases/calm/history", None),
        ("PUT", f"{at}/publication", {"tenants": ["guest"]}),
        ("DELETE", at, None),
        ("GET", "/v1/usage?group_by=prefix,version", None),
        ("GET", "/v1/published", None),
    ]
    return made[number % len(made)]


STEPS = st.lists(
    st.tuples(
        st.sampled_from(BOTH),
        st.builds(calls, st.integers(0, 11), NAMES, MODELS, st.integers(0, 1)),
    ),
    min_size=12,
    max_size=24,
)


def ask(guarded: Guarded, tenant: str, step: Step, files: list[bytes], digests: list[str]) -> Any:
    """What the tenant is answered, but for what passes."""
    method, path, body = step
    with guarded.client(guarded.key(tenant)) as client:
        if isinstance(body, int):
            kind = {"content-type": "application/octet-stream"}
            reply = client.request(method, path, content=files[body], headers=kind)
        else:
            if isinstance(body, dict) and isinstance(body.get("version"), int):
                body = {"version": digests[body["version"]]}
            reply = client.request(method, path, json=body)
    headers = {name: reply.headers.get(name) for name in TELLING}
    return reply.status_code, headers, lasting(reply.json())


def lasting(content: Any) -> Any:
    if isinstance(content, dict):
        shown = {name: lasting(each) for name, each in content.items() if name not in PASSING}
        if shown.get("next_cursor"):
            shown["next_cursor"] = "opaque"
        return shown
    return [lasting(each) for each in content] if isinstance(content, list) else content


def clear(guarded: Guarded, tenant: str) -> None:
    for name in ("a", "b", "c"):
        with guarded.client(guarded.key(tenant)) as client:
            client.delete(f"/v1/prefixes/{name}")


@settings(
    max_examples=6,
    derandomize=True,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
@given(steps=STEPS)
def test_a_tenant_beside_another_is_answered_as_alone(
    servers: dict[str, Guarded],
    files: list[bytes],
    digests: list[str],
    steps: list[tuple[str, Step]],
) -> None:
    for tenant in BOTH:
        clear(servers["shared"], tenant)
        clear(servers[tenant], tenant)
    for tenant, step in steps:
        beside = ask(servers["shared"], tenant, step, files, digests)
        alone = ask(servers[tenant], tenant, step, files, digests)
        assert beside == alone, (tenant, step)


@pytest.fixture(scope="module")
def digests(servers: dict[str, Guarded], files: list[bytes]) -> list[str]:
    """Of the two files."""
    found = []
    for file in files:
        for whose, guarded in servers.items():
            tenant = "acme" if whose == "shared" else whose
            key = {"authorization": f"Bearer {guarded.key(tenant)}"}
            reply = guarded.server.push("a", file, **key)
        found.append(reply.json()["digest"])
    return found
