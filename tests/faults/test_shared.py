"""Poison in what rows share, in beams and in sources ends those who depend on it alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch

from app.engine.kv_cache.entries import KVEntry, SharedPrefix
from app.engine.request import GenerationRequest
from app.model.frozen import FrozenModel
from app.prefix.prefix import KeyValues, Prefix
from tests.engine.harness import SteppedEngine, make_request
from tests.faults.scenes import (
    CONFIG,
    WAYS,
    Tokens,
    all_tokens,
    fault_of,
    healthy,
    shared_prefix,
    short_prefix,
    tokens_without_poison,
)
from tests.tiny import VOCABULARY

NAN = float("nan")
PLACES = pytest.mark.parametrize("place", [0, 3, 6], ids=["first", "middle", "last"])
Strike = Callable[[SteppedEngine], None]


@pytest.fixture(scope="module")
def models(tiny_gpt2: FrozenModel, tiny_bart: FrozenModel) -> dict[str, FrozenModel]:
    return {"gpt2": tiny_gpt2, "bart": tiny_bart}


@pytest.fixture(scope="module")
def expected(models: dict[str, FrozenModel]) -> dict[str, Tokens]:
    """What the healthy requests give without any poison, by family."""
    return {family: tokens_without_poison(model) for family, model in models.items()}


def nan_in(prefix: Prefix, role: str, part: str) -> Prefix:
    """The same prefix with NaN as one of its values."""
    getattr(prefix.modules[role], part)[1, 1, 2, 3] = NAN
    return prefix


def misshapen(prefix: Prefix, role: str) -> Prefix:
    """The same prefix with one module of another head size."""
    keys = prefix.modules[role].keys
    wrong = torch.zeros(*keys.shape[:3], keys.shape[3] + 1)
    modules = {**prefix.modules, role: KeyValues(wrong, wrong)}
    return Prefix(modules, prefix.metadata, prefix.digest)


def columns_of(stepped: SteppedEngine, occupant: KVEntry) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values of an occupant's own columns in the first layer."""
    pool = stepped.engine.source_pool if occupant.role == "cross" else stepped.engine.pool
    assert pool is not None
    slot = occupant.slot
    assert slot is not None
    columns = slice(0, occupant.num_cached)
    both = (pool.keys(slot.length_class, 0), pool.values(slot.length_class, 0))
    keys, values = (part[slot.index][:, columns] for part in both)
    return keys, values


def step_until_decoding(stepped: SteppedEngine, tokens: int = 3) -> None:
    """Until the poisoned request has that many tokens in each of its rows."""
    while True:
        rows = [row for row in stepped.rows if row.request.id == "bad" and not row.is_trunk]
        if rows and all(row.num_generated >= tokens for row in rows):
            return
        stepped.step()


def strike_rows(which: Callable[[SteppedEngine], list[KVEntry]]) -> Strike:
    """NaN turns up in the memory of a request that has given tokens already."""

    def strike(stepped: SteppedEngine) -> None:
        step_until_decoding(stepped)
        for occupant in which(stepped):
            keys, _ = columns_of(stepped, occupant)
            with torch.inference_mode():
                keys[:] = NAN

    return strike


def one_row(stepped: SteppedEngine) -> list[KVEntry]:
    """The best beam, which goes on as it is whatever becomes of the others; or any row."""
    entry = stepped.engine.scheduler.state_of("bad")
    assert entry is not None
    return [entry.rows[-1] if entry.beams is None else entry.beams.rows[0]]


def rows_of_bad(stepped: SteppedEngine) -> list[KVEntry]:
    return [row for row in stepped.rows if row.request.id == "bad"]


def the_source(stepped: SteppedEngine) -> list[KVEntry]:
    entry = stepped.engine.scheduler.state_of("bad")
    assert entry is not None
    assert entry.source is not None
    return [entry.source]


def no_strike(_: SteppedEngine) -> None:
    """For poison that is in the request itself."""


@dataclass(frozen=True)
class Poison:
    """How one request is made to fail, by itself or by `strike`, and what it is told."""

    prefix: Callable[[FrozenModel], Prefix] | None
    message: str
    strike: Strike = no_strike
    source: tuple[int, ...] = tuple(range(20, 33))


def _short(role: str, part: str) -> Callable[[FrozenModel], Prefix]:
    return lambda model: nan_in(short_prefix(model, 5, seed=99), role, part)


def _shared(role: str, part: str) -> Callable[[FrozenModel], Prefix]:
    return lambda model: nan_in(shared_prefix(model, seed=99), role, part)


OF_ALL = {
    "NaN in its decoder prefix": Poison(_short("decoder", "values"), "not finite"),
    "NaN in its shared decoder prefix": Poison(_shared("decoder", "keys"), "not finite"),
    "a shared decoder prefix of another shape": Poison(
        lambda model: misshapen(shared_prefix(model), "decoder"), "could not be placed"
    ),
    "NaN in one of its rows as it decodes": Poison(None, "not finite", strike_rows(one_row)),
    "NaN in all its rows as it decodes": Poison(None, "not finite", strike_rows(rows_of_bad)),
}
OF_ENCODERS = {
    "NaN in its encoder prefix": Poison(_short("encoder", "values"), "not finite"),
    "NaN in its cross prefix": Poison(_short("cross", "keys"), "not finite"),
    "NaN in its shared cross prefix": Poison(_shared("cross", "values"), "not finite"),
    "a source that no encoder reads": Poison(
        None, "could not be encoded", source=(20, 21, VOCABULARY + 5)
    ),
    "an encoder prefix of another shape": Poison(
        lambda model: misshapen(short_prefix(model, 5), "encoder"), "could not be encoded"
    ),
    "a cross prefix of another shape": Poison(
        lambda model: misshapen(short_prefix(model, 5), "cross"), "could not be placed"
    ),
    "a shared cross prefix of another shape": Poison(
        lambda model: misshapen(shared_prefix(model), "cross"), "could not be placed"
    ),
    "NaN in its source as it decodes": Poison(None, "not finite", strike_rows(the_source)),
}
POISONS = {**OF_ALL, **OF_ENCODERS}
KINDS = pytest.mark.parametrize(
    ("family", "kind"),
    [("gpt2", kind) for kind in OF_ALL] + [("bart", kind) for kind in POISONS],
)


def poisoned(model: FrozenModel, kind: str, way: str, name: str = "bad") -> GenerationRequest:
    poison = POISONS[kind]
    prefixes = [] if poison.prefix is None else [poison.prefix(model)]
    return make_request(name, poison.source, 9, prefixes, **WAYS[way])


@PLACES
@pytest.mark.parametrize("way", WAYS)
@KINDS
def test_a_fault_ends_its_request_alone_with_a_reason_and_leaves_the_others_tokens(
    models: dict[str, FrozenModel],
    expected: dict[str, Tokens],
    family: str,
    kind: str,
    way: str,
    place: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = models[family]
    good, bad = healthy(model, shared_prefix(model)), poisoned(model, kind, way)
    stepped = SteppedEngine(model, CONFIG, monkeypatch)
    for request in [*good[:place], bad, *good[place:]]:
        stepped.add(request)
    POISONS[kind].strike(stepped)
    stepped.run()
    assert POISONS[kind].message in fault_of(stepped, "bad")
    assert all_tokens(stepped, good) == expected[family]
    stepped.check_empty()


@pytest.mark.parametrize("decode_attention", ["sdpa", "matmul", "native"])
@pytest.mark.parametrize("way", WAYS)
@KINDS
def test_slots_that_held_poison_are_reused_without_harm(
    models: dict[str, FrozenModel],
    expected: dict[str, Tokens],
    family: str,
    kind: str,
    way: str,
    decode_attention: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Poisoned requests leave, then healthy ones move into the same slots."""
    model, config = models[family], replace(CONFIG, decode_attention=decode_attention)
    stepped = SteppedEngine(model, config, monkeypatch)
    for index in range(3):
        stepped.add(poisoned(model, kind, way, f"other {index}"))
    stepped.add(poisoned(model, kind, way))
    POISONS[kind].strike(stepped)
    stepped.run()
    stepped.check_empty()
    assert_no_nan_is_left(stepped)
    good = healthy(model, shared_prefix(model))
    for request in good:
        stepped.add(request)
    stepped.run()
    assert all_tokens(stepped, good) == expected[family]


def assert_no_nan_is_left(stepped: SteppedEngine) -> None:
    """One more step carries out the last operations; then all memory is finite."""
    stepped.step()
    for pool in (stepped.engine.pool, stepped.engine.source_pool):
        for tensor in () if pool is None else pool.tensors:
            assert bool(torch.isfinite(tensor).all())


# --- what several requests share ---------------------------------------------------------------

SEGMENTS = pytest.mark.parametrize(
    ("family", "role"), [("gpt2", "decoder"), ("bart", "decoder"), ("bart", "cross")]
)


def shared_segments(stepped: SteppedEngine, role: str) -> list[SharedPrefix]:
    table = stepped.engine.table if role == "decoder" else stepped.engine.source_table
    assert table is not None
    return [item for slots in table.rows for item in slots if isinstance(item, SharedPrefix)]


@SEGMENTS
def test_nan_in_a_shared_segment_ends_exactly_the_requests_that_share_it(
    models: dict[str, FrozenModel],
    expected: dict[str, Tokens],
    family: str,
    role: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And whoever names the prefix afterwards gets a fresh copy of it."""
    model = models[family]
    prefix, good = shared_prefix(model), healthy(model, shared_prefix(model))
    users = [
        make_request(f"user {index}", range(20, 24 + index), 9, [prefix], **way)
        for index, way in enumerate(WAYS.values())
    ]
    stepped = SteppedEngine(model, CONFIG, monkeypatch)
    for request in [*users, *good]:
        stepped.add(request)
    while not all(stepped.events[request.id] for request in users[:2]):
        stepped.step()
    [segment] = [item for item in shared_segments(stepped, role) if item.prefixes == (prefix,)]
    keys, _ = columns_of(stepped, segment)
    with torch.inference_mode():
        keys[0, 3] = NAN
    late = [replace(request, id=f"late {index}") for index, request in enumerate(users)]
    stepped.step()
    for request in late:
        stepped.add(request)
    stepped.run()
    for request in users:
        assert "not finite" in fault_of(stepped, request.id)
    assert all_tokens(stepped, good) == expected[family]
    stepped.check_empty()
    assert_no_nan_is_left(stepped)
    alone = SteppedEngine(model, CONFIG, monkeypatch)
    for request in late:
        alone.add(request)
    alone.run()
    assert all_tokens(stepped, late) == all_tokens(alone, late)


@pytest.mark.parametrize("family", ["gpt2", "bart"])
def test_nan_in_the_trunk_of_beams_ends_that_search_alone(
    models: dict[str, FrozenModel],
    expected: dict[str, Tokens],
    family: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = models[family]
    good = healthy(model, shared_prefix(model))
    stepped = SteppedEngine(model, CONFIG, monkeypatch)
    for request in [make_request("bad", range(20, 33), 9, **WAYS["beams"]), *good]:
        stepped.add(request)
    step_until_decoding(stepped)
    [trunk] = [row for row in stepped.rows if row.request.id == "bad" and row.is_trunk]
    keys, _ = columns_of(stepped, trunk)
    with torch.inference_mode():
        keys[:] = NAN
    stepped.step()
    assert "not finite" in fault_of(stepped, "bad")
    assert not [row for row in stepped.rows if row.request.id == "bad"]
    stepped.run()
    assert all_tokens(stepped, good) == expected[family]
    stepped.check_empty()
    assert_no_nan_is_left(stepped)
