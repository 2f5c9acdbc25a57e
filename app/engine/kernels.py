"""How decoding rows attend: equal computations, of which the fastest one is chosen at start.

On a CPU torch's fused attention is several times off the memory limit for one-token queries in
bfloat16. Plain products are nearer to it, but only over whole slots: a view of fewer columns is
copied before it is multiplied. Native code is nearest, where there is a compiler. The choice
changes the last bits, so it is shown in `/info`, is part of the system fingerprint and can be set.
Knows nothing about rows.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn.functional import scaled_dot_product_attention

from app.engine.decoding import DecodeKernel, DecodeStep, Part, load_decode_kernel
from app.engine.native import NoNativeCode

_log = logging.getLogger(__name__)

Compute = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, float], torch.Tensor]
"""(queries, keys, values, additive mask, scaling) → output, all [rows, heads, tokens, head_dim]."""


@dataclass(frozen=True)
class Attention:
    """A computation; `whole_slots` says that it wants all columns of its slots, masked.

    With `native` the rows that decode are computed by that, and `compute` is for what is left.
    """

    name: str
    compute: Compute
    whole_slots: bool = False
    native: DecodeKernel | None = None


def _fused(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor,
    scaling: float,
) -> torch.Tensor:
    """torch's own kernel for the device."""
    return scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scaling)


def _products(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor,
    scaling: float,
) -> torch.Tensor:
    """Two products around a softmax, which is in fp32 inside whatever its dtype."""
    scores = torch.add(mask, torch.matmul(query, key.transpose(-1, -2)), alpha=scaling)
    return torch.matmul(torch.softmax(scores, dim=-1), value)


def attend_with_weight(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor,
    scaling: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention to a part of what is attended to: its output, and the part's weight.

    Shapes as `Compute`; the weight is the logarithm of the sum of exponentiated scores, fp32,
    [rows, heads, tokens]. `merge` makes one attention of two parts.
    """
    scores = torch.add(mask, torch.matmul(query, key.transpose(-1, -2)), alpha=scaling)
    shares = torch.softmax(scores, dim=-1)
    # the largest share is the exponential of the largest score less the weight
    weight = scores.amax(dim=-1).float() - shares.amax(dim=-1).float().log()
    return torch.matmul(shares, value), weight


def merge(
    output: torch.Tensor, weight: torch.Tensor, other: torch.Tensor, other_weight: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Output and weight of two parts under one softmax; [..., head_dim] and [...], fp32."""
    share = torch.sigmoid(other_weight - weight)[..., None]
    return torch.lerp(output, other, share), torch.logaddexp(weight, other_weight)


FUSED = Attention("sdpa", _fused)
PRODUCTS = Attention("matmul", _products, whole_slots=True)
NAMES = ("sdpa", "matmul", "native")

_CLEARLY = 0.7
"""The share of another's time below which a computation is chosen instead, so that replicas seldom
choose differently."""

_ROWS, _COLUMNS, _CAPACITY = 16, 112, 128
"""What a choice is made on: rows in slots of `_CAPACITY` columns, `_COLUMNS` of them in use."""


def choose_attention(
    setting: str, kv_heads: int, head_dim: int, device: torch.device, dtype: torch.dtype
) -> Attention:
    """The attention for decoding rows: one of `NAMES`, or for `auto` what is fastest here.

    Where there is no native code, the log says why, and another one is taken.
    """
    if device.type != "cpu":
        return PRODUCTS if setting == "matmul" else FUSED
    if setting in ("sdpa", "matmul"):
        return FUSED if setting == "sdpa" else PRODUCTS
    native: Attention | None = None
    try:
        kernel = load_decode_kernel(head_dim, dtype)
        native = Attention("native", _fused, native=kernel)
    except NoNativeCode as error:
        _log.warning("decode attention: no native code, torch's is used: %s", error)
    if native is not None and setting == "native":
        return native
    chosen = FUSED
    times = _Trial(kv_heads, head_dim, dtype)
    for other in (PRODUCTS, native):
        if other is not None and times.seconds(other) < _CLEARLY * times.seconds(chosen):
            chosen = other
    return chosen


class _Trial:
    """Times attentions on one small batch of zeros."""

    def __init__(self, kv_heads: int, head_dim: int, dtype: torch.dtype) -> None:
        size = (_ROWS, kv_heads, _CAPACITY, head_dim)
        self._keys, self._values = (torch.zeros(size, dtype=dtype) for _ in range(2))
        self._query = torch.zeros(_ROWS, kv_heads, 1, head_dim, dtype=dtype)
        self._mask = torch.zeros(_ROWS, 1, 1, _CAPACITY, dtype=dtype)

    @torch.inference_mode()
    def seconds(self, attention: Attention) -> float:
        """The shortest of several runs."""
        run = self._step(attention.native) if attention.native else self._whole(attention)
        best = float("inf")
        for _ in range(8):
            started = time.perf_counter()
            run()
            best = min(best, time.perf_counter() - started)
        return best

    def _whole(self, attention: Attention) -> Callable[[], object]:
        columns = _CAPACITY if attention.whole_slots else _COLUMNS
        keys, values = self._keys[:, :, :columns], self._values[:, :, :columns]
        return lambda: attention.compute(self._query, keys, values, self._mask[..., :columns], 1.0)

    def _step(self, kernel: DecodeKernel) -> Callable[[], object]:
        slots = zip(self._keys, self._values, strict=True)
        parts = [
            [Part(keys.data_ptr(), values.data_ptr(), 0, keys.stride(0), _COLUMNS)]
            for keys, values in slots
        ]
        step = DecodeStep(kernel, self._keys.shape[1], parts)
        queries = self._query[:, :, 0]
        output = torch.empty_like(queries)
        return lambda: step.attend(0, queries, None, output, 1.0)
