"""The prefix: trained keys and values for a frozen model, with an identity made of its content.

It can be imported in a notebook: it needs no server.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch

from app.prefix.spec import MODULES


@dataclass(frozen=True, eq=False)
class KeyValues:
    """Keys and values of one attention module, each [layers, kv_heads, length, head_dim].

    Exactly what the model's cache would hold: after rotary embedding and after any key norm.
    """

    keys: torch.Tensor
    values: torch.Tensor

    @cached_property
    def length(self) -> int:
        """Number of prefix positions."""
        return int(self.keys.shape[2])

    @property
    def nbytes(self) -> int:
        """Bytes of both tensors."""
        return int(self.keys.nbytes + self.values.nbytes)


@dataclass(frozen=True)
class PrefixMetadata:
    """What a prefix file says about itself, besides its tensors.

    `position_offset` is by how many positions the prefix shifts the tokens that follow it, from 0
    to its length: GPT-2 prefixes of the authors and of PEFT shift by their whole length.
    `input_template` turns a plain input into a prompt (`{input}` stands for it); `decoding` holds
    default generation parameters; `provenance` says how the prefix was made.
    """

    position_offset: int
    base_model: str | None = None
    base_fingerprint: str | None = None
    input_template: str | None = None
    decoding: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Prefix:
    """An immutable prefix: module name ("decoder", "encoder", "cross") → keys and values."""

    modules: Mapping[str, KeyValues]
    metadata: PrefixMetadata
    _digest: str | None = None

    @property
    def decoder(self) -> KeyValues:
        """Keys and values of decoder self-attention, which every prefix has."""
        return self.modules["decoder"]

    @property
    def length(self) -> int:
        """Number of positions that the prefix takes in decoder self-attention."""
        return self.decoder.length

    @cached_property
    def lengths(self) -> Mapping[str, int]:
        """Number of positions in the attention of each module."""
        return {name: module.length for name, module in self.modules.items()}

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(module.nbytes for module in self.modules.values())

    @property
    def verified(self) -> bool:
        """Whether the file names the base model that it was trained on."""
        return self.metadata.base_fingerprint is not None

    @cached_property
    def digest(self) -> str:
        """The version's identity: SHA-256, hex, over tensors and what changes their meaning.

        A prefix that was moved or cast keeps the digest of the file that it came from.
        """
        return self._digest or _content_digest(self)

    def to(self, device: torch.device, dtype: torch.dtype) -> Prefix:
        """The same prefix (same digest) on another device or in another dtype."""
        modules = {
            name: KeyValues(
                module.keys.to(device, dtype).contiguous(),
                module.values.to(device, dtype).contiguous(),
            )
            for name, module in self.modules.items()
        }
        return Prefix(modules, self.metadata, self.digest)


def canonical_json(value: Mapping[str, Any]) -> str:
    """JSON with sorted keys and no spaces, so that equal values are equal strings."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _content_digest(prefix: Prefix) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of the tensors and the binding metadata."""
    metadata = prefix.metadata
    tensors = [
        (f"{name}.{part}", getattr(prefix.modules[name], part))
        for name in MODULES
        if name in prefix.modules
        for part in ("keys", "values")
    ]
    head = {
        "tensors": [
            [name, str(tensor.dtype).removeprefix("torch."), list(tensor.shape)]
            for name, tensor in tensors
        ],
        "base_fingerprint": metadata.base_fingerprint,
        "position_offset": metadata.position_offset,
        "input_template": metadata.input_template,
        "decoding": dict(metadata.decoding),
    }
    digest = hashlib.sha256(canonical_json(head).encode())
    for _, tensor in tensors:
        flat = tensor.detach().cpu().contiguous().view(torch.uint8)
        digest.update(flat.numpy().data)
    return digest.hexdigest()
