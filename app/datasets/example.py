"""An example of a data set: an input, the targets that are right for it, and where it was found."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from app.errors import InvalidRequest
from app.prefix.strict_json import printable

_UNENCODABLE = re.compile("[\0\ud800-\udfff]")


@dataclass(frozen=True)
class Example:
    """An input and all the targets that are right for it; `line` says where it stands.

    `attributes` has what else the data say of it, such as its category.
    """

    input: str
    targets: tuple[str, ...]
    line: int
    attributes: Mapping[str, tuple[str, ...]] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class Grouped:
    """Examples with different inputs, and how many pairs of input and target occur again."""

    examples: list[Example]
    repeated_inputs: int
    repeated_pairs: int


def group(examples: Iterable[Example]) -> Grouped:
    """One example for each input, in the order of first appearance, with all its targets.

    A target that is given twice stays twice: it counts so in training and in NIST.
    """
    found: dict[str, list[Example]] = {}
    for example in examples:
        found.setdefault(example.input, []).append(example)
    merged = [_merge(same) for same in found.values()]
    again = sum(len(same) - 1 for same in found.values())
    twice = sum(len(each.targets) - len(set(each.targets)) for each in merged)
    return Grouped(merged, again, twice)


def _merge(same: Sequence[Example]) -> Example:
    first = same[0]
    if len(same) == 1:
        return first
    names = dict.fromkeys(name for each in same for name in each.attributes)
    attributes = {
        name: tuple(dict.fromkeys(v for each in same for v in each.attributes.get(name, ())))
        for name in names
    }
    targets = tuple(target for each in same for target in each.targets)
    return replace(first, targets=targets, attributes=attributes)


def checked_text(text: str, what: str, where: str) -> str:
    """The text, if it can be encoded and is not empty; InvalidRequest says what and where."""
    if not text.strip():
        raise InvalidRequest(f"{where}: {what} must be a text that is not empty")
    if _UNENCODABLE.search(text):
        raise InvalidRequest(f"{where}: {what} has a NUL or a lone surrogate in {printable(text)}")
    return text
