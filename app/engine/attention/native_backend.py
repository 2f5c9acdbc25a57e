"""Attention of a step in native code: one call a layer writes keys and values and attends.

A row's tokens attend to parts, columns of slots that are together in memory: what it shares with
others and its own. Only columns in use are read.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from app.model.native import NoNativeCode, default_folder, load_native

_SOURCE = Path(__file__).with_name("attention.c")
_TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
"""Largest difference from the plain computation that the start-up check allows."""

_GROUP = 8
"""Tokens of one row that are computed together: a block of columns is read once for all of them."""


class Part(NamedTuple):
    """Columns of one slot, as the C code's `struct part`: addresses are the first layer's in bytes,
    strides count elements."""

    keys: int
    values: int
    layer_stride: int
    head_stride: int
    columns: int


class Run(NamedTuple):
    """`num_tokens` of one row, one after the other, and the parts that they attend to.

    With new keys and values the first token's are the last column of the last part, and each
    further token has one column more.
    """

    parts: Sequence[Part]
    num_tokens: int = 1


class AttentionCall(ctypes.Structure):
    """The C code's `struct call`."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("groups", "kv_heads", "heads_per_kv", "layer")),
        *((name, ctypes.c_void_p) for name in ("group", "parts", "queries", "new_keys")),
        ("new_values", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("query_token", "query_head", "key_token")),
        *((name, ctypes.c_int64) for name in ("key_head", "value_token", "value_head")),
        ("output", ctypes.c_void_p),
        ("scaling", ctypes.c_float),
    )


class AttentionKernel:
    """The compiled attention for one dtype and head size."""

    def __init__(self, library: ctypes.CDLL, dtype: torch.dtype, head_dim: int) -> None:
        self.dtype, self.head_dim = dtype, head_dim
        self.run = library.polyprefix_attention
        """Computes what an `AttentionCall` describes; other Python threads run meanwhile."""
        self.run.argtypes, self.run.restype = (ctypes.POINTER(AttentionCall),), None


class NativeAttention:
    """The tokens of a step, run by run; `grows` says that they bring new keys and values.

    The memory that the parts name must stay where it is as long as this is used.
    """

    def __init__(
        self, kernel: AttentionKernel, kv_heads: int, runs: Sequence[Run], *, grows: bool
    ) -> None:
        groups: list[tuple[int, int, int, int, int]] = []
        parts: list[Part] = []
        token = 0
        for run in runs:
            begin, columns = len(parts), run.parts[-1].columns
            parts.extend(run.parts)
            for done in range(0, run.num_tokens, _GROUP):
                count = min(_GROUP, run.num_tokens - done)
                seen = columns + done if grows else columns
                groups.append((token, count, begin, len(parts), seen))
                token += count
        self._kernel = kernel
        # held because the call has their addresses
        self._groups = torch.tensor(groups)
        self._parts = torch.tensor(parts)
        self._kv_heads = kv_heads
        self._call = AttentionCall(
            groups=len(groups),
            kv_heads=kv_heads,
            group=self._groups.data_ptr(),
            parts=self._parts.data_ptr(),
        )

    def attend(
        self, layer: int, queries: Tensor, new: tuple[Tensor, Tensor] | None, scaling: float
    ) -> Tensor:
        """Output [tokens, heads, head_dim], dense, for `queries` of that shape.

        `new` are keys and values [tokens, kv_heads, head_dim] to be written, None across.
        """
        call = self._call
        if queries.stride(-1) != 1:
            queries = queries.contiguous()
        output = torch.empty(queries.shape, dtype=queries.dtype)
        call.layer, call.scaling = layer, scaling
        call.heads_per_kv = queries.shape[1] // self._kv_heads
        call.queries, call.output = queries.data_ptr(), output.data_ptr()
        call.query_token, call.query_head = queries.stride()[:2]
        if new is not None:
            keys, values = new
            if keys.stride(-1) != 1 or values.stride(-1) != 1:
                keys, values = keys.contiguous(), values.contiguous()
            call.new_keys, call.new_values = keys.data_ptr(), values.data_ptr()
            call.key_token, call.key_head = keys.stride()[:2]
            call.value_token, call.value_head = values.stride()[:2]
        self._kernel.run(call)
        return output


def load_attention_kernel(
    head_dim: int, dtype: torch.dtype, folder: Path | None = None
) -> AttentionKernel:
    """Compile, or take from `folder` (the user's cache if None), and check on a small mix.

    Raises NoNativeCode where there is no such kernel, or its results are not the plain ones.
    """
    if dtype not in _TOLERANCE:
        raise NoNativeCode(f"there is no native attention for {dtype}")
    constants = {"HEAD_DIM": head_dim, "BFLOAT16": 1 if dtype == torch.bfloat16 else 0}
    library = load_native(_SOURCE, constants, folder or default_folder())
    kernel = AttentionKernel(library, dtype, head_dim)
    difference = _difference_from_plain(kernel)
    if not difference <= _TOLERANCE[dtype]:
        raise NoNativeCode(f"native attention differs from the plain one by {difference:.1e}")
    return kernel


def _part_of(pool: Tensor, slot: int, columns: int) -> Part:
    keys, values = pool[0, :, slot], pool[1, :, slot]
    return Part(keys.data_ptr(), values.data_ptr(), keys.stride(0), keys.stride(1), columns)


@torch.inference_mode()
def _difference_from_plain(kernel: AttentionKernel) -> float:
    """Largest difference over rows of 1 to 300 columns in two parts, two query heads a K/V head.

    Some rows have one token, others are prompts in one group of tokens and in more than one.
    """
    kv_heads, before = 3, 21
    rows = ((1, 1), (17, 1), (130, 1), (300, 1), (125, _GROUP + 3), (1, 3))  # columns, tokens
    generator = torch.Generator().manual_seed(0)
    size = (2, 1, len(rows) + 1, kv_heads, 300 + _GROUP + 3, kernel.head_dim)
    pool = torch.randn(size, generator=generator).to(kernel.dtype)
    tokens = (sum(count for _, count in rows), kv_heads, kernel.head_dim)
    queries = torch.randn(tokens[0], 2 * kv_heads, tokens[2], generator=generator).to(kernel.dtype)
    new = torch.randn(2, *tokens, generator=generator).to(kernel.dtype)
    scaling = kernel.head_dim**-0.5
    shared = _part_of(pool, len(rows), before)
    runs = [
        Run((shared, _part_of(pool, row, columns)), count)
        for row, (columns, count) in enumerate(rows)
    ]
    output = NativeAttention(kernel, kv_heads, runs, grows=True).attend(
        0, queries, (new[0], new[1]), scaling
    )
    worst, first = 0.0, 0
    for row, (columns, count) in enumerate(rows):
        due = slice(first, first + count)
        first += count
        keys, values = (
            torch.cat(
                [half[0, -1, :, :before], half[0, row, :, : columns - 1], added.transpose(0, 1)], 1
            ).float()
            for half, added in zip(pool, new[:, due], strict=True)
        )
        visible = torch.ones(count, before + columns - 1 + count, dtype=torch.bool)
        plain = scaled_dot_product_attention(
            queries[due].transpose(0, 1).float(),
            keys.repeat_interleave(2, 0),
            values.repeat_interleave(2, 0),
            attn_mask=visible.tril(before + columns - 1),
            scale=scaling,
        ).transpose(0, 1)
        worst = max(worst, float((output[due].float() - plain).abs().nan_to_num(nan=9.9).max()))
    return worst
