"""Tasks on facts; every answer is made by copying.

With many tasks the plain model stays undecided, so that a prefix has something to decide.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Fields = Sequence[tuple[str, str]]
Answer = Callable[[str, Fields, str, random.Random], str | None]


@dataclass(frozen=True)
class Task:
    """A task: phrases that ask for it, and its answer.

    `answer(source, fields, target, rng)` is None if the task makes no sense. `weight` is the task's
    share of the documents, `practice` its share at first, when copying is learned. Answers with
    `in_words` are sentences.
    """

    phrases: tuple[str, ...]
    answer: Answer
    weight: int
    practice: int
    in_words: bool = False


def _describe(_source: str, _fields: Fields, target: str, _rng: random.Random) -> str | None:
    return target


def _copy(source: str, _fields: Fields, _target: str, _rng: random.Random) -> str | None:
    return source.strip()


def _values(_source: str, fields: Fields, _target: str, rng: random.Random) -> str | None:
    return rng.choice((", ", " | ", " ; ")).join(value for _, value in fields)


def _keys(_source: str, fields: Fields, _target: str, _rng: random.Random) -> str | None:
    return ", ".join(key for key, _ in fields)


def _lookup(_source: str, fields: Fields, _target: str, rng: random.Random) -> str | None:
    key, value = rng.choice(list(fields))
    return f"{key} ? {value}"


def _reverse(_source: str, fields: Fields, _target: str, _rng: random.Random) -> str | None:
    if len(fields) < 2:
        return None
    return " | ".join(f"{key} : {value}" for key, value in reversed(fields))


def _plain(_source: str, fields: Fields, _target: str, _rng: random.Random) -> str | None:
    return ". ".join(f"{key} is {value}" for key, value in fields) + "."


DESCRIBE = Task(
    (
        *("describe :", "table-to-text :", "put into words :", "write about this :"),
        *("data to text :", "in a sentence :", "tell me about it :", "description of the facts :"),
    ),
    _describe,
    70,
    30,
    in_words=True,
)

TASKS = (
    DESCRIBE,
    Task(("copy :", "repeat this :"), _copy, 5, 20),
    Task(("list the values :", "values :"), _values, 6, 16),
    Task(("list the fields :", "fields :"), _keys, 3, 4),
    Task(("ask about it :", "question and answer :"), _lookup, 6, 8),
    Task(("in reverse order :", "backwards :"), _reverse, 4, 6),
    Task(("field by field :", "in plain statements :"), _plain, 6, 16, in_words=True),
)


def choose(rng: random.Random, *, practice: bool = False) -> Task:
    """A random task, by weight."""
    weights = [task.practice if practice else task.weight for task in TASKS]
    return rng.choices(TASKS, weights)[0]
