"""What a run may take where others wait for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from app.datasets.example import Example
from app.errors import InvalidRequest
from app.evaluation.text_pairs import TokenPair
from app.model.frozen import FrozenModel
from app.training.groups.limits import RunLimits
from app.training.initial import complete_recipe
from app.training.methods.choose import count_parameters
from app.training.recipe import Recipe
from app.training.trainer import Trainer

LIMITS = RunLimits()
PAIRS = [TokenPair((5, 6), (7,) * n) for n in range(1, 9)]


def applied(model: FrozenModel, pairs: int = 100, held_out: int = 0, **settings: Any) -> Recipe:
    recipe = complete_recipe(model, Recipe(**settings), pairs)
    return LIMITS.apply(model, recipe, pairs, held_out)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 513}, "batch_size: a step of a job takes at most 512 pairs"),
        ({"batch_size": 64, "accumulate": 9}, "not 576; lower batch_size or accumulate"),
        ({"validation_pairs": 1025}, "validation_pairs: .* at most 1024 pairs, not 1025"),
        ({"validation_pairs": 0, "batch_size": 500}, "at most 1024 pairs, not 5000"),
        ({"hidden": 65_536, "depth": 2}, r"hidden: .* takes at most 1.0 GiB; lower hidden or"),
        ({"batch_size": 8, "validate_every": 15}, "validate_every: .* after 16 steps or more"),
        (
            {"batch_size": 8, "validate_every": 79, "metric": "bleu"},
            "validate_every: .* as long as 640 pairs .* after 80 steps or more, not 79",
        ),
    ],
)
def test_what_takes_too_much_is_refused_by_its_name(
    tiny_gpt2: FrozenModel, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidRequest, match=message):
        applied(tiny_gpt2, pairs=10_000, held_out=5000, **settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"batch_size": 64, "accumulate": 8},
        {"validation_pairs": 1024, "batch_size": 8, "validate_every": 128},
        {"batch_size": 8, "validate_every": 16},
        {"batch_size": 8, "validate_every": 80, "metric": "bleu"},
    ],
)
def test_what_is_just_allowed_stays_as_it_is(
    tiny_gpt2: FrozenModel, settings: dict[str, Any]
) -> None:
    made = applied(tiny_gpt2, pairs=10_000, held_out=5000, **settings)
    assert made == complete_recipe(tiny_gpt2, Recipe(**settings), 10_000)


def test_a_run_with_few_pairs_validates_after_as_many_epochs_as_the_validation_takes(
    tiny_gpt2: FrozenModel,
) -> None:
    few = applied(tiny_gpt2, pairs=20, held_out=128, batch_size=8)
    assert few.validate_every == 18  # an epoch has 3 steps; 16 steps take 128 pairs
    assert applied(tiny_gpt2, pairs=20, held_out=24, batch_size=8).validate_every == 0
    assert applied(tiny_gpt2, pairs=20, held_out=0, batch_size=8).validate_every == 0


@pytest.mark.parametrize(
    "settings",
    [
        {"method": "prefix", "hidden": 24, "length": 3},
        {"method": "prefix", "hidden": 24, "length": 3, "depth": 2},
        {"method": "prefix-direct", "length": 7},
        {"method": "embedding", "hidden": 24, "length": 3},
        {"method": "infix", "hidden": 24, "length": 3},
    ],
)
def test_parameters_are_counted_as_a_trainer_has_them(
    tiny_models: Mapping[str, FrozenModel], settings: dict[str, Any]
) -> None:
    for model in tiny_models.values():
        recipe = complete_recipe(model, Recipe(**settings), len(PAIRS))
        trained = Trainer(model, PAIRS, recipe).parameters.values()
        assert count_parameters(model, recipe) == sum(each.numel() for each in trained)


def test_the_bound_of_memory_counts_gradients_and_moments(tiny_gpt2: FrozenModel) -> None:
    recipe = complete_recipe(tiny_gpt2, Recipe(method="prefix-direct", length=1024), 8)
    nbytes = 16 * count_parameters(tiny_gpt2, recipe)
    assert nbytes > tiny_gpt2.num_parameters  # else a quarter of the model would allow it
    assert replace(LIMITS, trained_bytes=nbytes).apply(tiny_gpt2, recipe, 8, 0) == recipe
    with pytest.raises(InvalidRequest, match="^length: .* lower length$"):
        replace(LIMITS, trained_bytes=nbytes - 1).apply(tiny_gpt2, recipe, 8, 0)


def test_a_step_is_bounded_by_its_longest_pairs(tiny_gpt2: FrozenModel) -> None:
    room = 8 * tiny_gpt2.spec.context_limit
    long = [TokenPair((5,) * 50, (7,) * 50) for _ in range(40)]
    recipe = Recipe(length=2, hidden=8, batch_size=20, max_steps=2)
    limits = replace(LIMITS, step_tokens=room, pass_tokens=room)
    fitting = room // 100
    assert fitting < 20
    for method in ("prefix", "infix"):
        trainer = Trainer(tiny_gpt2, long, replace(recipe, method=method))
        with pytest.raises(InvalidRequest, match=f"; {fitting} pairs always fit: lower batch_size"):
            limits.check_tokens(trainer, long)
        small = replace(recipe, method=method, batch_size=fitting)
        limits.check_tokens(Trainer(tiny_gpt2, long, small), long)


def test_scores_take_a_sample_by_the_seed_and_no_more_outputs_than_can_be_compared() -> None:
    examples = [Example(str(n), ("one two",) * 3, n) for n in range(20)]
    limits = RunLimits(scored_inputs=8, references=2, reference_words=20)
    chosen = limits.choose_scored(examples, 7)
    assert [each.targets for each in chosen] == [("one two",) * 2] * 5
    assert chosen == limits.choose_scored(examples, 7)
    assert chosen != limits.choose_scored(examples, 8)
    long = [Example("a", ("word " * 100,), 1)]
    assert limits.choose_scored(long, 7) == long
    assert {each.input for each in LIMITS.choose_scored(examples, 7)} == {
        each.input for each in examples
    }


def test_exchanges_are_bounded_and_each_part_has_one() -> None:
    limits = RunLimits(exchanges=100)
    assert limits.count_exchanges(0, 320, 10) == 100
    assert limits.count_exchanges(0, 64, 2) == 64
    assert limits.count_exchanges(50, 320, 10) == 50
    with pytest.raises(InvalidRequest, match="exchanges: a job makes at most 100, not 101"):
        limits.count_exchanges(101, 320, 10)
    with pytest.raises(InvalidRequest, match="part: the text has 101 parts"):
        limits.count_exchanges(0, 3232, 101)


def test_a_text_is_bounded_by_its_bytes() -> None:
    RunLimits().check_text(1 << 20)
    with pytest.raises(InvalidRequest, match="at most 1048576 bytes, not 1048577; split it"):
        RunLimits().check_text((1 << 20) + 1)
