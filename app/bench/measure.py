"""Measuring contenders in turns, each in its own process and warmed up.

Taking turns makes a slow phase of the machine hit all contenders alike; the median round counts.
"""

from __future__ import annotations

import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any, Generic, TypeVar

Result = TypeVar("Result")
Round = Callable[[], None]
Kind = TypeVar("Kind", bound=Round)


def in_own_process(work: Callable[..., Result], *arguments: Any) -> Result:
    """Run `work` in a fresh process, so that memory and thread pools do not interfere."""
    with _fresh_process() as process:
        return process.submit(work, *arguments).result()


class Contender(Generic[Kind]):
    """Something to measure. Its own process calls `prepare(*arguments)` once.

    Each round calls the result.
    """

    def __init__(self, prepare: Callable[..., Kind], *arguments: Any) -> None:
        self._prepare, self._arguments = prepare, arguments
        self._seconds: list[float] = []
        self._process: ProcessPoolExecutor | None = None

    @property
    def median_seconds(self) -> float:
        """The median of the rounds that count: all but the first, which warms up."""
        return statistics.median(self._seconds[1:])

    @contextmanager
    def preparing(self) -> Iterator[Future[None]]:
        """Run the process inside the block; the future is done when it is prepared."""
        with _fresh_process() as self._process:
            yield self._process.submit(_keep, self._prepare, self._arguments)

    def play(self) -> None:
        self._seconds.append(self._there.submit(_seconds_of_round).result())

    def ask(self, question: Callable[[Kind], Result]) -> Result:
        """The answer of `question` about what was prepared."""
        return self._there.submit(_answer, question).result()

    @property
    def _there(self) -> ProcessPoolExecutor:
        if self._process is None:
            raise RuntimeError("the contender is not ready")
        return self._process


@contextmanager
def contest(contenders: Sequence[Contender[Any]], rounds: int) -> Iterator[None]:
    """Run all contenders in turns, one warm-up round and `rounds` more; then enter the block."""
    with ExitStack() as stack:
        for done in [stack.enter_context(contender.preparing()) for contender in contenders]:
            done.result()
        for _ in range(1 + rounds):
            for contender in contenders:
                contender.play()
        yield


def _fresh_process() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))


_kept: list[Any] = []
"""In a contender's process: what `prepare` has returned."""


def _keep(prepare: Callable[..., Round], arguments: Sequence[Any]) -> None:
    _kept[:] = [prepare(*arguments)]


def _seconds_of_round() -> float:
    started = time.perf_counter()
    _kept[0]()
    return time.perf_counter() - started


def _answer(question: Callable[[Any], Result]) -> Result:
    return question(_kept[0])


def percentile(values: list[float], share: float) -> float:
    """The percentile `share` of `values` by nearest rank; 0 if there are none."""
    if not values:
        return 0.0
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
