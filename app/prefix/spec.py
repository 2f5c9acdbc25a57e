"""What a base model demands of a prefix: the shapes of its modules and what identifies it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

MODULES = ("decoder", "encoder", "cross")
"""The attention modules that may carry a prefix, in the order in which files list them."""


@dataclass(frozen=True)
class ModuleShape:
    """Shape of one attention module's keys and values, without the length axis."""

    layers: int
    kv_heads: int
    head_dim: int


@dataclass(frozen=True)
class BaseModelSpec:
    """The facts about a loaded base model that prefixes are checked against.

    `model_id` is what clients call the model (never a path); `fingerprint` is a SHA-256 hex digest
    over its config and weights; `modules` maps the names in `MODULES` that this model has to their
    shapes ("decoder" is always there); `context_limit` is the number of positions that one row
    may use (prefix offset + prompt + new tokens). With an encoder the prompt is the source, of at
    most `source_limit` tokens, and does not count there; without one that is None.
    """

    model_id: str
    fingerprint: str
    modules: Mapping[str, ModuleShape]
    context_limit: int
    source_limit: int | None = None

    @property
    def decoder(self) -> ModuleShape:
        """The shape of decoder self-attention, which every model has."""
        return self.modules["decoder"]

    @cached_property
    def prompt_limit(self) -> int:
        """Tokens that a prompt can have at most, whatever else a request asks."""
        return self.context_limit if self.source_limit is None else self.source_limit
