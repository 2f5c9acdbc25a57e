"""Cross entropy in fp32 over a large vocabulary, a few rows at a time."""

from __future__ import annotations

from typing import Any

import torch

from app.model.fused.operations import fused_operations

_ROW_BYTES = {"cpu": 4 << 20, "cuda": 1 << 30}
"""How much of the logits is in fp32 at once; on a CPU it stays in the cache."""


def rows_at_once(logits: torch.Tensor) -> int:
    """How many rows of `logits` [rows, vocabulary] are turned into fp32 at once."""
    return max(1, _ROW_BYTES.get(logits.device.type, 1 << 30) // (4 * logits.shape[1]))


def row_cross_entropy(
    logits: torch.Tensor,
    labels: torch.Tensor,
    weights: torch.Tensor,
    smoothing: torch.Tensor | None = None,
) -> torch.Tensor:
    """The loss of each row of `logits` [rows, vocabulary] on `labels` [rows], times its weight.

    `weights` and `smoothing` are fp32, [rows]; a row of weight 0 may have any label. The losses
    [rows] are fp32, whatever the logits' dtype. Of the usual target, the share `smoothing` is
    spread evenly over the vocabulary (Szegedy et al. 2016), as torch does it; None means 0. The
    gradient is made in the forward pass, in the logits' dtype; in bfloat16 on a CPU by native code,
    if there is any.
    """
    losses: torch.Tensor = _RowCrossEntropy.apply(  # type: ignore[no-untyped-call]
        logits, labels, weights, smoothing
    )
    return losses


class _RowCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logits: torch.Tensor,
        labels: torch.Tensor,
        weights: torch.Tensor,
        smoothing: torch.Tensor | None,
    ) -> torch.Tensor:
        native = logits.dtype == torch.bfloat16 and logits.device.type == "cpu"
        fused = fused_operations() if native else None
        compute = _in_parts if fused is None else fused.cross_entropy
        losses, ctx.gradient = compute(
            logits, labels, weights, smoothing, with_slopes=ctx.needs_input_grad[0]
        )
        return losses

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        scale, made = gradients[0], ctx.gradient
        if not bool((scale == 1).all()):
            made = made * scale.to(made.dtype)[:, None]
        return made, None, None, None


def _in_parts(
    logits: torch.Tensor,
    labels: torch.Tensor,
    weights: torch.Tensor,
    smoothing: torch.Tensor | None,
    *,
    with_slopes: bool,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The losses and, if asked for, the gradient of the logits."""
    vocabulary = logits.shape[1]
    losses = torch.zeros_like(weights)
    gradient = torch.empty_like(logits) if with_slopes else None
    step = rows_at_once(logits)
    for start in range(0, len(labels), step):
        rows = slice(start, start + step)
        part, weight = logits[rows], weights[rows]
        share = None if smoothing is None else smoothing[rows]
        label = labels[rows].where(weight != 0, 0)[:, None]
        chances = torch.softmax(part, dim=-1, dtype=torch.float32)
        # the most likely token's chance is 1 / the sum of exponentials, and never vanishes
        top = part.amax(dim=-1).float()
        log_sum = top - chances.amax(dim=-1).log()
        target = part.gather(1, label)[:, 0].float()
        if share is not None:
            target = (1 - share) * target + share * part.mean(-1, dtype=torch.float32)
        losses[rows] = torch.where(weight != 0, weight * (log_sum - target), 0.0)
        if gradient is not None:
            sure = chances.new_full(label.shape, -1.0)
            if share is not None:
                chances -= share[:, None] / vocabulary
                sure += share[:, None]
            chances.scatter_add_(1, label, sure)
            torch.mul(chances, weight[:, None], out=chances)
            gradient[rows] = chances
    return losses, gradient
