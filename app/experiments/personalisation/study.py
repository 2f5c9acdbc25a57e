"""Trains a task's prefix and users' prefixes behind it, and measures them on users' own texts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from app.datasets.example import Example
from app.evaluation.evaluator import decode_texts, running_engine
from app.evaluation.scores import score_texts
from app.evaluation.statistics import Statistics
from app.evaluation.text_pairs import TokenPair, default_template, source_pairs, token_pairs
from app.experiments.data import write_examples
from app.experiments.personalisation.users import PersonalData, UserTexts
from app.model.frozen import FrozenModel
from app.prefix.codec import decode
from app.prefix.composition import compose
from app.prefix.prefix import Prefix
from app.training.objective import target_losses
from app.training.publish import write_prefix
from app.training.recipe import Recipe
from app.training.session import Session, TrainingJob

STARTS: Mapping[str, Mapping[str, Any]] = {
    "task-mean": {"initial_task_mean": True},
    "random": {},
    "words": {"initial_words": "written in the style of one user"},
}
"""How a user's prefix may start, as settings of a recipe."""
_FIRST_SEED = 101


@dataclass(frozen=True)
class StudyPlan:
    """What is trained and tested. Sizes count a user's inputs.

    All sizes have the start `start`; `other_starts` are tried at `starts_size` too. `test_inputs`
    is the most of a user. A user's prefix takes three passes over its examples, so that few of
    them make few steps.
    """

    sizes: tuple[int, ...] = (5, 20, 80, 200)
    seeds: tuple[int, ...] = (101,)
    starts_size: int = 80
    start: str = "random"
    other_starts: tuple[str, ...] = ("task-mean", "words")
    task_inputs: int = 600
    test_inputs: int = 40
    task_recipe: Recipe = Recipe(max_steps=200)
    user_recipe: Recipe = Recipe(length=5, epochs=3, warmup_steps=10, batch_size=4)

    def settings(self) -> list[UserSetting]:
        """Every setting that each user's prefix is trained in."""
        grid = [UserSetting(size, seed, self.start) for size in self.sizes for seed in self.seeds]
        starts = self.other_starts
        return grid + [UserSetting(self.starts_size, self.seeds[0], start) for start in starts]


def default_plan(*, seeds: int = 0, steps: int = 0) -> StudyPlan:
    """The plan with so many seeds, and so many steps of every run; 0 means its own number."""
    plan = StudyPlan()
    if seeds:
        plan = replace(plan, seeds=tuple(range(_FIRST_SEED, _FIRST_SEED + seeds)))
    if steps:
        recipes = (replace(each, max_steps=steps) for each in (plan.task_recipe, plan.user_recipe))
        plan = replace(plan, task_recipe=next(recipes), user_recipe=next(recipes))
    return plan


@dataclass(frozen=True)
class UserSetting:
    """How users' prefixes of one column of the study are trained."""

    size: int
    seed: int
    start: str


@dataclass(frozen=True)
class Measured:
    """Losses on one user's test inputs, as sums of nats and tokens for each input, by system.

    Systems are `task`, `own` (the user's prefix behind the task's) and `other` (another user's).
    """

    user: str
    setting: UserSetting
    losses: Mapping[str, Statistics]


class Study:
    """One study in a folder, which keeps every trained prefix; a new run goes on with the rest."""

    def __init__(
        self, model_name: str, model: FrozenModel, data: PersonalData, plan: StudyPlan, folder: Path
    ) -> None:
        self.data, self.plan, self._folder = data, plan, folder
        self._name, self._model = model_name, model

    @property
    def num_prefixes(self) -> int:
        """How many prefixes are trained."""
        return len(self.plan.seeds) + len(self.plan.settings()) * len(self.data.users)

    def planned(self) -> list[tuple[str, int, int]]:
        """What `train` trains: in words, how many prefixes, how many of them are there already."""
        groups = {"the task's": [self._task_file(seed) for seed in self.plan.seeds]}
        for each in self.plan.settings():
            what = f"users', {each.size} inputs, start {each.start}, seed {each.seed}"
            groups[what] = [self._user_file(user, each) for user in self.data.users]
        return [
            (what, len(places), sum(place.exists() for place in places))
            for what, places in groups.items()
        ]

    def train(self, done: Callable[[str], None]) -> None:
        """Train what is missing; `done` is told each prefix."""
        for seed in self.plan.seeds:
            place = self._task_file(seed)
            if not place.exists():
                settings = {"seed": seed}
                self._trained(place, self.data.task, self.plan.task_recipe, settings)
            done(f"task, seed {seed}")
        for setting in self.plan.settings():
            for user in self.data.users:
                place = self._user_file(user, setting)
                if not place.exists():
                    settings = {"seed": setting.seed, **STARTS[setting.start]}
                    self._trained(
                        place,
                        user.train[: setting.size],
                        self.plan.user_recipe,
                        settings,
                        on=self._task_file(setting.seed),
                    )
                done(f"{user.name}, {setting.size} inputs, {setting.start}, seed {setting.seed}")

    def measure(self) -> list[Measured]:
        """Losses of every user's test texts: with the task's prefix, their own and another's."""
        tasks = {seed: self._read(self._task_file(seed)) for seed in self.plan.seeds}
        first = tasks[self.plan.seeds[0]]
        pairs = {user.name: self._pairs(user.test, first) for user in self.data.users}
        alone = {
            (user, seed): self._losses([task], groups)
            for user, groups in pairs.items()
            for seed, task in tasks.items()
        }
        found = []
        users = self.data.users
        for setting in self.plan.settings():
            task = tasks[setting.seed]
            for at, user in enumerate(users):
                # everybody's texts with the prefix of the next user, and the last's with the first
                both = {"own": user, "other": users[(at + 1) % len(users)]}
                losses = {"task": alone[user.name, setting.seed]}
                for system, whose in both.items():
                    prefix = self._read(self._user_file(whose, setting))
                    losses[system] = self._losses([task, prefix], pairs[user.name])
                found.append(Measured(user.name, setting, losses))
        return found

    def bleu(self, decoding: Mapping[str, Any]) -> dict[str, Statistics]:
        """BLEU of the task's prefix and of the users' own, of the largest size and first seed."""
        setting = UserSetting(max(self.plan.sizes), self.plan.seeds[0], self.plan.start)
        task = self._read(self._task_file(setting.seed))
        texts: dict[str, list[str]] = {"task": [], "own": []}
        references: list[Sequence[str]] = []
        with running_engine(self._model) as engine:
            for user in self.data.users:
                whole = compose([task, self._read(self._user_file(user, setting))])
                for system, prefix in (("task", task), ("own", whole)):
                    placed = prefix.to(self._model.device, self._model.dtype)
                    said = decode_texts(engine, user.test, prefix=placed, decoding=decoding)
                    texts[system] += said
                references += [example.targets for example in user.test]
        return {
            system: score_texts(said, references, ("bleu",)).statistics["bleu"]
            for system, said in texts.items()
        }

    def _trained(
        self,
        place: Path,
        examples: Sequence[Example],
        recipe: Recipe,
        settings: Mapping[str, Any],
        on: Path | None = None,
    ) -> None:
        data = write_examples(place.with_suffix(".jsonl"), examples)
        checkpoint = place.with_suffix(".checkpoint")
        used = Recipe(**{**recipe.as_dict(), "modules": (), "lora_targets": (), **settings})
        session = Session(TrainingJob(self._name, data, used, checkpoint, on=on), self._model)
        session.trainer.resume()
        session.train(lambda _: None)
        write_prefix(session.prefix({}), place)
        session.trainer.discard_checkpoint()

    def _read(self, place: Path) -> Prefix:
        spec = self._model.spec
        return decode(place, spec, self._model.dtype, max_length=spec.context_limit)

    def _task_file(self, seed: int) -> Path:
        return self._folder / f"task-{seed}.safetensors"

    def _user_file(self, user: UserTexts, setting: UserSetting) -> Path:
        number = [each.name for each in self.data.users].index(user.name)
        name = f"user{number}-{setting.size}-{setting.start}-{setting.seed}.safetensors"
        return self._folder / name

    def _pairs(self, examples: Sequence[Example], task: Prefix) -> list[list[TokenPair]]:
        """The pairs of each input, in the form of the task's training."""
        model, spec = self._model, self._model.spec
        has_encoder = model.encoder_decoder is not None
        own = task.metadata.input_template
        template = own or default_template(model.text, has_encoder=has_encoder)
        length = 0 if has_encoder else self.plan.user_recipe.positions
        room = spec.context_limit - task.metadata.position_offset - length
        if spec.source_limit is None:
            form = partial(token_pairs, room=room)
        else:
            first = model.generation.frame.forced_first
            form = partial(
                source_pairs, source_room=spec.source_limit, target_room=room, first=first
            )
        return [form([each], model.text, template, source="the test") for each in examples]

    def _losses(self, prefixes: Sequence[Prefix], groups: list[list[TokenPair]]) -> Statistics:
        whole = compose(prefixes).to(self._model.device, self._model.dtype)
        flat = [pair for group in groups for pair in group]
        nats = iter(target_losses(self._model, whole, flat))
        rows = [
            (sum(next(nats) for _ in group), sum(len(pair.target_ids) for pair in group))
            for group in groups
        ]
        return Statistics(np.array(rows, dtype=np.float64), _per_token)


def _per_token(sums: Any) -> Any:
    return sums[:, 0] / sums[:, 1]
