"""`POST /v1/prefixes/{name}/evaluate`: scores equal those of plain transformers and the scorers."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import httpx
import pytest
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics import BLEU
from sqlalchemy import update

from app.api.generation.prefix_selection import PrefixSelection
from app.api.schemas.evaluations import DecodingFields
from app.db.schema import versions
from app.engine.engine import Engine
from app.engine.request import GenerationRequest, SamplingParams
from app.errors import GenerationFault
from app.model.frozen import FrozenModel
from app.prefix.prefix import Prefix
from app.tenancy.auth.principal import Principal, Scope
from app.tenancy.limits.limits import TenantLimits
from tests.api.helpers import Json, complete, draining, error_of, slowed, text_of, until, until_idle
from tests.api.plain_scores import (
    bart_ids,
    log_probabilities,
    prompt_ids,
    summed_loss,
    target_ids,
)
from tests.api.test_disconnect import send
from tests.server import RunningServer, serving
from tests.tiny import random_prefix

EXAMPLES = [
    {"input": "the quick brown fox", "output": "jumps over"},
    {"input": "the cat", "output": ["sat on the mat", "and the dog"]},
    {"input": "a lazy dog", "output": "and the cat sat"},
]


def evaluate(client: httpx.Client, name: str, **fields: object) -> httpx.Response:
    """The examples above unless `fields` say otherwise."""
    return client.post(f"/v1/prefixes/{name}/evaluate", json={"examples": EXAMPLES, **fields})


def scores_of(reply: httpx.Response) -> Json:
    assert reply.status_code == 200, reply.text
    return reply.json()["scores"]


def references(example: Json) -> list[str]:
    output = example["output"]
    return [output] if isinstance(output, str) else output


@pytest.mark.parametrize("name", ["tone", "voice", "form"])
def test_the_loss_is_that_of_plain_transformers(
    client: httpx.Client, prefixes: dict[str, Prefix], tiny_gpt2_folder: Path, name: str
) -> None:
    reply = evaluate(client, name, metrics=["loss"])
    losses, counts = [], []
    for example in EXAMPLES:
        prompt = prompt_ids(tiny_gpt2_folder, prefixes[name], example["input"])
        targets = [target_ids(tiny_gpt2_folder, text) for text in references(example)]
        losses.append(
            sum(
                summed_loss(
                    log_probabilities(tiny_gpt2_folder, prefixes[name], prompt, target), target
                )
                for target in targets
            )
        )
        counts.append(sum(map(len, targets)))
    assert scores_of(reply) == {"loss": pytest.approx(sum(losses) / sum(counts), abs=1e-4)}
    body = reply.json()
    assert body["num_target_tokens"] == sum(counts)
    expected = [loss / count for loss, count in zip(losses, counts, strict=True)]
    assert [example["loss"] for example in body["examples"]] == pytest.approx(expected, abs=1e-4)
    assert all(example["output"] is None for example in body["examples"])


@pytest.mark.parametrize("name", ["whole", "plain", "form"])
def test_an_encoder_decoders_loss_is_that_of_plain_transformers(
    bart_client: httpx.Client, bart_prefixes: dict[str, Prefix], tiny_bart_folder: Path, name: str
) -> None:
    prefix = bart_prefixes[name]
    losses, counts = 0.0, 0
    for example in EXAMPLES:
        prompt = prompt_ids(tiny_bart_folder, prefix, example["input"])
        for text in references(example):
            target = bart_ids(tiny_bart_folder, text)
            logs = log_probabilities(tiny_bart_folder, prefix, prompt, target, bart=True)
            losses += summed_loss(logs, target)
            counts += len(target)
    reply = evaluate(bart_client, name, metrics=["loss"])
    assert scores_of(reply)["loss"] == pytest.approx(losses / counts, abs=1e-4)


@pytest.mark.parametrize("options", [{}, {"num_beams": 3, "max_tokens": 6}, {"max_tokens": 2}])
def test_outputs_are_those_of_completions(client: httpx.Client, options: Json) -> None:
    reply = evaluate(client, "tone", **{"max_tokens": 4, **options})
    expected = [
        text_of(
            complete(client, example["input"], model="tone", **{"max_tokens": 4, **options})
        ).strip()
        for example in EXAMPLES
    ]
    assert [example["output"] for example in reply.json()["examples"]] == expected


def test_a_versions_template_and_defaults_are_used(client: httpx.Client) -> None:
    outputs = [one["output"] for one in evaluate(client, "form").json()["examples"]]
    plain = [
        client.post("/v1/completions", json={"model": "form", "prompt": example["input"]})
        for example in EXAMPLES
    ]
    assert outputs == [text_of(reply).strip() for reply in plain]
    raw = [one["output"] for one in evaluate(client, "form", raw=True).json()["examples"]]
    assert raw != outputs


def test_word_scores_equal_those_of_the_libraries(client: httpx.Client) -> None:
    said = [one["output"] for one in evaluate(client, "voice", max_tokens=30).json()["examples"]]
    examples = [
        {"input": EXAMPLES[0]["input"], "output": [said[0], "something else"]},
        {"input": EXAMPLES[1]["input"], "output": f"{said[1]} and more than that"},
        {"input": EXAMPLES[2]["input"], "output": "nothing of the kind"},
    ]
    reply = evaluate(client, "voice", max_tokens=30, examples=examples)
    scores = scores_of(reply)
    assert scores["exact_match"] == pytest.approx(100 / 3)
    assert [one["exact_match"] for one in reply.json()["examples"]] == [True, False, False]
    streams: list[Sequence[str | None]] = [
        [references(example)[0] for example in examples],
        [examples[0]["output"][1], None, None],
    ]
    bleu = BLEU(lowercase=True, tokenize="13a").corpus_score(said, streams)
    assert scores["bleu"] == pytest.approx(bleu.score)
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    rouge = fmean(
        scorer.score_multi(references(example), text)["rougeL"].fmeasure
        for example, text in zip(examples, said, strict=True)
    )
    assert scores["rouge_l"] == pytest.approx(100 * rouge)
    assert rouge > 0
    assert reply.json()["bleu_signature"].startswith("nrefs:var|case:lc|")


def test_any_version_may_be_named(own_server: RunningServer, tiny_gpt2: FrozenModel) -> None:
    digests = [
        own_server.push("pair", random_prefix(tiny_gpt2, 3, seed=seed)).json()["digest"]
        for seed in (1, 2)
    ]
    with own_server.client() as client:
        client.put("/v1/prefixes/pair/aliases/stable", json={"version": digests[0]})
        named = {None: 1, "latest": 1, "stable": 0, digests[0]: 0, digests[1][:10]: 1}
        for version, at in named.items():
            fields = {} if version is None else {"version": version}
            reply = evaluate(client, "pair", metrics=["exact_match"], max_tokens=1, **fields)
            assert reply.json()["version"] == digests[at]
            assert reply.headers["x-prefix-version"] == digests[at]


def test_more_examples_than_rows_take_their_turns(client: httpx.Client) -> None:
    examples = [{"input": f"the cat {number}", "output": "sat"} for number in range(80)]
    reply = evaluate(client, "tone", examples=examples, max_tokens=2, num_beams=3)
    assert len(reply.json()["examples"]) == 80
    one = evaluate(client, "tone", examples=examples[70:71], max_tokens=2, num_beams=3)
    assert reply.json()["examples"][70] == {
        **one.json()["examples"][0],
        "loss": pytest.approx(one.json()["examples"][0]["loss"], abs=1e-4),
    }


@pytest.mark.parametrize(
    ("limits", "sizes"),
    [
        (TenantLimits(), [32, 8]),
        (TenantLimits(max_rows=15), [15, 15, 10]),
        (TenantLimits(max_queue=25), [25, 15]),
        (TenantLimits(max_queue=0), [1] * 40),
    ],
)
def test_a_wave_stays_within_the_tenants_limits(
    server: RunningServer, limits: TenantLimits, sizes: list[int]
) -> None:
    principal = Principal("demo", None, frozenset(Scope), limits)
    evaluation = server.services.evaluations.begin(principal, PrefixSelection([]), DecodingFields())
    request = GenerationRequest("1", "demo", (5,), SamplingParams(max_tokens=1))
    assert [len(wave) for wave in evaluation.waves([request] * 40)] == sizes


def test_completions_are_served_during_an_evaluation(
    server: RunningServer, client: httpx.Client
) -> None:
    until_idle(server)
    examples = [{"input": f"the cat {number}", "output": "sat"} for number in range(60)]
    replies: list[httpx.Response] = []

    def judge() -> None:
        with server.client() as mine:
            replies.append(evaluate(mine, "tone", examples=examples, max_tokens=40, min_tokens=40))

    with slowed(server.services, 0.005):
        thread = threading.Thread(target=judge)
        thread.start()
        until(lambda: server.services.engine.progress().running > 0)
        assert text_of(complete(client, model="voice", max_tokens=2)) is not None
        assert not replies
        thread.join()
    assert replies[0].status_code == 200


@pytest.mark.parametrize("route", ["evaluate", "compare"])
def test_a_client_that_goes_away_frees_its_rows(server: RunningServer, route: str) -> None:
    until_idle(server)
    engine: Engine = server.services.engine
    body: dict[str, Any] = {
        "examples": [{"input": f"cat {at}", "output": "sat"} for at in range(60)],
        "max_tokens": 100,
        "min_tokens": 100,
    }
    if route == "compare":
        body |= {"a": "latest", "b": "latest"}
    with slowed(server.services, 0.02):
        made = engine.counters.generated_tokens
        with send(server, f"/v1/prefixes/tone/{route}", body):
            until(lambda: engine.counters.generated_tokens >= made + 5)
        left = engine.progress().steps
        until(lambda: engine.progress().running == 0)
        assert engine.progress().steps - left <= 20
    until_idle(server)


def test_an_evaluation_ends_at_its_deadline(server: RunningServer, client: httpx.Client) -> None:
    with slowed(server.services, 0.05):
        reply = evaluate(client, "tone", timeout=0.3, max_tokens=90, min_tokens=90)
    assert (reply.status_code, error_of(reply)["code"]) == (504, "deadline_exceeded")
    until_idle(server)


def test_a_draining_server_refuses_evaluations(
    own_server: RunningServer, tiny_gpt2: FrozenModel
) -> None:
    own_server.push("tone", random_prefix(tiny_gpt2, 3))
    draining(own_server)
    with own_server.client() as client:
        reply = evaluate(client, "tone")
    assert (reply.status_code, error_of(reply)["code"]) == (503, "draining")


MISSING = {
    "a name that is not there": ("nobody", {}),
    "an alias that is not there": ("tone", {"version": "stable"}),
    "a digest that is not there": ("tone", {"version": "abcdef0123"}),
}


@pytest.mark.parametrize("case", MISSING)
def test_a_missing_version_is_not_found(client: httpx.Client, case: str) -> None:
    name, fields = MISSING[case]
    reply = evaluate(client, name, **fields)
    assert (reply.status_code, error_of(reply)["code"]) == (404, "prefix_not_found")


def test_a_version_of_another_base_model_is_a_conflict(
    own_server: RunningServer, tiny_gpt2: FrozenModel
) -> None:
    own_server.push("tone", random_prefix(tiny_gpt2, 3))
    registry = own_server.services.registry
    with registry.catalog.write() as (connection, _):
        connection.execute(update(versions).values(base_fingerprint="0" * 64))
    with own_server.client() as client:
        for reply in (
            evaluate(client, "tone"),
            client.post(
                "/v1/prefixes/tone/compare",
                json={"a": "latest", "b": "latest", "examples": [{"input": "the"}]},
            ),
        ):
            assert (reply.status_code, error_of(reply)["code"]) == (409, "base_model_mismatch")


HOSTILE: dict[str, tuple[int, Json]] = {
    "no examples": (422, {"examples": []}),
    "too many examples": (422, {"examples": [{"input": "a", "output": "b"}] * 257}),
    "no output": (422, {"examples": [{"input": "a"}]}),
    "an output of nothing": (422, {"examples": [{"input": "a", "output": " \n"}]}),
    "an input of nothing": (422, {"examples": [{"input": "", "output": "b"}]}),
    "an output that is no text": (422, {"examples": [{"input": "a", "output": 7}]}),
    "no references": (422, {"examples": [{"input": "a", "output": []}]}),
    "too many references": (422, {"examples": [{"input": "a", "output": ["b"] * 17}]}),
    "a field too many": (422, {"examples": [{"input": "a", "output": "b", "c": 1}]}),
    "an unknown field": (422, {"temperature": 0.5}),
    "an unknown metric": (422, {"metrics": ["meteor"]}),
    "no metric": (422, {"metrics": []}),
    "a composition": (422, {"version": "latest+tone"}),
    "another's version": (422, {"version": "acme/tone"}),
    "a version with an at": (422, {"version": "a@b"}),
    "no new tokens": (422, {"max_tokens": 0}),
    "a timeout that is no number": (422, {"timeout": "soon"}),
    "more beams than any model has": (422, {"num_beams": 65}),
    "truncate without an encoder": (400, {"truncate": True}),
    "an input that does not fit": (400, {"examples": [{"input": "a " * 400, "output": "b"}]}),
    "an input beyond any context": (400, {"examples": [{"input": "a" * 40000, "output": "b"}]}),
    "an output that does not fit": (400, {"examples": [{"input": "a", "output": "b " * 400}]}),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_bodies_are_refused(client: httpx.Client, case: str) -> None:
    status, fields = HOSTILE[case]
    reply = evaluate(client, "tone", **fields)
    assert reply.status_code == status, reply.text
    assert error_of(reply)["message"]


@pytest.mark.parametrize("field", ["input", "output"])
def test_a_lone_surrogate_is_refused(client: httpx.Client, field: str) -> None:
    example = {"input": "a", "output": "b", field: "\ud800"}
    content = str({"examples": [example]}).replace("'", '"')
    content = content.replace("\ud800", "\\ud800")
    reply = client.post(
        "/v1/prefixes/tone/evaluate",
        content=content.encode(),
        headers={"content-type": "application/json"},
    )
    assert reply.status_code in (400, 422), reply.text


def test_an_error_names_the_example(client: httpx.Client) -> None:
    examples = [*EXAMPLES, {"input": "a " * 400, "output": "b"}]
    error = error_of(evaluate(client, "tone", examples=examples))
    assert (error["code"], error["param"]) == ("context_length_exceeded", "examples.3.input")
    assert error["message"].startswith("examples.3.input: ")


def test_rouge_of_too_many_words_is_refused(client: httpx.Client) -> None:
    examples = [{"input": "a", "output": "b " * 8000}] * 4
    fields = {"examples": examples, "metrics": ["rouge_l"]}
    assert evaluate(client, "tone", max_tokens=100, **fields).status_code == 200
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("app.evaluation.evaluator._MAX_ROUGE_WORK", 1000)
        reply = evaluate(client, "tone", max_tokens=100, **fields)
    assert (reply.status_code, error_of(reply)["param"]) == (400, "metrics")


def test_sources_may_be_cut_for_an_encoder(bart_client: httpx.Client) -> None:
    examples = [{"input": "the cat " * 200, "output": "sat"}]
    assert evaluate(bart_client, "plain", examples=examples).status_code == 400
    assert evaluate(bart_client, "plain", examples=examples, truncate=True).status_code == 200


def test_a_failed_computation_beside_the_engine_gives_its_turn_back(
    tiny_bart: FrozenModel, tmp_path: Path
) -> None:
    with serving(tiny_bart, tmp_path) as server, server.client() as client:
        server.push("plain", random_prefix(tiny_bart, 3))
        with pytest.MonkeyPatch.context() as patch:

            def fail(*_: object) -> float:
                raise GenerationFault("no")

            patch.setattr("app.evaluation.evaluator.target_loss", fail)
            assert evaluate(client, "plain", metrics=["loss"]).status_code == 500
        assert evaluate(client, "plain", metrics=["loss"]).status_code == 200
