"""Systems side by side: their outputs, scores, slot errors, and whether differences are chance."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from app.datasets.example import Example
from app.datasets.lines import read_lines
from app.errors import InvalidRequest
from app.evaluation.scores import Scores
from app.evaluation.significance import Difference, paired_bootstrap
from app.evaluation.slots import SlotReport, slot_errors
from app.evaluation.statistics import Statistics
from app.prefix.strict_json import parse_object


@dataclass(frozen=True)
class SystemResult:
    """What one system wrote and how good it is; `length` is that of its prefix.

    `parts` has its scores on parts of the inputs, `versus` its difference from another system by
    metric.
    """

    name: str
    length: int
    texts: tuple[str, ...]
    scores: Scores
    slots: SlotReport | None = None
    parts: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    versus: Mapping[str, Difference] = field(default_factory=dict)

    def as_dict(self) -> dict[str, object]:
        """The result for scripts."""
        result: dict[str, object] = {"prefix": self.name, "length": self.length}
        result |= self.scores.rounded()
        if self.slots is not None:
            result["slots"] = self.slots.as_dict()
        if self.parts:
            result["parts"] = {name: dict(scores) for name, scores in self.parts.items()}
        if self.versus:
            result["versus"] = {name: each.rounded() for name, each in self.versus.items()}
        return result


def table_slots(examples: Sequence[Example], texts: Sequence[str]) -> SlotReport | None:
    """Slot errors where every input is a table; None for other data."""
    return slot_errors([example.input for example in examples], texts)


def part_scores(scores: Scores, numbers: Sequence[int]) -> dict[str, float]:
    """Scores of some of the inputs; what NIST and CIDEr weigh by is counted over all of them."""
    chosen = list(numbers)
    return Scores(
        {
            name: Statistics(each.rows[chosen], each.combine)
            for name, each in scores.statistics.items()
        }
    ).rounded()


def compare(system: Scores, other: Scores, *, samples: int, seed: int) -> dict[str, Difference]:
    """The differences by each metric that both systems have."""
    return {
        name: paired_bootstrap(each, other.statistics[name], samples=samples, seed=seed)
        for name, each in system.statistics.items()
        if name in other.statistics
    }


def read_outputs(path: Path, number: int) -> tuple[str, ...]:
    """A system's outputs from a file: one a line, or as `--outputs` writes those of one system.

    InvalidRequest if there are not `number` of them, or if the file has several systems.
    """
    lines = [(at, line) for at, line in read_lines(path) if line.strip() or at <= number]
    if lines and lines[0][1].startswith("{"):
        texts = [_output(line, f"{path}:{at}") for at, line in lines if line.strip()]
    else:
        texts = [line.strip() for _, line in lines]
    if len(texts) != number:
        raise InvalidRequest(f"{path}: there are {len(texts)} outputs for {number} inputs")
    return tuple(texts)


def _output(line: str, where: str) -> str:
    try:
        record = parse_object(line, floats=True)
    except ValueError as error:
        raise InvalidRequest(f"{where}: the line {error}") from error
    systems = [name for name in record if name != "input"]
    if len(systems) != 1 or not isinstance(record[systems[0]], str):
        raise InvalidRequest(
            f"{where}: the line must have one system's output beside `input`; it has"
            f" {', '.join(systems) or 'none'}"
        )
    return str(record[systems[0]])


def write_outputs(path: Path, examples: Sequence[Example], results: Sequence[SystemResult]) -> None:
    """One JSON object a line: the input, and each system's output under its name."""
    lines = [
        json.dumps({"input": each.input, **{done.name: done.texts[at] for done in results}})
        for at, each in enumerate(examples)
    ]
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
