"""A small bottleneck adapter after every transformer layer (Houlsby et al. 2019; Lin et al. 2020).

The second half of each adapter starts at zero, so an untrained adapter changes nothing.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from app.errors import InvalidRequest
from app.model.frozen import FrozenModel


class BottleneckAdapter(nn.Module):
    """x + up(relu(down(norm(x)))), with `size` units between; [..., width] to the same shape."""

    def __init__(self, width: int, size: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.down, self.up = nn.Linear(width, size), nn.Linear(size, width)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The adapted activations."""
        changed = self.up(torch.relu(self.down(self.norm(x))))
        return x + changed.to(x.dtype)


def transformer_layers(model: FrozenModel) -> list[nn.Module]:
    """The model's layers in order; those of an encoder come first."""
    halves = [model.hf.get_decoder()]
    if model.encoder_decoder is not None:
        halves.insert(0, model.hf.get_encoder())
    layers: list[nn.Module] = []
    for half in halves:
        found = getattr(half, "layers", None) or getattr(half, "h", None)
        if found is None:
            raise InvalidRequest(
                f"the layers of a model of type {model.family!r} are not known, so this method"
                " cannot change them; use --method prefix"
            )
        layers += list(found)
    return layers


def adapter_size(model: FrozenModel, share: float) -> int:
    """The bottleneck that brings adapters nearest to `share` of the model's parameters."""
    total = model.num_parameters
    width = int(model.hf.get_input_embeddings().weight.shape[1])
    layers = len(transformer_layers(model))
    return max(1, round((share * total / layers - 3 * width) / (2 * width + 1)))


def install_adapters(model: FrozenModel, size: int) -> dict[str, nn.Parameter]:
    """Add an adapter after each layer of the model; return the adapters' parameters by name."""
    width = int(model.hf.get_input_embeddings().weight.shape[1])
    parameters: dict[str, nn.Parameter] = {}
    for number, layer in enumerate(transformer_layers(model)):
        adapter = BottleneckAdapter(width, size).to(model.device)

        def adapt(_: nn.Module, __: Any, output: Any, adapter: BottleneckAdapter = adapter) -> Any:
            if isinstance(output, tuple):
                return (adapter(output[0]), *output[1:])
            return adapter(output)

        layer.register_forward_hook(adapt)
        parameters |= {f"layers.{number}.{name}": p for name, p in adapter.named_parameters()}
    return parameters
