"""The keys and values of a prefix as plain parameters (Li & Liang 2021, §4.3 and §7.2)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import nn

from app.prefix.prefix import KeyValues
from app.prefix.spec import ModuleShape


class DirectKeyValues(nn.Module):
    """Keys and values of each module, each [layers, kv_heads, length, head_dim].

    They start from N(0, 1), like the authors' `init_shallow` without a word.
    """

    def __init__(
        self, shapes: Mapping[str, ModuleShape], modules: Iterable[str], *, length: int
    ) -> None:
        super().__init__()
        self._names = tuple(modules)
        for name in self._names:
            shape = shapes[name]
            size = (shape.layers, shape.kv_heads, length, shape.head_dim)
            module = nn.Module()
            for part in ("keys", "values"):
                module.register_parameter(part, nn.Parameter(torch.randn(size)))
            self.add_module(name, module)

    def forward(self) -> dict[str, KeyValues]:
        """Keys and values of every module, with gradients."""
        return {name: KeyValues(*self._parts(name)) for name in self._names}

    @torch.no_grad()
    def copy_from(self, goals: Mapping[str, KeyValues]) -> None:
        """Start from given keys and values, exactly."""
        for name, goal in goals.items():
            for parameter, values in zip(self._parts(name), (goal.keys, goal.values), strict=True):
                parameter.copy_(values)

    def _parts(self, name: str) -> tuple[nn.Parameter, nn.Parameter]:
        part = self.get_submodule(name)
        return part.get_parameter("keys"), part.get_parameter("values")
