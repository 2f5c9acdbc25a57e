"""The ragged step: all tokens that are due, of all rows, laid end to end, as an attention plan.

The tokens' keys and values are written into the pool at (slot, column); then each row's tokens
attend to [prefix | prompt | generated] of their own slot. Rows are attended to in groups whose
slots are neighbours in one length class, so that a group is one call on a view of the pool. This
is where tasks mix; it knows nothing about sampling or scheduling.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from app.engine.kernels import FUSED, Attention
from app.engine.plan import Chunk
from app.engine.pool import KVPool
from app.engine.slots import slot_of

_MAX_PADDING = 2
"""Chunks share a group while the longest has at most this many times the tokens of the shortest."""


@dataclass(frozen=True)
class _Write:
    """Where a class's share of the step's tokens goes; all indices are [tokens of the class]."""

    length_class: int
    first: int
    last: int
    slots: torch.Tensor
    columns: torch.Tensor


@dataclass(frozen=True)
class _Group:
    """Chunks at neighbouring slots of one class, attended to together.

    Tokens `first` to `last` of the step are theirs. `mask` is additive,
    [rows, 1, padded tokens, columns]. With chunks of unequal length, `gather` [rows, padded] names
    the token for each place and `scatter` the flat places that are real, in token order.
    """

    length_class: int
    slots: slice
    columns: int
    first: int
    last: int
    padded: int
    mask: torch.Tensor
    gather: torch.Tensor | None
    scatter: torch.Tensor | None


class RaggedPlan:
    """An `AttentionPlan` over a pool for one step.

    `input_ids` and `position_ids` are [1, tokens]; `last_tokens` holds, for each chunk, the index
    of its last token in the step.
    """

    def __init__(
        self,
        chunks: Sequence[Chunk],
        pool: KVPool,
        device: torch.device,
        dtype: torch.dtype,
        decode_attention: Attention = FUSED,
    ) -> None:
        self._pool, self._device, self._dtype = pool, device, dtype
        self._decode_attention = decode_attention
        ids: list[int] = []
        positions: list[int] = []
        self.last_tokens: list[int] = []
        for chunk in chunks:
            row = chunk.row
            pool.ensure(slot_of(row))
            start = row.num_computed
            ids.extend(row.token_ids[start : start + chunk.count])
            first = row.request.position_offset + start
            positions.extend(range(first, first + chunk.count))
            self.last_tokens.append(len(ids) - 1)
        self.input_ids = torch.tensor([ids], device=device)
        self.position_ids = torch.tensor([positions], device=device)
        self._writes = list(self._plan_writes(chunks))
        self._groups = [self._plan_group(*part) for part in _groups_of(chunks)]

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float,
    ) -> torch.Tensor:
        """See `AttentionPlan`; the batch is one long row."""
        self._write(layer, key[0].transpose(0, 1), value[0].transpose(0, 1))
        queries = query[0].transpose(0, 1)  # [tokens, heads, head_dim]
        parts = [self._attend_group(group, layer, queries, scaling) for group in self._groups]
        return (parts[0] if len(parts) == 1 else torch.cat(parts))[None]

    def _write(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Put the step's keys and values, [tokens, kv_heads, head_dim], into the pool."""
        for write in self._writes:
            place = (write.slots, slice(None), write.columns)
            self._pool.keys(write.length_class, layer)[place] = keys[write.first : write.last]
            self._pool.values(write.length_class, layer)[place] = values[write.first : write.last]

    def _attend_group(
        self,
        group: _Group,
        layer: int,
        queries: torch.Tensor,
        scaling: float,
    ) -> torch.Tensor:
        """Output of the group's tokens, [tokens, heads, head_dim]."""
        keys = self._pool.keys(group.length_class, layer)[group.slots, :, : group.columns]
        values = self._pool.values(group.length_class, layer)[group.slots, :, : group.columns]
        rows, kv_heads = keys.shape[:2]
        num_heads, head_dim = queries.shape[1:]
        chosen = queries[slice(group.first, group.last) if group.gather is None else group.gather]
        chosen = chosen.reshape(rows, group.padded, num_heads, head_dim).transpose(1, 2)
        shared = num_heads // kv_heads
        # query heads that share a K/V head stand as further tokens of that head
        folded = chosen.reshape(rows, kv_heads, shared * group.padded, head_dim)
        mask = group.mask if shared == 1 else group.mask.repeat(1, 1, shared, 1)
        result = self._attention(group.padded).compute(folded, keys, values, mask, scaling)
        result = result.reshape(rows, num_heads, group.padded, head_dim).transpose(1, 2)
        flat = result.reshape(-1, num_heads, head_dim)
        return flat if group.scatter is None else flat[group.scatter]

    def _attention(self, padded: int) -> Attention:
        return self._decode_attention if padded == 1 else FUSED

    def _plan_writes(self, chunks: Sequence[Chunk]) -> Iterator[_Write]:
        """One write per run of chunks of the same class."""
        first, index = 0, 0
        while index < len(chunks):
            length_class = slot_of(chunks[index].row).length_class
            slots: list[int] = []
            columns: list[int] = []
            while index < len(chunks):
                chunk = chunks[index]
                slot = slot_of(chunk.row)
                if slot.length_class != length_class:
                    break
                slots.extend([slot.index] * chunk.count)
                start = chunk.row.num_cached
                columns.extend(range(start, start + chunk.count))
                index += 1
            last = first + len(slots)
            yield _Write(length_class, first, last, self._tensor(slots), self._tensor(columns))
            first = last

    def _plan_group(self, chunks: Sequence[Chunk], first: int) -> _Group:
        slots = [slot_of(chunk.row) for chunk in chunks]
        counts = [chunk.count for chunk in chunks]
        starts = [chunk.row.num_cached for chunk in chunks]
        padded = max(counts)
        if self._attention(padded).whole_slots:
            columns = self._pool.capacity(slots[0].length_class)
        else:
            columns = max(start + count for start, count in zip(starts, counts, strict=True))
        # token t of a chunk sees columns 0 .. start + t
        visible = self._tensor(starts)[:, None] + torch.arange(padded, device=self._device)
        hidden = torch.arange(columns, device=self._device) > visible[..., None]
        mask = torch.zeros(hidden.shape, dtype=self._dtype, device=self._device)
        mask.masked_fill_(hidden, float("-inf"))
        gather, scatter = self._padding(counts, padded, first)
        return _Group(
            length_class=slots[0].length_class,
            slots=slice(slots[0].index, slots[-1].index + 1),
            columns=columns,
            first=first,
            last=first + sum(counts),
            padded=padded,
            mask=mask[:, None],
            gather=gather,
            scatter=scatter,
        )

    def _padding(
        self, counts: Sequence[int], padded: int, first: int
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Indices that lay unequal chunks out as a rectangle and back; None if they are equal."""
        if min(counts) == padded:
            return None, None
        gather: list[list[int]] = []
        scatter: list[int] = []
        for row, count in enumerate(counts):
            gather.append([*range(first, first + count), *[first] * (padded - count)])
            scatter.extend(range(row * padded, row * padded + count))
            first += count
        return torch.tensor(gather, device=self._device), self._tensor(scatter)

    def _tensor(self, values: Sequence[int]) -> torch.Tensor:
        return torch.tensor(values, device=self._device)


def _groups_of(chunks: Sequence[Chunk]) -> Iterator[tuple[list[Chunk], int]]:
    """Runs of neighbouring slots with chunks of like length, each with its first token's index."""
    group: list[Chunk] = []
    first = token = shortest = longest = 0
    for chunk in chunks:
        shortest, longest = min(shortest, chunk.count), max(longest, chunk.count)
        if group and (not _are_neighbours(group[-1], chunk) or longest > _MAX_PADDING * shortest):
            yield group, first
            group, first = [], token
        if not group:
            shortest = longest = chunk.count
        group.append(chunk)
        token += chunk.count
    if group:
        yield group, first


def _are_neighbours(left: Chunk, right: Chunk) -> bool:
    slot, following = slot_of(left.row), slot_of(right.row)
    return following.length_class == slot.length_class and following.index == slot.index + 1
