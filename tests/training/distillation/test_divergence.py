"""The divergence and its gradient equal a naive computation."""

from __future__ import annotations

import math

import pytest
import torch

from app.evaluation.text_pairs import TokenPair
from app.model.dense import dense_logits
from app.model.frozen import FrozenModel
from app.prefix.prefix import KeyValues
from app.training.distillation.divergence import summed_divergence
from app.training.distillation.method import divergence_of
from app.training.distillation.teacher import TaughtPair
from app.training.objective import prefixed_rows
from tests.tiny import random_prefix

VOCABULARY = 97


def a_teacher(rows: int, top: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Log-probabilities of a whole vocabulary, the best tokens, and the chances with the rest."""
    logs = torch.randn(rows, VOCABULARY, dtype=torch.float64).mul(3).log_softmax(-1)
    known, ids = logs.exp().topk(top, dim=-1)
    return logs, ids.int(), torch.cat([known, 1 - known.sum(-1, keepdim=True)], -1).float()


def naive(logits: torch.Tensor, ids: torch.Tensor, chances: torch.Tensor) -> torch.Tensor:
    """The sum over outcomes of p (log p - log q), with all other tokens as one outcome."""
    student = logits.softmax(-1)
    known = student.gather(1, ids.long())
    outcomes = torch.cat([known, 1 - known.sum(-1, keepdim=True)], -1)
    return (chances * (chances.log() - outcomes.log())).sum()


@pytest.mark.parametrize("top", [1, 8, 60])
def test_the_gradient_is_that_of_a_naive_computation(top: int) -> None:
    torch.manual_seed(top)
    _, ids, chances = a_teacher(9, top)
    logits = torch.randn(9, VOCABULARY).mul(2).requires_grad_()
    exact = logits.detach().double().requires_grad_()
    loss = summed_divergence(logits, ids, chances, divisor=9)
    wanted = naive(exact, ids, chances.double()) / 9
    torch.autograd.backward(loss * 3)
    torch.autograd.backward(wanted * 3)
    assert logits.grad is not None
    assert exact.grad is not None
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-5)
    error = (logits.grad - exact.grad).norm() / exact.grad.norm()
    assert error < 1e-5


def test_the_divergence_from_oneself_is_zero_and_has_no_gradient() -> None:
    torch.manual_seed(0)
    logs, ids, chances = a_teacher(5, 16)
    logits = logs.float().requires_grad_()
    loss = summed_divergence(logits, ids, chances)
    torch.autograd.backward(loss)
    assert abs(loss.item()) < 1e-4
    assert logits.grad is not None
    assert logits.grad.abs().max() < 1e-5


def test_known_tokens_bound_the_whole_divergence_from_below() -> None:
    torch.manual_seed(1)
    logs, *_ = a_teacher(5, 8)
    student = torch.randn(5, VOCABULARY)
    whole = (logs.exp() * (logs - student.double().log_softmax(-1))).sum().item()
    found = []
    for top in (1, 4, 16, 64, VOCABULARY - 1):
        known, ids = logs.exp().topk(top, dim=-1)
        chances = torch.cat([known, 1 - known.sum(-1, keepdim=True)], -1).float()
        found.append(summed_divergence(student, ids, chances).item())
    assert found == sorted(found)
    assert found[-1] == pytest.approx(whole, rel=1e-4)


def test_a_student_that_gives_the_rest_no_chance_has_a_finite_gradient() -> None:
    """The other tokens' probability underflows in fp32, and log and quotient must not."""
    logits = torch.full((1, VOCABULARY), -200.0)
    logits[0, 0] = 200.0
    logits.requires_grad_()
    chances = torch.tensor([[0.5, 0.5]])
    loss = summed_divergence(logits, torch.tensor([[0]]), chances)
    torch.autograd.backward(loss)
    assert loss.item() == pytest.approx(0.5 * (400 - math.log(96)) - math.log(2), rel=1e-3)
    assert logits.grad is not None
    assert bool(torch.isfinite(logits.grad).all())
    assert logits.grad[0, 0] == pytest.approx(0.5)


def test_the_loss_behind_a_prefix_is_the_mean_over_the_answers_tokens(
    trainable: FrozenModel,
) -> None:
    """Rows of different lengths are sorted and padded; each keeps its own distributions."""
    torch.manual_seed(2)
    pairs, total = [], 0.0
    prefix = random_prefix(trainable, 3)
    modules = {"decoder": KeyValues(prefix.decoder.keys, prefix.decoder.values)}
    for prompt, target in (((5, 6, 7), (8, 9)), ((11,), (12, 13, 14)), ((21, 22), (23,))):
        logs = torch.randn(len(target), 320, dtype=torch.float64).log_softmax(-1)
        known, ids = logs.exp().topk(32, dim=-1)
        chances = torch.cat([known, 1 - known.sum(-1, keepdim=True)], -1).float()
        pairs.append(TaughtPair(prompt, target, ids.int(), chances))
        plain = TokenPair(prompt, target)
        seen = torch.tensor([plain.prompt_ids + plain.target_ids])
        logits = dense_logits(trainable, seen, prefix.decoder, position_offset=3)[0]
        kept = logits[len(prompt) - 1 : -1].double()
        total += naive(kept, ids, chances.double()).item()
    loss = divergence_of(trainable, prefixed_rows(trainable, modules, pairs))
    assert loss.count == 6
    assert loss.mean.item() == pytest.approx(total / 6, rel=1e-4)
