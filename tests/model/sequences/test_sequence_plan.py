"""Sequences end to end: attention without padding equals attention in a padded rectangle."""

from __future__ import annotations

import pytest
import torch

from app.model.sequences.sequence_plan import SequencePlan
from app.prefix.prefix import KeyValues

LENGTHS, SOURCES = (3, 3, 7, 5, 5), (4, 4, 4, 300, 2)
"""300 is long enough for attention weights that are computed again in the backward pass."""
HEADS, KV_HEADS, HEAD_DIM = 4, 2, 8


def tensors(queries: int, keys: int) -> list[torch.Tensor]:
    """Queries, keys, values and a prefix of length 3."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(1, HEADS, queries, HEAD_DIM)] + [(1, KV_HEADS, keys, HEAD_DIM)] * 2
    shapes += [(1, KV_HEADS, 3, HEAD_DIM)] * 2
    return [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]


@pytest.mark.parametrize("role", ["decoder", "encoder", "cross"])
@pytest.mark.parametrize("tail", [0, 6])
@pytest.mark.parametrize("with_prefix", [True, False])
def test_output_and_gradients_are_those_of_a_padded_rectangle(
    role: str, tail: int, with_prefix: bool
) -> None:
    queries = sum(SOURCES if role == "encoder" else LENGTHS)
    keys = sum(LENGTHS if role == "decoder" else SOURCES)
    made = tensors(queries + tail, keys + tail)
    results = []
    for padded in (False, True):
        modules = {role: KeyValues(made[3], made[4])} if with_prefix else {}
        plan = SequencePlan(modules, LENGTHS, SOURCES, padded=padded)
        output = plan.attend(role, 0, *made[:3], 0.3)[:, :queries]
        weights = torch.arange(output.numel()).view(output.shape).sin()
        inputs = made if with_prefix else made[:3]
        results.append((output, torch.autograd.grad((output * weights).sum(), inputs)))
    (output, got), (expected, slopes) = results
    assert output.shape == (1, queries, HEADS, HEAD_DIM)
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5)
    for mine, theirs in zip(got, slopes, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("role", ["decoder", "encoder", "cross"])
def test_each_sequence_attends_to_its_own_prefix_as_if_it_were_alone(role: str) -> None:
    queries = sum(SOURCES if role == "encoder" else LENGTHS)
    keys = sum(LENGTHS if role == "decoder" else SOURCES)
    made = tensors(queries, keys)
    spans = [range(2), range(1, 3), range(3), range(0), range(2)]
    results = []
    for padded in (False, True):
        modules = {role: KeyValues(made[3], made[4])}
        plan = SequencePlan(modules, LENGTHS, SOURCES, spans={role: spans}, padded=padded)
        output = plan.attend(role, 0, *made[:3], 0.3)
        weights = torch.arange(output.numel()).view(output.shape).sin()
        results.append((output, torch.autograd.grad((output * weights).sum(), made)))
    (output, got), (expected, slopes) = results
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5)
    for mine, theirs in zip(got, slopes, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)
    query, key = 0, 0
    rows = (SOURCES if role == "encoder" else LENGTHS, LENGTHS if role == "decoder" else SOURCES)
    for num_queries, num_keys, span in zip(*rows, spans, strict=True):
        own = KeyValues(made[3][:, :, list(span)], made[4][:, :, list(span)])
        alone = SequencePlan({role: own}, [num_queries], [num_keys]).attend(
            role,
            0,
            made[0][:, :, query : query + num_queries],
            *(part[:, :, key : key + num_keys] for part in made[1:3]),
            0.3,
        )
        here = output[:, query : query + num_queries]
        torch.testing.assert_close(here, alone, rtol=1e-4, atol=1e-5)
        query, key = query + num_queries, key + num_keys


def test_attention_weights_are_dropped_as_often_as_is_said() -> None:
    made = tensors(sum(LENGTHS), sum(LENGTHS))

    def attended(dropout: float) -> torch.Tensor:
        torch.manual_seed(0)
        plan = SequencePlan({}, LENGTHS, dropout=dropout)
        return plan.attend("decoder", 0, *made[:3], 0.3)[0, 0]

    # a sequence's first token attends to itself alone: its one weight is kept and grown, or dropped
    whole, dropped = attended(0.0), attended(0.5)
    kept = (dropped / whole)[:, 0]
    assert all(abs(share) < 1e-4 or abs(share - 2) < 1e-4 for share in kept.tolist())
    assert not torch.allclose(attended(0.5), attended(0.0))
