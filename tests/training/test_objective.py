"""Gradients into the prefix equal an independent implementation's, packed, padded or alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy

from app.evaluation.text_pairs import TokenPair
from app.model.frozen import FrozenModel
from app.model.load import load_model
from app.model.sequences.packed_tokens import packed_logits
from app.prefix.prefix import KeyValues, Prefix, PrefixMetadata
from app.training.batches import collate
from app.training.objective import loss_of
from tests.equivalence.bart_reference import carrying, plain_bart
from tests.equivalence.reference import cache_of, plain_model
from tests.tiny import random_prefix

LENGTH = 4
PAIRS = [
    TokenPair((5, 6, 7), (8, 9, 2)),
    TokenPair(tuple(range(10, 31)), tuple(range(40, 49))),
    TokenPair((11, 12, 13), (14, 15, 2)),
    TokenPair((21,), (22, 2)),
]
Leaves = Mapping[str, KeyValues]


def leaves(prefix: Prefix) -> dict[str, KeyValues]:
    """The prefix's tensors as parameters."""
    return {
        role: KeyValues(part.keys.clone().requires_grad_(), part.values.clone().requires_grad_())
        for role, part in prefix.modules.items()
    }


def gradients(loss: torch.Tensor, modules: Leaves) -> list[torch.Tensor]:
    tensors = [tensor for part in modules.values() for tensor in (part.keys, part.values)]
    return list(torch.autograd.grad(loss, tensors))


def assert_close(got: Sequence[torch.Tensor], expected: Sequence[torch.Tensor], by: float) -> None:
    for mine, theirs in zip(got, expected, strict=True):
        assert float(theirs.norm()) > 0
        assert float((mine - theirs).norm()) <= by * float(theirs.norm())


def plain_loss(folder: Path, modules: Leaves) -> torch.Tensor:
    """The authors' loss by transformers alone: each pair alone, the prefix in a DynamicCache."""
    model = plain_model(folder)
    total = torch.zeros(())
    for pair in PAIRS:
        ids = torch.tensor([[*pair.prompt_ids, *pair.target_ids]])
        cache = cache_of(model, [Prefix(modules, PrefixMetadata(position_offset=LENGTH))], 1)
        places = torch.arange(ids.shape[1])[None] + LENGTH
        logits = model(ids, position_ids=places, past_key_values=cache).logits[0]
        first = len(pair.prompt_ids)
        total = total + cross_entropy(logits[first - 1 : -1], ids[0, first:], reduction="sum")
    return total / len(PAIRS)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("packed", [True, False])
def test_loss_and_gradients_of_a_decoder_are_those_of_plain_transformers(
    model_folders: dict[str, Path], family: str, packed: bool
) -> None:
    folder = model_folders[family]
    model = load_model(str(folder), device="cpu", dtype="float32", packed=packed)
    modules = leaves(random_prefix(model, LENGTH))
    loss, expected = loss_of(model, modules, PAIRS).mean, plain_loss(folder, modules)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert_close(gradients(loss, modules), gradients(expected, modules), 1e-5)


def test_loss_and_gradients_of_three_prefixes_are_those_of_attention_written_out(
    tiny_bart: FrozenModel, tiny_bart_folder: Path
) -> None:
    prefix = random_prefix(tiny_bart, LENGTH, encoder=3, cross=2, position_offset=0)
    modules = leaves(prefix)
    model, total = plain_bart(tiny_bart_folder), torch.zeros(())
    for pair in PAIRS:
        target = torch.tensor(pair.target_ids)
        given = torch.tensor([(2, *pair.target_ids[:-1])])
        with carrying(model, [Prefix(modules, prefix.metadata)]):
            logits = model(
                input_ids=torch.tensor([pair.prompt_ids]), decoder_input_ids=given, use_cache=False
            ).logits[0]
        total = total + cross_entropy(logits, target, reduction="sum")
    expected = total / sum(len(pair.target_ids) for pair in PAIRS)
    loss = loss_of(tiny_bart, modules, PAIRS).mean
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert_close(gradients(loss, modules), gradients(expected, modules), 1e-5)


def test_pairs_together_have_the_gradients_of_each_alone(tiny_gpt2: FrozenModel) -> None:
    modules = leaves(random_prefix(tiny_gpt2, LENGTH))
    together = gradients(loss_of(tiny_gpt2, modules, PAIRS).mean, modules)
    alone = [gradients(loss_of(tiny_gpt2, modules, [pair]).mean, modules) for pair in PAIRS]
    means = [torch.stack(parts).mean(dim=0) for parts in zip(*alone, strict=True)]
    assert_close(together, means, 1e-5)


def test_gradients_in_bfloat16_are_close_to_those_in_fp32(model_folders: dict[str, Path]) -> None:
    results = []
    for dtype in ("bfloat16", "float32"):
        model = load_model(str(model_folders["gpt2"]), device="cpu", dtype=dtype)
        modules = leaves(random_prefix(model, LENGTH))
        loss = loss_of(model, modules, PAIRS).mean
        assert loss.dtype == torch.float32
        results.append((loss.item(), gradients(loss, modules)))
    (loss16, got), (loss32, expected) = results
    assert all(tensor.dtype == torch.float32 for tensor in got)
    assert loss16 == pytest.approx(loss32, rel=0.02)
    assert_close(got, expected, 0.1)


def test_without_a_prefix_the_loss_is_the_models_own(tiny_gpt2: FrozenModel) -> None:
    batch = collate(PAIRS)
    logits = packed_logits(tiny_gpt2, batch.tokens, {})[0, batch.keep]
    expected = cross_entropy(logits, batch.labels, reduction="sum") / len(PAIRS)
    assert loss_of(tiny_gpt2, {}, PAIRS).mean.item() == pytest.approx(expected.item(), rel=1e-5)
