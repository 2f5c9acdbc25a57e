"""The attention function: no plan, no attention; a plan sees what each layer computed."""

from __future__ import annotations

import pytest
import torch

from app.errors import UnsupportedModel
from app.model.attention import DensePlan
from app.model.frozen import FrozenModel, prefix_attention
from app.prefix.prefix import KeyValues


class Layer(torch.nn.Module):
    layer_idx = 1


def random_heads(heads: int, tokens: int, seed: int, rows: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, heads, tokens, 8, generator=generator)


def naive(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, length: int, scaling: float
) -> torch.Tensor:
    """Attention written out; `key` begins with `length` prefix columns."""
    key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
    value = value.repeat_interleave(query.shape[1] // value.shape[1], dim=1)
    scores = query @ key.transpose(2, 3) * scaling
    tokens = query.shape[2]
    hidden = torch.ones(tokens, length + tokens, dtype=torch.bool).triu(length + 1)
    weights = scores.masked_fill(hidden, float("-inf")).softmax(-1)
    return (weights @ value).transpose(1, 2)


def test_without_a_plan_attention_refuses_rather_than_mixes_rows() -> None:
    q = random_heads(2, 3, 0)
    with pytest.raises(UnsupportedModel, match="Layer did not pass the plan on"):
        prefix_attention(Layer(), q, q, q)


def test_a_mask_beside_the_plan_is_refused() -> None:
    q = random_heads(2, 3, 0)
    plan = DensePlan({})
    with pytest.raises(UnsupportedModel):
        prefix_attention(Layer(), q, q, q, torch.zeros(1), plan=plan)


@pytest.mark.parametrize(
    ("option", "value"),
    [("softcap", 30.0), ("sliding_window", 16), ("s_aux", torch.zeros(2))],
)
def test_what_a_layer_asks_of_its_attention_and_no_plan_does_is_refused(
    option: str, value: object
) -> None:
    q, plan = random_heads(2, 3, 0), DensePlan({})
    with pytest.raises(UnsupportedModel, match=f"Layer needs {option}"):
        prefix_attention(Layer(), q, q, q, plan=plan, **{option: value})
    prefix_attention(Layer(), q, q, q, plan=plan, **{option: None})


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("length", [0, 1, 6])
@pytest.mark.parametrize("scaling", [None, 0.1])
def test_a_dense_plan_attends_to_the_layers_prefix_and_then_causally(
    kv_heads: int, length: int, scaling: float | None
) -> None:
    query = random_heads(4, 5, 1)
    key, value = random_heads(kv_heads, 5, 2), random_heads(kv_heads, 5, 3)
    stored = KeyValues(
        random_heads(kv_heads, length, 4, rows=3), random_heads(kv_heads, length, 5, rows=3)
    )
    plan = DensePlan({"decoder": stored} if length else {})
    got, weights = prefix_attention(Layer(), query, key, value, plan=plan, scaling=scaling)
    assert weights is None
    keys = torch.cat([stored.keys[1].expand(2, -1, -1, -1), key], dim=2)
    values = torch.cat([stored.values[1].expand(2, -1, -1, -1), value], dim=2)
    expected = naive(query, keys, values, length, scaling or 8**-0.5)
    assert torch.allclose(got, expected, atol=1e-5)


def test_every_layer_of_every_family_asks_the_plan_exactly_once(
    tiny_models: dict[str, FrozenModel],
) -> None:
    class Counting(DensePlan):
        def __init__(self) -> None:
            super().__init__({})
            self.layers: list[int] = []

        def attend(self, role: str, layer: int, *tensors: object) -> torch.Tensor:
            self.layers.append(layer)
            return super().attend(role, layer, *tensors)

    for model in tiny_models.values():
        plan = Counting()
        ids = torch.tensor([[1, 2, 3, 4]])
        model.forward(ids, torch.arange(4)[None], plan)
        assert plan.layers == [0, 1]


def test_a_dense_plan_drops_attention_weights_only_if_told() -> None:
    q = random_heads(4, 6, 1)
    torch.manual_seed(0)
    [whole, again, dropped] = [
        prefix_attention(Layer(), q, q, q, plan=DensePlan({}, dropout=share))[0]
        for share in (0.0, 0.0, 0.5)
    ]
    assert torch.equal(whole, again)
    assert not torch.allclose(whole, dropped, atol=1e-3)
