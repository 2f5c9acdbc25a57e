"""Whose texts are whose: each user's examples and tests, and the task's own examples."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from app.datasets.example import Example
from app.errors import InvalidRequest

_SPLIT_SEED = 101


@dataclass(frozen=True)
class UserTexts:
    """One user: `train` has as many examples as the largest size, `test` is held out."""

    name: str
    train: Sequence[Example]
    test: Sequence[Example]


@dataclass(frozen=True)
class PersonalData:
    """`task` is what the task's prefix is trained on; no example is in two parts."""

    task: Sequence[Example]
    users: Sequence[UserTexts]


def split_users(
    train: Sequence[Example],
    test: Sequence[Example],
    field: str,
    *,
    examples: int,
    task_inputs: int,
    test_inputs: int,
) -> PersonalData:
    """Users are the values of the attribute `field`; the draw is always the same.

    Each gets `examples` inputs of `train` and at most `test_inputs` of `test`; a value with fewer
    examples, or with no test, is left out, and its inputs go to the task. `task_inputs` of what is
    left of `train` are the task's. InvalidRequest if that leaves fewer than two users or no task.
    """
    by_user, tests = _by_value(train, field), _by_value(test, field)
    if not by_user:
        known = sorted({name for each in train for name in each.attributes})
        raise InvalidRequest(
            f"--users: the data have no field `{field}`; they have"
            f" {', '.join(known) or 'no other fields'}"
        )
    names = [name for name in sorted(by_user) if len(by_user[name]) >= examples and name in tests]
    if len(names) < 2:
        raise InvalidRequest(
            f"--users: two users with {examples} training inputs and a test are needed; the data"
            f" have {len(names)} of the {len(by_user)} values of `{field}`"
        )
    users = [
        UserTexts(
            name,
            _drawn(by_user[name], examples, f"{name}:train"),
            _drawn(tests[name], test_inputs, f"{name}:test"),
        )
        for name in names
    ]
    taken = {example.input for user in users for example in user.train}
    rest = [example for example in train if example.input not in taken]
    if not rest:
        raise InvalidRequest("the users' examples leave none for the task's prefix")
    return PersonalData(_drawn(rest, task_inputs, "task"), users)


def _by_value(examples: Sequence[Example], field: str) -> Mapping[str, list[Example]]:
    """Examples by their only value of the field; those with several belong to no user."""
    found: dict[str, list[Example]] = {}
    for example in examples:
        values = example.attributes.get(field, ())
        if len(values) == 1:
            found.setdefault(values[0], []).append(example)
    return found


def _drawn(examples: Sequence[Example], count: int, purpose: str) -> list[Example]:
    order = list(examples)
    random.Random(f"{_SPLIT_SEED}:{purpose}").shuffle(order)
    return order[:count]
