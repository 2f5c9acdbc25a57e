"""What a benchmark computes: the same model, prompts and lengths for us and for every peer.

Seeded, so that a run can be repeated. Knows nothing about who computes it.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from app.prefix.prefix import KeyValues, Prefix, PrefixMetadata
from app.prefix.spec import BaseModelSpec, ModuleShape

_NUM_TOKEN_IDS = 250
"""Prompts draw from the first ids, which every vocabulary has."""


@dataclass(frozen=True)
class Item:
    """One request: `arrival` is in seconds after the start, `prefix` an index of the prefixes."""

    prompt_ids: tuple[int, ...]
    num_new: int
    prefix: int
    arrival: float = 0.0


@dataclass(frozen=True)
class Load:
    """Requests, the lengths of the prefixes that they name, and the beams of each (1: greedy)."""

    items: tuple[Item, ...]
    prefix_lengths: tuple[int, ...]
    num_beams: int = 1

    @property
    def num_new(self) -> int:
        """Tokens that somebody asked for."""
        return sum(item.num_new for item in self.items)


def uniform_load(
    *,
    rows: int,
    prefixes: int,
    prefix_length: int,
    prompt: int,
    new: int,
    num_beams: int = 1,
    seed: int = 0,
) -> Load:
    """`rows` requests at once, equal in length, their prefixes in rotation."""
    generator = random.Random(seed)
    items = tuple(
        Item(_prompt(generator, prompt), new, index % max(1, prefixes)) for index in range(rows)
    )
    return Load(items, (prefix_length,) * prefixes, num_beams)


def poisson_load(*, requests: int, per_second: float, prefixes: int, seed: int = 0) -> Load:
    """Poisson arrivals: prompts of 8 to 200 tokens, outputs of 8 to 128, prefixes of 5 to 50."""
    generator = random.Random(seed)
    arrival, items = 0.0, []
    for _ in range(requests):
        arrival += generator.expovariate(per_second)
        prompt = _prompt(generator, generator.randint(8, 200))
        items.append(
            Item(prompt, generator.randint(8, 128), generator.randrange(prefixes), arrival)
        )
    return Load(tuple(items), tuple(generator.randint(5, 50) for _ in range(prefixes)))


def random_prefix(spec: BaseModelSpec, length: int, seed: int) -> Prefix:
    """A prefix of small random keys and values for every module, in fp16 as files are stored."""
    offset = length if spec.source_limit is None else 0
    metadata = PrefixMetadata(offset, spec.model_id, spec.fingerprint)
    return Prefix(random_modules(spec.modules, length, seed), metadata)


def random_modules(
    shapes: Mapping[str, ModuleShape], length: int, seed: int
) -> dict[str, KeyValues]:
    """The keys and values of such a prefix, by role."""
    generator = torch.Generator().manual_seed(seed)
    modules = {}
    for role, shape in shapes.items():
        size = (shape.layers, shape.kv_heads, length, shape.head_dim)
        keys, values = (0.1 * torch.randn(size, generator=generator) for _ in range(2))
        modules[role] = KeyValues(keys.half(), values.half())
    return modules


def _prompt(generator: random.Random, length: int) -> tuple[int, ...]:
    return tuple(generator.randrange(_NUM_TOKEN_IDS) for _ in range(length))
