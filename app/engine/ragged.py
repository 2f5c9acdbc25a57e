"""The ragged step: all tokens that are due, of all rows, laid end to end, as an attention plan.

The tokens' keys and values are written into the pool at (slot, column); then each token attends to
[prefix | prompt | generated]: the columns of its row's own slot, together with the segments that
the row shares with others; with an encoder also, across, to its request's source. Native code, if
there is any, takes the rows that bring one token. This is where tasks mix; it knows nothing about
sampling or scheduling.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch

from app.engine.decoding import DecodeKernel, DecodeStep, Part
from app.engine.groups import Grouping, Share
from app.engine.kernels import FUSED, Attention, merge
from app.engine.plan import Chunk
from app.engine.pool import KVPool
from app.engine.row import Occupant
from app.engine.slots import slot_of, slot_order
from app.errors import UnsupportedModel


@dataclass(frozen=True)
class _Write:
    """Where a class's share of the step's tokens goes; all indices are [tokens of the class]."""

    length_class: int
    first: int
    last: int
    slots: torch.Tensor
    columns: torch.Tensor


class RaggedPlan:
    """An `AttentionPlan` over K/V memory for one step.

    `input_ids` and `position_ids` are [1, tokens]; `last_tokens` holds, for each chunk, the index
    of its last token in the step. `sources` is the memory of encoded sources, where rows have any.
    """

    def __init__(
        self,
        chunks: Sequence[Chunk],
        pool: KVPool,
        device: torch.device,
        dtype: torch.dtype,
        decode_attention: Attention = FUSED,
        sources: KVPool | None = None,
    ) -> None:
        self._pool, self._device = pool, device
        ids: list[int] = []
        positions: list[int] = []
        spans: list[range] = []
        for chunk in chunks:
            row = chunk.row
            pool.ensure(slot_of(row))
            start = row.num_computed
            spans.append(range(len(ids), len(ids) + chunk.count))
            ids.extend(row.token_ids[start : start + chunk.count])
            first = row.request.position_offset + start
            positions.extend(range(first, first + chunk.count))
        self.last_tokens = [span[-1] for span in spans]
        self.input_ids = torch.tensor([ids], device=device)
        self.position_ids = torch.tensor([positions], device=device)
        kernel = decode_attention.native
        self._num_native = 0 if kernel is None else _num_single(chunks)
        self._native: dict[str, DecodeStep] = {}
        if kernel is not None and self._num_native:
            self._native = _native_steps(kernel, chunks[: self._num_native], pool, sources)
        chunks = chunks[self._num_native :]
        spans = [
            range(span.start - self._num_native, span.stop - self._num_native)
            for span in spans[self._num_native :]
        ]
        self._writes = list(self._plan_writes(chunks))
        self._attentions = {
            "decoder": _MemoryAttention(
                pool,
                Grouping(pool, device, dtype, decode_attention),
                _own_shares(chunks, spans),
                _segment_shares(chunks, spans),
            )
        }
        if sources is not None:
            self._attentions["cross"] = _MemoryAttention(
                sources,
                Grouping(sources, device, dtype, decode_attention),
                _source_shares(chunks, spans),
                _source_segment_shares(chunks, spans),
            )

    def attend(
        self,
        role: str,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float,
    ) -> torch.Tensor:
        """See `AttentionPlan`; the batch is one long row."""
        if role not in self._attentions:
            raise UnsupportedModel(f"a decoding step asks for attention of the kind {role!r}")
        queries = query[0].transpose(0, 1)  # [tokens, heads, head_dim]
        new = None
        if role == "decoder":
            new = key[0].transpose(0, 1), value[0].transpose(0, 1)
        if not self._num_native:
            return self._attend_in_groups(role, layer, queries, new, scaling)[None]
        first = self._num_native
        output = torch.empty(queries.shape, dtype=queries.dtype)
        self._native[role].attend(layer, queries[:first], new, output, scaling)
        if first < len(queries):
            if new is not None:
                new = new[0][first:], new[1][first:]
            output[first:] = self._attend_in_groups(role, layer, queries[first:], new, scaling)
        return output[None]

    def _attend_in_groups(
        self,
        role: str,
        layer: int,
        queries: torch.Tensor,
        new: tuple[torch.Tensor, torch.Tensor] | None,
        scaling: float,
    ) -> torch.Tensor:
        """What native code does not do; `new` keys and values are written first."""
        if new is not None:
            self._write(layer, *new)
        return self._attentions[role].attend(layer, queries, scaling)

    def _write(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Put the step's keys and values, [tokens, kv_heads, head_dim], into the pool."""
        for write in self._writes:
            place = (write.slots, slice(None), write.columns)
            self._pool.keys(write.length_class, layer)[place] = keys[write.first : write.last]
            self._pool.values(write.length_class, layer)[place] = values[write.first : write.last]

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

    def _tensor(self, values: Sequence[int]) -> torch.Tensor:
        return torch.tensor(values, device=self._device)


def _num_single(chunks: Sequence[Chunk]) -> int:
    """How many chunks of one token there are before any longer one."""
    longer = (index for index, chunk in enumerate(chunks) if chunk.count > 1)
    return next(longer, len(chunks))


def _native_steps(
    kernel: DecodeKernel, chunks: Sequence[Chunk], pool: KVPool, sources: KVPool | None
) -> dict[str, DecodeStep]:
    """Attention of chunks of one token by role; what rows share comes before their own columns."""
    own = [
        (*_parts(chunk.row.segments, pool), pool.part(slot_of(chunk.row), chunk.row.num_cached + 1))
        for chunk in chunks
    ]
    steps = {"decoder": DecodeStep(kernel, pool.kv_heads, own)}
    if sources is not None:
        across = [
            _parts((*source.segments, source), sources)
            for chunk in chunks
            if (source := chunk.row.source) is not None
        ]
        steps["cross"] = DecodeStep(kernel, sources.kv_heads, across)
    return steps


def _parts(occupants: Iterable[Occupant], pool: KVPool) -> list[Part]:
    return [pool.part(slot_of(occupant), occupant.num_cached) for occupant in occupants]


class _MemoryAttention:
    """Attention of a step's tokens to one memory: a part that all have, and shared parts."""

    def __init__(
        self,
        pool: KVPool,
        grouping: Grouping,
        base: Sequence[Share],
        shared: Sequence[Share],
    ) -> None:
        self._pool = pool
        self._base = grouping.groups(base)
        self._shared = grouping.groups(shared)
        firsts = [group.tokens.start for group in self._base if isinstance(group.tokens, slice)]
        # whether the groups' outputs can simply be laid end to end
        self._in_order = len(firsts) == len(self._base) and firsts == sorted(firsts)

    def attend(self, layer: int, queries: torch.Tensor, scaling: float) -> torch.Tensor:
        """Output [tokens, heads, head_dim] for `queries` of the same shape."""
        if self._shared:
            return self._attend_in_parts(layer, queries, scaling)
        parts = [group.attend(self._pool, layer, queries, scaling) for group in self._base]
        if self._in_order:
            return parts[0] if len(parts) == 1 else torch.cat(parts)
        output = torch.empty_like(queries)
        for group, part in zip(self._base, parts, strict=True):
            output[group.tokens] = part
        return output

    def _attend_in_parts(self, layer: int, queries: torch.Tensor, scaling: float) -> torch.Tensor:
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


def _own_shares(chunks: Sequence[Chunk], spans: Sequence[range]) -> list[Share]:
    """Every row's tokens attend to the row's own columns, causally."""
    return [
        Share(chunk.row, span, chunk.row.num_cached, chunk.row.is_part)
        for chunk, span in zip(chunks, spans, strict=True)
    ]


def _segment_shares(chunks: Sequence[Chunk], spans: Sequence[range]) -> list[Share]:
    """What rows share in self-attention."""
    return _shares_of(
        (segment, span)
        for chunk, span in zip(chunks, spans, strict=True)
        for segment in chunk.row.segments
    )


def _source_shares(chunks: Sequence[Chunk], spans: Sequence[range]) -> list[Share]:
    """Every row's tokens attend to the source of its request."""
    return _shares_of(
        (source, span)
        for chunk, span in zip(chunks, spans, strict=True)
        if (source := chunk.row.source) is not None
    )


def _source_segment_shares(chunks: Sequence[Chunk], spans: Sequence[range]) -> list[Share]:
    """What sources share: their cross prefixes."""
    return _shares_of(
        (segment, span)
        for chunk, span in zip(chunks, spans, strict=True)
        if (source := chunk.row.source) is not None
        for segment in source.segments
    )


def _shares_of(pairs: Iterable[tuple[Occupant, range]]) -> list[Share]:
    """One share for every occupant, in the order of slots, with the tokens of all its rows."""
    tokens: dict[Occupant, list[int]] = defaultdict(list)
    for occupant, span in pairs:
        tokens[occupant].extend(span)
    return [
        Share(occupant, tokens[occupant], joined=occupant.is_part)
        for occupant in sorted(tokens, key=slot_order)
    ]
