"""BART ragged = alone = plain transformers with the prefixes prepended in all its attention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from transformers import BartForConditionalGeneration

from app.engine.attention.backends import NAMES
from app.engine.config import EngineConfig
from app.engine.decoding.beam_search import BeamParams
from app.engine.encoder import source_queue
from app.engine.fairness import prefill_budget
from app.engine.kv_cache.memory import SHARED_LENGTH
from app.engine.request import GenerationRequest
from app.model.frozen import FrozenModel
from app.model.load import load_model
from app.prefix.prefix import Prefix
from tests.engine.harness import SteppedEngine, make_request
from tests.equivalence.bart_reference import decoder_logits, generate, plain_bart
from tests.equivalence.beam_results import Result, assert_same_results, found_by
from tests.tiny import VOCABULARY, random_prefix

TOLERANCE = 1e-4
EOS = 2
LENGTHS = (
    (3, 0, 0),
    (9, 5, 70),
    (40, 17, 30),
    (30, 0, 40),
    (66, 1, 0),
    (1, 64, 64),
    (63, 30, 63),
)
"""Of prefixes in the decoder, the encoder and across. Alone or composed some reach the length from
which they are shared in one memory, in the other, in both and in none."""


@dataclass(frozen=True)
class Case:
    """One request of a mix: what it asks, when it comes, after how many steps it is cancelled."""

    prefixes: tuple[int, ...]
    source_ids: tuple[int, ...]
    max_tokens: int
    n: int
    way: str
    ignore_eos: bool
    arrival: int
    cancelled_after: int | None


def cases() -> st.SearchStrategy[list[Case]]:
    case = st.builds(
        Case,
        prefixes=st.lists(st.integers(0, len(LENGTHS) - 1), max_size=2).map(tuple),
        source_ids=st.integers(1, 100).flatmap(
            lambda length: st.integers(0, 10**6).map(lambda seed: _ids(seed, length))
        ),
        max_tokens=st.integers(1, 12),
        n=st.sampled_from((1, 1, 2, 3)),
        way=st.sampled_from(("greedy", "sampled", "beams")),
        ignore_eos=st.booleans(),
        arrival=st.integers(0, 8),
        cancelled_after=st.none() | st.none() | st.integers(0, 6),
    )
    return st.lists(case, min_size=1, max_size=7)


def _ids(seed: int, length: int) -> tuple[int, ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randint(VOCABULARY, (length,), generator=generator).tolist())


class Shelf:
    """One prefix of each of `LENGTHS`; every second one shifts the decoder's positions."""

    def __init__(self, model: FrozenModel, dtype: torch.dtype = torch.float32) -> None:
        self._prefixes = [
            random_prefix(
                model,
                decoder,
                encoder=encoder,
                cross=cross,
                seed=index,
                position_offset=min(decoder, 20) if index % 2 else 0,
            ).to(model.device, dtype)
            for index, (decoder, encoder, cross) in enumerate(LENGTHS)
        ]

    def of(self, case: Case) -> list[Prefix]:
        return [self._prefixes[index] for index in case.prefixes]


@pytest.fixture(scope="module")
def shelf(tiny_bart: FrozenModel) -> Shelf:
    return Shelf(tiny_bart)


def request_of(case: Case, name: str, prefixes: Sequence[Prefix]) -> GenerationRequest:
    ways = {
        "greedy": {},
        "sampled": {"temperature": 1.2, "seed": len(name)},
        "beams": {"beam": BeamParams(case.n + 1, 0.8)},
    }
    options = {"ignore_eos": case.ignore_eos, **ways[case.way]}
    return make_request(name, case.source_ids, case.max_tokens, prefixes, case.n, **options)


def run_mix(
    model: FrozenModel,
    mix: Sequence[Case],
    shelf: Shelf,
    config: EngineConfig,
    patch: pytest.MonkeyPatch,
) -> SteppedEngine:
    """Let every case arrive and leave at its step; returns the engine at rest, and empty."""
    stepped = SteppedEngine(model, config, patch)
    for step in range(max(case.arrival + (case.cancelled_after or 0) for case in mix) + 1):
        for index, case in enumerate(mix):
            if case.arrival == step:
                stepped.add(request_of(case, str(index), shelf.of(case)))
            if case.cancelled_after is not None and case.arrival + case.cancelled_after == step:
                stepped.cancel(str(index))
        stepped.step()
    stepped.run()
    stepped.check_empty()
    return stepped


def check(
    stepped: SteppedEngine,
    plain: BartForConditionalGeneration,
    name: str,
    case: Case,
    prefixes: Sequence[Prefix],
) -> None:
    """What request `name` gave is what it would have alone."""
    checking = _check_beams if case.way == "beams" else _check_rows
    checking(stepped, plain, name, case, prefixes)


def _check_rows(
    stepped: SteppedEngine,
    plain: BartForConditionalGeneration,
    name: str,
    case: Case,
    prefixes: Sequence[Prefix],
) -> None:
    """Logits of every token of every row, and the tokens where they are not drawn."""
    forced = plain.generation_config.forced_eos_token_id
    for row in range(case.n):
        tokens = stepped.tokens(name, row)
        assert len(tokens) == case.max_tokens or (tokens[-1] == EOS and not case.ignore_eos)
        expected = decoder_logits(plain, prefixes, case.source_ids, tokens)
        logits = torch.stack(stepped.logits[(name, row)])
        assert logits.shape == expected.shape
        assert float((logits - expected).abs().max()) <= TOLERANCE
        best = expected.topk(2).values
        for step, token in enumerate(tokens):
            if step == case.max_tokens - 1:
                assert token == forced
            elif case.way == "greedy" and best[step, 0] - best[step, 1] > TOLERANCE:
                assert token == int(expected[step].argmax())


def _check_beams(
    stepped: SteppedEngine,
    plain: BartForConditionalGeneration,
    name: str,
    case: Case,
    prefixes: Sequence[Prefix],
) -> None:
    def search(**options: object) -> list[Result]:
        output = generate(
            plain,
            prefixes,
            case.source_ids,
            num_beams=case.n + 1,
            num_return_sequences=case.n,
            length_penalty=0.8,
            max_new_tokens=case.max_tokens,
            eos_token_id=None if case.ignore_eos else EOS,
            **options,
        )
        return found_by(output, 1)

    ours = [
        Result(tuple(stepped.tokens(name, row)), stepped.score(name, row)) for row in range(case.n)
    ]
    assert_same_results(ours, search)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    mix=cases(),
    max_step_tokens=st.sampled_from((1, 5, 17, 256)),
    max_rows=st.sampled_from((4, 16)),
    pass_tokens=st.sampled_from((30, 1024)),
    kv_bytes=st.sampled_from((1 << 20, 16 << 20)),
    decode_attention=st.sampled_from(NAMES),
)
def test_every_request_of_a_mix_equals_plain_transformers_alone(
    tiny_bart: FrozenModel,
    tiny_bart_folder: Path,
    shelf: Shelf,
    mix: list[Case],
    max_step_tokens: int,
    max_rows: int,
    pass_tokens: int,
    kv_bytes: int,
    decode_attention: str,
) -> None:
    config = EngineConfig(
        max_step_tokens=max_step_tokens,
        max_rows=max_rows,
        kv_bytes=kv_bytes,
        decode_attention=decode_attention,
    )
    with pytest.MonkeyPatch.context() as patch:
        # prompts of one token a step, encoder passes of one slice a step and of few sources
        patch.setattr(prefill_budget, "_MIN_TOKENS", 1)
        patch.setattr(prefill_budget.PrefillBudget, "encoder_seconds", lambda *_: 0.0)
        patch.setattr(source_queue, "_TOKENS_BESIDE_ROWS", pass_tokens)
        stepped = run_mix(tiny_bart, mix, shelf, config, patch)
    plain = plain_bart(tiny_bart_folder)
    for index, case in enumerate(mix):
        if case.cancelled_after is not None:
            continue
        chosen = shelf.of(case)
        event(f"{case.way}, shared: {sorted(_shared_roles(chosen))}")
        check(stepped, plain, str(index), case, chosen)


WAYS = [
    Case((2, 1), _ids(1, 30), 10, 3, "beams", True, 0, None),
    Case((2, 1), _ids(2, 55), 10, 1, "greedy", True, 0, None),
    Case((2, 3), _ids(3, 9), 10, 2, "sampled", True, 0, None),
    Case((4,), _ids(4, 20), 10, 2, "beams", True, 0, None),
    Case((0,), _ids(5, 80), 10, 2, "greedy", True, 0, None),
    Case((), _ids(6, 3), 10, 1, "beams", True, 0, None),
    Case((2,), _ids(7, 40), 10, 1, "greedy", True, 0, None),
]


@pytest.mark.parametrize("decode_attention", NAMES)
def test_every_way_of_choosing_and_of_sharing_shares_one_step(
    tiny_bart: FrozenModel,
    tiny_bart_folder: Path,
    shelf: Shelf,
    decode_attention: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = EngineConfig(decode_attention=decode_attention)
    stepped = SteppedEngine(tiny_bart, config, monkeypatch)
    for index, case in enumerate(WAYS):
        stepped.add(request_of(case, str(index), shelf.of(case)))
    together: set[str] = set()
    while len(together) < len(WAYS):
        stepped.step()
        together = {row.request.id for row in stepped.rows}
    rows, sources = stepped.engine.debug_state()["shared"]
    assert (sorted(rows), sorted(sources)) == ([1, 1], [1, 2])
    stepped.run()
    stepped.check_empty()
    for index, case in enumerate(WAYS):
        check(stepped, plain_bart(tiny_bart_folder), str(index), case, shelf.of(case))


def rms(values: torch.Tensor) -> float:
    return float(values.square().mean().sqrt())


@pytest.mark.parametrize("decode_attention", NAMES)
def test_bfloat16_is_as_near_to_fp32_as_plain_transformers_in_bfloat16(
    tiny_bart_folder: Path, decode_attention: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root mean square of the logits' error: at most half more than that of transformers, and a
    twentieth of the logits' own spread."""
    model = load_model(str(tiny_bart_folder), device="cpu", dtype="bfloat16")
    mix = [
        replace(case, way="greedy", n=1, max_tokens=16, arrival=index // 2)
        for index, case in enumerate(WAYS)
    ]
    shelf = Shelf(model, torch.bfloat16)
    config = EngineConfig(max_step_tokens=64, decode_attention=decode_attention)
    stepped = run_mix(model, mix, shelf, config, monkeypatch)
    ours, theirs = [], []
    for index, case in enumerate(mix):
        exact, plain = (
            decoder_logits(
                plain_bart(tiny_bart_folder, dtype),
                shelf.of(case),
                case.source_ids,
                stepped.tokens(str(index)),
            )
            for dtype in (torch.float32, torch.bfloat16)
        )
        ours.append(torch.stack(stepped.logits[(str(index), 0)]) - exact)
        theirs.append(plain - exact)
        assert rms(ours[-1]) <= 0.05 * float(exact.std())
    assert rms(torch.cat(ours)) <= 1.5 * rms(torch.cat(theirs))


def _shared_roles(chosen: Sequence[Prefix]) -> set[str]:
    return {
        role
        for role in ("decoder", "cross")
        if sum(prefix.lengths.get(role, 0) for prefix in chosen) >= SHARED_LENGTH
    }
