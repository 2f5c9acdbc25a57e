"""Encoder passes: in slices, and each source as plain transformers encodes it alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.engine.encoder import encoder_runner
from app.engine.encoder.encoder_runner import EncoderBatch, EncoderPass, EncoderRun
from app.engine.kv_cache.entries import KVEntry, Source
from app.errors import GenerationFault, PolyprefixError, UnsupportedModel
from app.model.frozen import FrozenModel
from app.prefix.prefix import Prefix
from tests.engine.harness import make_request
from tests.equivalence.bart_reference import encoded, plain_bart
from tests.tiny import VOCABULARY, random_prefix


@pytest.fixture(autouse=True)
def without_gradients() -> None:
    """As the runner carries out every step."""
    with torch.inference_mode():
        yield


def make_source(ids: Sequence[int], prefixes: Sequence[Prefix] = (), name: str = "it") -> Source:
    return Source(make_request(name, ids, 4, prefixes))


def run_pass(model: FrozenModel, sources: Sequence[Source]) -> list[torch.Tensor]:
    running = EncoderPass(model, sources)
    while not running.advance():
        assert running.result == {}
    return [running.result[source].keys_values for source in sources]


def prefix_of(model: FrozenModel, encoder: int, seed: int) -> Prefix:
    return random_prefix(model, 3, encoder=encoder, cross=4, seed=seed, position_offset=0)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    facts=st.lists(
        st.tuples(st.integers(1, 100), st.lists(st.sampled_from((0, 1, 9, 40)), max_size=2)),
        min_size=1,
        max_size=7,
    ),
    seed=st.integers(0, 1000),
)
def test_every_source_is_encoded_as_plain_transformers_does_alone(
    tiny_bart: FrozenModel,
    tiny_bart_folder: Path,
    facts: list[tuple[int, list[int]]],
    seed: int,
) -> None:
    """Behind its own encoder prefixes, and then through the keys and values of every layer."""
    generator = torch.Generator().manual_seed(seed)
    sources = [
        make_source(
            torch.randint(VOCABULARY, (length,), generator=generator).tolist(),
            [prefix_of(tiny_bart, count, seed + place) for place, count in enumerate(lengths)],
        )
        for length, lengths in facts
    ]
    for source, found in zip(sources, run_pass(tiny_bart, sources), strict=True):
        request = source.request
        expected = encoded(plain_bart(tiny_bart_folder), request.prefixes, request.prompt_ids)
        assert found.shape == expected.shape
        assert float((found - expected).abs().max()) <= 1e-4


def test_a_pass_stops_at_least_twice_in_every_layer_of_either_half(
    tiny_bart: FrozenModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = EncoderPass(tiny_bart, [make_source(range(20)), make_source(range(5))])
    done: list[str] = []
    attend, across = EncoderBatch.attend, type(tiny_bart.encoder_decoder).cross_keys_values

    def attending(plan: EncoderBatch, role: str, layer: int, *others: object) -> torch.Tensor:
        output = attend(plan, role, layer, *others)
        done.append(f"encoder {layer}")
        return output

    def crossing(model: object, layer: int, hidden: torch.Tensor) -> object:
        done.append(f"cross {layer}")
        return across(model, layer, hidden)

    monkeypatch.setattr(EncoderBatch, "attend", attending)
    monkeypatch.setattr(type(tiny_bart.encoder_decoder), "cross_keys_values", crossing)
    seen = []
    while not running.advance():
        seen.append(list(done))
    modules = tiny_bart.spec.modules
    order = [f"encoder {layer}" for layer in range(modules["encoder"].layers)]
    order += [f"cross {layer}" for layer in range(modules["cross"].layers)]
    assert done == order
    assert len(seen) >= 2 * modules["encoder"].layers + modules["cross"].layers
    for before, after in zip(seen, seen[1:], strict=False):
        assert len(after) - len(before) <= 1


def test_rows_may_decode_between_the_slices_of_a_pass(tiny_bart: FrozenModel) -> None:
    """Two passes in turn, as an encoder and a decoder are: positions of neither reach the other."""
    sources = [make_source(range(30)), make_source(range(60, 67))]
    alone = [run_pass(tiny_bart, [source])[0] for source in sources]
    passes = [EncoderPass(tiny_bart, [source]) for source in sources]
    waiting = list(passes)
    while waiting:
        waiting = [running for running in waiting if not running.advance()]
    for running, source, expected in zip(passes, sources, alone, strict=True):
        assert torch.equal(running.result[source].keys_values, expected)


@pytest.mark.parametrize("bad", [0, 1, 2])
def test_nan_in_the_prefix_of_one_source_leaves_the_others_bits(
    tiny_bart: FrozenModel, bad: int
) -> None:
    """Of similar length, so that they are attended to together, the shorter ones padded."""
    prefixes = [prefix_of(tiny_bart, 5 + place, place) for place in range(3)]
    sources = [
        make_source(range(20 + length), [prefix])
        for length, prefix in zip((2, 0, 1), prefixes, strict=True)
    ]
    expected = run_pass(tiny_bart, sources)
    prefixes[bad].modules["encoder"].values[0, 0, 2, 3] = float("nan")
    got = run_pass(tiny_bart, sources)
    assert bool(got[bad].isnan().any())
    for place in {0, 1, 2} - {bad}:
        assert torch.equal(got[place], expected[place])


def test_sources_of_similar_length_are_attended_to_together(
    tiny_bart: FrozenModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[tuple[int, int]] = []
    inner = encoder_runner.scaled_dot_product_attention

    def counting(query: torch.Tensor, key: torch.Tensor, *others: object, **more: object) -> object:
        sizes.append((query.shape[0], key.shape[2]))
        return inner(query, key, *others, **more)

    monkeypatch.setattr(encoder_runner, "scaled_dot_product_attention", counting)
    run_pass(tiny_bart, [make_source(range(length)) for length in (10, 100, 15, 90, 16)])
    layers = tiny_bart.spec.modules["encoder"].layers
    assert sizes == [(2, 15), (1, 16), (2, 100)] * layers


def test_a_model_without_an_encoder_reads_no_source(tiny_gpt2: FrozenModel) -> None:
    with pytest.raises(UnsupportedModel, match="has no encoder"):
        EncoderPass(tiny_gpt2, [make_source(range(3))]).advance()


# --- the runner's side -------------------------------------------------------------------------


def slices_of(model: FrozenModel) -> int:
    """Slices of a pass over anything."""
    running, count = EncoderPass(model, [make_source(range(9))]), 1
    while not running.advance():
        count += 1
    return count


def test_a_run_takes_one_slice_at_least_and_goes_on_where_it_stopped(
    tiny_bart: FrozenModel,
) -> None:
    run, source = EncoderRun(tiny_bart), make_source(range(9))
    faults: dict[KVEntry, PolyprefixError] = {}
    results = [run.run([source], 0.0, faults)]
    while not results[-1]:
        results.append(run.run([], 0.0, faults))
    assert len(results) == slices_of(tiny_bart)
    assert list(results[-1]) == [source]
    assert run.run([], 0.0, faults) == {}
    assert faults == {}


def test_without_a_limit_a_run_is_the_whole_pass(tiny_bart: FrozenModel) -> None:
    source = make_source(range(9))
    assert list(EncoderRun(tiny_bart).run([source], float("inf"), {})) == [source]


def test_a_run_stops_before_a_slice_that_would_be_too_long(
    tiny_bart: FrozenModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a clock that only the slices move: one second each, three and a half are given."""
    clock, advance = [0.0], EncoderPass.advance

    def slow(running: EncoderPass) -> bool:
        clock[0] += 1.0
        return advance(running)

    monkeypatch.setattr(EncoderPass, "advance", slow)
    monkeypatch.setattr(encoder_runner.time, "monotonic", lambda: clock[0])
    EncoderRun(tiny_bart).run([make_source(range(9))], 3.5, {})
    assert clock[0] == 3.0


def test_of_a_pass_that_raises_the_sources_are_read_one_by_one(tiny_bart: FrozenModel) -> None:
    good = [make_source(range(10, 30)), make_source(range(7))]
    bad = make_source([3, VOCABULARY + 5])
    run = EncoderRun(tiny_bart)
    faults: dict[KVEntry, PolyprefixError] = {}
    results = run.run([good[0], bad, good[1]], 0.0, faults)
    while not results:
        results = run.run([], 0.0, faults)
    assert set(results) == set(good)
    assert list(faults) == [bad]
    assert isinstance(faults[bad], GenerationFault)
    for source in good:
        assert torch.equal(results[source].keys_values, run_pass(tiny_bart, [source])[0])
    assert list(run.run([good[0]], float("inf"), faults)) == [good[0]]
