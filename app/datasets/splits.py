"""Parts of a data set: low-data subsets by size and seed, and splits by an attribute."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from app.datasets.example import Example
from app.errors import InvalidRequest

WEBNLG_UNSEEN = ("MeanOfTransportation", "CelestialBody", "Politician", "Athlete", "Artist")
"""The categories that the 2017 challenge's training data lack."""

_NAMED = {"webnlg-unseen": f"category={','.join(WEBNLG_UNSEEN)}"}


def subset(examples: Sequence[Example], size: int, seed: int) -> list[Example]:
    """`size` pairs of input and target, drawn at random without replacement.

    The same seed gives the same pairs, and subsets are nested: of two sizes with one seed, the
    smaller is part of the larger. Pairs stay in the data's order, grouped by input. InvalidRequest
    if there are fewer pairs.
    """
    pairs = [
        (at, number) for at, each in enumerate(examples) for number in range(len(each.targets))
    ]
    if not 0 < size <= len(pairs):
        raise InvalidRequest(f"a subset of {size} pairs was asked for, but there are {len(pairs)}")
    random.Random(seed).shuffle(pairs)
    kept: dict[int, list[int]] = {}
    for at, number in sorted(pairs[:size]):
        kept.setdefault(at, []).append(number)
    return [
        replace(examples[at], targets=tuple(examples[at].targets[number] for number in numbers))
        for at, numbers in kept.items()
    ]


@dataclass(frozen=True)
class HoldOut:
    """Examples are held out if their attribute `name` has one of `values`."""

    name: str
    values: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> HoldOut:
        """From `category=Astronaut,Airport`, or from `webnlg-unseen`. InvalidRequest if neither."""
        name, _, values = _NAMED.get(text, text).partition("=")
        parts = tuple(part.strip() for part in values.split(",") if part.strip())
        if not name.strip() or not parts:
            raise InvalidRequest(
                f"--hold-out: '{text}' must look like `category=Astronaut,Airport`, or be"
                f" {', '.join(_NAMED)}"
            )
        return cls(name.strip(), parts)

    def split(self, examples: Sequence[Example]) -> tuple[list[Example], list[Example]]:
        """The examples that are left (seen) and those that are held out (unseen).

        InvalidRequest if no example has the attribute, or if one part is empty.
        """
        if not any(self.name in each.attributes for each in examples):
            known = sorted({name for each in examples for name in each.attributes})
            raise InvalidRequest(
                f"--hold-out: the data have no field `{self.name}`; they have"
                f" {', '.join(known) or 'no other fields'}"
            )
        held = [self._holds_out(each) for each in examples]
        parts = [
            [each for each, out in zip(examples, held, strict=True) if out is wanted]
            for wanted in (False, True)
        ]
        for part, words in zip(parts, ("every example", "no example"), strict=True):
            if not part:
                raise InvalidRequest(
                    f"--hold-out: {words} has {self.name} {', '.join(self.values)}"
                )
        return parts[0], parts[1]

    def __str__(self) -> str:
        return f"{self.name}={','.join(self.values)}"

    def _holds_out(self, example: Example) -> bool:
        return any(value in self.values for value in example.attributes.get(self.name, ()))


@dataclass(frozen=True)
class Selection:
    """The part of a data set to train on: without what is held out, then `subset` pairs of it."""

    subset: int | None = None
    subset_seed: int = 101
    hold_out: HoldOut | None = None

    def split(self, examples: list[Example]) -> tuple[list[Example], list[Example]]:
        """What to train on, and what is held out. InvalidRequest if a part is empty."""
        held: list[Example] = []
        if self.hold_out is not None:
            examples, held = self.hold_out.split(examples)
        if self.subset is not None:
            examples = subset(examples, self.subset, self.subset_seed)
        return examples, held

    def as_dict(self) -> dict[str, Any]:
        """What was asked for, as JSON values."""
        made: dict[str, Any] = {}
        if self.subset is not None:
            made |= {"subset": self.subset, "subset_seed": self.subset_seed}
        if self.hold_out is not None:
            made["hold_out"] = str(self.hold_out)
        return made
