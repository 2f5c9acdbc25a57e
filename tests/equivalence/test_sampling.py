"""Seeded sampling: a row draws the same tokens alone, in any batch, in any chunks, at any time."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.engine.config import EngineConfig
from app.engine.fairness import prefill_budget
from app.engine.request import GenerationRequest
from app.model.frozen import FrozenModel
from tests.engine.harness import SteppedEngine, make_request
from tests.tiny import random_prefix

SAMPLINGS: dict[str, dict[str, object]] = {
    "plain": {"temperature": 1.0},
    "hot": {"temperature": 1.7, "top_k": 50},
    "nucleus": {"temperature": 0.9, "top_p": 0.8, "min_p": 0.01},
    "penalised": {
        "temperature": 1.1,
        "repetition_penalty": 1.3,
        "presence_penalty": 0.5,
        "frequency_penalty": 0.5,
    },
    "biased": {"temperature": 1.0, "logit_bias": {7: 5.0, 9: -50.0}, "min_tokens": 5},
}


def request_of(model: FrozenModel, index: int, name: str) -> GenerationRequest:
    """Request `index` of a family of them: its own prompt, prefix, seed and way of sampling."""
    kinds = list(SAMPLINGS.values())
    prefixes = [random_prefix(model, 2 + index % 7, seed=index)] if index % 3 else []
    return make_request(
        name,
        range(20 + index, 23 + 4 * index),
        4 + index % 9,
        prefixes,
        n=1 + index % 3,
        seed=1000 + index,
        **kinds[index % len(kinds)],
    )


def rows_of(stepped: SteppedEngine, request: GenerationRequest) -> list[list[int]]:
    return [stepped.tokens(request.id, row) for row in range(request.n)]


@pytest.fixture(scope="module")
def alone(tiny_gpt2: FrozenModel) -> list[list[list[int]]]:
    """What each request draws with nobody beside it."""
    drawn = []
    for index in range(10):
        with pytest.MonkeyPatch.context() as patch:
            stepped = SteppedEngine(tiny_gpt2, EngineConfig(), patch)
            request = request_of(tiny_gpt2, index, "alone")
            stepped.add(request)
            stepped.run()
            drawn.append(rows_of(stepped, request))
    return drawn


@settings(
    max_examples=20,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    order=st.permutations(range(10)),
    arrivals=st.lists(st.integers(0, 6), min_size=10, max_size=10),
    max_step_tokens=st.sampled_from((3, 20, 512)),
    max_rows=st.sampled_from((3, 8, 64)),
)
def test_a_seeded_request_draws_in_every_batch_what_it_draws_alone(
    tiny_gpt2: FrozenModel,
    alone: list[list[list[int]]],
    order: list[int],
    arrivals: list[int],
    max_step_tokens: int,
    max_rows: int,
) -> None:
    config = EngineConfig(max_step_tokens=max_step_tokens, max_rows=max_rows)
    requests = {index: request_of(tiny_gpt2, index, str(index)) for index in order}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prefill_budget, "_MIN_TOKENS", 1)
        stepped = SteppedEngine(tiny_gpt2, config, patch)
        for step in range(7):
            for index in order:
                if arrivals[index] == step:
                    stepped.add(requests[index])
            stepped.step()
        stepped.run()
    for index, request in requests.items():
        assert rows_of(stepped, request) == alone[index]


def test_the_rows_are_not_all_the_same(alone: list[list[list[int]]]) -> None:
    """Else the equalities above would say nothing."""
    rows = [tuple(row) for rows in alone for row in rows]
    assert len(set(rows)) == len(rows)


def test_another_seed_draws_something_else(
    tiny_gpt2: FrozenModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    stepped = SteppedEngine(tiny_gpt2, EngineConfig(), monkeypatch)
    for seed in range(5):
        stepped.add(make_request(str(seed), range(20, 30), 20, temperature=1.5, seed=seed))
    stepped.run()
    assert len({tuple(stepped.tokens(str(seed))) for seed in range(5)}) == 5
