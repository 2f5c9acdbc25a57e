"""The Kullback-Leibler divergence of next-token distributions, a few rows at a time.

A teacher's distribution is given by its most probable tokens and by the mass of all the rest. The
rest is one outcome, so this is a lower bound of the divergence over the whole vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch

from app.training.cross_entropy import rows_at_once


def summed_divergence(
    logits: torch.Tensor,
    token_ids: torch.Tensor,
    chances: torch.Tensor,
    *,
    divisor: float = 1.0,
) -> torch.Tensor:
    """KL(teacher ‖ student) in nats, summed over rows and divided by `divisor`; fp32.

    `logits` [rows, vocabulary] are the student's. `token_ids` [rows, k] are the teacher's most
    probable tokens, without repeats and fewer than the vocabulary. `chances` [rows, k + 1] are
    their probabilities, then that of all other tokens together. A row of zeros does not count.
    The gradient is made in the forward pass, in the logits' dtype.
    """
    loss: torch.Tensor = _SummedDivergence.apply(  # type: ignore[no-untyped-call]
        logits, token_ids, chances, divisor
    )
    return loss


class _SummedDivergence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logits: torch.Tensor,
        token_ids: torch.Tensor,
        chances: torch.Tensor,
        divisor: float,
    ) -> torch.Tensor:
        total = logits.new_zeros((), dtype=torch.float32)
        gradient = torch.empty_like(logits) if ctx.needs_input_grad[0] else None
        step = rows_at_once(logits)
        for start in range(0, len(logits), step):
            rows = slice(start, start + step)
            part, ids = logits[rows].float(), token_ids[rows].long()
            known, rest = chances[rows, :-1].float(), chances[rows, -1:].float()
            scale = part.logsumexp(dim=-1, keepdim=True)
            others = part.scatter(1, ids, float("-inf"))
            others_scale = others.logsumexp(dim=-1, keepdim=True)
            total += _negentropy(known) - (known * (part.gather(1, ids) - scale)).sum()
            total += _negentropy(rest) - (rest * (others_scale - scale)).sum()
            if gradient is not None:
                mass = known.sum(dim=-1, keepdim=True) + rest
                made = (part - scale).exp_() * mass
                made -= rest * (others - others_scale).exp_()
                made.scatter_add_(1, ids, -known)
                gradient[rows] = made / divisor
        ctx.gradient = gradient
        return total / divisor

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        scale = gradients[0]
        made = ctx.gradient if bool(scale == 1) else ctx.gradient * scale.to(ctx.gradient.dtype)
        return made, None, None, None


def _negentropy(chances: torch.Tensor) -> torch.Tensor:
    """The sum of p log p."""
    return torch.xlogy(chances, chances).sum()
