"""Cross entropy in fp32 over a large vocabulary, a few rows at a time."""

from __future__ import annotations

from typing import Any

import torch

_ROW_BYTES = {"cpu": 4 << 20, "cuda": 1 << 30}
"""How much of the logits is in fp32 at once; on a CPU it stays in the cache."""


def summed_cross_entropy(
    logits: torch.Tensor,
    labels: torch.Tensor,
    *,
    divisor: float = 1.0,
    label_smoothing: float = 0.0,
    ignored: int = -100,
) -> torch.Tensor:
    """The summed loss of `logits` [rows, vocabulary] on `labels` [rows], divided by `divisor`.

    Rows whose label is `ignored` do not count. The loss is fp32, whatever the logits' dtype. Of the
    usual target, the share `label_smoothing` is spread evenly over the vocabulary (Szegedy et al.
    2016), as torch does it. The gradient is made in the forward pass, in the logits' dtype.
    """
    loss: torch.Tensor = _SummedCrossEntropy.apply(  # type: ignore[no-untyped-call]
        logits, labels, divisor, label_smoothing, ignored
    )
    return loss


class _SummedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logits: torch.Tensor,
        labels: torch.Tensor,
        divisor: float,
        smoothing: float,
        ignored: int,
    ) -> torch.Tensor:
        vocabulary = logits.shape[1]
        total = logits.new_zeros((), dtype=torch.float32)
        gradient = torch.empty_like(logits) if ctx.needs_input_grad[0] else None
        step = max(1, _ROW_BYTES.get(logits.device.type, 1 << 30) // (4 * vocabulary))
        for start in range(0, len(labels), step):
            rows = slice(start, start + step)
            part, counts = logits[rows], labels[rows] != ignored
            label = labels[rows].where(counts, 0)[:, None]
            chances = torch.softmax(part, dim=-1, dtype=torch.float32)
            # the most likely token's chance is 1 / the sum of exponentials, and never vanishes
            top = part.amax(dim=-1).float()
            log_sum = top - chances.amax(dim=-1).log()
            target = part.gather(1, label)[:, 0].float()
            if smoothing:
                target = (1 - smoothing) * target + smoothing * part.mean(-1, dtype=torch.float32)
            total += torch.where(counts, log_sum - target, 0.0).sum()
            if gradient is not None:
                if smoothing:
                    chances -= smoothing / vocabulary
                chances.scatter_add_(1, label, chances.new_full(label.shape, smoothing - 1.0))
                torch.mul(chances, (counts / divisor)[:, None], out=chances)
                gradient[rows] = chances
        ctx.gradient = gradient
        return total / divisor

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        scale = gradients[0]
        made = ctx.gradient if bool(scale == 1) else ctx.gradient * scale.to(ctx.gradient.dtype)
        return made, None, None, None, None
