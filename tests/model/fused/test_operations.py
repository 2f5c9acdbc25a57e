"""GELU and cross entropy in native code: torch's values and slopes, row by row."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy, gelu

from app.model.fused.operations import FusedOperations, load_fused_operations
from app.model.native import NoNativeCode

HALF_A_UNIT = 2.0**-8
"""Largest relative difference that rounding to bfloat16 explains."""


@pytest.fixture(scope="module")
def fused() -> FusedOperations:
    try:
        return load_fused_operations()
    except NoNativeCode as error:
        pytest.skip(f"torch computes here: {error}")


def numbers(*shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(shape[-1])
    return (4 * torch.randn(shape, generator=generator)).bfloat16()


@pytest.mark.parametrize("approximate", ["none", "tanh"])
@pytest.mark.parametrize("size", [1, 15, 16, 17, 5000])
def test_gelu_and_its_slope_are_torchs_rounded(
    fused: FusedOperations, approximate: str, size: int
) -> None:
    x = numbers(size)
    exact = x.double().requires_grad_()
    expected = gelu(exact, approximate=approximate)
    [slope] = torch.autograd.grad(expected.sum(), exact)
    for found, wanted in zip(fused.gelu(x, approximate), (expected, slope), strict=True):
        assert found.dtype == torch.bfloat16
        difference = (found.double() - wanted.detach()).abs()
        assert bool((difference <= HALF_A_UNIT * wanted.detach().abs() + 1e-6).all())


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu_of_large_numbers_is_finite_and_what_is_not_a_number_stays_alone(
    fused: FusedOperations, approximate: str
) -> None:
    x = torch.tensor([1e30, -1e30, 300.0, -300.0, float("nan"), 2.0, 0.0]).bfloat16()
    y, slope = fused.gelu(x, approximate)
    assert y.isnan().tolist() == slope.isnan().tolist() == [False] * 4 + [True] + [False] * 2
    assert torch.allclose(y[:4], torch.tensor([1e30, 0.0, 300.0, 0.0]).bfloat16(), atol=1e-6)
    assert torch.allclose(slope[:4], torch.tensor([1.0, 0.0, 1.0, 0.0]).bfloat16(), atol=1e-6)


@pytest.mark.parametrize("vocabulary", [1, 16, 50, 5001])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_losses_and_slopes_are_torchs(
    fused: FusedOperations, vocabulary: int, smoothing: float
) -> None:
    logits, rows = numbers(12, vocabulary), torch.arange(12)
    labels = (7 * rows) % vocabulary
    weights = 1 / (1 + rows)
    exact = logits.double().requires_grad_()
    expected = weights * cross_entropy(exact, labels, reduction="none", label_smoothing=smoothing)
    [wanted] = torch.autograd.grad(expected.sum(), exact)
    share = torch.full((12,), smoothing)
    losses, slopes = fused.cross_entropy(logits, labels, weights, share, with_slopes=True)
    assert losses.dtype == torch.float32
    assert torch.allclose(losses.double(), expected.detach(), rtol=1e-5, atol=1e-5)
    assert slopes is not None
    difference = (slopes.double() - wanted).abs()
    assert bool((difference <= HALF_A_UNIT * wanted.abs() + 1e-6).all())
    without, none = fused.cross_entropy(logits, labels, weights, share, with_slopes=False)
    assert none is None
    assert torch.equal(without, losses)


def test_a_row_of_weight_0_does_not_count_and_a_row_that_is_not_a_number_stays_alone(
    fused: FusedOperations,
) -> None:
    logits, labels, weights = numbers(5, 40), torch.tensor([3, -100, 5, 39, 0]), torch.ones(5)
    weights[1] = 0
    losses, slopes = fused.cross_entropy(logits, labels, weights, None, with_slopes=True)
    assert slopes is not None
    assert losses[1] == 0
    assert not slopes[1].any()
    poisoned = logits.clone()
    poisoned[2, 7] = float("nan")
    poisoned[3, 20] = float("inf")
    found, made = fused.cross_entropy(poisoned, labels, weights, None, with_slopes=True)
    assert made is not None
    assert found.isfinite().tolist() == [True, True, False, False, True]
    assert torch.equal(found[[0, 1, 4]], losses[[0, 1, 4]])
    assert torch.equal(made[[0, 1, 4]], slopes[[0, 1, 4]])


@pytest.mark.parametrize("label", [-1, 40])
def test_a_label_that_is_no_token_is_an_error(fused: FusedOperations, label: int) -> None:
    with pytest.raises(IndexError, match="one of the 40 tokens"):
        fused.cross_entropy(
            numbers(2, 40), torch.tensor([0, label]), torch.ones(2), None, with_slopes=True
        )


def test_a_row_does_not_depend_on_the_rows_beside_it(fused: FusedOperations) -> None:
    logits, labels, weights = numbers(9, 777), torch.arange(9), torch.ones(9)
    losses, _ = fused.cross_entropy(logits, labels, weights, None, with_slopes=False)
    for row in range(9):
        one = slice(row, row + 1)
        alone, _ = fused.cross_entropy(
            logits[one], labels[one], weights[one], None, with_slopes=False
        )
        assert torch.equal(alone, losses[one])


def test_without_a_compiler_there_is_no_such_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NoNativeCode, match="no C compiler"):
        load_fused_operations(tmp_path / "libraries")
