"""Decoding in native code: it equals the plain computation, whatever stands beside a row."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention

from app.engine.attention.native_backend import NativeAttention, Part, Run, load_attention_kernel
from app.model.native import NoNativeCode

TOLERANCE = {torch.float32: 3e-6, torch.bfloat16: 1e-2}
"""Largest difference from fp64 attention on the same (rounded) inputs, standard normal."""
DTYPES = pytest.mark.parametrize("dtype", TOLERANCE, ids=["fp32", "bf16"])
LAYERS, CAPACITY, SCALE = 2, 300, 0.15

kernel_of = cache(load_attention_kernel)
"""Each kernel is compiled and checked once."""


class Memory:
    """A pool of slots, keys and values side by side, and one step's tokens."""

    def __init__(
        self, dtype: torch.dtype, slots: int, tokens: int, kv_heads: int, shared: int, head_dim: int
    ) -> None:
        self._generator = torch.Generator().manual_seed(slots)
        self.dtype, self.kv_heads, self.head_dim = dtype, kv_heads, head_dim
        self.pool = self.randn(2, LAYERS, slots, kv_heads, CAPACITY, head_dim)
        # one projection of queries, keys and values, as GPT-2 makes them
        heads = kv_heads * shared
        together = self.randn(tokens, heads + 2 * kv_heads, head_dim)
        self.queries, self.keys, self.values = together.split([heads, kv_heads, kv_heads], dim=1)

    def randn(self, *size: int) -> torch.Tensor:
        return torch.randn(*size, generator=self._generator).to(self.dtype)

    def part(self, slot: int, columns: int) -> Part:
        keys, values = self.pool[:, :, slot]
        return Part(keys.data_ptr(), values.data_ptr(), *keys.stride()[:2], columns)

    def attend(
        self,
        rows: Sequence[Sequence[tuple[int, int]]],
        counts: Sequence[int] | None = None,
        *,
        layer: int = 1,
        write: bool = True,
    ) -> torch.Tensor:
        """Native attention; a row's first token sees (slot, columns) pairs, the last is its own."""
        runs = [
            Run([self.part(*pair) for pair in pairs], count)
            for pairs, count in zip(rows, counts or [1] * len(rows), strict=True)
        ]
        kernel = kernel_of(self.head_dim, self.dtype)
        step = NativeAttention(kernel, self.kv_heads, runs, grows=write)
        new = (self.keys, self.values) if write else None
        return step.attend(layer, self.queries, new, SCALE)

    def plain(self, tokens: Sequence[Sequence[tuple[int, int]]], layer: int = 1) -> torch.Tensor:
        """The same in fp64, once all is written."""
        rows = []
        for query, pairs in zip(self.queries, tokens, strict=True):
            keys, values = (
                torch.cat([half[layer, slot, :, :columns] for slot, columns in pairs], 1).double()
                for half in self.pool
            )
            rows.append(
                scaled_dot_product_attention(
                    query[:, None].double(), keys, values, scale=SCALE, enable_gqa=True
                )[:, 0]
            )
        return torch.stack(rows)


@DTYPES
@settings(max_examples=60, deadline=None)
@given(
    own=st.lists(
        st.tuples(st.integers(1, CAPACITY - 40), st.sampled_from((1, 1, 1, 2, 7, 8, 9, 40))),
        min_size=1,
        max_size=6,
    ),
    before=st.lists(st.integers(0, CAPACITY), max_size=2),
    kv_heads=st.integers(1, 4),
    shared=st.sampled_from((1, 2, 5, 20, 70)),
    head_dim=st.sampled_from((8, 16, 64, 80)),
)
def test_it_equals_plain_attention_over_what_is_shared_and_own_and_new(
    dtype: torch.dtype,
    own: list[tuple[int, int]],
    before: list[int],
    kv_heads: int,
    shared: int,
    head_dim: int,
) -> None:
    rows, counts = len(own), [count for _, count in own]
    memory = Memory(dtype, rows + len(before), sum(counts), kv_heads, shared, head_dim)
    segments = [(rows + index, length) for index, length in enumerate(before)]
    tokens = [
        [*segments, (row, columns + index)]
        for row, (columns, count) in enumerate(own)
        for index in range(count)
    ]
    expected_pool = memory.pool.clone()
    got = memory.attend(
        [[*segments, (row, columns)] for row, (columns, _) in enumerate(own)], counts
    )
    difference = (got.double() - memory.plain(tokens)).abs().max()
    # the outputs are about as large as one value, and bfloat16 has 8 bits of it
    assert float(difference) <= TOLERANCE[dtype] * max(1.0, float(got.abs().max()))
    for token, [*_, (row, columns)] in enumerate(tokens):
        expected_pool[0, 1, row, :, columns - 1] = memory.keys[token]
        expected_pool[1, 1, row, :, columns - 1] = memory.values[token]
    assert torch.equal(memory.pool, expected_pool)


@DTYPES
def test_tokens_of_a_row_that_go_across_all_see_the_same_columns(dtype: torch.dtype) -> None:
    memory = Memory(dtype, 2, 11, 2, 2, 16)
    got = memory.attend([[(1, 9), (0, 33)], [(1, 150)]], [10, 1], write=False)
    expected = memory.plain([[(1, 9), (0, 33)]] * 10 + [[(1, 150)]])
    assert torch.allclose(got.double(), expected, atol=TOLERANCE[dtype] * 2)


@DTYPES
def test_a_prompt_has_the_same_bits_in_one_chunk_and_in_many(dtype: torch.dtype) -> None:
    together = Memory(dtype, 1, 40, 2, 2, 16)
    in_chunks = Memory(dtype, 1, 40, 2, 2, 16)
    tokens = in_chunks.queries, in_chunks.keys, in_chunks.values
    expected, done = together.attend([[(0, 21)]], [40]), 0
    for count in (1, 15, 8, 16):
        in_chunks.queries, in_chunks.keys, in_chunks.values = (
            tensor[done : done + count] for tensor in tokens
        )
        got = in_chunks.attend([[(0, 21 + done)]], [count])
        assert torch.equal(got, expected[done : done + count])
        done += count


@DTYPES
def test_without_new_keys_nothing_is_written(dtype: torch.dtype) -> None:
    memory = Memory(dtype, 3, 4, 2, 2, 16)
    before = memory.pool.clone()
    tokens = [[(0, 40)], [(2, 7)], [(0, 40)], [(1, 300)]]
    got = memory.attend(tokens, write=False)
    assert torch.equal(memory.pool, before)
    assert torch.allclose(got.double(), memory.plain(tokens), atol=TOLERANCE[dtype] * 2)


@DTYPES
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_row_that_is_not_finite_leaves_the_other_rows_bits(
    dtype: torch.dtype, bad: float
) -> None:
    memory = Memory(dtype, 4, 4, 2, 1, 16)
    tokens = [[(row, 20 + row)] for row in range(4)]
    expected = memory.attend(tokens)
    memory.pool[:, :, 1, :, 3] = bad
    got = memory.attend(tokens)
    assert bool(got[1].isnan().any())
    others = [0, 2, 3]
    assert torch.equal(got[others], expected[others])


@DTYPES
def test_columns_behind_those_in_use_are_never_read(dtype: torch.dtype) -> None:
    memory = Memory(dtype, 3, 3, 2, 1, 16)
    tokens = [[(row, 5 + 17 * row)] for row in range(3)]
    expected = memory.attend(tokens)
    for row, columns in ((0, 5), (1, 22), (2, 39)):
        memory.pool[:, :, row, :, columns:] = math.nan
    assert torch.equal(memory.attend(tokens), expected)


@DTYPES
def test_a_row_has_the_same_bits_in_every_batch(dtype: torch.dtype) -> None:
    memory = Memory(dtype, 8, 8, 2, 2, 16)
    tokens = [[(row, 30 + 9 * row)] for row in range(8)]
    together = memory.attend(tokens)
    alone = Memory(dtype, 8, 8, 2, 2, 16)
    for part in ("queries", "keys", "values"):
        setattr(alone, part, getattr(memory, part)[5:6])
    assert torch.equal(alone.attend(tokens[5:6])[0], together[5])


def test_large_scores_do_not_overflow() -> None:
    memory = Memory(torch.float32, 1, 1, 1, 1, 8)
    memory.pool[0, 1, 0, :, :3] = 1000.0
    memory.queries = torch.full((1, 1, 8), 1000.0)
    memory.keys = torch.full((1, 1, 8), 1000.0)
    memory.values = memory.pool[1, 1, 0, :, 2].clone()[None]
    got = memory.attend([[(0, 3)]])
    assert torch.allclose(got[0], memory.pool[1, 1, 0, :, :3].mean(1), atol=1e-6)


def test_strided_queries_and_transposed_heads_are_read_where_they_are() -> None:
    memory = Memory(torch.float32, 3, 3, 2, 2, 16)
    tokens = [[(row, 11 + row)] for row in range(3)]
    expected = memory.attend(tokens)
    memory.queries = memory.queries.transpose(0, 1).contiguous().transpose(0, 1)
    memory.keys = memory.keys.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    assert memory.keys.stride(-1) != 1
    assert torch.equal(memory.attend(tokens), expected)


def test_a_result_that_differs_from_the_plain_one_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    attend = NativeAttention.attend

    def wrong(attention: NativeAttention, *others: Any) -> torch.Tensor:
        return attend(attention, *others) * 1.1

    monkeypatch.setattr(NativeAttention, "attend", wrong)
    with pytest.raises(NoNativeCode, match="differs from the plain one"):
        load_attention_kernel(16, torch.float32)


@pytest.mark.parametrize(("head_dim", "dtype"), [(16, torch.float16), (7, torch.bfloat16)])
def test_load_attention_kernel_refuses_other_dtypes_and_sizes(
    head_dim: int, dtype: torch.dtype
) -> None:
    with pytest.raises(NoNativeCode):
        load_attention_kernel(head_dim, dtype)
