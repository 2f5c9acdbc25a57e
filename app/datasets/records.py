"""From a record with named fields to an example, and JSON lines of such records."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.datasets.example import Example, checked_text
from app.datasets.lines import read_lines
from app.errors import InvalidRequest
from app.prefix.strict_json import parse_object

_TARGETS = ("target", "targets", "output", "outputs", "completion")
"""What targets are called: the first two, the same two in the words of `/evaluate`, and what
OpenAI calls the one that follows a `prompt`."""
_PROMPT = "prompt"

MAX_TARGETS = 1_000
"""Of one record."""


@dataclass(frozen=True)
class Columns:
    """The fields that hold the input and the targets; without targets the usual names count.

    Where a record has no `input`, its `prompt` is the input.
    """

    input: str = "input"
    targets: tuple[str, ...] = ()


def read_json_lines(path: Path, columns: Columns) -> Iterator[Example]:
    """The example of each line that is not blank. InvalidRequest names file and line."""
    for number, line in read_lines(path):
        if line.strip():
            where = f"{path}:{number}"
            try:
                record = parse_object(line, floats=True)
            except ValueError as error:
                raise InvalidRequest(f"{where}: the line {error}") from error
            yield from_record(record, columns, number, where)


def from_record(record: Mapping[str, Any], columns: Columns, line: int, where: str) -> Example:
    """The example of a record; InvalidRequest says `where` and which field is wrong."""
    name = _input_name(record, columns)
    source = record.get(name)
    if not isinstance(source, str):
        raise InvalidRequest(f"{where}: `{name}` must be a text that is not empty{_advice(record)}")
    names = columns.targets or _target_names(record, where)
    targets = tuple(target for name in names for target in _targets(record, name, where))
    if not targets:
        raise InvalidRequest(f"{where}: there is no target in {_listed(names)}")
    others = [other for other in record if other not in (name, *names)]
    return Example(
        checked_text(source, f"`{name}`", where),
        targets,
        line,
        {other: values for other in others if (values := _attribute(record[other]))},
    )


def _input_name(record: Mapping[str, Any], columns: Columns) -> str:
    is_usual = columns.input == Columns().input and columns.input not in record
    return _PROMPT if is_usual and _PROMPT in record else columns.input


def _advice(record: Mapping[str, Any]) -> str:
    if "messages" in record:
        return "; chats are not taken: give `input` and `target`, or `prompt` and `completion`"
    return ""


def _target_names(record: Mapping[str, Any], where: str) -> tuple[str, ...]:
    given = [name for name in _TARGETS if record.get(name) is not None]
    if len(given) != 1:
        found = f", not both `{given[0]}` and `{given[1]}`" if given else ""
        raise InvalidRequest(
            f"{where}: give `target` (a text; `output` is the same) or `targets` (a list){found}"
        )
    return (given[0],)


def _targets(record: Mapping[str, Any], name: str, where: str) -> Iterator[str]:
    """The texts of a field; without any if a named field is missing or null."""
    value = record.get(name)
    if value is None:
        return
    if isinstance(value, list) != name.endswith("s") and name in _TARGETS:
        kind = f"a list of 1 to {MAX_TARGETS} texts" if name.endswith("s") else "one text"
        raise InvalidRequest(f"{where}: `{name}` must be {kind}")
    texts = value if isinstance(value, list) else [value]
    if not 0 < len(texts) <= MAX_TARGETS:
        raise InvalidRequest(f"{where}: `{name}` must be a list of 1 to {MAX_TARGETS} texts")
    for text in texts:
        if not isinstance(text, str) or not text.strip():
            raise InvalidRequest(
                f"{where}: `{name}`: every target must be a text that is not empty"
            )
        yield checked_text(text, f"`{name}`", where).strip()


def _attribute(value: Any) -> tuple[str, ...]:
    """The value of another field as texts; nothing of objects and of what is absent."""
    values = value if isinstance(value, list) else [value]
    return tuple(
        str(each) for each in values if isinstance(each, str | int | float) and str(each).strip()
    )


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(f"`{name}`" for name in names)
