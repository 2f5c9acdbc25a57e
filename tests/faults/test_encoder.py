"""An encoder pass that fails, and requests that end before, in and after theirs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from app.engine.encoder import encoder_runner
from app.engine.encoder.encoder_runner import EncoderBatch
from app.engine.fairness.prefill_budget import PrefillBudget
from app.engine.kv_cache.entries import Source
from app.engine.kv_cache.slots import StoreSource
from app.engine.request import RequestFailed
from app.errors import DeadlineExceeded
from app.model.frozen import FrozenModel
from tests.engine.harness import SteppedEngine, make_request
from tests.faults.scenes import (
    CONFIG,
    WAYS,
    Tokens,
    all_tokens,
    fault_of,
    healthy,
    shared_prefix,
    tokens_without_poison,
)


@pytest.fixture(scope="module")
def expected(tiny_bart: FrozenModel) -> Tokens:
    return tokens_without_poison(tiny_bart)


@pytest.mark.parametrize("layer", [0, 2])
def test_a_pass_that_raises_for_one_source_is_repeated_source_by_source(
    tiny_bart: FrozenModel,
    expected: Tokens,
    layer: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    passes: list[list[str]] = []

    class Failing(EncoderBatch):
        def __init__(self, sources: Sequence[Source], *others: Any) -> None:
            super().__init__(sources, *others)
            self.names = [source.request.id for source in sources]
            passes.append(self.names)

        def attend(self, role: str, at: int, *others: Any) -> torch.Tensor:
            if at == layer and "bad" in self.names:
                raise ArithmeticError("this source breaks it")
            return super().attend(role, at, *others)

    monkeypatch.setattr(encoder_runner, "EncoderBatch", Failing)
    good = healthy(tiny_bart, shared_prefix(tiny_bart))
    stepped = SteppedEngine(tiny_bart, CONFIG, monkeypatch)
    for request in [*good[:2], make_request("bad", range(20, 33), 9), *good[2:]]:
        stepped.add(request)
    stepped.run()
    assert "could not be encoded" in fault_of(stepped, "bad")
    assert passes[0][:4] == ["bare", "prefixed", "bad", "shared"]
    assert passes[1 : 1 + len(passes[0])] == [[name] for name in passes[0]]
    assert all_tokens(stepped, good) == expected
    stepped.check_empty()


def waits_for_the_encoder(stepped: SteppedEngine, source: Source) -> bool:
    return source.request.id in stepped.engine.debug_state()["waiting_sources"]


def is_being_encoded(stepped: SteppedEngine, source: Source) -> bool:
    return source.request.id in stepped.engine.debug_state()["encoding"]


def is_about_to_be_stored(stepped: SteppedEngine, source: Source) -> bool:
    table = stepped.engine.source_table
    assert table is not None
    return any(
        isinstance(item, StoreSource) and item.occupant is source for item in table.operations
    )


def has_begun(_: SteppedEngine, source: Source) -> bool:
    return source.proven


def searches(stepped: SteppedEngine, _: Source) -> bool:
    return any(row.request.id == "bad" and row.num_generated > 4 for row in stepped.rows)


STATES = [waits_for_the_encoder, is_being_encoded, is_about_to_be_stored, has_begun, searches]


@pytest.mark.parametrize("end", ["cancelled", "late"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("state", STATES, ids=lambda state: state.__name__)
@pytest.mark.parametrize("place", [0, 3, 6], ids=["first", "middle", "last"])
def test_a_request_that_ends_at_any_stage_leaves_nothing_and_the_others_tokens(
    tiny_bart: FrozenModel,
    expected: Tokens,
    place: int,
    state: Callable[[SteppedEngine, Source], bool],
    way: str,
    end: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whether its client goes away or its deadline passes; passes take a slice per step."""
    monkeypatch.setattr(PrefillBudget, "encoder_seconds", lambda *_: 0.0)
    shared = shared_prefix(tiny_bart)
    good = healthy(tiny_bart, shared)
    bad = make_request("bad", range(20, 70), 30, [shared], deadline=1e12, **WAYS[way])
    stepped = SteppedEngine(tiny_bart, CONFIG, monkeypatch)
    blocker = make_request("blocker", range(10, 65), 2)
    for request in [blocker, *good[:place], bad, *good[place:]]:
        stepped.add(request)
    stepped.step()
    bad = stepped.engine.scheduler.state_of("bad")
    assert bad is not None
    source = bad.source
    assert source is not None
    while not state(stepped, source):
        stepped.step()
    if end == "cancelled":
        stepped.cancel("bad")
    else:
        stepped.keep(stepped.engine.scheduler.expire(2e12))
        failed = stepped.terminal("bad")
        assert isinstance(failed, RequestFailed)
        assert isinstance(failed.error, DeadlineExceeded)
    assert not [row for row in stepped.rows if row.request.id == "bad"]
    assert source.slot is None
    assert not waits_for_the_encoder(stepped, source)
    stepped.run()
    assert all_tokens(stepped, good) == expected
    stepped.check_empty()


def test_an_unneeded_encoder_pass_does_not_delay_the_next_request(
    tiny_bart: FrozenModel,
    expected: Tokens,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(PrefillBudget, "encoder_seconds", lambda *_: 0.0)
    stepped = SteppedEngine(tiny_bart, CONFIG, monkeypatch)
    stepped.add(make_request("bad", range(20, 70), 9))
    for _ in range(3):
        stepped.step()
    stepped.cancel("bad")
    assert stepped.engine.scheduler.idle
    good = healthy(tiny_bart, shared_prefix(tiny_bart))
    for request in good:
        stepped.add(request)
    stepped.run()
    assert all_tokens(stepped, good) == expected
    stepped.check_empty()
