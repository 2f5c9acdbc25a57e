"""Chosen rates and lengths: kept by base model, used where the user gives none."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.errors import InvalidRequest
from app.training.choices import Choice, Choices
from app.training.recipe import Recipe


def test_choices_of_one_model_leave_those_of_others(tmp_path: Path) -> None:
    choices = Choices(tmp_path / "chosen.json")
    assert choices.of("a") == Choice()
    first = Choice("gpt2", 20, {"prefix": 1e-3}, {"rates": {"prefix": 2.5}})
    choices.keep("a", first)
    choices.keep("b", Choice("bart"))
    assert choices.of("a") == first
    assert choices.of("b") == Choice("bart")


@pytest.mark.parametrize(
    ("given", "length", "lr"),
    [
        (Recipe(), 20, 1e-3),
        (Recipe(lr=5e-5, length=3), 3, 5e-5),
        (Recipe(method="finetune"), None, 2e-5),
        (Recipe(method="lora"), None, None),
        (Recipe(initial_words="a text", length=0), 0, 1e-3),
        (Recipe(preset="low-data"), None, 1e-3),
        (Recipe(method="adapter"), None, 3e-4),
        (Recipe(method="adapter", adapter_share=0.001), None, 7e-4),
        (Recipe(method="adapter", adapter_share=0.5), None, None),
        (Recipe(method="adapter", lr=1e-5), None, 1e-5),
    ],
)
def test_a_choice_fills_what_is_not_given(
    given: Recipe, length: int | None, lr: float | None
) -> None:
    rates = {"prefix": 1e-3, "finetune": 2e-5, "adapter-3%": 3e-4, "adapter-0.1%": 7e-4}
    choice = Choice("gpt2", 20, rates)
    made = choice.apply(given)
    assert (made.length, made.lr) == (length, lr)


def test_an_adapter_of_another_size_has_the_rate_of_adapters() -> None:
    choice = Choice("gpt2", None, {"adapter": 5e-4, "adapter-3%": 3e-4})
    for share, lr in ((0.03, 3e-4), (0.001, 5e-4), (0.5, 5e-4)):
        assert choice.apply(Recipe(method="adapter", adapter_share=share)).lr == lr


@pytest.mark.parametrize("text", ["{", "[]", '{"a": {"rates": {"prefix": "high"}}}', '{"a": 1}'])
def test_a_damaged_file_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "chosen.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InvalidRequest, match=r"chosen\.json .*remove the file"):
        Choices(path).of("a")
