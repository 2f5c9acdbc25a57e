"""Healthy requests of every kind, for what goes wrong beside them."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from app.engine.config import EngineConfig
from app.engine.decoding.beam_search import BeamParams
from app.engine.request import GenerationRequest, RequestFailed, RequestFinished
from app.errors import GenerationFault
from app.model.frozen import FrozenModel
from app.prefix.prefix import Prefix
from tests.engine.harness import SteppedEngine, make_request
from tests.tiny import random_prefix

Tokens = dict[str, list[list[int]]]
"""Of each row, by request."""

CONFIG = EngineConfig(max_step_tokens=60, kv_bytes=64 << 20)
SHARED = 70
"""Columns of a prefix that its users share."""

WAYS: dict[str, dict[str, object]] = {
    "greedy": {},
    "sampled rows": {"n": 3, "temperature": 1.0, "seed": 5},
    "beams": {"beam": BeamParams(4), "n": 2},
}


def shared_prefix(model: FrozenModel, seed: int = 50) -> Prefix:
    """Long enough in every module to be shared by those who name it."""
    has_encoder = model.encoder_decoder is not None
    others = {"encoder": 6, "cross": SHARED + 1} if has_encoder else {}
    return random_prefix(model, SHARED, seed=seed, position_offset=0, **others)


def short_prefix(model: FrozenModel, length: int, seed: int = 0) -> Prefix:
    """One that every slot begins with a copy of."""
    has_encoder = model.encoder_decoder is not None
    others = {"encoder": length + 1, "cross": length + 2} if has_encoder else {}
    return random_prefix(model, length, seed=seed, position_offset=0, **others)


def healthy(model: FrozenModel, shared: Prefix) -> list[GenerationRequest]:
    """Six requests: with and without prefixes, greedy, sampled, several rows, beams."""
    return [
        make_request("bare", range(40, 52), 12),
        make_request("prefixed", range(60, 66), 14, [short_prefix(model, 9)]),
        make_request("shared", range(70, 73), 10, [shared]),
        make_request("beams", range(80, 95), 12, [shared], n=2, beam=BeamParams(3)),
        make_request("rows", range(30, 44), 9, [shared], n=3, temperature=0.8, seed=8),
        make_request("long", range(100, 175), 8, beam=BeamParams(2)),
    ]


def all_tokens(stepped: SteppedEngine, requests: Sequence[GenerationRequest]) -> Tokens:
    """Tokens of every row by request; each request must have finished."""
    for request in requests:
        assert isinstance(stepped.terminal(request.id), RequestFinished), request.id
    return {
        request.id: [stepped.tokens(request.id, row) for row in range(request.n)]
        for request in requests
    }


def tokens_without_poison(model: FrozenModel) -> Tokens:
    """What the healthy requests give when nothing goes wrong."""
    good = healthy(model, shared_prefix(model))
    with pytest.MonkeyPatch.context() as patch:
        stepped = SteppedEngine(model, CONFIG, patch)
        for request in good:
            stepped.add(request)
        stepped.run()
    found = all_tokens(stepped, good)
    for request in good:
        assert [len(row) for row in found[request.id]] == [request.sampling.max_tokens] * request.n
    return found


def fault_of(stepped: SteppedEngine, name: str) -> str:
    """What a request was told that failed by a fault of its own."""
    end = stepped.terminal(name)
    assert isinstance(end, RequestFailed)
    assert isinstance(end.error, GenerationFault)
    return end.error.message
