"""What a benchmark computes: the same model, prompts and lengths for us and for every peer.

Seeded, so that a run can be repeated. Knows nothing about who computes it.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from app.prefix.prefix import KeyValues, Prefix, PrefixMetadata
from app.prefix.spec import BaseModelSpec

GPT2_SHAPE = "gpt2-shape"
"""In the place of a model: random weights in the shape of GPT-2 with 124 million parameters."""

_NUM_TOKEN_IDS = 250
"""Prompts draw from the first ids, which every vocabulary has."""

_END = "<|endoftext|>"


@dataclass(frozen=True)
class Item:
    """One request: `arrival` is in seconds after the start, `prefix` an index of the prefixes."""

    prompt_ids: tuple[int, ...]
    num_new: int
    prefix: int
    arrival: float = 0.0


@dataclass(frozen=True)
class Load:
    """Requests, and the lengths of the prefixes that they name."""

    items: tuple[Item, ...]
    prefix_lengths: tuple[int, ...]

    @property
    def num_new(self) -> int:
        """Tokens that somebody asked for."""
        return sum(item.num_new for item in self.items)


def uniform_load(
    *, rows: int, prefixes: int, prefix_length: int, prompt: int, new: int, seed: int = 0
) -> Load:
    """`rows` requests at once, equal in length, their prefixes in rotation."""
    generator = random.Random(seed)
    items = tuple(
        Item(_prompt(generator, prompt), new, index % max(1, prefixes)) for index in range(rows)
    )
    return Load(items, (prefix_length,) * prefixes)


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


def model_folder(model: str, scratch: Path) -> str:
    """The folder or id to load; for `gpt2-shape` a folder in `scratch` with random weights."""
    if model != GPT2_SHAPE:
        return model
    folder = scratch / GPT2_SHAPE
    if not folder.exists():
        torch.manual_seed(0)
        GPT2LMHeadModel(GPT2Config()).save_pretrained(folder)
        _byte_tokenizer().save_pretrained(folder)
    return str(folder)


def random_prefix(spec: BaseModelSpec, length: int, seed: int) -> Prefix:
    """A prefix of small random keys and values for the model, in fp16 as files are stored."""
    shape = spec.decoder
    generator = torch.Generator().manual_seed(seed)
    size = (shape.layers, shape.kv_heads, length, shape.head_dim)
    keys, values = (0.1 * torch.randn(size, generator=generator) for _ in range(2))
    metadata = PrefixMetadata(length, spec.model_id, spec.fingerprint)
    return Prefix({"decoder": KeyValues(keys.half(), values.half())}, metadata)


def _prompt(generator: random.Random, length: int) -> tuple[int, ...]:
    return tuple(generator.randrange(_NUM_TOKEN_IDS) for _ in range(length))


def _byte_tokenizer() -> PreTrainedTokenizerFast:
    """A token for every byte and a made-up word for every other id, so that each id has a text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {character: index for index, character in enumerate(alphabet)}
    end_id = GPT2Config().eos_token_id
    vocabulary |= {f"Ġword{index}": index for index in range(len(alphabet), end_id)}
    vocabulary[_END] = end_id
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([_END])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=_END, bos_token=_END, unk_token=_END
    )
