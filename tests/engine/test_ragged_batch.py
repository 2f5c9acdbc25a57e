"""The ragged plan: whatever stands side by side in a step, each token attends to its own row."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from app.engine.attention.backends import NAMES, Attention, choose_attention
from app.engine.kv_cache.entries import SharedPrefix
from app.engine.kv_cache.pool import KVPool
from app.engine.kv_cache.slots import SlotTable, length_classes
from app.engine.runner import RaggedBatch
from app.engine.sequence import TokenSequence
from app.engine.step import Chunk
from app.prefix.prefix import KeyValues, Prefix, PrefixMetadata
from app.prefix.spec import ModuleShape
from tests.engine.rows import make_row

LAYERS, HEADS, DIM, SCALE = 2, 4, 8, 0.3
CPU, FP32 = torch.device("cpu"), torch.float32


class Bench:
    """Rows in a pool, and beside it the history of what each row was given, as a plain list."""

    def __init__(self, kv_heads: int, decode: str = "sdpa") -> None:
        shape = ModuleShape(LAYERS, kv_heads, DIM)
        self.table = SlotTable(length_classes(300), 10**6)
        self.pool = KVPool(shape, self.table.capacities, 1 << 30, CPU, FP32)
        self.kv_heads = kv_heads
        self.decode = choose_attention(decode, kv_heads, DIM, CPU, FP32)
        self.keys: dict[tuple[TokenSequence, int], list[torch.Tensor]] = defaultdict(list)
        self.values: dict[tuple[TokenSequence, int], list[torch.Tensor]] = defaultdict(list)
        self._generator = torch.Generator().manual_seed(0)

    def randn(self, *size: int) -> torch.Tensor:
        return torch.randn(*size, generator=self._generator)

    def admit(self, prompt: int, prefix: int = 0, offset: int = 0) -> TokenSequence:
        """A row with a prompt of that many tokens behind a random prefix."""
        if not prefix:
            row = make_row(range(1, 1 + prompt))
        else:
            size = (LAYERS, self.kv_heads, prefix, DIM)
            tensors = KeyValues(self.randn(*size), self.randn(*size))
            made = Prefix({"decoder": tensors}, PrefixMetadata(position_offset=offset))
            row = make_row(range(1, 1 + prompt), prefixes=[made])
            for layer in range(LAYERS):
                self.keys[row, layer] += tensors.keys[layer].unbind(1)
                self.values[row, layer] += tensors.values[layer].unbind(1)
        self.table.place(row, prefix + prompt, with_prefixes=True)
        return row

    def share(self, length: int) -> SharedPrefix:
        """A random prefix in a slot of its own."""
        size = (LAYERS, self.kv_heads, length, DIM)
        tensors = KeyValues(self.randn(*size), self.randn(*size))
        prefix = Prefix({"decoder": tensors}, PrefixMetadata(position_offset=0))
        segment = SharedPrefix((prefix,), "decoder")
        self.table.place(segment, length, with_prefixes=True)
        return segment

    def admit_behind(self, segment: SharedPrefix, prompt: int) -> TokenSequence:
        """A row with a prompt of that many tokens that attends to `segment` first."""
        row = make_row(range(1, 1 + prompt), prefixes=segment.prefixes, segments=[segment])
        for layer in range(LAYERS):
            [tensors] = [prefix.decoder for prefix in segment.prefixes]
            self.keys[row, layer] += tensors.keys[layer].unbind(1)
            self.values[row, layer] += tensors.values[layer].unbind(1)
        self.table.place(row, prompt)
        return row

    def branch(self, trunk: TokenSequence) -> TokenSequence:
        """A row that goes on from all that `trunk` has computed."""
        row = make_row(trunk.token_ids, segments=[*trunk.segments, trunk])
        row.num_computed = row.num_elsewhere = trunk.num_computed
        trunk.is_trunk = True
        for layer in range(LAYERS):
            self.keys[row, layer] += self.keys[trunk, layer]
            self.values[row, layer] += self.values[trunk, layer]
        self.table.place(row, 16)
        return row

    def step(self, counts: Sequence[tuple[TokenSequence, int]]) -> RaggedBatch:
        """Compute `counts` tokens of rows in one step and compare every output with the naive."""
        for row, count in counts:
            self.table.make_room(row, row.num_cached + count)
        for operation in self.table.take_operations():
            self.pool.apply(operation)
        chunks = [Chunk(row, count, ()) for row, count in counts]
        chunks.sort(key=lambda chunk: (chunk.row.slot.length_class, chunk.row.slot.index))
        plan = RaggedBatch(chunks, self.pool, CPU, FP32, self.decode)
        for layer in range(LAYERS):
            self._check_layer(plan, chunks, layer)
        for chunk in chunks:
            chunk.row.num_computed += chunk.count
        return plan

    def _check_layer(self, plan: RaggedBatch, chunks: Sequence[Chunk], layer: int) -> None:
        total = sum(chunk.count for chunk in chunks)
        query = self.randn(1, HEADS, total, DIM)
        key, value = (self.randn(1, self.kv_heads, total, DIM) for _ in range(2))
        got = plan.attend("decoder", layer, query, key, value, SCALE)
        assert got.shape == (1, total, HEADS, DIM)
        token = 0
        for chunk in chunks:
            for _ in range(chunk.count):
                self.keys[chunk.row, layer].append(key[0, :, token])
                self.values[chunk.row, layer].append(value[0, :, token])
                expected = self._naive(chunk.row, layer, query[0, :, token])
                assert float((got[0, token] - expected).abs().max()) <= 1e-5
                token += 1

    def _naive(self, row: TokenSequence, layer: int, query: torch.Tensor) -> torch.Tensor:
        """One token over its row's whole history, [heads, head_dim]."""
        keys = torch.stack(self.keys[row, layer]).repeat_interleave(HEADS // self.kv_heads, dim=1)
        values = torch.stack(self.values[row, layer])
        values = values.repeat_interleave(HEADS // self.kv_heads, dim=1)
        weights = ((keys * query).sum(-1) * SCALE).softmax(0)
        return (weights[..., None] * values).sum(0)


@settings(max_examples=30, deadline=None)
@given(
    rows=st.lists(st.tuples(st.integers(1, 60), st.integers(0, 30)), min_size=1, max_size=7),
    steps=st.lists(st.lists(st.integers(0, 30), min_size=7, max_size=7), max_size=5),
    kv_heads=st.sampled_from((4, 2, 1)),
    decode=st.sampled_from(NAMES),
)
def test_every_token_of_any_mix_attends_to_its_own_row_and_no_further(
    rows: list[tuple[int, int]], steps: list[list[int]], kv_heads: int, decode: str
) -> None:
    bench = Bench(kv_heads, decode)
    placed = [bench.admit(prompt, prefix) for prompt, prefix in rows]
    for step in steps:
        counts = [
            (row, min(count, row.num_pending))
            for row, count in zip(placed, step, strict=False)
            if count and row.num_pending
        ]
        if counts:
            bench.step(counts)


@settings(max_examples=30, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 90), min_size=1, max_size=3),
    rows=st.lists(
        st.tuples(st.none() | st.integers(0, 2), st.integers(1, 40), st.integers(0, 3)),
        min_size=1,
        max_size=5,
    ),
    steps=st.integers(1, 4),
    kv_heads=st.sampled_from((4, 2, 1)),
    decode=st.sampled_from(NAMES),
)
def test_every_token_attends_to_what_its_row_shares_and_to_its_own_under_one_softmax(
    lengths: list[int],
    rows: list[tuple[int | None, int, int]],
    steps: int,
    kv_heads: int,
    decode: str,
) -> None:
    """Rows behind shared prefixes or none, some of which then are the trunk of several beams."""
    bench = Bench(kv_heads, decode)
    segments = [bench.share(length) for length in lengths]
    placed = [
        bench.admit(prompt, prefix=prompt % 3)
        if which is None
        else bench.admit_behind(segments[which % len(segments)], prompt)
        for which, prompt, _ in rows
    ]
    bench.step([(row, 1) for row in placed])
    if pending := [(row, row.num_pending) for row in placed if row.num_pending]:
        bench.step(pending)
    decoding: list[TokenSequence] = []
    for row, (_, _, beams) in zip(placed, rows, strict=True):
        decoding.extend([bench.branch(row) for _ in range(beams)] or [row])
    for _ in range(steps):
        for row in decoding:
            row.token_ids.append(5)
        bench.step([(row, 1) for row in decoding])


@pytest.mark.parametrize("decode", NAMES)
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_rows_that_decode_side_by_side_see_their_own_columns(decode: str, kv_heads: int) -> None:
    bench = Bench(kv_heads, decode)
    rows = [bench.admit(*facts) for facts in ((3, 0), (20, 7), (1, 25), (40, 0), (9, 9))]
    bench.step([(row, row.num_pending) for row in rows])
    for _ in range(40):
        for row in rows:
            row.token_ids.append(5)
        bench.step([(row, 1) for row in rows])


def test_a_step_names_tokens_positions_and_the_last_token_of_each_chunk() -> None:
    bench = Bench(4)
    long, short = bench.admit(20, 6, offset=4), bench.admit(3)
    first = bench.step([(long, 5), (short, 3)])
    assert first.input_ids.tolist() == [[1, 2, 3, 4, 5, 1, 2, 3]]
    assert first.position_ids.tolist() == [[4, 5, 6, 7, 8, 0, 1, 2]]
    assert first.last_tokens == [4, 7]
    short.token_ids.append(9)
    second = bench.step([(long, 2), (short, 1)])
    assert second.input_ids.tolist() == [[6, 7, 9]]
    assert second.position_ids.tolist() == [[9, 10, 3]]


def count_calls(bench: Bench) -> list[torch.Size]:
    """Shapes of the queries of every call of the decode kernel from now on."""
    shapes: list[torch.Size] = []
    inner = bench.decode

    def compute(query: torch.Tensor, *others: object) -> torch.Tensor:
        shapes.append(query.shape)
        return inner.compute(query, *others)

    bench.decode = Attention("counted", compute, inner.whole_slots)
    return shapes


def test_neighbours_that_decode_are_one_call_per_class_and_layer() -> None:
    bench = Bench(4)
    rows = [bench.admit(5) for _ in range(6)] + [bench.admit(40) for _ in range(2)]
    bench.step([(row, row.num_pending) for row in rows])
    for row in rows:
        row.token_ids.append(5)
    shapes = count_calls(bench)
    bench.step([(row, 1) for row in rows])
    assert shapes == [(6, HEADS, 1, DIM), (2, HEADS, 1, DIM)] * LAYERS


def test_a_slot_that_is_not_in_the_step_parts_its_neighbours() -> None:
    bench = Bench(4)
    rows = [bench.admit(5) for _ in range(5)]
    bench.step([(row, row.num_pending) for row in rows])
    for row in rows:
        row.token_ids.append(5)
    shapes = count_calls(bench)
    bench.step([(row, 1) for row in rows if row is not rows[2]])
    assert shapes == [(2, HEADS, 1, DIM), (2, HEADS, 1, DIM)] * LAYERS
