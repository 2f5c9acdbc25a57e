"""The study of users' prefixes: the split, what is trained once, and what is reported."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from app.cli import app
from app.datasets.example import Example
from app.errors import InvalidRequest
from app.evaluation.likelihood import target_loss
from app.evaluation.statistics import Statistics
from app.evaluation.text_pairs import TokenPair, token_pairs
from app.experiments.personalisation.report import ALL, page, study_rows
from app.experiments.personalisation.study import (
    Measured,
    Study,
    StudyPlan,
    UserSetting,
    default_plan,
)
from app.experiments.personalisation.users import PersonalData, split_users
from app.model.frozen import FrozenModel
from app.prefix.codec import decode
from app.prefix.composition import compose
from app.training.objective import target_losses
from app.training.recipe import Recipe
from tests.tiny import random_prefix

TEXTS = {"ann": "the quick brown fox", "bob": "the lazy dog jumps"}
"""What a user always says."""


def examples(name: str, count: int, start: int = 0) -> list[Example]:
    return [
        Example(f"{name} : number : {at}", (TEXTS.get(name, "mat"),), at, {"who": (name,)})
        for at in range(start, start + count)
    ]


TRAIN = [*examples("ann", 9), *examples("bob", 9), *examples("cyd", 2), *examples("dan", 9)]
TEST = [*examples("ann", 4, 20), *examples("bob", 5, 20), *examples("cyd", 4, 20)]


def test_no_example_is_in_two_parts_of_the_split() -> None:
    data = split_users(TRAIN, TEST, "who", examples=3, task_inputs=12, test_inputs=4)
    assert [user.name for user in data.users] == ["ann", "bob"]  # cyd has too few, dan no test
    assert [len(user.test) for user in data.users] == [4, 4]
    parts = [data.task, *(part for user in data.users for part in (user.train, user.test))]
    inputs = [example.input for part in parts for example in part]
    assert len(inputs) == len(set(inputs)) == 12 + 2 * (3 + 4)
    for user in data.users:
        assert {each.attributes["who"] for each in (*user.train, *user.test)} == {(user.name,)}
    again = split_users(TRAIN, TEST, "who", examples=3, task_inputs=12, test_inputs=4)
    assert again == data


@pytest.mark.parametrize(
    ("field", "count", "message"),
    [("owner", 3, "no field `owner`; they have who"), ("who", 10, "have 0 of the 4 values")],
)
def test_data_without_enough_users_are_refused(field: str, count: int, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        split_users(TRAIN, TEST, field, examples=count, task_inputs=9, test_inputs=4)


@pytest.mark.parametrize("with_encoder", [False, True])
def test_losses_of_many_pairs_are_those_of_each_alone(
    tiny_gpt2: FrozenModel, tiny_bart: FrozenModel, with_encoder: bool
) -> None:
    model = tiny_bart if with_encoder else tiny_gpt2
    sources: Sequence[tuple[int, ...]] = [(5, 6, 7), (8, 9), tuple(range(10, 30)), (4, 3, 2), (5,)]
    pairs = [TokenPair(ids, tuple(range(40, 40 + 7 - at))) for at, ids in enumerate(sources)]
    offset = 0 if with_encoder else None
    prefix = random_prefix(model, 3, position_offset=offset)
    found = target_losses(model, prefix, pairs)
    assert found == pytest.approx([target_loss(model, prefix, pair) for pair in pairs], rel=1e-4)


def statistics(nats: Sequence[float]) -> Statistics:
    rows = np.array([(each, 10.0) for each in nats])
    return Statistics(rows, lambda sums: np.asarray(sums[:, 0] / sums[:, 1]))


def test_rows_tell_a_gain_from_chance() -> None:
    setting = UserSetting(5, 101, "random")
    task = [20.0 + at % 3 for at in range(30)]
    measured = [
        Measured(
            name,
            setting,
            {
                "task": statistics(task),
                "own": statistics([each - gain for each, gain in zip(task, gains, strict=True)]),
                "other": statistics(task),
            },
        )
        for name, gains in (
            ("ann", [2.0] * 30),
            ("bob", [1.0 if at % 2 else -1.0 for at in range(30)]),
        )
    ]
    ann, bob, everyone = study_rows(measured)
    assert (ann.user, bob.user, everyone.user) == ("ann", "bob", ALL)
    assert ann.difference == pytest.approx(-0.2)
    assert ann.p_value < 0.01 < 0.3 < bob.p_value
    assert bob.difference == pytest.approx(0)
    assert everyone.difference == pytest.approx(-0.1)
    assert (ann.inputs, ann.tokens, everyone.inputs) == (30, 300, 60)
    assert "| 5 | random | 101 |" in page([ann, bob, everyone], {}, "a study")
    assert "1 / 0 of 2" in page([ann, bob, everyone], {}, "a study")


def loss(model: FrozenModel, data: PersonalData, who: int, folder: Path, *users: str) -> float:
    """Nats per token of a user's tests behind the task's prefix, and those of `users`."""
    read = [
        decode(folder / f"{name}.safetensors", model.spec, torch.float32, max_length=9)
        for name in ("task-101", *users)
    ]
    prefix = compose(read)
    pairs = token_pairs(
        data.users[who].test,
        model.text,
        prefix.metadata.input_template or "",
        room=99,
        source="the test",
    )
    nats = sum(target_loss(model, prefix, pair) for pair in pairs)
    return nats / sum(len(pair.target_ids) for pair in pairs)


def test_a_study_trains_each_prefix_once_and_measures_whose_it_is(
    tiny_gpt2: FrozenModel, tiny_gpt2_folder: Path, tmp_path: Path
) -> None:
    data = split_users(TRAIN, TEST, "who", examples=8, task_inputs=9, test_inputs=4)
    recipe = Recipe(length=2, hidden=16, max_steps=20, batch_size=8, warmup_steps=0, lr=3e-2)
    user = replace(recipe, method="prefix-direct", max_steps=10, lr=0.02)
    plan = StudyPlan((8,), (101,), 8, "task-mean", ("random",), 9, 4, recipe, user)
    study = Study(str(tiny_gpt2_folder), tiny_gpt2, data, plan, tmp_path)
    trained: list[str] = []
    study.train(trained.append)
    assert len(trained) == study.num_prefixes == 1 + 2 * 2
    files = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.safetensors")}
    assert len(files) == study.num_prefixes
    next(tmp_path.glob("user1-*.safetensors")).unlink()
    again = Study(str(tiny_gpt2_folder), tiny_gpt2, data, plan, tmp_path)
    again.train(trained.append)
    after = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.safetensors")}
    assert after.keys() == files.keys()
    assert sum(after[name] != files[name] for name in files) == 1
    measured = again.measure()
    assert len(measured) == 2 * 2
    for each in measured:
        who, setting = ["ann", "bob"].index(each.user), each.setting
        assert each.losses["task"].score == pytest.approx(loss(tiny_gpt2, data, who, tmp_path))
        for system, whose in (("own", who), ("other", 1 - who)):
            name = f"user{whose}-8-{setting.start}-101"
            found = loss(tiny_gpt2, data, who, tmp_path, name)
            assert each.losses[system].score == pytest.approx(found, rel=1e-4)
    scores = again.bleu({"max_tokens": 4})
    assert {len(each.rows) for each in scores.values()} == {8}


@pytest.fixture
def command(tiny_gpt2_folder: Path, tmp_path: Path) -> list[str]:
    """`polyprefix experiment personalisation` with two users and one step a run."""
    data = tmp_path / "notes"
    data.mkdir()
    names = ("ann", "bob")
    for part, count, start in (("train", 210, 0), ("dev", 3, 300)):
        lines = [
            json.dumps({"input": each.input, "target": each.targets[0], "who": name})
            for name in names
            for each in examples(name, count, start)
        ]
        (data / f"{part}.jsonl").write_text("\n".join(lines))
    options = ("--model", str(tiny_gpt2_folder), "--users", "who", "--device", "cpu")
    small = ("--seeds", "1", "--steps", "1", "--out", str(tmp_path / "out"))
    return ["experiment", "personalisation", "--data", str(data), *options, *small]


def test_a_dry_run_lists_the_prefixes_and_trains_none(command: list[str], tmp_path: Path) -> None:
    ran = CliRunner().invoke(app, [*command, "--dry-run"])
    assert ran.exit_code == 0, ran.output
    settings = len(default_plan(seeds=1).settings())
    assert f"{1 + 2 * settings} prefixes for 2 users" in ran.stdout
    assert "users', 200 inputs, start random, seed 101" in ran.stdout
    assert not list((tmp_path / "out").rglob("*.safetensors"))


def test_with_no_limit_every_held_out_text_of_a_user_is_tested(
    command: list[str], tmp_path: Path
) -> None:
    ran = CliRunner().invoke(app, [*command, "--test-inputs", "0"])
    assert ran.exit_code == 0, ran.output
    with (tmp_path / "out" / "personalisation" / "results.csv").open() as file:
        assert {row["inputs"] for row in csv.DictReader(file)} == {"3", "6"}


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--scale", "small"),
        ("--task", "e2e"),
        ("--metrics", "bleu"),
        ("--methods", "lora"),
        ("--dtype", "bf16"),
        ("--hold-out", "who=ann"),
    ],
)
def test_an_option_that_does_nothing_here_is_refused(
    command: list[str], option: str, value: str
) -> None:
    ran = CliRunner().invoke(app, [*command, option, value])
    assert ran.exit_code == 1
    said = f"{option}: `personalisation` does not use it, because it "
    assert said in " ".join(ran.output.split())


def test_the_command_writes_rows_and_a_page(command: list[str], tmp_path: Path) -> None:
    ran = CliRunner().invoke(app, command)
    assert ran.exit_code == 0, ran.output
    folder = tmp_path / "out" / "personalisation"
    with (folder / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    settings = len(default_plan(seeds=1).settings())
    assert len(rows) == settings * 3
    assert [row["user"] for row in rows[:3]] == ["ann", "bob", ALL]
    assert "notes by who: ann, bob" in ran.stdout
    assert "BLEU of the largest size" in (folder / "table.md").read_text()
