"""Ways to compute attention, all with the same result; the fastest one is chosen at start.

On a CPU torch's fused attention is several times off the memory limit for one-token queries in
bfloat16. Plain products are nearer to it, but only over whole slots: a view of fewer columns is
copied before it is multiplied. Native code is nearest, where there is a compiler. The choice
changes the last bits, so it is shown in `/info`, is part of the system fingerprint and can be set.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from app.engine.attention.native_backend import AttentionKernel, load_attention_kernel
from app.errors import InvalidRequest
from app.model.native import NoNativeCode

_log = logging.getLogger(__name__)

Compute = Callable[[Tensor, Tensor, Tensor, Tensor, float], Tensor]
"""(queries, keys, values, additive mask, scaling) → output, all [rows, heads, tokens, head_dim]."""


@dataclass(frozen=True)
class Attention:
    """A computation; `whole_slots` says that it wants all columns of its slots, masked.

    With `native` all tokens of a step are computed by that; else prompts by torch's own kernel.
    """

    name: str
    compute: Compute
    whole_slots: bool = False
    native: AttentionKernel | None = None


def _fused(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float) -> Tensor:
    """torch's own kernel for the device."""
    return scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scaling)


def _products(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float) -> Tensor:
    """Two products around a softmax, which is in fp32 inside whatever its dtype."""
    scores = torch.add(mask, torch.matmul(query, key.transpose(-1, -2)), alpha=scaling)
    return torch.matmul(torch.softmax(scores, dim=-1), value)


def attend_with_weight(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float
) -> tuple[Tensor, Tensor]:
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
    output: Tensor, weight: Tensor, other: Tensor, other_weight: Tensor
) -> tuple[Tensor, Tensor]:
    """Output and weight of two parts under one softmax; [..., head_dim] and [...], fp32."""
    share = torch.sigmoid(other_weight - weight)[..., None]
    return torch.lerp(output, other, share), torch.logaddexp(weight, other_weight)


FUSED = Attention("sdpa", _fused)
PRODUCTS = Attention("matmul", _products, whole_slots=True)
NAMES = ("sdpa", "matmul", "native")

_CLEARLY = 0.7
"""The share of another's time below which a computation is chosen instead, so that replicas seldom
choose differently."""

_TRIAL_S = 0.1
_ROWS, _COLUMNS, _CAPACITY = 16, 112, 128
"""How long each is tried, and on what: rows in slots of `_CAPACITY` columns, `_COLUMNS` of them in
use."""


def choose_attention(
    setting: str, kv_heads: int, head_dim: int, device: torch.device, dtype: torch.dtype
) -> Attention:
    """The attention of a step: one of `NAMES`; `auto` is native code where there is any.

    That is not timed: beside other programs a trial of microseconds says nothing, and replicas
    should choose alike. Without it the log says why, and the faster of torch's two is taken. Raises
    InvalidRequest if `native` is asked for on a CPU and there is none.
    """
    if device.type != "cpu":
        return PRODUCTS if setting == "matmul" else FUSED
    if setting in ("sdpa", "matmul"):
        return FUSED if setting == "sdpa" else PRODUCTS
    try:
        return Attention("native", _fused, native=load_attention_kernel(head_dim, dtype))
    except NoNativeCode as error:
        if setting == "native":
            raise InvalidRequest(
                "decode_attention (POLYPREFIX_DECODE_ATTENTION) is `native`, and there is no "
                f"native code: {error}; install a C compiler (cc or gcc), or set it to `auto`, "
                "which takes torch's attention then"
            ) from error
        _log.warning("attention: no native code, torch's is used: %s", error)
    trial = Trial(kv_heads, head_dim, dtype)
    wins = trial.seconds(PRODUCTS) < _CLEARLY * trial.seconds(FUSED)
    return PRODUCTS if wins else FUSED


class Trial:
    """Times attentions on one small batch of zeros."""

    def __init__(self, kv_heads: int, head_dim: int, dtype: torch.dtype) -> None:
        size = (_ROWS, kv_heads, _CAPACITY, head_dim)
        self._keys, self._values = (torch.zeros(size, dtype=dtype) for _ in range(2))
        self._query = torch.zeros(_ROWS, kv_heads, 1, head_dim, dtype=dtype)
        self._mask = torch.zeros(_ROWS, 1, 1, _CAPACITY, dtype=dtype)

    @torch.inference_mode()
    def seconds(self, attention: Attention) -> float:
        """The shortest of many runs: beside other programs most take several times as long."""
        columns = _CAPACITY if attention.whole_slots else _COLUMNS
        seen = self._keys[:, :, :columns], self._values[:, :, :columns], self._mask[..., :columns]
        best, end = float("inf"), time.perf_counter() + _TRIAL_S
        while (started := time.perf_counter()) < end:
            attention.compute(self._query, *seen, 1.0)
            best = min(best, time.perf_counter() - started)
        return best
