"""Runs that take their steps together end as they would alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from app.engine.engine import Engine
from app.errors import InvalidRequest, PolyprefixError
from app.evaluation.evaluator import evaluate, running_engine
from app.evaluation.text_pairs import TokenPair, default_template, source_pairs, token_pairs
from app.model.frozen import FrozenModel
from app.model.load import load_model
from app.prefix.prefix import Prefix, PrefixMetadata
from app.training.groups.job_group import JobGroup
from app.training.objective import position_offset
from app.training.progress import Interrupted, Report
from app.training.recipe import Recipe
from app.training.trainer import Trainer
from tests.tiny import random_prefix
from tests.training.conftest import EXAMPLES

RECIPE = Recipe(
    length=3,
    hidden=16,
    batch_size=2,
    max_steps=20,
    lr=1e-2,
    warmup_steps=2,
    model_dropout=False,
    validate_every=10,
)
DIRECT = replace(RECIPE, method="prefix-direct")
MIXED = (
    RECIPE,
    replace(DIRECT, length=5, lr=0.03, seed=7, max_steps=24),
    replace(RECIPE, length=1, lr=3e-3, seed=8, depth=2, batch_size=4, label_smoothing=0.1),
    replace(DIRECT, prefix_dropout=0.2, seed=9, clip_norm=0.5),
    replace(RECIPE, accumulate=2, batch_size=1, max_steps=21),
    replace(DIRECT, gradient_checkpointing=True, length=3),
    replace(DIRECT, accumulate=2, prefix_dropout=0.1, seed=4),
)
"""Lengths, methods, rates, seeds, ends; the last one is computed alone."""


@pytest.fixture(scope="module")
def models(
    tiny_models: Mapping[str, FrozenModel], tiny_bart: FrozenModel
) -> Mapping[str, FrozenModel]:
    return {**tiny_models, "bart": tiny_bart}


def pairs_of(model: FrozenModel) -> list[TokenPair]:
    has_encoder = model.encoder_decoder is not None
    template, room = default_template(model.text, has_encoder=has_encoder), 100
    if not has_encoder:
        return token_pairs(EXAMPLES, model.text, template, room=room, source="examples")
    return source_pairs(
        EXAMPLES,
        model.text,
        template,
        source_room=room,
        target_room=room,
        first=None,
        source="examples",
    )


def alone(trainer: Trainer) -> list[Report]:
    reports: list[Report] = []
    trainer.run(reports.append)
    return reports


def together(group: JobGroup, steps: int = 1000) -> dict[Trainer, list[Report]]:
    """Steps until all have ended, or so many; no run may fail."""
    reports: dict[Trainer, list[Report]] = {}
    for _ in range(steps):
        if not group.members:
            break
        for trainer, report in group.step():
            assert isinstance(report, Report), report
            reports.setdefault(trainer, []).append(report)
    return reports


def group_of(model: FrozenModel, trainers: Sequence[Trainer], max_tokens: int = 1024) -> JobGroup:
    group = JobGroup(model, max_tokens=max_tokens)
    for trainer in trainers:
        group.add(trainer)
    return group


def answers(engine: Engine, trainer: Trainer) -> tuple[str, ...]:
    """Greedy answers behind the trained prefix."""
    modules, model = trainer.result(), engine.model
    offset = position_offset(model, modules["decoder"].length)
    template = default_template(model.text, has_encoder=model.encoder_decoder is not None)
    prefix = Prefix(
        modules,
        PrefixMetadata(
            offset,
            base_model=model.spec.model_id,
            base_fingerprint=model.spec.fingerprint,
            input_template=template,
        ),
    ).to(model.device, model.dtype)
    return evaluate(engine, EXAMPLES, prefix=prefix, decoding={"max_tokens": 8}).texts


def assert_equal_runs(mine: Sequence[Report], theirs: Sequence[Report]) -> None:
    assert [(one.step, one.total, one.lr, one.tokens) for one in mine] == [
        (one.step, one.total, one.lr, one.tokens) for one in theirs
    ]
    for one, other in zip(mine, theirs, strict=True):
        assert one.loss == pytest.approx(other.loss, rel=1e-4)
        if other.validation_loss is None:
            assert one.validation_loss is None
        else:
            assert one.validation_loss == pytest.approx(other.validation_loss, rel=1e-4)


@pytest.mark.parametrize(
    ("family", "max_tokens"), [("gpt2", 40), ("gpt2", 1024), ("llama", 1024), ("bart", 1024)]
)
def test_each_run_has_the_losses_and_the_answers_that_it_has_alone(
    models: Mapping[str, FrozenModel], family: str, max_tokens: int
) -> None:
    model = models[family]
    pairs = pairs_of(model)
    recipes = list(MIXED)
    if family == "bart":
        recipes[1] = replace(recipes[1], modules=("decoder",))
        recipes[2] = replace(recipes[2], modules=("decoder", "cross"))
    else:
        recipes.append(replace(RECIPE, method="embedding", length=4))

    def new() -> list[Trainer]:
        return [Trainer(model, pairs, recipe, validation=pairs[:2]) for recipe in recipes]

    trainers, singles = new(), new()
    reports = together(group_of(model, trainers, max_tokens))
    with running_engine(model) as engine:
        for trainer, single in zip(trainers, singles, strict=True):
            assert_equal_runs(reports[trainer], alone(single))
            assert answers(engine, trainer) == answers(engine, single)


def test_runs_behind_a_frozen_prefix_share_passes_with_others(
    tiny_gpt2: FrozenModel, pairs: list[TokenPair]
) -> None:
    task = random_prefix(tiny_gpt2, 4)

    def new() -> list[Trainer]:
        recipes = [replace(DIRECT, seed=seed) for seed in range(3)]
        behind = (task, None, task)
        return [
            Trainer(tiny_gpt2, pairs, recipe, on=on)
            for recipe, on in zip(recipes, behind, strict=True)
        ]

    trainers = new()
    reports = together(group_of(tiny_gpt2, trainers))
    for trainer, single in zip(trainers, new(), strict=True):
        assert_equal_runs(reports[trainer], alone(single))


def test_a_model_with_dropout_trains_its_run_alone_with_the_same_noise(
    tiny_bart: FrozenModel,
) -> None:
    pairs = pairs_of(tiny_bart)
    recipes = [RECIPE, replace(RECIPE, model_dropout=True, max_steps=6)]
    trainers = [Trainer(tiny_bart, pairs, recipe) for recipe in recipes]
    assert [trainer.shares_passes for trainer in trainers] == [True, False]
    reports = together(group_of(tiny_bart, trainers))
    single = alone(Trainer(tiny_bart, pairs, recipes[1]))
    assert [one.loss for one in reports[trainers[1]]] == [one.loss for one in single]
    assert not tiny_bart.hf.training


def test_runs_join_and_leave_between_steps(tiny_gpt2: FrozenModel, pairs: list[TokenPair]) -> None:
    early, late, leaver = (
        Trainer(tiny_gpt2, pairs, replace(DIRECT, seed=seed)) for seed in range(3)
    )
    group = group_of(tiny_gpt2, [early, leaver])
    reports = together(group, 5)
    group.add(late)
    group.remove(leaver)
    assert group.members == (early, late)
    assert (early.step, late.step, leaver.step) == (5, 0, 5)
    for trainer, more in together(group, 8).items():
        reports.setdefault(trainer, []).extend(more)
    group.add(leaver)
    for trainer, more in together(group).items():
        reports.setdefault(trainer, []).extend(more)
    for seed, trainer in enumerate((early, late, leaver)):
        single = alone(Trainer(tiny_gpt2, pairs, replace(DIRECT, seed=seed)))
        assert_equal_runs(reports[trainer], single)
    assert group.members == ()
    assert group.step() == []


@pytest.mark.parametrize("what", ["prefix", "gradient"])
def test_a_run_with_a_value_that_is_not_finite_fails_alone(
    tiny_gpt2: FrozenModel, pairs: list[TokenPair], tmp_path: Path, what: str
) -> None:
    place = tmp_path / "bad.checkpoint"

    def new(seed: int) -> Trainer:
        recipe = replace(DIRECT, seed=seed)
        keeps = {"checkpoint": place, "checkpoint_every": 2} if seed == 1 else {}
        return Trainer(tiny_gpt2, pairs, recipe, validation=pairs[:2], **keeps)  # type: ignore[arg-type]

    good, bad, other = trainers = [new(seed) for seed in range(3)]
    group = group_of(tiny_gpt2, trainers)
    reports = together(group, 3)
    first = next(iter(bad.parameters.values()))
    if what == "prefix":
        with torch.no_grad():
            first[0, 0, 0, 0] = float("nan")
    else:
        first.register_hook(lambda slopes: slopes * float("inf"))
    outcomes = group.step()
    assert [trainer for trainer, _ in outcomes] == trainers
    failure = outcomes[1].report
    assert isinstance(failure, InvalidRequest)
    assert "at step 3" in failure.message
    assert "bad.checkpoint has the last good state" in failure.message
    assert group.members == (good, other)
    for trainer, report in outcomes[::2]:
        assert isinstance(report, Report)
        reports[trainer].append(report)
    for trainer, more in together(group).items():
        reports[trainer] += more
    for trainer, seed in ((good, 0), (other, 2)):
        assert_equal_runs(reports[trainer], alone(new(seed)))


def test_a_validation_or_a_checkpoint_that_fails_ends_its_run_alone(
    tiny_gpt2: FrozenModel, pairs: list[TokenPair], tmp_path: Path
) -> None:
    folder = tmp_path / "in-the-way"
    folder.write_text("not a folder")
    keeps = {"checkpoint": folder / "a.checkpoint", "checkpoint_every": 1}
    bad = Trainer(tiny_gpt2, pairs, DIRECT, **keeps)  # type: ignore[arg-type]
    good = Trainer(tiny_gpt2, pairs, DIRECT)
    group = group_of(tiny_gpt2, [bad, good])
    failure, report = (outcome.report for outcome in group.step())
    assert isinstance(failure, PolyprefixError)
    assert isinstance(report, Report)
    assert group.members == (good,)


def test_a_resumed_group_ends_bit_for_bit_like_an_uninterrupted_one(
    tiny_gpt2: FrozenModel, pairs: list[TokenPair], tmp_path: Path
) -> None:
    def new(folder: str) -> list[Trainer]:
        return [
            Trainer(
                tiny_gpt2,
                pairs,
                replace(recipe, max_steps=12 + number),
                validation=pairs[:2],
                checkpoint=tmp_path / folder / f"{number}.checkpoint",
                checkpoint_every=4,
            )
            for number, recipe in enumerate(MIXED)
        ]

    whole, interrupted, resumed = new("whole"), new("cut"), new("cut")
    together(group_of(tiny_gpt2, whole))
    together(group_of(tiny_gpt2, interrupted), 6)
    assert all(trainer.resume() for trainer in resumed)
    assert {trainer.step for trainer in resumed} == {4}
    together(group_of(tiny_gpt2, resumed))
    for mine, theirs in zip(resumed, whole, strict=True):
        assert mine.best_loss == theirs.best_loss
        for name, tensor in mine.parameters.items():
            assert torch.equal(tensor, theirs.parameters[name]), name


def test_an_infix_takes_its_steps_beside_prefixes_as_it_does_alone(
    tiny_gpt2: FrozenModel, pairs: list[TokenPair]
) -> None:
    recipe = replace(RECIPE, method="infix", max_steps=3)
    alone = Trainer(tiny_gpt2, pairs, recipe)
    alone.run(lambda _: None)
    runs = [Trainer(tiny_gpt2, pairs, recipe), Trainer(tiny_gpt2, pairs, DIRECT)]
    together(group_of(tiny_gpt2, runs))
    for name, tensor in alone.state().items():
        assert torch.equal(runs[0].state()[name], tensor), name


def test_runs_that_cannot_take_part_are_refused_with_the_reason(
    tiny_gpt2: FrozenModel,
    tiny_gpt2_folder: Path,
    tiny_models: Mapping[str, FrozenModel],
    pairs: list[TokenPair],
) -> None:
    changeable = load_model(str(tiny_gpt2_folder), device="cpu", dtype="float32", packed=False)
    group = JobGroup(tiny_gpt2)
    member = Trainer(tiny_gpt2, pairs, replace(DIRECT, max_steps=1))
    with pytest.raises(InvalidRequest, match="does not take part"):
        group.remove(member)
    with pytest.raises(InvalidRequest, match="finetune-top2 cannot be trained together"):
        group.add(Trainer(changeable, pairs, replace(RECIPE, method="finetune-top2")))
    with pytest.raises(InvalidRequest, match="another base model"):
        group.add(Trainer(tiny_models["llama"], pairs, DIRECT))
    group.add(member)
    with pytest.raises(InvalidRequest, match="already"):
        group.add(member)
    group.step()
    with pytest.raises(InvalidRequest, match="has ended"):
        group.add(member)


class Interruption:
    """A `between` that interrupts its calls of these numbers, counted from 1."""

    def __init__(self, *numbers: int) -> None:
        self._numbers, self.calls = numbers, 0

    def __call__(self) -> None:
        self.calls += 1
        if self.calls in self._numbers:
            raise Interrupted


def test_a_step_that_is_interrupted_between_passes_is_taken_later_with_equal_results(
    tiny_gpt2: FrozenModel,
) -> None:
    pairs = pairs_of(tiny_gpt2)
    recipes = [replace(RECIPE, max_steps=4), replace(MIXED[-1], max_steps=4)]
    expected = [alone(Trainer(tiny_gpt2, pairs, recipe)) for recipe in recipes]
    trainers = [Trainer(tiny_gpt2, pairs, recipe) for recipe in recipes]
    group = group_of(tiny_gpt2, trainers, max_tokens=1)  # each row is a pass of its own
    between = Interruption(2, 5, 9)
    reports: dict[Trainer, list[Report]] = {trainer: [] for trainer in trainers}
    short = 0
    while group.members:
        outcomes = group.step(between)
        short += len(outcomes) < len(group.members)
        for trainer, report in outcomes:
            assert isinstance(report, Report)
            reports[trainer].append(report)
    assert between.calls > 9
    assert short >= 2
    for trainer, theirs in zip(trainers, expected, strict=True):
        assert_equal_runs(reports[trainer], theirs)


def test_a_validation_that_is_interrupted_is_made_up_for_also_from_a_checkpoint(
    tiny_gpt2: FrozenModel, tmp_path: Path
) -> None:
    pairs, recipe = pairs_of(tiny_gpt2), replace(RECIPE, max_steps=6, validate_every=2)
    whole = Trainer(tiny_gpt2, pairs, recipe, validation=pairs)
    alone(whole)
    between = Interruption()
    path = tmp_path / "checkpoint"
    cut = Trainer(tiny_gpt2, pairs, recipe, validation=pairs, checkpoint=path, between=between)
    cut.run(lambda _: None, until=1)
    between = Interruption(1)
    cut = Trainer(tiny_gpt2, pairs, recipe, validation=pairs, checkpoint=path, between=between)
    assert cut.resume()
    assert cut.take_step().validation_loss is None
    assert cut.best_loss is None
    cut.save()
    again = Trainer(tiny_gpt2, pairs, recipe, validation=pairs, checkpoint=path)
    assert again.resume()
    again.take_step()
    assert again.best_loss is not None
    alone(again)
    assert again.best_loss == whole.best_loss
    for name, made in whole.result().items():
        assert torch.equal(made.keys, again.result()[name].keys)
