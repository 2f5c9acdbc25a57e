"""Batched draws: those of a row that is sorted alone, whatever stands beside it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from app.engine.decoding.sampler import draw_of, sample
from app.engine.sequence import TokenSequence
from tests.engine.rows import make_row
from tests.engine.rowwise import sample_row

EOS = [0]

SIZES = (1, 2, 127, 128, 129, 300, 3000)


def shaped_logits(size: int, shape: str, seed: int) -> torch.Tensor:
    """Logits [size] of a kind of distribution."""
    normal = torch.randn(size, generator=torch.Generator().manual_seed(seed))
    match shape:
        case "flat":
            return normal * 0.02
        case "usual":
            return normal * 3
        case "peaked":
            return normal * 3 + torch.nn.functional.one_hot(torch.tensor(seed % size), size) * 20.0
        case "ties":
            return (normal * 3).round()
        case "equal":
            return torch.full((size,), float(seed % 5))
        case "half banned":
            return (normal * 2).masked_fill(torch.arange(size) % 2 == 1, -math.inf)
        case "low":
            return normal * 3 - 1000
        case "outlier":
            return normal.index_fill(0, torch.tensor([seed % size]), -1e9)
    raise ValueError(shape)


SHAPES = ("flat", "usual", "peaked", "ties", "equal", "half banned", "low", "outlier")

SAMPLINGS = st.fixed_dictionaries(
    {
        "temperature": st.sampled_from((0.0, 1e-9, 0.05, 0.7, 1.0, 1.3, 2.0)),
        "top_k": st.sampled_from((0, 0, 1, 5, 50, 1024, 1025, 3000, 100_000)),
        "top_p": st.sampled_from((1.0, 1.0, 1e-6, 0.3, 0.9, 0.95, 0.99, 0.999999)),
        "min_p": st.sampled_from((0.0, 0.0, 0.01, 0.3, 1.0)),
        "seed": st.integers(0, 2**63),
        "index": st.integers(0, 63),
    }
)

PENALTIES = st.fixed_dictionaries(
    {
        "repetition_penalty": st.sampled_from((1.0, 0.5, 1.3)),
        "presence_penalty": st.sampled_from((0.0, 0.7, -1.0)),
        "frequency_penalty": st.sampled_from((0.0, 0.3, -0.4)),
        "no_repeat_ngram_size": st.sampled_from((0, 1, 2, 3)),
        "min_tokens": st.sampled_from((0, 20)),
        "logit_bias": st.sampled_from(({}, {0: 3.0, 1: -100.0}, {1: 100.0})),
        "generated": st.lists(st.integers(0, 1), max_size=9),
    }
)


@settings(max_examples=150, deadline=None)
@given(
    size=st.sampled_from(SIZES),
    shape=st.sampled_from(SHAPES),
    seed=st.integers(0, 1000),
    options=st.lists(SAMPLINGS, min_size=1, max_size=5),
)
def test_rows_draw_together_what_each_draws_from_a_sorted_row(
    size: int, shape: str, seed: int, options: list[dict[str, object]]
) -> None:
    logits = torch.stack([shaped_logits(size, shape, seed + at) for at in range(len(options))])
    rows = [make_row(**one) for one in options]
    for row, vector, item in zip(rows, logits, sample(logits, rows, EOS), strict=True):
        assert item is not None
        assert item.token_id in sample_row(vector, row, EOS)


@settings(max_examples=120, deadline=None)
@given(
    size=st.sampled_from(SIZES[1:]),
    shape=st.sampled_from(SHAPES),
    seed=st.integers(0, 1000),
    options=st.lists(st.tuples(SAMPLINGS, PENALTIES), min_size=1, max_size=5),
)
def test_bans_biases_and_penalties_of_a_batch_are_those_of_each_row(
    size: int, shape: str, seed: int, options: list[tuple[dict[str, object], dict[str, object]]]
) -> None:
    logits = torch.stack([shaped_logits(size, shape, seed + at) for at in range(len(options))])
    rows = [make_row((1, 0, 1), **one, **penalties) for one, penalties in options]
    expected = [sample_row(vector, row, EOS) for row, vector in zip(rows, logits, strict=True)]
    for _ in range(2):  # the second time from what was kept of the first
        items = sample(logits, rows, EOS)
        assert all(item and item.token_id in may for item, may in zip(items, expected, strict=True))


@pytest.mark.parametrize("options", [{}, {"top_p": 0.99}, {"top_k": 4000}, {"min_p": 0.1}], ids=str)
@pytest.mark.parametrize("temperature", [0.7, 2.0])
def test_many_draws_from_a_large_vocabulary_are_those_of_a_sort(
    options: dict[str, float], temperature: float
) -> None:
    vocabulary = 50_257
    logits = torch.stack([shaped_logits(vocabulary, "usual", at) * 0.2 for at in range(16)])
    rows = [make_row(seed=seed, temperature=temperature, **options) for seed in range(16)]
    drawn = sample(logits, rows, EOS)
    assert len({item.token_id for item in drawn if item}) > 10
    for row, vector, item in zip(rows, logits, drawn, strict=True):
        assert item is not None
        assert item.token_id in sample_row(vector, row, EOS)


def mixed_rows(count: int) -> list[TokenSequence]:
    """Rows of every way of sampling."""
    kinds = (
        {},
        {"temperature": 1.0},
        {"temperature": 2.0, "top_p": 0.99},
        {"temperature": 1.0, "top_k": 40, "min_p": 0.02},
        {"temperature": 1.2, "min_p": 0.05, "logprobs": 3},
        {"temperature": 0.8, "top_p": 0.9, "repetition_penalty": 1.2, "min_tokens": 9},
        {"logit_bias": {3: 4.0}, "logprobs": 5},
    )
    return [make_row(seed=at, **kinds[at % len(kinds)]) for at in range(count)]


@pytest.mark.parametrize("vocabulary", [100, 50_257])
def test_a_row_is_the_same_to_the_last_bit_alone_and_in_any_batch(vocabulary: int) -> None:
    count = 64
    rows = mixed_rows(count)
    logits = torch.stack([shaped_logits(vocabulary, "usual", at) for at in range(count)])
    together = sample(logits, rows, EOS)
    for chosen in ([5], [0, 6], [5, 2, 3], list(range(0, count, 3)), list(range(count))[::-1]):
        some = sample(logits[chosen], [rows[at] for at in chosen], EOS)
        assert some == [together[at] for at in chosen]


@pytest.mark.parametrize("options", [{}, {"top_p": 0.95}, {"min_p": 0.02}, {"top_k": 40}], ids=str)
def test_probabilities_and_masses_do_not_depend_on_the_batch(options: dict[str, float]) -> None:
    """Draws at one bit's distance from every boundary: the finest test that there is."""
    logits = torch.stack([shaped_logits(3001, "usual", at) for at in range(64)])
    sampling = [make_row(temperature=1.0, **options).request.sampling] * 64
    for noise in (0.0, 0.3, 0.999, math.nextafter(1.0, 0.0)):
        noises = torch.full((64,), noise, dtype=torch.float64)
        together = draw_of(sampling[0])(logits, sampling, noises)
        for at in (0, 7, 63):
            part = slice(at, at + 1)
            alone = draw_of(sampling[0])(logits[part], sampling[part], noises[part])
            assert torch.equal(alone, together[part])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("whole", [False, True])
def test_rows_without_finite_logits_change_no_draw_beside_them(bad: float, whole: bool) -> None:
    rows = mixed_rows(21)
    logits = torch.stack([shaped_logits(1000, "usual", at) for at in range(21)])
    expected = sample(logits, rows, EOS)
    broken = range(0, 21, 2)
    for at in broken:
        logits[at, slice(None) if whole else slice(3, 5)] = bad
    drawn = sample(logits, rows, EOS)
    assert [drawn[at] for at in range(1, 21, 2)] == [expected[at] for at in range(1, 21, 2)]
    is_fault = whole or bad != -math.inf
    assert all((drawn[at] is None) == is_fault for at in broken)


def test_no_row_is_sorted_however_flat_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    widest = 0
    sort = torch.Tensor.sort

    def watched(tensor: torch.Tensor, **options: object) -> object:
        nonlocal widest
        widest = max(widest, tensor.shape[-1])
        return sort(tensor, **options)

    monkeypatch.setattr(torch.Tensor, "sort", watched)
    vocabulary = 50_257
    for spread in (0.05, 0.5, 5.0):
        logits = torch.stack([shaped_logits(vocabulary, "usual", at) for at in range(4)]) * spread
        for options in ({"top_p": 0.9}, {"top_p": 0.99}, {"top_k": 30_000}):
            for temperature in (0.01, 1.0, 2.0):
                rows = [make_row(seed=at, temperature=temperature, **options) for at in range(4)]
                assert None not in sample(logits, rows, EOS)
    assert 0 < widest < 1000


def test_what_biases_cost_does_not_grow_with_keys_as_a_loop_over_them_does() -> None:
    """A loop over keys took 4 s here: 64 rows, each with 1,024 biases."""
    logits = torch.stack([shaped_logits(50_257, "usual", at) for at in range(64)])
    biases = {token * 7: 0.5 for token in range(1024)}
    greedy = [make_row() for _ in range(64)]
    biased = [make_row(logit_bias=biases, no_repeat_ngram_size=2, min_tokens=9) for _ in range(64)]
    copy = min(seconds_of(logits.clone) for _ in range(3))
    base = min(seconds_of(lambda: sample(logits, greedy, EOS)) for _ in range(3))
    cost = min(seconds_of(lambda: sample(logits, biased, EOS)) for _ in range(3)) - base
    assert cost < 40 * (copy + base)


def seconds_of(work: Callable[[], object]) -> float:
    """Processor time."""
    started = time.process_time()
    work()
    return time.process_time() - started
