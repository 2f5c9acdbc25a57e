"""A scheduler whose steps nobody computes: what rows draw, what fails and the time are scripted."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable

from app.engine.config import EngineConfig
from app.engine.kv_cache.entries import Source
from app.engine.kv_cache.slots import FINE_STEPS, SlotTable, length_classes
from app.engine.request import Event, GenerationRequest, RequestFailed, RequestFinished
from app.engine.scheduler import Scheduler
from app.engine.sequence import TokenSequence
from app.engine.step import Sampled, StepPlan, StepResult
from app.errors import PolyprefixError
from app.model.generation_defaults import ReplyFrame
from tests.engine.rows import TEXT

LETTER = TEXT.encode("a")[0]
MAX_COLUMNS = 640


class ScriptedScheduler:
    """Every sampler draws `draw(row)`; rows of the requests in `faults` fail."""

    def __init__(
        self,
        config: EngineConfig | None = None,
        *,
        kv_columns: int = 100_000,
        draw: Callable[[TokenSequence], int] = lambda _: LETTER,
        source_columns: int | None = None,
    ) -> None:
        """With `source_columns` for a model with an encoder."""
        self.config = config or EngineConfig()
        self.table = SlotTable(length_classes(MAX_COLUMNS), kv_columns)
        self.sources, start = None, None
        if source_columns is not None:
            self.sources = SlotTable(length_classes(MAX_COLUMNS, FINE_STEPS), source_columns)
            start = ReplyFrame(start=2)
        self.scheduler = Scheduler(self.config, self.table, TEXT, self.sources, start)
        self.faults: dict[str, PolyprefixError] = {}
        self.events: dict[str, list[Event]] = defaultdict(list)
        self.plans: list[StepPlan] = []
        self.draw = draw

    def add(self, *requests: GenerationRequest, now: float = 0.0) -> None:
        """Queue requests, in this order."""
        for request in requests:
            self.scheduler.add(request, 0, now)

    def expire(self, now: float) -> None:
        """End what is late, as every step begins."""
        self._keep(self.scheduler.expire(now))

    def step(self, now: float = 0.0, *, seconds: float = 0.01) -> StepPlan | None:
        """Schedule, pretend to compute, commit `seconds` later; invariants hold after each."""
        plan = self.scheduler.schedule(now)
        if plan is not None:
            self.plans.append(plan)
            result = self._result(plan, seconds)
            self._keep(self.scheduler.commit(plan, result, now + seconds))
        self.scheduler.check_integrity()
        return plan

    def run(self, max_steps: int = 2000) -> None:
        """Step until nothing is left to do."""
        for _ in range(max_steps):
            if self.scheduler.idle:
                return
            self.step()
        raise AssertionError("the scheduler did not come to rest")

    def running(self) -> set[str]:
        """Ids of the requests that have a row in a slot."""
        return {row.request.id for rows in self.table.rows for row in rows}

    @property
    def open_ids(self) -> list[str]:
        """Ids of the requests that have not ended: those that wait, then those that run."""
        state = self.scheduler.debug_state()
        return [*state["waiting"], *state["active"]]

    def ends(self, request_id: str) -> list[Event]:
        """The request's terminal events."""
        kinds = RequestFinished | RequestFailed
        return [event for event in self.events[request_id] if isinstance(event, kinds)]

    def is_empty(self) -> bool:
        """Whether no row, reservation or request is left."""
        free = self.scheduler.figures().num_rows == 0 and self.table.reserved_columns == 0
        return self.scheduler.idle and free and not any(self.table.rows)

    def _result(
        self,
        plan: StepPlan,
        seconds: float,
        encoded: Iterable[Source] = (),
        encoder_seconds: float = 0.0,
    ) -> StepResult:
        sampled: list[Sampled] = []
        candidates: dict[TokenSequence, list[tuple[int, float]]] = {}
        scored: dict[TokenSequence, list[Sampled]] = {}
        faults: dict[TokenSequence, PolyprefixError] = {}
        for chunk in plan.chunks:
            row = chunk.row
            if row.request.id in self.faults:
                faults[row] = self.faults[row.request.id]
                continue
            if chunk.scores:
                start = row.num_computed + 1
                following = row.token_ids[start : min(start + chunk.count, row.num_prompt)]
                scored[row] = [Sampled(row, token, -1.0) for token in following]
            beam = row.request.sampling.beam
            if beam is not None and chunk.samplers:
                candidates[row] = [(5 + at, -1.0 - at) for at in range(2 * beam.num_beams)]
                continue
            sampled.extend(Sampled(drawer, self.draw(drawer)) for drawer in chunk.samplers)
        done = dict.fromkeys(encoded, object())
        return StepResult(sampled, scored, candidates, done, faults, seconds, encoder_seconds)

    def _keep(self, deliveries: list[tuple[str, Event]]) -> None:
        for request_id, event in deliveries:
            self.events[request_id].append(event)
