"""Runs a grid: skips what is done, records what fails, and goes on."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from app.errors import PolyprefixError
from app.experiments.execution import Executor
from app.experiments.plan import RunSettings
from app.experiments.results import ResultsFile, RunResult
from app.training.progress import Report

_log = logging.getLogger(__name__)
_MAX_ERROR = 500


@dataclass(frozen=True)
class Observer:
    """Is told how a grid goes: before a run, after each step, and when a run has its row."""

    starts: Callable[[int, RunSettings], None]
    steps: Callable[[Report], None]
    ends: Callable[[RunResult], None]


def remaining_runs(
    executor: Executor, results: ResultsFile, runs: Sequence[RunSettings]
) -> list[RunSettings]:
    """The runs that have no row yet, or only rows with an error."""
    done = {name for name, result in results.latest().items() if not result.error}
    return [run for run in runs if executor.run_digest(run) not in done]


def run_grid(
    executor: Executor, results: ResultsFile, runs: Sequence[RunSettings], observer: Observer
) -> None:
    """Do all `runs` and append a row for each, also for one that fails.

    An interruption (KeyboardInterrupt) ends the grid; its finished runs have their rows.
    """
    for number, settings in enumerate(runs):
        observer.starts(number, settings)
        try:
            result = executor.run(settings, observer.steps)
        except Exception as error:
            result = executor.unfinished(settings, _in_words(error))
            if not isinstance(error, PolyprefixError):
                _log.exception("the run %s has failed", result.run)
        results.append(result)
        observer.ends(result)


def grid_results(
    executor: Executor, results: ResultsFile, runs: Sequence[RunSettings]
) -> list[RunResult]:
    """The latest rows of these runs, in the grid's order; rows of other grids are left out."""
    latest = results.latest()
    names = [executor.run_digest(run) for run in runs]
    return [latest[name] for name in names if name in latest]


def _in_words(error: Exception) -> str:
    words = error.message if isinstance(error, PolyprefixError) else str(error)
    return (words or type(error).__name__)[:_MAX_ERROR]
