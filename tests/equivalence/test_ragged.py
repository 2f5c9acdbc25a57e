"""Ragged = alone = plain Hugging Face: the fast path proved against the naive one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.engine.attention.backends import NAMES
from app.engine.config import EngineConfig
from app.engine.fairness import prefill_budget
from app.engine.request import RequestFinished
from app.model.frozen import FrozenModel
from app.model.load import load_model
from app.prefix.prefix import Prefix
from tests.engine.harness import SteppedEngine, make_request
from tests.equivalence.reference import greedy_logits, plain_model
from tests.tiny import VOCABULARY, random_prefix

TOLERANCE = 1e-4
FAMILIES = ("gpt2", "llama", "qwen2")


@dataclass(frozen=True)
class Case:
    """One request of a mix: what it asks, when it comes, after how many steps it is cancelled."""

    prefix_lengths: tuple[int, ...]
    shifts: bool
    prompt_ids: tuple[int, ...]
    max_tokens: int
    n: int
    arrival: int
    cancelled_after: int | None


def cases() -> st.SearchStrategy[list[Case]]:
    case = st.builds(
        Case,
        prefix_lengths=st.lists(st.integers(1, 25), max_size=2).map(tuple),
        shifts=st.booleans(),
        prompt_ids=st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=40).map(tuple),
        max_tokens=st.integers(1, 12),
        n=st.sampled_from((1, 1, 1, 2, 3)),
        arrival=st.integers(0, 8),
        cancelled_after=st.none() | st.integers(0, 6),
    )
    return st.lists(case, min_size=1, max_size=8)


def prefixes_of(model: FrozenModel, case: Case, seed: int) -> tuple[Prefix, ...]:
    return tuple(
        random_prefix(
            model, length, seed=seed * 10 + part, position_offset=length if case.shifts else 0
        )
        for part, length in enumerate(case.prefix_lengths)
    )


def run_mix(
    model: FrozenModel, mix: list[Case], config: EngineConfig, patch: pytest.MonkeyPatch
) -> SteppedEngine:
    """Let every case arrive and leave at its step; returns the engine at rest."""
    stepped = SteppedEngine(model, config, patch)
    for step in range(max(case.arrival + (case.cancelled_after or 0) for case in mix) + 1):
        for index, case in enumerate(mix):
            if case.arrival == step:
                stepped.add(
                    make_request(
                        str(index),
                        case.prompt_ids,
                        case.max_tokens,
                        prefixes_of(model, case, index),
                        case.n,
                    )
                )
            if case.cancelled_after is not None and case.arrival + case.cancelled_after == step:
                stepped.cancel(str(index))
        stepped.step()
    stepped.run()
    return stepped


def check_row(
    stepped: SteppedEngine, reference: torch.Tensor, name: str, index: int, tolerance: float
) -> None:
    logits = torch.stack(stepped.logits[(name, index)])
    tokens = stepped.tokens(name, index)
    assert len(logits) == len(reference)
    assert float((logits - reference).abs().max()) <= tolerance
    top = reference.topk(2).values
    for step, token in enumerate(tokens):
        if top[step, 0] - top[step, 1] > tolerance:
            assert token == int(reference[step].argmax())


@pytest.mark.parametrize("family", FAMILIES)
@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    mix=cases(),
    max_step_tokens=st.sampled_from((1, 5, 17, 256)),
    max_rows=st.sampled_from((3, 16)),
)
def test_every_row_of_a_mix_equals_plain_transformers_alone(
    tiny_models: dict[str, FrozenModel],
    model_folders: dict[str, Path],
    family: str,
    mix: list[Case],
    max_step_tokens: int,
    max_rows: int,
) -> None:
    model = tiny_models[family]
    config = EngineConfig(max_step_tokens=max_step_tokens, max_rows=max_rows, kv_bytes=64 << 20)
    with pytest.MonkeyPatch.context() as patch:
        # chunks as short as one token, which no step of a real server has to take
        patch.setattr(prefill_budget, "_MIN_TOKENS", 1)
        stepped = run_mix(model, mix, config, patch)
    for index, case in enumerate(mix):
        if case.cancelled_after is not None:
            continue
        assert stepped.terminal(str(index)) is not None
        for row in range(case.n):
            tokens = stepped.tokens(str(index), row)
            assert len(tokens) == case.max_tokens
            reference = greedy_logits(
                plain_model(model_folders[family]),
                prefixes_of(model, case, index),
                case.prompt_ids,
                tokens,
            )
            check_row(stepped, reference, str(index), row, TOLERANCE)


def rms(values: torch.Tensor) -> float:
    return float(values.square().mean().sqrt())


@pytest.mark.parametrize("decode_attention", NAMES)
@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16_is_as_near_to_fp32_as_plain_transformers_in_bfloat16(
    model_folders: dict[str, Path],
    family: str,
    decode_attention: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Root mean square of the logits' error: at most half more than that of transformers, and a
    twentieth of the logits' own spread."""
    folder = model_folders[family]
    model = load_model(str(folder), device="cpu", dtype="bfloat16")
    config = EngineConfig(max_step_tokens=16, decode_attention=decode_attention)
    mix = [
        Case(lengths, shifts, tuple(range(first, first + size)), 16, 1, index // 2, None)
        for index, (lengths, shifts, first, size) in enumerate(
            (
                ((3,), True, 5, 20),
                ((), True, 9, 3),
                ((20,), True, 30, 31),
                ((7, 9), False, 90, 40),
                ((25,), False, 200, 12),
                ((1,), True, 250, 25),
            )
        )
    ]
    stepped = run_mix(model, mix, config, monkeypatch)
    ours, theirs = [], []
    for index, case in enumerate(mix):
        prefixes = tuple(
            prefix.to(torch.device("cpu"), torch.bfloat16)
            for prefix in prefixes_of(model, case, index)
        )
        exact, plain = (
            greedy_logits(
                plain_model(folder, dtype), prefixes, case.prompt_ids, stepped.tokens(str(index))
            )
            for dtype in (torch.float32, torch.bfloat16)
        )
        ours.append(torch.stack(stepped.logits[(str(index), 0)]) - exact)
        theirs.append(plain - exact)
        assert rms(ours[-1]) <= 0.05 * float(exact.std())
    assert rms(torch.cat(ours)) <= 1.5 * rms(torch.cat(theirs))


def test_rows_that_move_before_any_of_their_tokens_is_computed_lose_nothing(
    tiny_gpt2: FrozenModel, tiny_gpt2_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first rows end while the others still wait for their prompts' turn."""
    stepped = SteppedEngine(tiny_gpt2, EngineConfig(max_step_tokens=16), monkeypatch)
    prompts = [tuple(range(20 + index, 36 + index)) for index in range(12)]
    for index, prompt in enumerate(prompts):
        stepped.add(make_request(str(index), prompt, 1 if index < 6 else 9))
    stepped.run()
    for index, prompt in enumerate(prompts):
        name = str(index)
        assert isinstance(stepped.terminal(name), RequestFinished), name
        reference = greedy_logits(plain_model(tiny_gpt2_folder), [], prompt, stepped.tokens(name))
        check_row(stepped, reference, name, 0, TOLERANCE)


def test_a_row_alone_and_in_a_batch_differs_by_rounding_only(
    tiny_gpt2: FrozenModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = Case((7,), True, tuple(range(10, 30)), 10, 1, 0, None)
    alone = run_mix(tiny_gpt2, [case], EngineConfig(), monkeypatch)
    others = [
        Case((length,), True, tuple(range(40, 40 + length)), 12, 1, 0, None)
        for length in (3, 9, 17, 20)
    ]
    together = run_mix(tiny_gpt2, [case, *others], EngineConfig(), monkeypatch)
    assert alone.tokens("0") == together.tokens("0")
    difference = torch.stack(alone.logits[("0", 0)]) - torch.stack(together.logits[("0", 0)])
    assert float(difference.abs().max()) <= 1e-5
