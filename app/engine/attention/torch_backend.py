"""A step's attention by torch: keys and values are written, then tokens attend group by group.

Groups are neighbouring slots of one length class. What rows share is computed separately,
and merged. Used where there is no native code.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from app.engine.attention.backends import Attention, merge
from app.engine.attention.token_groups import Grouping, Share
from app.engine.kv_cache.entries import KVEntry
from app.engine.kv_cache.pool import KVPool
from app.engine.kv_cache.slots import slot_of
from app.engine.step import Chunk


@dataclass(frozen=True)
class _Write:
    """Where a class's share of the step's tokens goes; all indices are [tokens of the class]."""

    length_class: int
    first: int
    last: int
    slots: Tensor
    columns: Tensor


class GroupedAttention:
    """Attention of a step's tokens to one memory: a part that all have, and shared parts.

    `writes` says where the tokens' new keys and values go, if they bring any.
    """

    def __init__(
        self,
        pool: KVPool,
        grouping: Grouping,
        base: Sequence[Share],
        shared: Sequence[Share],
        writes: Sequence[_Write] = (),
    ) -> None:
        self._pool, self._writes = pool, writes
        self._base = grouping.groups(base)
        self._shared = grouping.groups(shared)
        firsts = [group.tokens.start for group in self._base if isinstance(group.tokens, slice)]
        # whether the groups' outputs can simply be laid end to end
        self._in_order = len(firsts) == len(self._base) and firsts == sorted(firsts)

    def attend(
        self, layer: int, queries: Tensor, new: tuple[Tensor, Tensor] | None, scaling: float
    ) -> Tensor:
        if new is not None:
            self._write(layer, *new)
        if self._shared:
            return self._attend_in_parts(layer, queries, scaling)
        parts = [group.attend(self._pool, layer, queries, scaling) for group in self._base]
        if self._in_order:
            return parts[0] if len(parts) == 1 else torch.cat(parts)
        output = torch.empty_like(queries)
        for group, part in zip(self._base, parts, strict=True):
            output[group.tokens] = part
        return output

    def _write(self, layer: int, keys: Tensor, values: Tensor) -> None:
        """Put the step's keys and values, [tokens, kv_heads, head_dim], into the pool."""
        for write in self._writes:
            place = (write.slots, slice(None), write.columns)
            self._pool.keys(write.length_class, layer)[place] = keys[write.first : write.last]
            self._pool.values(write.length_class, layer)[place] = values[write.first : write.last]

    def _attend_in_parts(self, layer: int, queries: Tensor, scaling: float) -> Tensor:
        output = torch.empty(queries.shape, dtype=torch.float32, device=queries.device)
        weight = torch.empty(queries.shape[:2], dtype=torch.float32, device=queries.device)
        for group in self._base:
            if group.joined:
                output[group.tokens], weight[group.tokens] = group.attend_to_part(
                    self._pool, layer, queries, scaling
                )
            else:
                part = group.attend(self._pool, layer, queries, scaling)
                output[group.tokens] = part.float()
        for group in self._shared:
            at = group.tokens
            part, part_weight = group.attend_to_part(self._pool, layer, queries, scaling)
            output[at], weight[at] = merge(output[at], weight[at], part, part_weight)
        return output.to(queries.dtype)


def by_groups(
    chunks: Sequence[Chunk],
    pool: KVPool,
    sources: KVPool | None,
    kernel: Attention,
    device: torch.device,
    dtype: torch.dtype,
) -> dict[str, GroupedAttention]:
    """Attention of a step's chunks by role; `sources` is there for a model with an encoder."""
    spans = list(zip(chunks, _spans(chunks), strict=True))
    own = [
        Share(chunk.row, span, chunk.row.num_cached, chunk.row.attends_elsewhere)
        for chunk, span in spans
    ]
    segments = _shares_of((one, span) for chunk, span in spans for one in chunk.row.segments)
    grouping = Grouping(pool, device, dtype, kernel)
    writes = list(_plan_writes(chunks, device))
    found = {"decoder": GroupedAttention(pool, grouping, own, segments, writes)}
    if sources is not None:
        read = [(source, span) for chunk, span in spans if (source := chunk.row.source) is not None]
        segments = _shares_of((one, span) for source, span in read for one in source.segments)
        grouping = Grouping(sources, device, dtype, kernel)
        found["cross"] = GroupedAttention(sources, grouping, _shares_of(read), segments)
    return found


def _plan_writes(chunks: Sequence[Chunk], device: torch.device) -> Iterator[_Write]:
    """One write per run of chunks of the same class."""
    first = 0
    for length_class, run in groupby(chunks, key=lambda chunk: slot_of(chunk.row).length_class):
        slots: list[int] = []
        columns: list[int] = []
        for chunk in run:
            start = chunk.row.num_cached
            slots.extend([slot_of(chunk.row).index] * chunk.count)
            columns.extend(range(start, start + chunk.count))
        last = first + len(slots)
        places = (torch.tensor(values, device=device) for values in (slots, columns))
        yield _Write(length_class, first, last, *places)
        first = last


def _spans(chunks: Sequence[Chunk]) -> Iterator[range]:
    """The places of each chunk's tokens in the step."""
    first = 0
    for chunk in chunks:
        yield range(first, first + chunk.count)
        first += chunk.count


def _shares_of(pairs: Iterable[tuple[KVEntry, range]]) -> list[Share]:
    """One share for every occupant, in the order of slots, with the tokens of all its rows."""
    tokens: dict[KVEntry, list[int]] = defaultdict(list)
    for occupant, span in pairs:
        tokens[occupant].extend(span)
    return [
        Share(occupant, tokens[occupant], joined=occupant.attends_elsewhere)
        for occupant in sorted(tokens, key=slot_of)
    ]
