"""Attention kernels: each equals attention written out, whatever is masked and what is stale."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from app.engine.attention import backends
from app.engine.attention.backends import (
    FUSED,
    NAMES,
    PRODUCTS,
    Attention,
    attend_with_weight,
    choose_attention,
    merge,
)
from app.errors import InvalidRequest
from app.model.native import NoNativeCode

KERNELS = pytest.mark.parametrize("attention", [FUSED, PRODUCTS], ids=lambda one: one.name)
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
"""Largest difference of an output from fp64 attention over the same (rounded) inputs, for standard
normal queries, keys and values."""
DTYPES = pytest.mark.parametrize("dtype", TOLERANCE, ids=["fp32", "bf16"])
CPU = torch.device("cpu")


def randn(*size: int, seed: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*size, generator=generator).to(dtype)


def naive(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, visible: torch.Tensor, scale: float
) -> torch.Tensor:
    """Attention one query at a time in fp64; `visible` is [rows, tokens, columns], bool."""
    query, key, value = query.double(), key.double(), value.double()
    output = torch.empty(query.shape, dtype=torch.float64)
    for row in range(query.shape[0]):
        for head in range(query.shape[1]):
            for token in range(query.shape[2]):
                seen = visible[row, token]
                scores = (key[row, head, seen] * query[row, head, token]).sum(-1) * scale
                weights = scores.exp() / scores.exp().sum()
                output[row, head, token] = (weights[:, None] * value[row, head, seen]).sum(0)
    return output


def additive(visible: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """[rows, 1, tokens, columns]: 0 where a token may look, -inf elsewhere."""
    mask = torch.zeros(visible.shape, dtype=dtype)
    return mask.masked_fill(~visible, -math.inf)[:, None]


def difference(got: torch.Tensor, expected: torch.Tensor) -> float:
    return float((got.double() - expected).abs().max())


@KERNELS
@DTYPES
@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(1, 5),
    heads=st.integers(1, 3),
    tokens=st.sampled_from((1, 1, 2, 5)),
    columns=st.integers(1, 70),
    head_dim=st.sampled_from((8, 16, 64)),
    sharpness=st.sampled_from((0.25, 1.0)),
    seed=st.integers(0, 1000),
)
def test_every_kernel_equals_attention_written_out(
    attention: Attention,
    dtype: torch.dtype,
    rows: int,
    heads: int,
    tokens: int,
    columns: int,
    head_dim: int,
    sharpness: float,
    seed: int,
) -> None:
    scale = sharpness * head_dim**-0.5
    query = randn(rows, heads, tokens, head_dim, seed=seed, dtype=dtype)
    key = randn(rows, heads, columns, head_dim, seed=seed + 1, dtype=dtype)
    value = randn(rows, heads, columns, head_dim, seed=seed + 2, dtype=dtype)
    visible = randn(rows, tokens, columns, seed=seed + 3) > 0
    visible[..., 0] = True  # every token sees something, at least itself
    got = attention.compute(query, key, value, additive(visible, dtype), scale)
    assert got.shape == query.shape
    assert got.dtype == dtype
    assert difference(got, naive(query, key, value, visible, scale)) <= TOLERANCE[dtype]


@KERNELS
@DTYPES
def test_what_is_masked_does_not_matter_however_large_it_is(
    attention: Attention, dtype: torch.dtype
) -> None:
    query, key, value = (randn(3, 2, 1, 16, seed=1, dtype=dtype), *randn(2, 3, 2, 40, 16, seed=2))
    key, value = key.to(dtype), value.to(dtype)
    visible = torch.arange(40) < torch.tensor([1, 17, 39])[:, None]
    mask = additive(visible[:, None], dtype)
    expected = attention.compute(query, key, value, mask, 0.25)
    hidden = ~visible[:, None, :, None]
    loud = torch.finfo(dtype).max / 1e6
    key, value = key.masked_fill(hidden, loud), value.masked_fill(hidden, -loud)
    got = attention.compute(query, key, value, mask, 0.25)
    assert torch.equal(got, expected)


@KERNELS
@DTYPES
def test_a_row_of_nan_or_infinity_leaves_the_other_rows_bits(
    attention: Attention, dtype: torch.dtype
) -> None:
    query, key, value = (randn(4, 2, size, 16, seed=size, dtype=dtype) for size in (1, 30, 30))
    mask = additive(torch.ones(4, 1, 30, dtype=torch.bool), dtype)
    expected = attention.compute(query, key, value, mask, 0.25)
    for bad in (math.nan, math.inf):
        broken_key, broken_value = key.clone(), value.clone()
        broken_key[1], broken_value[1] = bad, bad
        got = attention.compute(query, broken_key, broken_value, mask, 0.25)
        assert bool(got[1].isnan().any())
        others = [0, 2, 3]
        assert torch.equal(got[others], expected[others])


@KERNELS
def test_large_scores_do_not_overflow(attention: Attention) -> None:
    query, key = torch.full((1, 1, 1, 8), 100.0), torch.full((1, 1, 3, 8), 100.0)
    value = torch.arange(24.0).reshape(1, 1, 3, 8)
    mask = torch.zeros(1, 1, 1, 3)
    got = attention.compute(query, key, value, mask, 1.0)
    assert torch.allclose(got[0, 0, 0], value[0, 0].mean(0))


@KERNELS
def test_views_of_a_larger_pool_are_read_where_they_are(attention: Attention) -> None:
    pool = randn(2, 6, 2, 48, 16, seed=5)
    key, value = pool[0, 2:5, :, :20], pool[1, 2:5, :, :20]
    query, mask = randn(3, 2, 1, 16, seed=6), torch.zeros(3, 1, 1, 20)
    compute = attention.compute
    expected = compute(query, key.contiguous(), value.contiguous(), mask, 0.25)
    assert torch.allclose(compute(query, key, value, mask, 0.25), expected, atol=1e-6)


# --- parts under one softmax -------------------------------------------------------------------


@DTYPES
@settings(max_examples=25, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 90), min_size=1, max_size=4),
    tokens=st.sampled_from((1, 3)),
    loudness=st.sampled_from((0.1, 1.0, 3.0)),
    seed=st.integers(0, 1000),
)
def test_attention_to_parts_is_attention_to_the_whole(
    dtype: torch.dtype, sizes: list[int], tokens: int, loudness: float, seed: int
) -> None:
    """Whatever the parts' lengths, and however much more one weighs than the others."""
    rows, heads, head_dim, scale = 2, 3, 16, 0.25
    columns = sum(sizes)
    query = randn(rows, heads, tokens, head_dim, seed=seed, dtype=dtype)
    key, value = randn(2, rows, heads, columns, head_dim, seed=seed + 1).to(dtype)
    key[:, :, : sizes[0]] *= loudness
    visible = randn(rows, tokens, columns, seed=seed + 2) > 0
    first = 0
    for size in sizes:
        visible[..., first] = True  # every token sees something of every part
        first += size
    parts = []
    for keys, values, mask in zip(
        key.split(sizes, 2),
        value.split(sizes, 2),
        additive(visible, dtype).split(sizes, 3),
        strict=True,
    ):
        output, weight = attend_with_weight(query, keys, values, mask, scale)
        assert weight.dtype == torch.float32
        parts.append((output.float(), weight))
    output, weight = parts[0]
    for part, part_weight in parts[1:]:
        output, weight = merge(output, weight, part, part_weight)
    expected = naive(query, key, value, visible, scale)
    # scores are as much larger, and so is what is lost as they are rounded to the dtype
    assert difference(output, expected) <= TOLERANCE[dtype] * max(1.0, loudness)


def test_the_weight_of_parts_is_that_of_the_whole() -> None:
    query, key, value = (randn(2, 3, size, 16, seed=size) for size in (2, 50, 50))
    mask = torch.zeros(2, 1, 1, 50)
    whole_output, whole = attend_with_weight(query, key, value, mask, 0.25)
    scores = torch.matmul(query, key.transpose(2, 3)) * 0.25
    assert difference(whole, torch.logsumexp(scores.double(), dim=-1)) <= 1e-5
    parts = [
        attend_with_weight(query, key[:, :, at], value[:, :, at], mask[..., at], 0.25)
        for at in (slice(0, 7), slice(7, 50))
    ]
    output, weight = merge(*parts[0], *parts[1])
    assert difference(output, whole_output.double()) <= 1e-5
    assert difference(weight, whole.double()) <= 1e-5
    again, _ = merge(*parts[1], *parts[0])
    assert difference(again, output.double()) <= 1e-6


@pytest.mark.parametrize("gap", [0.0, 5.0, 100.0, 1e4])
def test_a_part_that_weighs_far_more_decides(gap: float) -> None:
    one, other = torch.ones(2, 4), torch.zeros(2, 4)
    output, weight = merge(one, torch.full((2,), gap), other, torch.zeros(2))
    share = 1 / (1 + math.exp(-min(gap, 500)))
    assert difference(output, torch.full((2, 4), share, dtype=torch.float64)) <= 1e-6
    assert float(weight[0]) == pytest.approx(gap + math.log1p(math.exp(-min(gap, 500))))


def test_a_row_of_nan_stays_nan_in_the_whole_and_leaves_the_other_rows() -> None:
    one, other, weights = randn(3, 2, 4, seed=1), randn(3, 2, 4, seed=2), torch.zeros(2, 3, 2)
    expected, _ = merge(one, weights[0], other, weights[1])
    other[1], weights[1, 1] = math.nan, math.nan
    got, weight = merge(one, weights[0], other, weights[1])
    assert bool(got[1].isnan().all())
    assert bool(weight[1].isnan().all())
    assert torch.equal(got[[0, 2]], expected[[0, 2]])


# --- the choice --------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_setting_is_obeyed(name: str) -> None:
    assert choose_attention(name, 2, 16, CPU, torch.float32).name == name


@DTYPES
def test_the_automatic_choice_names_a_kernel(dtype: torch.dtype) -> None:
    assert choose_attention("auto", 2, 16, CPU, dtype).name in NAMES


@pytest.mark.parametrize("setting", ["auto", "sdpa", "native"])
def test_another_device_than_a_cpu_gets_its_own_kernel(setting: str) -> None:
    chosen = choose_attention(setting, 2, 16, torch.device("meta"), torch.float32)
    assert chosen.name == "sdpa"


def refuse_code(*_: object) -> None:
    raise NoNativeCode("no C compiler is installed")


def test_without_native_code_another_computation_is_taken_and_the_log_says_why(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(backends, "load_attention_kernel", refuse_code)
    assert choose_attention("auto", 2, 16, CPU, torch.float32).name in ("sdpa", "matmul")
    [line] = caplog.messages
    assert "no C compiler is installed" in line


def test_native_code_that_is_asked_for_and_not_there_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(backends, "load_attention_kernel", refuse_code)
    with pytest.raises(InvalidRequest, match="POLYPREFIX_DECODE_ATTENTION.*no C compiler.*auto"):
        choose_attention("native", 2, 16, CPU, torch.float32)


def test_native_code_is_taken_where_there_is_any() -> None:
    assert choose_attention("auto", 2, 16, CPU, torch.float32).name == "native"


@pytest.mark.parametrize(("products", "chosen"), [(0.8, "sdpa"), (0.4, "matmul")])
def test_without_native_code_products_are_chosen_if_they_win_clearly(
    products: float, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By their time as a share of the fused one's."""

    def refuse(*_: object) -> None:
        raise NoNativeCode("no C compiler is installed")

    times = {"sdpa": 1.0, "matmul": products}
    monkeypatch.setattr(backends, "load_attention_kernel", refuse)
    monkeypatch.setattr(backends.Trial, "seconds", lambda _, one: times[one.name])
    assert choose_attention("auto", 2, 16, CPU, torch.float32).name == chosen


@DTYPES
def test_every_computation_is_timed_as_it_runs(dtype: torch.dtype) -> None:
    trial = backends.Trial(2, 16, dtype)
    for name in ("sdpa", "matmul"):
        assert 0 < trial.seconds(choose_attention(name, 2, 16, CPU, dtype)) < 10
