"""Attention of training sequences that lie end to end, with gradients into their prefixes.

One autograd function for the CPU: plain products on the columns [prefix | sequence] of sequences of
equal length. With a mask, torch's fused kernel takes two to four times as long in bfloat16.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import torch

_KEPT_COLUMNS = 256
"""Attention weights over more columns are computed again in the backward pass: kept, they would
take more memory than everything else that a layer keeps."""

Mask = Callable[[int, int], torch.Tensor | None]
"""From (queries, columns) of a sequence to what is added to its scores; None: nothing."""


class EqualSequences(NamedTuple):
    """`rows` neighbours with equally many queries, keys (their own) and positions of a prefix.

    `places` [rows, length] says where each row's prefix lies among all prefixes; None: each row
    attends to all of them.
    """

    first_query: int
    first_key: int
    rows: int
    queries: int
    keys: int
    places: torch.Tensor | None = None


def equal_neighbours(
    queries: Sequence[int], keys: Sequence[int], spans: Sequence[range] | None = None
) -> list[EqualSequences]:
    """The sequences with as many `queries` and `keys`, in order, with equal neighbours together.

    `spans` are the positions of each sequence's prefix; None: all attend to the same one.
    """
    found, query, key, row = [], 0, 0, 0
    lengths = [0] * len(queries) if spans is None else [len(span) for span in spans]
    for (num_queries, num_keys, _), group in groupby(zip(queries, keys, lengths, strict=True)):
        count = len(list(group))
        own = None if spans is None else spans[row : row + count]
        places = None if own is None else torch.tensor([list(span) for span in own]).long()
        found.append(EqualSequences(query, key, count, num_queries, num_keys, places))
        query, key, row = query + count * num_queries, key + count * num_keys, row + count
    return found


def attend_in_sequences(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    prefix: tuple[torch.Tensor, torch.Tensor] | None,
    groups: Sequence[EqualSequences],
    mask: Mask,
    scaling: float,
) -> torch.Tensor:
    """Attention output [1, tokens, heads, head_dim]; each sequence attends to [prefix | itself].

    The groups say which positions of `prefix` a sequence attends to. `query` is
    [1, heads, tokens, head_dim], `key` and `value` are [1, kv_heads, tokens, head_dim], `prefix` is
    two tensors [kv_heads, length, head_dim] of any dtype. Tokens of no group have output 0.
    Gradients of the prefix are summed over the sequences in fp32.
    """
    keys, values = (None, None) if prefix is None else prefix
    output: torch.Tensor = _SequenceAttention.apply(  # type: ignore[no-untyped-call]
        query, key, value, keys, values, _Layout(groups, mask, scaling)
    )
    return output


class _Layout(NamedTuple):
    groups: Sequence[EqualSequences]
    mask: Mask
    scaling: float

    def weights(
        self, group: EqualSequences, queries: torch.Tensor, keys: torch.Tensor
    ) -> torch.Tensor:
        """Attention weights [batch, shared heads × queries, columns] in the queries' dtype."""
        columns = keys.shape[1]
        mask = self.mask(group.queries, columns)
        if mask is not None:
            # query heads that share a key are rows of one product
            mask = mask.repeat(queries.shape[1] // group.queries, 1)
        nothing = queries.new_zeros(()) if mask is None else mask
        scores = torch.baddbmm(
            nothing.expand(len(queries), queries.shape[1], columns),
            queries,
            keys.transpose(1, 2),
            beta=0 if mask is None else 1,
            alpha=self.scaling,
        )
        return torch.softmax(scores, dim=-1)


class _SequenceAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        prefix_keys: torch.Tensor | None,
        prefix_values: torch.Tensor | None,
        layout: _Layout,
    ) -> torch.Tensor:
        kv_heads, dtype = key.shape[1], query.dtype
        output = query.new_zeros(1, query.shape[2], query.shape[1], query.shape[3])
        saved: list[torch.Tensor] = []
        for group in layout.groups:
            queries = _queries(query, group, kv_heads)
            keys = _columns(key, prefix_keys, group)
            values = _columns(value, prefix_values, group)
            weights = layout.weights(group, queries, keys)
            _put(output, torch.bmm(weights, values), group, kv_heads)
            kept = weights if keys.shape[1] <= _KEPT_COLUMNS else weights.new_empty(0)
            saved += [queries, keys, values, kept]
        ctx.save_for_backward(*saved)
        ctx.layout, ctx.shapes = layout, (query.shape, key.shape)
        ctx.prefix = None if prefix_keys is None else (prefix_keys.shape, prefix_keys.dtype)
        ctx.dtype = dtype
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        slopes = gradients[0].transpose(1, 2)
        query_shape, key_shape = ctx.shapes
        kv_heads = key_shape[1]
        of_query = slopes.new_zeros(1, query_shape[2], query_shape[1], query_shape[3])
        of_keys, of_values = (
            slopes.new_zeros(1, key_shape[2], kv_heads, key_shape[3]) for _ in range(2)
        )
        into_tokens = any(ctx.needs_input_grad[:3])
        shape, dtype = ctx.prefix or ((kv_heads, 0, key_shape[3]), ctx.dtype)
        of_prefix = [slopes.new_zeros(shape, dtype=torch.float32) for _ in range(2)]
        # read once: with gradient checkpointing a second reading is an error
        saved = ctx.saved_tensors
        for index, group in enumerate(ctx.layout.groups):
            queries, keys, values, weights = saved[4 * index : 4 * index + 4]
            if not weights.numel():
                weights = ctx.layout.weights(group, queries, keys)
            slope = _queries(slopes, group, kv_heads)
            value_slopes = torch.bmm(weights.transpose(1, 2), slope)
            score_slopes = torch.ops.aten._softmax_backward_data(
                torch.bmm(slope, values.transpose(1, 2)), weights, -1, weights.dtype
            ).mul_(ctx.layout.scaling)
            key_slopes = torch.bmm(score_slopes.transpose(1, 2), queries)
            if into_tokens:
                _put(of_query, torch.bmm(score_slopes, keys), group, kv_heads)
            for slopes_here, of_tokens, total in (
                (key_slopes, of_keys, of_prefix[0]),
                (value_slopes, of_values, of_prefix[1]),
            ):
                by_row = slopes_here.view(kv_heads, group.rows, -1, key_shape[3])
                length = by_row.shape[2] - group.keys
                _add_to_prefix(total, by_row[:, :, :length], group)
                if into_tokens:
                    _put_columns(of_tokens, by_row[:, :, length:], group)
        tokens = [
            part.transpose(1, 2) if into_tokens else None for part in (of_query, of_keys, of_values)
        ]
        prefix = [None if ctx.prefix is None else part.to(dtype) for part in of_prefix]
        return (*tokens, *prefix, None)


def _queries(query: torch.Tensor, group: EqualSequences, kv_heads: int) -> torch.Tensor:
    """[kv_heads × rows, shared heads × queries, head_dim] of a group, copied."""
    _, heads, _, head_dim = query.shape
    end = group.first_query + group.rows * group.queries
    shared = heads // kv_heads
    found = query[0, :, group.first_query : end]
    found = found.view(kv_heads, shared, group.rows, group.queries, head_dim)
    return found.transpose(1, 2).reshape(kv_heads * group.rows, shared * group.queries, head_dim)


def _columns(
    tokens: torch.Tensor, prefix: torch.Tensor | None, group: EqualSequences
) -> torch.Tensor:
    """[kv_heads × rows, length + keys, head_dim]: the prefix before each sequence's tokens."""
    _, kv_heads, _, head_dim = tokens.shape
    before = None
    if prefix is not None:
        before = prefix[:, None] if group.places is None else prefix[:, group.places]
    length = 0 if before is None else before.shape[2]
    made = tokens.new_empty(kv_heads, group.rows, length + group.keys, head_dim)
    if before is not None:
        made[:, :, :length] = before
    end = group.first_key + group.rows * group.keys
    found = tokens[0, :, group.first_key : end]
    made[:, :, length:] = found.view(kv_heads, group.rows, group.keys, head_dim)
    return made.flatten(0, 1)


def _add_to_prefix(total: torch.Tensor, slopes: torch.Tensor, group: EqualSequences) -> None:
    """Add the gradients [kv_heads, rows, length, head_dim] of the rows' prefixes to `total`."""
    if group.places is None:
        total += slopes.sum(dim=1, dtype=torch.float32)
    else:
        total.index_add_(1, group.places.flatten(), slopes.flatten(1, 2).float())


def _put(output: torch.Tensor, made: torch.Tensor, group: EqualSequences, kv_heads: int) -> None:
    """Write what `_queries` shapes to its place in [1, tokens, heads, head_dim]."""
    end = group.first_query + group.rows * group.queries
    by_head = made.view(kv_heads, group.rows, -1, group.queries, made.shape[-1])
    by_token = by_head.permute(1, 3, 0, 2, 4)
    output[0, group.first_query : end].view(by_token.shape).copy_(by_token)


def _put_columns(output: torch.Tensor, made: torch.Tensor, group: EqualSequences) -> None:
    """Write [kv_heads, rows, keys, head_dim] to their places in [1, tokens, kv_heads, …]."""
    end = group.first_key + group.rows * group.keys
    by_token = made.permute(1, 2, 0, 3)
    output[0, group.first_key : end].view(by_token.shape).copy_(by_token)
