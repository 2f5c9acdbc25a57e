"""Composition, `task+user`: the positions of several prefixes stand one behind the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from app.prefix.prefix import KeyValues, Prefix, PrefixMetadata
from app.prefix.spec import MODULES


def compose_modules(*parts: Mapping[str, KeyValues]) -> dict[str, KeyValues]:
    """The keys and values of `parts`, in this order, by module.

    Each is [layers, kv_heads, length, head_dim]; the lengths add up. A part that lacks a module
    adds nothing to it. Gradients flow into every part.
    """
    composed = {}
    for name in MODULES:
        found = [part[name] for part in parts if name in part]
        if len(found) == 1:
            composed[name] = found[0]
        elif found:
            composed[name] = KeyValues(
                torch.cat([each.keys for each in found], dim=2),
                torch.cat([each.values for each in found], dim=2),
            )
    return composed


def compose(prefixes: Sequence[Prefix]) -> Prefix:
    """One prefix that acts as a server's composition of `prefixes`; at least one is needed.

    Position offsets add up. The template and each decoding default come from the first prefix that
    has one.
    """
    first = prefixes[0]
    decoding: dict[str, Any] = {}
    for prefix in prefixes:
        decoding = {**prefix.metadata.decoding, **decoding}
    templates = (prefix.metadata.input_template for prefix in prefixes)
    metadata = PrefixMetadata(
        position_offset=sum(prefix.metadata.position_offset for prefix in prefixes),
        base_model=first.metadata.base_model,
        base_fingerprint=first.metadata.base_fingerprint,
        input_template=next((each for each in templates if each is not None), None),
        decoding=decoding,
    )
    return Prefix(compose_modules(*(prefix.modules for prefix in prefixes)), metadata)
