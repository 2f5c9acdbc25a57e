"""How decoding rows attend: two equal computations, of which the faster one is chosen at start.

On a CPU torch's fused attention is several times off the memory limit for one-token queries in
bfloat16. Plain products are near it, but only over whole slots: a view of fewer columns is copied
before it is multiplied. The choice changes the last bits, so it is shown in `/info`, is part of
the system fingerprint and can be set. Knows nothing about rows.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn.functional import scaled_dot_product_attention

Compute = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, float], torch.Tensor]
"""(queries, keys, values, additive mask, scaling) → output, all [rows, heads, tokens, head_dim]."""


@dataclass(frozen=True)
class Attention:
    """A computation; `whole_slots` says that it wants all columns of its slots, masked."""

    compute: Compute
    whole_slots: bool


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


FUSED = Attention(_fused, whole_slots=False)
ATTENTIONS: dict[str, Attention] = {"sdpa": FUSED, "matmul": Attention(_products, whole_slots=True)}

_ROWS, _COLUMNS, _CAPACITY = 16, 112, 128
"""What a choice is made on: rows in slots of `_CAPACITY` columns, `_COLUMNS` of them in use."""


@torch.inference_mode()
def choose_attention(
    setting: str, heads: int, head_dim: int, device: torch.device, dtype: torch.dtype
) -> str:
    """The name of the attention for decoding rows: `setting`, or for `auto` what is faster here."""
    if setting != "auto":
        return setting
    if device.type != "cpu":
        return "sdpa"
    size = (_ROWS, heads, _CAPACITY, head_dim)
    keys, values = torch.zeros(size, dtype=dtype), torch.zeros(size, dtype=dtype)
    query = torch.zeros(_ROWS, heads, 1, head_dim, dtype=dtype)
    mask = torch.zeros(_ROWS, 1, 1, _CAPACITY, dtype=dtype)

    def seconds(attention: Attention) -> float:
        columns = _CAPACITY if attention.whole_slots else _COLUMNS
        seen = (keys[:, :, :columns], values[:, :, :columns], mask[..., :columns])
        best = float("inf")
        for _ in range(8):
            started = time.perf_counter()
            attention.compute(query, *seen, 1.0)
            best = min(best, time.perf_counter() - started)
        return best

    # products must win clearly, so that replicas seldom choose differently
    faster = seconds(ATTENTIONS["matmul"]) < 0.7 * seconds(FUSED)
    return "matmul" if faster else "sdpa"
