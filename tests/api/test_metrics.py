"""`/metrics`: what is counted, and that no client can add a label."""

from __future__ import annotations

import httpx
from prometheus_client.parser import text_string_to_metric_families

from app.prefix.prefix import Prefix
from tests.api.helpers import NO_END, complete
from tests.server import RunningServer

Labels = frozenset[tuple[str, str]]
LABELS = {"route", "method", "status", "tier", "le"}


def scrape(client: httpx.Client) -> dict[tuple[str, Labels], float]:
    """Every sample by name and labels."""
    families = text_string_to_metric_families(client.get("/metrics").text)
    samples = [sample for family in families for sample in family.samples]
    return {(it.name, frozenset(it.labels.items())): it.value for it in samples}


def value(client: httpx.Client, name: str, **labels: str) -> float:
    return scrape(client).get((name, frozenset(labels.items())), 0.0)


def test_the_text_is_prometheus_own(client: httpx.Client) -> None:
    reply = client.get("/metrics")
    assert reply.headers["content-type"].startswith("text/plain; version=")
    assert "# TYPE polyprefix_generated_tokens_total counter" in reply.text


def test_tokens_and_requests_are_counted(client: httpx.Client) -> None:
    names = ("prompt_tokens", "generated_tokens", "requests_finished", "engine_steps")
    before = [value(client, f"polyprefix_{name}_total") for name in names]
    complete(client, [5, 6, 7], max_tokens=4, logit_bias=NO_END)
    after = [value(client, f"polyprefix_{name}_total") for name in names]
    prompt, made, finished, steps = (b - a for a, b in zip(before, after, strict=True))
    assert (prompt, made, finished) == (3, 4, 1)
    assert steps >= 4


def test_requests_are_counted_by_route_method_and_status(client: httpx.Client) -> None:
    name = "polyprefix_http_requests_total"
    labels = [
        {"route": "/v1/completions", "method": "POST", "status": "200"},
        {"route": "/v1/completions", "method": "POST", "status": "404"},
        {"route": "/v1/models/{model_id:path}", "method": "GET", "status": "200"},
        {"route": "/v1/models", "method": "any", "status": "405"},
        {"route": "unmatched", "method": "any", "status": "404"},
    ]
    before = [value(client, name, **each) for each in labels]
    complete(client)
    complete(client, model="nobody")
    client.get("/v1/models/tone")
    client.request("PURGE", "/v1/models")
    client.get("/wp-login.php")
    after = [value(client, name, **each) for each in labels]
    assert [b - a for a, b in zip(before, after, strict=True)] == [1] * 5


def test_times_are_observed(client: httpx.Client) -> None:
    names = ("queue_time", "time_to_first_token")
    before = [value(client, f"polyprefix_{name}_seconds_count") for name in names]
    complete(client)
    complete(client, stream=True)
    after = [value(client, f"polyprefix_{name}_seconds_count") for name in names]
    assert [b - a for a, b in zip(before, after, strict=True)] == [2, 2]


def test_prefixes_in_memory_are_counted_by_tier(client: httpx.Client) -> None:
    complete(client, model="tone")
    before = value(client, "polyprefix_prefix_tier_hits_total", tier="device")
    complete(client, model="tone")
    assert value(client, "polyprefix_prefix_tier_hits_total", tier="device") == before + 1
    assert value(client, "polyprefix_prefix_tier_nbytes", tier="device") > 0


def test_no_name_of_a_client_ever_becomes_a_label(
    client: httpx.Client, server: RunningServer, prefixes: dict[str, Prefix]
) -> None:
    server.push("secretname", prefixes["voice"], **{"x-alias": "secretalias"})
    headers = {"x-request-id": "secretid"}
    for model in ("secretname", "secretname@secretalias", "secretmissing", "demo/secretname"):
        complete(client, model=model, user="secretuser")
        client.get(f"/v1/models/{model}", headers=headers)
    for path in ("/v1/prefixes/secretname", "/secretpath", "/v1/prefixes/secretname/versions/x"):
        for method in ("GET", "PURGE", "REPORT", "POST"):
            client.request(method, path, headers=headers)
    client.delete("/v1/prefixes/secretname")
    text = client.get("/metrics").text
    assert "secret" not in text
    assert "demo" not in text
    assert prefixes["voice"].digest[:6] not in text


def test_the_number_of_series_does_not_grow_with_the_paths_that_are_asked_for(
    client: httpx.Client,
) -> None:
    def ask(number: int) -> None:
        client.get(f"/no/such/{number}")
        client.get(f"/v1/models/nobody-{number}")
        client.request("PURGE" if number % 2 else "REPORT", f"/v1/prefixes/nobody-{number}")

    ask(0)
    ask(1)
    before = len(scrape(client))
    for number in range(2, 30):
        ask(number)
    assert len(scrape(client)) == before


def test_labels_are_of_a_fixed_set(client: httpx.Client) -> None:
    names = {name for _, labels in scrape(client) for name, _ in labels}
    assert names == LABELS
