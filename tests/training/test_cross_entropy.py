"""Cross entropy a few rows at a time: torch's values and gradients."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy

from app.training.cross_entropy import summed_cross_entropy

VOCABULARY = 40_000
"""So large that a CPU takes the rows in several parts."""


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_values_and_gradients_are_torchs(smoothing: float, scale: float) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = (8 * torch.randn(70, VOCABULARY, generator=generator)).requires_grad_()
    labels = torch.randint(VOCABULARY, (70,), generator=generator)
    labels[[3, 69]] = -100
    got = summed_cross_entropy(logits, labels, divisor=7, label_smoothing=smoothing)
    exact = logits.double()
    expected = cross_entropy(exact, labels, reduction="sum", label_smoothing=smoothing) / 7
    assert got.item() == pytest.approx(expected.item(), rel=1e-5)
    slopes = [torch.autograd.grad(loss * scale, logits)[0] for loss in (got, expected)]
    assert float((slopes[0] - slopes[1]).abs().max()) <= 1e-5 * float(slopes[1].abs().max())


def test_a_token_without_any_chance_has_its_whole_loss() -> None:
    logits = torch.tensor([[500.0, 0.0, 1.0]])
    assert summed_cross_entropy(logits, torch.tensor([1])).item() == pytest.approx(500.0)


def test_the_loss_of_bfloat16_logits_is_summed_in_fp32() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(300, 50, generator=generator).bfloat16()
    labels = torch.randint(50, (300,), generator=generator)
    got = summed_cross_entropy(logits, labels)
    assert got.dtype == torch.float32
    expected = cross_entropy(logits.double(), labels, reduction="sum")
    assert got.item() == pytest.approx(expected.item(), rel=1e-5)
