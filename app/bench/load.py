"""The work of a benchmark: the same model, prompts and lengths for us and for every peer.

Loads are seeded, so a run can be repeated.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from app.engine.request import SamplingParams
from app.errors import InvalidRequest
from app.prefix.prefix import KeyValues, Prefix, PrefixMetadata
from app.prefix.spec import BaseModelSpec, ModuleShape

_NUM_TOKEN_IDS = 250
"""Prompts use only the first token ids, which every vocabulary has."""

_SAMPLING: Mapping[str, Callable[[str], Any]] = {
    "temperature": float,
    "top_k": int,
    "top_p": float,
    "min_p": float,
    "repetition_penalty": float,
    "presence_penalty": float,
    "frequency_penalty": float,
    "no_repeat_ngram_size": int,
    "min_tokens": int,
    "logit_bias": int,
    "logprobs": int,
    "seed": int,
}


@dataclass(frozen=True)
class Item:
    """One request. `arrival` is in seconds after the start; `prefix` is an index."""

    prompt_ids: tuple[int, ...]
    num_new: int
    prefix: int
    arrival: float = 0.0


@dataclass(frozen=True)
class Load:
    """Requests, the lengths of their prefixes, and how tokens are chosen.

    Each request has `num_beams` beams. Only our engine uses `sampling`, fields of `SamplingParams`.
    """

    items: tuple[Item, ...]
    prefix_lengths: tuple[int, ...]
    num_beams: int = 1
    sampling: Mapping[str, Any] = field(default_factory=dict)

    @property
    def num_new(self) -> int:
        return sum(item.num_new for item in self.items)


def uniform_load(
    *,
    rows: int,
    prefixes: int,
    prefix_length: int,
    prompt: int,
    new: int,
    num_beams: int = 1,
    sampling: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> Load:
    """`rows` requests that arrive together, equal in length; prefixes rotate."""
    generator = random.Random(seed)
    items = tuple(
        Item(_prompt(generator, prompt), new, index % max(1, prefixes)) for index in range(rows)
    )
    return Load(items, (prefix_length,) * prefixes, num_beams, sampling or {})


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


def parse_sampling(options: Sequence[str]) -> dict[str, Any]:
    """Read fields of `SamplingParams` from `KEY=VALUE`; default values are left out.

    The value of `logit_bias` is a number of keys. Raises InvalidRequest for unknown fields.
    """
    sampling: dict[str, Any] = {}
    for option in options:
        key, _, value = option.partition("=")
        if key not in _SAMPLING:
            known = ", ".join(_SAMPLING)
            raise InvalidRequest(f"--sampling has {key!r}, which is none of {known}")
        try:
            sampling[key] = _SAMPLING[key](value)
        except ValueError as error:
            raise InvalidRequest(f"--sampling {option!r}: {error}") from None
    if "logit_bias" in sampling:
        sampling["logit_bias"] = dict.fromkeys(range(sampling["logit_bias"]), 0.5)
    usual = SamplingParams(max_tokens=1)
    return {key: value for key, value in sampling.items() if value != getattr(usual, key)}


def random_prefix(spec: BaseModelSpec, length: int, seed: int) -> Prefix:
    """A prefix of small random keys and values for every module, in fp16 like stored files."""
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
