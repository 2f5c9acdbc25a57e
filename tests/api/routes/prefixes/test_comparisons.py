"""`POST /v1/prefixes/{name}/compare`: losses and divergences equal those of plain transformers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from app.model.frozen import FrozenModel
from app.prefix.prefix import Prefix
from tests.api.helpers import Json, complete, error_of, text_of, with_metadata
from tests.api.plain_scores import (
    bart_ids,
    divergence,
    log_probabilities,
    prompt_ids,
    summed_loss,
    target_ids,
)
from tests.equivalence.bart_reference import generate as generate_bart
from tests.equivalence.bart_reference import plain_bart
from tests.equivalence.reference import generate, plain_model
from tests.server import RunningServer
from tests.tiny import random_prefix

NAME = "pair"
URL = f"/v1/prefixes/{NAME}"
EXAMPLES = [
    {"input": "the quick brown fox", "output": "jumps over"},
    {"input": "the cat", "output": "sat on the mat"},
]


def push(server: RunningServer, prefixes: list[Prefix]) -> list[str]:
    return [server.push(NAME, prefix).json()["digest"] for prefix in prefixes]


@pytest.fixture(scope="module")
def pair(tiny_gpt2: FrozenModel) -> list[Prefix]:
    """Two versions that differ in length, in offset and in their templates."""
    first = random_prefix(tiny_gpt2, 6, seed=90)
    second = random_prefix(tiny_gpt2, 3, seed=91, position_offset=1)
    return [first, with_metadata(second, input_template="say {input}<|endoftext|>")]


@pytest.fixture
def digests(client: httpx.Client, server: RunningServer, pair: list[Prefix]) -> Iterator[list[str]]:
    yield push(server, pair)
    client.delete(URL)


@pytest.fixture(scope="module")
def bart_pair(tiny_bart: FrozenModel) -> list[Prefix]:
    """Two versions, one with all modules; the other's decoder does not begin at position 0."""
    first = random_prefix(tiny_bart, 4, seed=92, position_offset=0, encoder=5, cross=2)
    return [first, random_prefix(tiny_bart, 3, seed=93)]


@pytest.fixture
def bart_digests(
    bart_client: httpx.Client, bart_server: RunningServer, bart_pair: list[Prefix]
) -> Iterator[list[str]]:
    yield push(bart_server, bart_pair)
    bart_client.delete(URL)


def compare(client: httpx.Client, a: str, b: str, **fields: object) -> Json:
    """A good reply's content; the examples above unless `fields` say otherwise."""
    reply = client.post(
        f"{URL}/compare", json={"a": a, "b": b, "examples": EXAMPLES, "max_tokens": 8, **fields}
    )
    assert reply.status_code == 200, reply.text
    return reply.json()


def expect(body: Json, at: int, logs: list[object], target: list[int]) -> None:
    """One example's numbers, from the log-probabilities under `a` and under `b`."""
    one = body["examples"][at]
    count = len(target)
    assert one["num_target_tokens"] == count
    if one["target"] == "output":
        for side, found in zip("ab", logs, strict=True):
            assert one[side]["loss"] == pytest.approx(summed_loss(found, target) / count, abs=1e-4)
    assert one["kl_ab"] == pytest.approx(divergence(logs[0], logs[1]), abs=1e-4)
    assert one["kl_ba"] == pytest.approx(divergence(logs[1], logs[0]), abs=1e-4)
    assert one["kl_ab"] > 0.01


def test_over_given_outputs_the_numbers_are_those_of_plain_transformers(
    client: httpx.Client, digests: list[str], pair: list[Prefix], tiny_gpt2_folder: Path
) -> None:
    body = compare(client, digests[0], digests[1][:12])
    assert (body["a"], body["b"]) == tuple(digests)
    for at, example in enumerate(EXAMPLES):
        target = target_ids(tiny_gpt2_folder, example["output"])
        logs = [
            log_probabilities(
                tiny_gpt2_folder,
                prefix,
                prompt_ids(tiny_gpt2_folder, prefix, example["input"]),
                target,
            )
            for prefix in pair
        ]
        expect(body, at, logs, target)


def test_over_what_a_says_the_numbers_are_those_of_plain_transformers(
    client: httpx.Client, digests: list[str], pair: list[Prefix], tiny_gpt2_folder: Path
) -> None:
    examples = [{"input": example["input"]} for example in EXAMPLES]
    body = compare(client, *digests, examples=examples)
    for at, example in enumerate(examples):
        prompts = [prompt_ids(tiny_gpt2_folder, prefix, example["input"]) for prefix in pair]
        made = generate(plain_model(tiny_gpt2_folder), pair[:1], prompts[:1], max_new_tokens=8)
        said = made.sequences[0, len(prompts[0]) :].tolist()
        logs = [
            log_probabilities(tiny_gpt2_folder, prefix, prompt, said)
            for prefix, prompt in zip(pair, prompts, strict=True)
        ]
        assert body["examples"][at]["target"] == "a"
        assert body["examples"][at]["a"]["loss"] is None
        expect(body, at, logs, said)
    assert body["loss_a"] is body["loss_b"] is None


@pytest.mark.parametrize("given", [True, False])
def test_an_encoder_decoders_numbers_are_those_of_plain_transformers(
    bart_client: httpx.Client,
    bart_digests: list[str],
    bart_pair: list[Prefix],
    tiny_bart_folder: Path,
    given: bool,
) -> None:
    examples = [example if given else {"input": example["input"]} for example in EXAMPLES]
    body = compare(bart_client, *bart_digests, examples=examples)
    for at, example in enumerate(examples):
        source = prompt_ids(tiny_bart_folder, bart_pair[0], example["input"])
        if given:
            target = bart_ids(tiny_bart_folder, example["output"])
        else:
            made = generate_bart(
                plain_bart(tiny_bart_folder), bart_pair[:1], source, max_new_tokens=8
            )
            target = made.sequences[0, 1:].tolist()
        logs = [
            log_probabilities(tiny_bart_folder, prefix, source, target, bart=True)
            for prefix in bart_pair
        ]
        expect(body, at, logs, target)


def test_a_comparison_has_the_outputs_of_both_versions(
    client: httpx.Client, digests: list[str]
) -> None:
    body = compare(client, *digests)
    for example, one in zip(EXAMPLES, body["examples"], strict=True):
        for side, digest in zip("ab", digests, strict=True):
            reply = complete(client, example["input"], model=f"{NAME}@{digest}")
            assert one[side]["output"] == text_of(reply).strip()
        assert one["same_output"] is (one["a"]["output"] == one["b"]["output"])
    assert body["same_outputs"] == sum(one["same_output"] for one in body["examples"])


@pytest.mark.parametrize("kind", ["gpt2", "bart"])
def test_a_version_has_no_divergence_from_itself(request: pytest.FixtureRequest, kind: str) -> None:
    prefix = "" if kind == "gpt2" else "bart_"
    client = request.getfixturevalue(f"{prefix}client")
    digests = request.getfixturevalue(f"{prefix}digests")
    examples = [*EXAMPLES, {"input": "a lazy dog"}]
    body = compare(client, digests[1], "latest", examples=examples)
    assert body["a"] == body["b"] == digests[1]
    assert body["kl_ab"] == body["kl_ba"] == 0
    assert body["loss_a"] == body["loss_b"]
    assert body["same_outputs"] == len(examples)
    assert all(one["kl_ab"] == one["kl_ba"] == 0 for one in body["examples"])


def test_the_summary_is_the_mean_over_all_tokens(client: httpx.Client, digests: list[str]) -> None:
    body = compare(client, *digests, examples=[*EXAMPLES, {"input": "a lazy dog"}])
    counts = [one["num_target_tokens"] for one in body["examples"]]
    for name in ("kl_ab", "kl_ba"):
        total = sum(one[name] * n for one, n in zip(body["examples"], counts, strict=True))
        assert body[name] == pytest.approx(total / sum(counts))
    total = sum(one["a"]["loss"] * n for one, n in zip(body["examples"][:2], counts, strict=False))
    assert body["loss_a"] == pytest.approx(total / sum(counts[:2]))


def test_long_targets_are_taken_in_pieces(
    client: httpx.Client, digests: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    examples = [{"input": "the", "output": "the cat sat on the mat and the dog"}]
    whole = compare(client, *digests, examples=examples)
    monkeypatch.setattr("app.evaluation.likelihood.CHUNK", 3)
    pieces = compare(client, *digests, examples=examples)
    assert whole["examples"][0]["num_target_tokens"] > 9
    for name in ("kl_ab", "kl_ba", "loss_a", "loss_b"):
        assert pieces[name] == pytest.approx(whole[name], abs=1e-5)


HOSTILE: dict[str, tuple[int, Json]] = {
    "no a": (422, {"a": None}),
    "a name for a": (422, {"a": "acme/tone@latest"}),
    "an alias that is not there": (404, {"b": "stable"}),
    "too many examples": (422, {"examples": [{"input": "a"}] * 65}),
    "several outputs": (422, {"examples": [{"input": "a", "output": ["b"]}]}),
    "an unknown field": (422, {"metrics": ["loss"]}),
    "an output that does not fit": (400, {"examples": [{"input": "a", "output": "b " * 400}]}),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_bodies_are_refused(client: httpx.Client, digests: list[str], case: str) -> None:
    status, fields = HOSTILE[case]
    body = {"a": digests[0], "b": digests[1], "examples": EXAMPLES, **fields}
    reply = client.post(f"{URL}/compare", json=body)
    assert reply.status_code == status, reply.text
    assert error_of(reply)["message"]
