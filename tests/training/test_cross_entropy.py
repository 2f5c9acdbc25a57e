"""Cross entropy a few rows at a time: torch's values and gradients, row by row."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy

from app.training.cross_entropy import row_cross_entropy

VOCABULARY = 40_000
"""So large that a CPU takes the rows in several parts."""
ROWS = 70


def torchs(
    logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor, smoothing: torch.Tensor
) -> torch.Tensor:
    """Each row's loss by torch in double precision, times its weight; 0 where that is 0."""
    losses = [
        weight * cross_entropy(row[None], label[None], label_smoothing=float(share))
        if weight
        else row.new_zeros(())
        for row, label, weight, share in zip(
            logits.double(), labels, weights, smoothing, strict=True
        )
    ]
    return torch.stack(losses)


@pytest.mark.parametrize("smoothed", [False, True])
@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_values_and_gradients_of_each_row_are_torchs(smoothed: bool, scale: float) -> None:
    """Weights and smoothing differ from row to row, as those of several runs in one pass do."""
    generator = torch.Generator().manual_seed(0)
    logits = (8 * torch.randn(ROWS, VOCABULARY, generator=generator)).requires_grad_()
    labels = torch.randint(VOCABULARY, (ROWS,), generator=generator)
    weights = torch.rand(ROWS, generator=generator)
    weights[[3, 69]] = 0.0
    labels[[3, 69]] = -100
    smoothing = torch.rand(ROWS, generator=generator) * 0.3 * smoothed
    got = row_cross_entropy(logits, labels, weights, smoothing if smoothed else None)
    assert got.dtype == torch.float32
    expected = torchs(logits, labels, weights, smoothing)
    torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-6)
    slopes = [torch.autograd.grad(loss.sum() * scale, logits)[0] for loss in (got, expected)]
    assert float((slopes[0] - slopes[1]).abs().max()) <= 1e-5 * float(slopes[1].abs().max())


def test_the_gradient_of_a_row_is_scaled_by_what_becomes_of_its_loss() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 20, generator=generator).requires_grad_()
    labels, weights = torch.tensor([1, 2, 3]), torch.ones(3)
    factors = torch.tensor([1.0, 0.0, -2.0])
    [alone] = torch.autograd.grad(row_cross_entropy(logits, labels, weights).sum(), logits)
    [scaled] = torch.autograd.grad(row_cross_entropy(logits, labels, weights) @ factors, logits)
    torch.testing.assert_close(scaled, alone * factors[:, None])


def test_a_token_without_any_chance_has_its_whole_loss() -> None:
    logits = torch.tensor([[500.0, 0.0, 1.0]])
    loss = row_cross_entropy(logits, torch.tensor([1]), torch.ones(1))
    assert loss.item() == pytest.approx(500.0)


def test_the_losses_of_bfloat16_logits_are_fp32() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(300, 50, generator=generator).bfloat16()
    labels, ones = torch.randint(50, (300,), generator=generator), torch.ones(300)
    got = row_cross_entropy(logits, labels, ones)
    assert got.dtype == torch.float32
    expected = cross_entropy(logits.double(), labels, reduction="none")
    torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-6)
