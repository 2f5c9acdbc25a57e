"""The reparameterisation is the authors', and real words are reproduced by it."""

from __future__ import annotations

import torch
from torch import nn

from app.model.dense import dense_logits, keys_values_of
from app.model.frozen import FrozenModel
from app.prefix.spec import ModuleShape
from app.training.initial import words_keys_values
from app.training.reparameterisation import Reparameterisation, fit_to

SHAPE = ModuleShape(layers=3, kv_heads=2, head_dim=4)


def authors_past_key_values(
    wte: nn.Embedding, control_trans: nn.Sequential, length: int
) -> list[torch.Tensor]:
    """`get_prompt_p5` of Li and Liang's train_control.py for one row: [2, 1, H, P, D] a layer."""
    tokens = torch.arange(length).unsqueeze(0)
    past = control_trans(wte(tokens))
    past = past.view(1, length, SHAPE.layers * 2, SHAPE.kv_heads, SHAPE.head_dim)
    return list(past.permute([2, 0, 3, 1, 4]).split(2))


def test_the_layout_is_that_of_the_authors() -> None:
    made = Reparameterisation(SHAPE, length=5, width=8, hidden=16)
    result = made.result()
    expected = authors_past_key_values(made.embedding, made.network, 5)
    for layer, past in enumerate(expected):
        assert torch.equal(result.keys[layer], past[0, 0])
        assert torch.equal(result.values[layer], past[1, 0])


def test_network_is_embedding_linear_tanh_linear_of_the_authors_sizes() -> None:
    made = Reparameterisation(SHAPE, length=5, width=8, hidden=512)
    shapes = {name: tuple(tensor.shape) for name, tensor in made.state_dict().items()}
    assert shapes == {
        "embedding.weight": (5, 8),
        "network.0.weight": (512, 8),
        "network.0.bias": (512,),
        "network.2.weight": (2 * 3 * 2 * 4, 512),
        "network.2.bias": (2 * 3 * 2 * 4,),
    }
    assert isinstance(made.network[1], nn.Tanh)


def test_result_is_detached_and_contiguous() -> None:
    result = Reparameterisation(SHAPE, length=5, width=8, hidden=512).result()
    for tensor in (result.keys, result.values):
        assert tensor.is_contiguous()
        assert not tensor.requires_grad


def test_fitting_real_words_moves_the_output_to_their_keys_and_values(
    trainable: FrozenModel,
) -> None:
    torch.manual_seed(0)
    made = Reparameterisation(trainable.spec.decoder, length=4, width=32, hidden=64)
    goal = words_keys_values(trainable, "the quick fox", 4)["decoder"]
    before = made.embedding.weight.detach().clone()
    first = fit_to(made, goal, steps=1, lr=1e-3)
    last = fit_to(made, goal, steps=150, lr=1e-3)
    assert last < 0.2 * first
    assert torch.equal(made.embedding.weight, before), "only the network is fitted"


def test_words_are_repeated_or_cut_to_the_length(trainable: FrozenModel) -> None:
    ids = trainable.text.render(" {input}", "fox")
    longer = words_keys_values(trainable, "fox", len(ids) + 1)["decoder"]
    assert longer.length == len(ids) + 1
    expected = keys_values_of(trainable, [*ids, ids[0]])
    assert torch.equal(longer.keys, expected.keys)
    assert words_keys_values(trainable, "fox", 1)["decoder"].length == 1


def test_words_as_prefix_equal_words_prepended(trainable: FrozenModel) -> None:
    ids = trainable.text.render(" {input}", "the lazy dog")
    text = torch.tensor([trainable.text.encode(" sat on")])
    words = words_keys_values(trainable, "the lazy dog", len(ids))["decoder"]
    alone = dense_logits(trainable, text, words, position_offset=len(ids))
    together = dense_logits(trainable, torch.cat([torch.tensor([ids]), text], dim=1))
    torch.testing.assert_close(alone, together[:, len(ids) :], atol=1e-4, rtol=1e-4)
