"""How decoding rows attend: two equal computations, of which the faster one is chosen at start.

On a CPU torch's fused attention is at the memory limit in fp32 and several times off it for
one-token queries in bfloat16, where plain products are nearer. The choice changes the last bits, so
it is shown in `/info`, is part of the system fingerprint and can be set. Knows nothing about rows.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch.nn.functional import scaled_dot_product_attention

Attention = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, float], torch.Tensor]
"""(queries, keys, values, additive mask, scaling) → output, all [rows, heads, tokens, head_dim]."""


def fused_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor,
    scaling: float,
) -> torch.Tensor:
    """torch's own kernel for the device."""
    return scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scaling)


def product_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor,
    scaling: float,
) -> torch.Tensor:
    """Two products around a softmax in fp32."""
    scores = torch.matmul(query * scaling, key.transpose(-1, -2)) + mask
    weights = torch.softmax(scores.float(), dim=-1).to(value.dtype)
    return torch.matmul(weights, value)


ATTENTIONS: dict[str, Attention] = {"sdpa": fused_attention, "matmul": product_attention}


@torch.inference_mode()
def choose_attention(
    setting: str, heads: int, head_dim: int, device: torch.device, dtype: torch.dtype
) -> str:
    """The name of the attention for decoding rows: `setting`, or for `auto` what is faster here."""
    if setting != "auto":
        return setting
    if device.type != "cpu":
        return "sdpa"
    size = (16, heads, 128, head_dim)
    key, value = torch.zeros(size, dtype=dtype), torch.zeros(size, dtype=dtype)
    query, mask = torch.zeros(16, heads, 1, head_dim, dtype=dtype), torch.zeros(16, 1, 1, 128)
    mask = mask.to(dtype)

    def seconds(attention: Attention) -> float:
        best = float("inf")
        for _ in range(8):
            started = time.perf_counter()
            attention(query, key, value, mask, 1.0)
            best = min(best, time.perf_counter() - started)
        return best

    # products must win clearly, so that replicas seldom choose differently
    faster = seconds(product_attention) < 0.7 * seconds(fused_attention)
    return "matmul" if faster else "sdpa"
