"""What each open request has cost so far, counted from the steps as they were computed.

Knows nothing about queues, tenants or prices.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from app.engine.request import GenerationRequest, Work
from app.engine.step import StepPlan, StepResult


@dataclass(slots=True)
class _Counts:
    prompt_tokens: int = 0
    new_tokens: int = 0


class UsageMeter:
    """Counts by request, for the engine's thread alone; a request is forgotten at its `end`."""

    def __init__(self) -> None:
        self._open: dict[str, _Counts] = {}

    @property
    def open_ids(self) -> Iterable[str]:
        """Requests that have cost something and have not ended."""
        return list(self._open)

    def note(self, plan: StepPlan, outcome: StepResult) -> None:
        """Take in a step, before its terminal events are delivered."""
        for source in plan.encode:
            self._of(source.request).prompt_tokens += source.num_tokens
        for chunk in plan.chunks[plan.num_decode :]:
            # with an encoder what a row begins with is not of the user's prompt
            if chunk.row.source is None and chunk.row not in outcome.faults:
                self._of(chunk.row.request).prompt_tokens += chunk.count
        for sampled in outcome.sampled:
            if sampled.row.request.sampling.max_tokens:
                self._of(sampled.row.request).new_tokens += 1
        beams = {row.request.id: row.request for row in outcome.candidates}
        for request in beams.values():
            self._of(request).new_tokens += request.num_rows

    def end(self, request_id: str) -> Work:
        """What an ended request has cost; nothing if it never ran."""
        counts = self._open.pop(request_id, None) or _Counts()
        return Work(counts.prompt_tokens, counts.new_tokens)

    def _of(self, request: GenerationRequest) -> _Counts:
        return self._open.setdefault(request.id, _Counts())
