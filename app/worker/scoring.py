"""Scores of a job in small waves, so that a worker gives way and obeys between them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from app.engine.offline import CompletedRequest
from app.engine.request import GenerationRequest
from app.evaluation.evaluator import EngineRunner

_WAVE = 16
"""Requests that are decoded together."""


@dataclass(frozen=True)
class ScoringRunner(EngineRunner):
    """An engine that gets a few requests at a time; `between` is called before each wave.

    What `between` raises ends the evaluation.
    """

    between: Callable[[], None] = lambda: None

    async def complete(self, requests: Sequence[GenerationRequest]) -> list[CompletedRequest]:
        """Wave after wave; answers in the order of the requests."""
        done: list[CompletedRequest] = []
        for start in range(0, len(requests), _WAVE):
            self.between()
            done += await super().complete(requests[start : start + _WAVE])
        return done
