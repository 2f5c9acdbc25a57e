"""Sampling: transformers' processors and warpers, seeds that mean something, honest logprobs."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from app.engine.decoding import ranking
from app.engine.decoding import sampler as sampling_module
from app.engine.decoding.sampler import sample, score_tokens
from app.engine.sequence import TokenSequence
from tests.engine.rows import make_row

END = 0
SIZE = 40
GRID = 400


def random_logits(seed: int, size: int = SIZE, spread: float = 2.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(size, generator=generator) * spread


def draw(logits: torch.Tensor, row: TokenSequence) -> int:
    [item] = sample(logits[None], [row], [END])
    assert item is not None
    return item.token_id


def probabilities(logits: torch.Tensor, monkeypatch: pytest.MonkeyPatch, **options: object):
    """The exact distribution of a draw, read off by noise on a fine grid: [vocabulary]."""
    noises = [(step + 0.5) / GRID for step in range(GRID)]
    monkeypatch.setattr(sampling_module, "uniform", lambda *_: noises.pop())
    items = sample(logits.expand(GRID, -1), [make_row(**options)] * GRID, [END])
    drawn = torch.tensor([item.token_id for item in items if item])
    return torch.bincount(drawn, minlength=len(logits)).double() / len(items)


def of_transformers(logits: torch.Tensor, seen: list[int], **options: float) -> torch.Tensor:
    """The distribution that transformers' processors leave, in their order."""
    processors = LogitsProcessorList()
    if "repetition_penalty" in options:
        processors.append(RepetitionPenaltyLogitsProcessor(options["repetition_penalty"]))
    processors.append(TemperatureLogitsWarper(options["temperature"]))
    if options.get("top_k"):
        processors.append(TopKLogitsWarper(int(options["top_k"])))
    if "top_p" in options:
        processors.append(TopPLogitsWarper(options["top_p"]))
    if "min_p" in options:
        processors.append(MinPLogitsWarper(options["min_p"]))
    ids = torch.tensor([seen])
    return processors(ids, logits[None].clone())[0].softmax(-1).double()


OPTIONS = [
    {"temperature": 1.0},
    {"temperature": 0.3},
    {"temperature": 2.5},
    {"temperature": 1.0, "top_k": 1},
    {"temperature": 1.3, "top_k": 7},
    {"temperature": 1.0, "top_k": 1000},
    {"temperature": 1.0, "top_p": 0.9},
    {"temperature": 0.7, "top_p": 0.3},
    {"temperature": 1.0, "top_p": 1e-6},
    {"temperature": 1.0, "min_p": 0.1},
    {"temperature": 1.5, "top_p": 0.8, "min_p": 0.2},
    {"temperature": 1.2, "top_k": 12, "top_p": 0.8},
    {"temperature": 1.2, "top_k": 12, "top_p": 0.9, "min_p": 0.05},
    {"temperature": 1.0, "repetition_penalty": 1.7},
    {"temperature": 0.9, "repetition_penalty": 0.6, "top_k": 5},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_every_filter_leaves_the_distribution_that_transformers_leaves(
    options: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    logits = random_logits(len(str(options)))
    prompt, generated = [3, 3, 8], [11, 3]
    expected = of_transformers(logits, prompt + generated, **options)
    got = probabilities(logits, monkeypatch, prompt=prompt, generated=generated, **options)
    # the grid finds every token that is likelier than that, and no other
    assert set(got.nonzero()[:, 0].tolist()) <= set(expected.nonzero()[:, 0].tolist())
    assert float((got - expected).abs().max()) <= 1.5 / GRID


@pytest.mark.parametrize("top_p", [0.5, 0.9, 0.999])
def test_top_p_is_the_same_however_the_tokens_are_told_apart(
    top_p: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits = random_logits(5, spread=0.7)
    expected = of_transformers(logits, [1], temperature=1.0, top_p=top_p)
    for bins in (1, 7, SIZE, 10_000):
        monkeypatch.setattr(ranking, "_BINS", bins)
        got = probabilities(logits, monkeypatch, temperature=1.0, top_p=top_p)
        assert float((got - expected).abs().max()) <= 1.5 / GRID


def test_greedy_takes_the_most_probable_and_a_cold_temperature_nearly_does() -> None:
    logits = random_logits(2)
    best = int(logits.argmax())
    assert draw(logits, make_row()) == best
    for temperature in (1e-3, 1e-9, 1e-38, 1e-320):
        assert draw(logits, make_row(temperature=temperature)) == best
        assert draw(logits, make_row(temperature=temperature, top_p=0.9)) == best


@given(
    size=st.sampled_from((1, 127, 128, 129, 255, 256, 300, 400)),
    seed=st.integers(0, 1000),
    coarse=st.booleans(),
)
def test_greedy_finds_the_first_most_probable_token_of_any_vocabulary(
    size: int, seed: int, coarse: bool
) -> None:
    logits = torch.stack([random_logits(seed + row, size) for row in range(3)])
    logits = logits.round() if coarse else logits  # rounded, there are ties
    items = sample(logits, [make_row() for _ in range(3)], [END])
    assert [item.token_id for item in items if item] == logits.argmax(-1).tolist()


@given(
    size=st.sampled_from((1, 127, 128, 129, 256, 300)),
    place=st.floats(0, 1, exclude_max=True),
    bad=st.sampled_from((math.nan, math.inf)),
)
def test_a_single_nan_logit_is_noticed_at_every_place(size: int, place: float, bad: float) -> None:
    logits = torch.stack([random_logits(row, size) for row in range(3)])
    logits[1, int(place * size)] = bad
    items = sample(logits, [make_row() for _ in range(3)], [END])
    assert [item is None for item in items] == [False, True, False]


def test_draws_follow_the_probabilities() -> None:
    logits = random_logits(7, size=12, spread=1.0)
    expected = logits.double().softmax(-1).numpy() * 6000
    rows = [make_row(seed=seed, temperature=1.0) for seed in range(6000)]
    items = sample(logits.expand(len(rows), -1), rows, [END])
    counts = Counter(item.token_id for item in items if item)
    observed = np.array([counts[token] for token in range(12)])
    chi_square = float(((observed - expected) ** 2 / expected).sum())
    assert chi_square < 31.3  # 99.9 % of draws, 11 degrees of freedom


def test_a_draw_depends_on_seed_row_and_position_and_not_on_the_batch() -> None:
    rows = [
        make_row(
            prompt=[1, 2], generated=[5] * (step % 3), index=step % 4, seed=step, temperature=1
        )
        for step in range(24)
    ]
    logits = torch.stack([random_logits(step) for step in range(24)])
    together = [item.token_id for item in sample(logits, rows, [END]) if item]
    alone = [draw(vector, row) for vector, row in zip(logits, rows, strict=True)]
    order = list(reversed(range(24)))
    backwards = sample(logits[order], [rows[index] for index in order], [END])
    assert together == alone
    assert together == [item.token_id for item in backwards if item][::-1]


def test_rows_of_one_request_draw_differently() -> None:
    logits = torch.zeros(1000)
    drawn = {draw(logits, make_row(index=index, temperature=1.0)) for index in range(20)}
    assert len(drawn) > 15


@settings(max_examples=200)
@given(
    size=st.integers(1, 30),
    seed=st.integers(0, 10**6),
    temperature=st.floats(0, 5),
    top_k=st.integers(0, 40),
    top_p=st.floats(0.0, 1, exclude_min=True),
    min_p=st.floats(0, 1),
    repetition_penalty=st.floats(0.1, 5),
    presence_penalty=st.floats(-2, 2),
    banned=st.integers(0, 29),
)
def test_any_parameters_draw_a_token_that_is_not_banned(
    size: int, seed: int, banned: int, **options: float
) -> None:
    logits = random_logits(seed, size=size)
    if banned < size and size > 1:
        logits[banned] = float("-inf")
    seen = [token for token in (0, 1, 1) if token < size]
    token = draw(logits, make_row(prompt=seen, generated=seen, seed=seed, **options))
    assert 0 <= token < size
    assert math.isfinite(float(logits[token]))


def test_logit_bias_forbids_and_forces() -> None:
    logits = random_logits(3)
    best = int(logits.argmax())
    assert draw(logits, make_row(logit_bias={best: -100.0})) == int(
        logits.index_fill(0, torch.tensor([best]), -1e9).argmax()
    )
    for temperature in (0.0, 1.0):
        row = make_row(logit_bias={17: 100.0}, temperature=temperature)
        assert draw(logits, row) == 17


def test_presence_and_frequency_penalties_count_generated_tokens_only() -> None:
    logits = torch.zeros(SIZE)
    logits[5], logits[6], logits[7] = 3.0, 2.9, 2.0
    assert draw(logits, make_row(prompt=[5, 5, 5], presence_penalty=1.0)) == 5
    assert draw(logits, make_row(generated=[5], presence_penalty=0.05)) == 5
    assert draw(logits, make_row(generated=[5], presence_penalty=0.2)) == 6
    assert draw(logits, make_row(generated=[5, 5, 5], presence_penalty=0.05)) == 5
    assert draw(logits, make_row(generated=[5, 5, 5], frequency_penalty=0.05)) == 6
    many = make_row(generated=[5, 5, 6], frequency_penalty=0.5, presence_penalty=0.3)
    assert draw(logits, many) == 6  # 3.0 - 1.3, 2.9 - 0.8, 2.0: one occurrence costs less
    assert draw(logits, make_row(generated=[7], frequency_penalty=-2.0)) == 7


def test_penalties_are_those_of_openai(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = random_logits(9)
    generated = [4, 4, 9, 4]
    adjusted = logits.clone()
    adjusted[4] -= 0.4 + 3 * 0.3
    adjusted[9] -= 0.4 + 0.3
    got = probabilities(
        logits,
        monkeypatch,
        generated=generated,
        temperature=1.0,
        presence_penalty=0.4,
        frequency_penalty=0.3,
    )
    assert float((got - adjusted.double().softmax(-1)).abs().max()) <= 1.5 / GRID


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_end_token_is_barred_until_min_tokens(temperature: float) -> None:
    logits = torch.zeros(SIZE)
    logits[END] = 50.0
    for generated in ([], [5], [5, 5]):
        row = make_row(generated=generated, min_tokens=2, temperature=temperature)
        assert (draw(logits, row) == END) == (len(generated) >= 2)


def test_barring_one_row_from_its_end_does_not_touch_the_others_logits() -> None:
    logits = torch.zeros(2, SIZE)
    logits[:, END] = 50.0
    kept = logits.clone()
    first, second = sample(logits, [make_row(min_tokens=5), make_row()], [END])
    assert first is not None
    assert second is not None
    assert (first.token_id != END, second.token_id) == (True, END)
    assert torch.equal(logits, kept)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_logits_that_are_not_numbers_are_reported_and_harm_no_other_row(
    bad: float, temperature: float
) -> None:
    logits = torch.stack([random_logits(seed) for seed in range(3)])
    rows = [make_row(seed=seed, temperature=temperature) for seed in range(3)]
    expected = [item.token_id for item in sample(logits, rows, [END]) if item]
    logits[1, 4] = bad
    drawn = sample(logits, rows, [END])
    assert drawn[1] is None
    assert [item.token_id for item in drawn if item] == [expected[0], expected[2]]


def test_logprobs_are_those_of_the_unmodified_model_best_alternatives_first() -> None:
    logits = random_logits(4)
    expected = torch.log_softmax(logits, -1)
    row = make_row(
        temperature=0.5, top_k=3, logprobs=4, logit_bias={2: 100.0}, repetition_penalty=2.0
    )
    [item] = sample(logits[None], [row], [END])
    assert item is not None
    assert item.token_id == 2
    assert item.logprob == pytest.approx(float(expected[2]), abs=1e-6)
    values, ids = expected.topk(4)
    assert [token for token, _ in item.top] == ids.tolist()
    assert [value for _, value in item.top] == pytest.approx(values.tolist())


def test_logprobs_are_given_only_to_rows_that_ask() -> None:
    logits = torch.stack([random_logits(1), random_logits(2), random_logits(3)])
    rows = [make_row(), make_row(logprobs=0), make_row(logprobs=2)]
    none, chosen, two = sample(logits, rows, [END])
    assert none is not None
    assert chosen is not None
    assert two is not None
    assert (none.logprob, none.top) == (None, ())
    assert chosen.logprob is not None
    assert (chosen.top, len(two.top)) == ((), 2)


def test_given_tokens_are_scored_by_log_softmax() -> None:
    logits = torch.stack([random_logits(1), random_logits(2)])
    scored = score_tokens(logits, make_row(), [7, 9], 2)
    expected = torch.log_softmax(logits, -1)
    assert [item.logprob for item in scored] == pytest.approx(
        [float(expected[0, 7]), float(expected[1, 9])]
    )
    assert [len(item.top) for item in scored] == [2, 2]
