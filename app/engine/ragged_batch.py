"""The ragged step: all tokens that are due, of all rows, laid end to end, as an attention plan.

The tokens' keys and values are written into the pool at (slot, column); then each token attends to
[prefix | prompt | generated]: the columns of its row's own slot, together with the segments that
the row shares with others; with an encoder also, across, to its request's source. Native code does
that where there is any, else torch. This is where tasks mix.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from app.engine.attention.backends import FUSED, Attention
from app.engine.attention.native_backend import AttentionKernel, NativeAttention, Part, Run
from app.engine.attention.torch_backend import GroupedAttention, by_groups
from app.engine.kv_cache.pool import KVPool
from app.engine.kv_cache.slots import slot_of
from app.engine.sequence import KVEntry
from app.engine.step import Chunk
from app.errors import UnsupportedModel


class RaggedBatch:
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
        self._by_role: Mapping[str, NativeAttention | GroupedAttention]
        if decode_attention.native is not None:
            self._by_role = _by_native_code(decode_attention.native, chunks, pool, sources)
        else:
            self._by_role = by_groups(chunks, pool, sources, decode_attention, device, dtype)

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
        if role not in self._by_role:
            raise UnsupportedModel(f"a decoding step asks for attention of the kind {role!r}")
        queries = query[0].transpose(0, 1)  # [tokens, heads, head_dim]
        new = None
        if role == "decoder":
            new = key[0].transpose(0, 1), value[0].transpose(0, 1)
        return self._by_role[role].attend(layer, queries, new, scaling)[None]


def _by_native_code(
    kernel: AttentionKernel, chunks: Sequence[Chunk], pool: KVPool, sources: KVPool | None
) -> dict[str, NativeAttention]:
    """Attention by role; what rows share comes before their own columns."""
    own: list[Run] = []
    across: list[Run] = []
    for chunk in chunks:
        row, parts = chunk.row, list[Part]()
        for segment in row.segments:
            parts.append(pool.part(slot_of(segment), segment.num_cached))
        parts.append(pool.part(slot_of(row), row.num_cached + 1))
        own.append(Run(parts, chunk.count))
        if sources is not None and row.source is not None:
            read: list[KVEntry] = [*row.source.segments, row.source]
            parts = [sources.part(slot_of(one), one.num_cached) for one in read]
            across.append(Run(parts, chunk.count))
    found = {"decoder": NativeAttention(kernel, pool.kv_heads, own, grows=True)}
    if sources is not None:
        found["cross"] = NativeAttention(kernel, sources.kv_heads, across, grows=False)
    return found
