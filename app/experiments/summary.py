"""Rows that differ only in their seeds, put together: means and spreads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from app.experiments.results import RunResult


@dataclass(frozen=True)
class Spread:
    """The mean of some values and their standard deviation (0 for a single one)."""

    mean: float
    deviation: float
    count: int


@dataclass(frozen=True)
class Setting:
    """Runs with the same settings but for their seeds, in the order in which they ended."""

    method: str
    length: int
    words: str
    data_size: int
    lr: float | None
    results: tuple[RunResult, ...]

    def spread(self, name: str) -> Spread | None:
        """Of a score or of another measured column; None if no run has it."""
        found = [_measured(result, name) for result in self.results]
        values = [value for value in found if value is not None]
        if not values:
            return None
        return Spread(fmean(values), stdev(values) if len(values) > 1 else 0.0, len(values))


def settings_of(results: Sequence[RunResult]) -> list[Setting]:
    """The successful rows by setting, in the order of first appearance."""
    groups: dict[tuple[str, int, str, int, float | None], list[RunResult]] = {}
    for result in results:
        if not result.error:
            key = (result.method, result.length, result.words, result.data_size, result.lr)
            groups.setdefault(key, []).append(result)
    return [Setting(*key, tuple(members)) for key, members in groups.items()]


def _measured(result: RunResult, name: str) -> float | None:
    if name in result.scores:
        return result.scores[name]
    value = getattr(result, name, None)
    return None if value is None else float(value)
