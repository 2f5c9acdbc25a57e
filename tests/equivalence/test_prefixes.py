"""What prefixes mean: real words act as those words, composition is concatenation in order."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from app.engine.config import EngineConfig
from app.model.dense import keys_values_of
from app.model.frozen import FrozenModel
from app.prefix.prefix import KeyValues, Prefix, PrefixMetadata
from tests.engine.harness import SteppedEngine, make_request
from tests.equivalence.reference import greedy_logits, plain_model
from tests.tiny import random_prefix

FAMILIES = pytest.mark.parametrize("family", ["gpt2", "llama", "qwen2"])
CONFIG = EngineConfig(max_step_tokens=24)
WORDS, PROMPT = tuple(range(70, 83)), tuple(range(30, 47))
MAX_TOKENS = 12


def words_as_prefix(model: FrozenModel, token_ids: tuple[int, ...]) -> Prefix:
    metadata = PrefixMetadata(position_offset=len(token_ids))
    return Prefix({"decoder": keys_values_of(model, token_ids)}, metadata)


def concatenated(*prefixes: Prefix) -> Prefix:
    """One prefix of all columns, in this order, with the sum of the offsets."""
    keys = torch.cat([prefix.decoder.keys for prefix in prefixes], dim=2)
    values = torch.cat([prefix.decoder.values for prefix in prefixes], dim=2)
    offset = sum(prefix.metadata.position_offset for prefix in prefixes)
    return Prefix({"decoder": KeyValues(keys, values)}, PrefixMetadata(position_offset=offset))


def logits_of(stepped: SteppedEngine, name: str) -> torch.Tensor:
    return torch.stack(stepped.logits[(name, 0)])


def run_together(
    model: FrozenModel,
    patch: pytest.MonkeyPatch,
    **rows: tuple[tuple[int, ...], tuple[Prefix, ...]],
) -> SteppedEngine:
    """Rows of (prompt, prefixes) by name, in one batch."""
    stepped = SteppedEngine(model, CONFIG, patch)
    for name, (prompt, prefixes) in rows.items():
        stepped.add(make_request(name, prompt, MAX_TOKENS, prefixes))
    stepped.run()
    return stepped


def largest(difference: torch.Tensor) -> float:
    return float(difference.abs().max())


@FAMILIES
def test_real_words_as_a_prefix_act_as_those_words_before_the_prompt(
    tiny_models: dict[str, FrozenModel],
    model_folders: dict[str, Path],
    family: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny_models[family]
    stepped = run_together(
        model,
        monkeypatch,
        prefix=(PROMPT, (words_as_prefix(model, WORDS),)),
        text=(WORDS + PROMPT, ()),
        other=(PROMPT, ()),
    )
    plain = greedy_logits(
        plain_model(model_folders[family]), [], WORDS + PROMPT, stepped.tokens("prefix")
    )
    assert stepped.tokens("prefix") == stepped.tokens("text")
    assert largest(logits_of(stepped, "prefix") - logits_of(stepped, "text")) <= 1e-4
    assert largest(logits_of(stepped, "prefix") - plain) <= 1e-4
    assert largest(logits_of(stepped, "other") - plain) > 0.1


@FAMILIES
@pytest.mark.parametrize("shifts", [True, False], ids=["shifting", "not shifting"])
def test_composed_prefixes_are_one_prefix_of_both_in_their_order(
    tiny_models: dict[str, FrozenModel],
    model_folders: dict[str, Path],
    family: str,
    shifts: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny_models[family]
    offsets = (5, 9) if shifts else (0, 0)
    a, b = (
        random_prefix(model, length, seed=length, position_offset=offset)
        for length, offset in zip((5, 9), offsets, strict=True)
    )
    stepped = run_together(
        model,
        monkeypatch,
        composed=(PROMPT, (a, b)),
        joined=(PROMPT, (concatenated(a, b),)),
        first=(PROMPT, (a,)),
    )
    plain = greedy_logits(
        plain_model(model_folders[family]),
        [concatenated(a, b)],
        PROMPT,
        stepped.tokens("composed"),
    )
    assert stepped.tokens("composed") == stepped.tokens("joined")
    assert largest(logits_of(stepped, "composed") - logits_of(stepped, "joined")) <= 1e-5
    assert largest(logits_of(stepped, "composed") - plain) <= 1e-4
    assert largest(logits_of(stepped, "first") - plain) > 0.1


def test_columns_keep_the_order_in_which_prefixes_are_named(
    tiny_gpt2: FrozenModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Attention has no order of its own, so this looks at the pool."""
    a, b = (random_prefix(tiny_gpt2, length, seed=length) for length in (5, 9))
    stepped = SteppedEngine(tiny_gpt2, CONFIG, monkeypatch)
    stepped.add(make_request("it", PROMPT, 4, (b, a)))
    stepped.step()
    [[row]] = [rows for rows in stepped.engine.table.rows if rows]
    assert row.slot is not None
    for layer in range(tiny_gpt2.spec.decoder.layers):
        keys = stepped.engine.pool.keys(row.slot.length_class, layer)[row.slot.index]
        expected = concatenated(b, a).decoder.keys[layer]
        assert torch.equal(keys[:, :14], expected)


@FAMILIES
def test_a_prefix_that_does_not_shift_gives_other_numbers_than_one_that_does(
    tiny_models: dict[str, FrozenModel], family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_models[family]
    shifting = random_prefix(model, 9, seed=1)
    still = random_prefix(model, 9, seed=1, position_offset=0)
    stepped = run_together(
        model, monkeypatch, shifting=(PROMPT, (shifting,)), still=(PROMPT, (still,))
    )
    assert largest(logits_of(stepped, "shifting")[0] - logits_of(stepped, "still")[0]) > 0.01
