"""`PUT …/aliases/{alias}/gate`: versions that score too low are refused, and nothing moves."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from app.api.evaluate_version import EvaluationService
from app.model.frozen import FrozenModel
from app.prefix.prefix import Prefix
from app.registry.quality_gates import QualityGate
from tests.api.helpers import Json, error_of, slowed, until, until_idle, with_metadata
from tests.api.test_disconnect import send
from tests.server import RunningServer
from tests.tiny import random_prefix

NAME = "gated"
URL = f"/v1/prefixes/{NAME}"
GATE_URL = f"{URL}/aliases/stable/gate"
INPUTS = ("the quick brown fox", "the cat", "a lazy dog")


@pytest.fixture(scope="module")
def made(tiny_gpt2: FrozenModel) -> list[Prefix]:
    short = {"max_tokens": 16}
    return [
        with_metadata(random_prefix(tiny_gpt2, 3, seed=100 + seed), decoding=short)
        for seed in range(3)
    ]


@pytest.fixture
def digests(client: httpx.Client, server: RunningServer, made: list[Prefix]) -> Iterator[list[str]]:
    """Two versions, the first of them `stable`."""
    yield [server.push(NAME, prefix).json()["digest"] for prefix in made[:2]]
    client.delete(URL)


def point(client: httpx.Client, body: Json | str, alias: str = "stable") -> httpx.Response:
    content = {"version": body} if isinstance(body, str) else body
    return client.put(f"{URL}/aliases/{alias}", json=content)


def evaluated(client: httpx.Client, digest: str, examples: list[Json]) -> Json:
    """What the route for evaluations says of a version, with its outputs."""
    body = {"version": digest, "examples": examples}
    reply = client.post(f"{URL}/evaluate", json=body)
    assert reply.status_code == 200, reply.text
    return reply.json()


def examples_of(client: httpx.Client, digest: str) -> list[Json]:
    """Examples whose outputs are what a version says."""
    asked = [{"input": text, "output": "x"} for text in INPUTS]
    said = evaluated(client, digest, asked)["examples"]
    return [
        {"input": text, "output": one["output"] or "nothing"}
        for text, one in zip(INPUTS, said, strict=True)
    ]


def close(client: httpx.Client, metric: str, min_score: float, examples: list[Json]) -> None:
    gate = {"metric": metric, "min_score": min_score, "examples": examples}
    reply = client.put(GATE_URL, json=gate)
    assert reply.status_code == 200, reply.text


def refused(reply: httpx.Response) -> str:
    assert (reply.status_code, error_of(reply)["code"]) == (409, "gate_not_passed"), reply.text
    return error_of(reply)["message"]


def stable(client: httpx.Client) -> str | None:
    reply = client.get(f"{URL}/aliases/stable")
    return reply.json()["version"] if reply.status_code == 200 else None


@pytest.mark.parametrize("metric", ["exact_match", "bleu", "rouge_l", "mean_logprob"])
def test_the_better_version_passes_and_the_worse_does_not(
    client: httpx.Client, digests: list[str], metric: str
) -> None:
    examples = examples_of(client, digests[0])
    scores = [evaluated(client, digest, examples)["scores"] for digest in digests]
    found = [score.get(metric, -score["loss"]) for score in scores]
    better, worse = sorted(range(2), key=lambda at: -found[at])
    if metric in ("exact_match", "bleu"):
        assert (found[0], better) == (pytest.approx(100), 0)
    bound = (found[better] + found[worse]) / 2
    close(client, metric, bound, examples)
    message = refused(point(client, digests[worse]))
    assert f"scores {found[worse]:.6g}"[:12] in message
    assert f"{bound:.6g}" in message
    assert stable(client) is None
    assert point(client, digests[better]).status_code == 200
    assert stable(client) == digests[better]
    refused(point(client, digests[worse]))
    assert stable(client) == digests[better]


@pytest.fixture
def gated(client: httpx.Client, digests: list[str]) -> list[str]:
    """`stable` is at the first version and takes what says the same alone."""
    close(client, "exact_match", 100, examples_of(client, digests[0]))
    assert point(client, digests[0]).status_code == 200
    return digests


def test_a_split_with_a_version_that_scores_less_is_refused(
    client: httpx.Client, gated: list[str]
) -> None:
    refused(point(client, {"split": {gated[0]: 99, gated[1]: 1}}))
    assert stable(client) == gated[0]


def test_an_upload_that_scores_less_is_refused_whole(
    client: httpx.Client, server: RunningServer, made: list[Prefix], gated: list[str]
) -> None:
    refused(server.push(NAME, made[2], **{"x-alias": "stable"}))
    assert stable(client) == gated[0]
    record = client.get(URL).json()
    assert (record["versions"], record["aliases"]["latest"]) == (2, gated[1])
    assert server.push(NAME, made[2]).status_code == 201
    assert server.push(NAME, made[0], **{"x-alias": "stable"}).status_code == 200


@pytest.mark.usefixtures("gated")
def test_an_upload_that_scores_enough_takes_the_alias(
    client: httpx.Client, server: RunningServer, made: list[Prefix]
) -> None:
    digest = server.push(NAME, made[2]).json()["digest"]
    close(client, "exact_match", 100, examples_of(client, digest))
    assert client.delete(f"{URL}/versions/{digest}").status_code == 200
    assert server.push(NAME, made[2], **{"x-alias": "stable"}).status_code == 201
    assert stable(client) == digest


@pytest.mark.usefixtures("gated")
def test_words_that_score_less_are_refused(client: httpx.Client) -> None:
    body = {"text": "the cat sat", "alias": "stable"}
    refused(client.post(f"{URL}/from-text", json=body))
    assert client.get(URL).json()["versions"] == 2


def test_a_rollback_goes_back_at_once(client: httpx.Client, gated: list[str]) -> None:
    close(client, "exact_match", 100, examples_of(client, gated[1]))
    assert point(client, gated[1]).status_code == 200
    assert client.post(f"{URL}/aliases/stable/rollback").json()["version"] == gated[0]


def test_an_alias_without_a_gate_moves_without_scoring(
    client: httpx.Client, server: RunningServer, gated: list[str]
) -> None:
    until_idle(server)
    before = server.services.engine.progress().steps
    assert point(client, gated[1], "canary").status_code == 200
    assert point(client, gated[0]).status_code == 200
    assert server.services.engine.progress().steps == before


def test_a_gate_that_changes_during_scoring_is_checked_again(
    client: httpx.Client, server: RunningServer, gated: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a version is scored by one gate another gate is set: it is scored by that too."""
    examples = examples_of(client, gated[1])
    registry = server.services.registry
    measured: list[str] = []
    score = EvaluationService.gate_score

    async def slow_score(*arguments: Any) -> float:
        gate = arguments[-1]
        assert isinstance(gate, QualityGate)
        measured.append(gate.measure)
        if len(measured) == 1:
            strict = [{"input": one["input"], "output": ["never"]} for one in examples]
            other = QualityGate(metric="exact_match", min_score=50, examples=strict)
            registry.gates.set("demo", NAME, "stable", other)
        return await score(*arguments)

    close(client, "exact_match", 100, examples)
    monkeypatch.setattr(EvaluationService, "gate_score", slow_score)
    message = refused(point(client, gated[1]))
    assert "scores 0 by exact_match" in message
    assert len(set(measured)) == 2
    assert stable(client) == gated[0]


def test_a_client_that_goes_away_moves_nothing(
    client: httpx.Client, server: RunningServer, gated: list[str]
) -> None:
    close(client, "exact_match", 0, [{"input": f"a {at}", "output": "b"} for at in range(60)])
    until_idle(server)
    engine = server.services.engine
    with slowed(server.services, 0.02):
        made = engine.counters.generated_tokens
        with send(server, f"{URL}/aliases/stable", {"version": gated[1]}, "PUT"):
            until(lambda: engine.counters.generated_tokens >= made + 5)
        until(lambda: engine.progress().running == 0)
    until_idle(server)
    assert stable(client) == gated[0]


def test_a_gate_is_read_and_removed(client: httpx.Client, gated: list[str]) -> None:
    body = client.get(GATE_URL).json()
    assert (body["object"], body["alias"]) == ("prefix.alias.gate", "stable")
    assert (body["metric"], body["min_score"]) == ("exact_match", 100)
    assert [one["input"] for one in body["examples"]] == list(INPUTS)
    assert client.delete(GATE_URL).json()["deleted"] is True
    assert point(client, gated[1]).status_code == 200
    for call in (client.get, client.delete):
        reply = call(GATE_URL)
        assert (reply.status_code, error_of(reply)["code"]) == (404, "not_found")


def test_the_gate_of_a_missing_alias_is_not_found(client: httpx.Client) -> None:
    gate = {"metric": "bleu", "min_score": 1, "examples": [{"input": "a", "output": "b"}]}
    for reply in (
        client.get("/v1/prefixes/nobody/aliases/stable/gate"),
        client.put("/v1/prefixes/nobody/aliases/stable/gate", json=gate),
        client.delete("/v1/prefixes/nobody/aliases/stable/gate"),
    ):
        assert (reply.status_code, error_of(reply)["code"]) == (404, "prefix_not_found")


ONE = [{"input": "a", "output": "b"}]
HOSTILE: dict[str, tuple[int, Json]] = {
    "loss, of which less is better": (422, {"metric": "loss"}),
    "no bound": (422, {"min_score": None}),
    "a bound beyond any score": (422, {"min_score": 101}),
    "no examples": (422, {"examples": []}),
    "an unknown field": (422, {"max_tokens": 4}),
    "too many examples": (422, {"examples": ONE * 257}),
    "too many characters": (400, {"examples": [{"input": "a" * 400, "output": "b"}] * 3}),
}


@pytest.mark.parametrize("case", HOSTILE)
@pytest.mark.usefixtures("gated")
def test_hostile_gates_are_refused(
    client: httpx.Client, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.api.routes.prefixes.aliases._MAX_CHARACTERS", 1000)
    status, fields = HOSTILE[case]
    body = {"metric": "bleu", "min_score": 1, "examples": ONE, **fields}
    reply = client.put(GATE_URL, json=body)
    assert reply.status_code == status, reply.text
    assert client.get(GATE_URL).json()["metric"] == "exact_match"


@pytest.mark.usefixtures("gated")
def test_a_lone_surrogate_is_not_kept(client: httpx.Client) -> None:
    content = '{"metric":"bleu","min_score":1,"examples":[{"input":"\\ud800","output":"b"}]}'
    headers = {"content-type": "application/json"}
    reply = client.put(GATE_URL, content=content, headers=headers)
    assert reply.status_code in (400, 422), reply.text
    assert client.get(GATE_URL).json()["metric"] == "exact_match"


@pytest.mark.usefixtures("digests")
def test_latest_takes_no_gate(client: httpx.Client) -> None:
    gate = {"metric": "bleu", "min_score": 1, "examples": ONE}
    reply = client.put(f"{URL}/aliases/latest/gate", json=gate)
    assert (reply.status_code, error_of(reply)["param"]) == (400, "alias")


def test_an_example_that_does_not_fit_is_named_when_a_version_is_scored(
    client: httpx.Client, gated: list[str]
) -> None:
    close(client, "bleu", 1, [*ONE, {"input": "a " * 400, "output": "b"}])
    reply = point(client, gated[1])
    assert (reply.status_code, error_of(reply)["param"]) == (400, "examples.1.input")
    assert stable(client) == gated[0]


def test_an_older_version_is_scored_by_a_new_gate(
    client: httpx.Client, server: RunningServer, made: list[Prefix], digests: list[str]
) -> None:
    """The split had the failing version in it when the gate was set."""
    good, bad = digests
    examples = examples_of(client, good)
    split = {bad: 95, good: 5}
    assert point(client, {"split": split}).status_code == 200
    close(client, "exact_match", 100, examples)
    refused(point(client, bad))
    refused(point(client, {"split": {bad: 1, good: 99}}))
    refused(server.push(NAME, made[1], **{"x-alias": "stable"}))
    alias = client.get(f"{URL}/aliases/stable").json()
    assert alias["split"] == split
    assert point(client, {"split": split}).status_code == 200  # nothing moves
    assert point(client, good).status_code == 200
    refused(point(client, {"split": split}))
    assert client.post(f"{URL}/aliases/stable/rollback").status_code == 200
    assert client.get(f"{URL}/aliases/stable").json()["split"] == split


def test_a_failing_version_that_is_served_alone_cannot_be_made_part_of_a_split(
    client: httpx.Client, digests: list[str]
) -> None:
    good, bad = digests
    assert point(client, bad).status_code == 200
    close(client, "exact_match", 100, examples_of(client, good))
    refused(point(client, {"split": {bad: 50, good: 50}}))
    assert stable(client) == bad


def test_a_gate_that_is_set_during_scoring_is_checked(
    client: httpx.Client, gated: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    good, bad = gated
    close(client, "mean_logprob", -1000, [{"input": "a", "output": "b"}])
    gate_score = EvaluationService.gate_score
    closed: list[bool] = []

    async def score(*arguments: Any) -> float:
        if not closed:
            closed.append(True)
            await asyncio.to_thread(
                close,
                client,
                "exact_match",
                100,
                await asyncio.to_thread(examples_of, client, good),
            )
        return await gate_score(*arguments)

    monkeypatch.setattr(EvaluationService, "gate_score", score)
    with httpx.Client(base_url=client.base_url, timeout=60) as other:
        refused(point(other, bad))
    assert stable(client) == good
