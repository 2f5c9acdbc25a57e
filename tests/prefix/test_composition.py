"""Composition concatenates in order, adds offsets, and keeps the first default of each kind."""

from __future__ import annotations

import torch

from app.model.frozen import FrozenModel
from app.prefix.composition import compose, compose_modules
from app.prefix.prefix import KeyValues, Prefix, PrefixMetadata
from tests.tiny import random_prefix


def part(length: int, value: float) -> KeyValues:
    tensor = torch.full((2, 1, length, 3), value)
    return KeyValues(tensor, -tensor)


def test_positions_stand_in_the_given_order_in_every_module() -> None:
    first = {"decoder": part(2, 1.0), "cross": part(1, 2.0)}
    second = {"decoder": part(1, 3.0), "encoder": part(2, 4.0)}
    composed = compose_modules(first, second)
    assert {name: each.length for name, each in composed.items()} == {
        "decoder": 3,
        "encoder": 2,
        "cross": 1,
    }
    assert composed["decoder"].keys[0, 0, :, 0].tolist() == [1.0, 1.0, 3.0]
    assert composed["decoder"].values[0, 0, :, 0].tolist() == [-1.0, -1.0, -3.0]


def test_gradients_flow_into_every_part() -> None:
    parts = [{"decoder": part(length, 1.0)} for length in (1, 2)]
    leaves = [each["decoder"].keys.requires_grad_() for each in parts]
    compose_modules(*parts)["decoder"].keys.sum().backward()
    assert [leaf.grad is not None and float(leaf.grad.sum()) for leaf in leaves] == [6.0, 12.0]


def test_defaults_come_from_the_first_prefix_that_has_them(tiny_gpt2: FrozenModel) -> None:
    modules = random_prefix(tiny_gpt2, 3).modules
    first = Prefix(modules, PrefixMetadata(3, decoding={"num_beams": 2}))
    metadata = PrefixMetadata(
        1, input_template="{input}!", decoding={"num_beams": 4, "max_tokens": 9}
    )
    made = compose([first, Prefix(modules, metadata)]).metadata
    assert made.position_offset == 4
    assert made.input_template == "{input}!"
    assert made.decoding == {"num_beams": 2, "max_tokens": 9}
