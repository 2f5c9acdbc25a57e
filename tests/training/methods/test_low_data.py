"""The recipe for little data: the authors' settings by method and size, in runs and experiments."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.evaluation.text_pairs import TokenPair
from app.model.load import load_model
from app.prefix.spec import MODULES
from app.training.recipe import Recipe
from app.training.trainer import Trainer


@pytest.mark.parametrize(
    ("modules", "method", "batch_size", "by_size"),
    [
        (("decoder",), "prefix", 10, {50: 200, 100: 200, 200: 200, 500: 400}),
        (("decoder",), "infix", 10, {49: 200, 201: 400, 900: 400}),
        (("decoder",), "finetune", 10, {50: 100, 100: 100, 200: 200, 500: 400}),
        (("decoder",), "lora", 10, {51: 100, 101: 200}),
        (MODULES, "prefix", 5, {50: 30, 100: 20, 200: 20, 500: 20}),
        (MODULES, "finetune", 6, {50: 30, 100: 10, 200: 3, 500: 3}),
        (MODULES, "adapter", 6, {1: 30, 51: 10, 999: 3}),
    ],
)
def test_low_data_fills_in_the_authors_settings_of_the_method(
    modules: tuple[str, ...], method: str, batch_size: int, by_size: dict[int, int]
) -> None:
    for pairs, amount in by_size.items():
        recipe = Recipe(method=method, preset="low-data").for_model(modules, int(355e6), pairs)
        found = recipe.max_steps if modules == ("decoder",) else recipe.epochs
        assert found == amount, pairs
        assert bool(recipe.max_steps) == (modules == ("decoder",))
        assert (recipe.lr, recipe.batch_size, recipe.warmup_steps) == (5e-5, batch_size, 100)
        words = "table-to-text:" if modules == ("decoder",) else "summarize"
        assert recipe.initial_words == (words if method == "prefix" else None)


def test_low_data_keeps_what_is_given() -> None:
    recipe = Recipe(preset="low-data", batch_size=3, max_steps=7, early_stopping=2)
    kept = recipe.for_model(("decoder",), 10, 100)
    assert (kept.batch_size, kept.max_steps, kept.early_stopping) == (3, 7, 2)


def test_low_data_stops_early_only_with_validation(
    tiny_gpt2_folder: Path, pairs: list[TokenPair]
) -> None:
    model, recipe = (
        load_model(str(tiny_gpt2_folder), device="cpu", dtype="float32", packed=False),
        Recipe(preset="low-data", hidden=8),
    )
    assert Trainer(model, pairs, recipe).recipe.early_stopping == 0
    assert Trainer(model, pairs, recipe, validation=pairs).recipe.early_stopping == 5
