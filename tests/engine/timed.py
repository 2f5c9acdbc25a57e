"""A scripted scheduler whose steps take time as a model's do, and requests of many tenants."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from app.engine.config import EngineConfig
from app.engine.decoding.beam_search import BeamParams
from app.engine.kv_cache.entries import Source
from app.engine.request import GenerationRequest, SamplingParams
from app.engine.step import StepPlan
from tests.engine.scripted import ScriptedScheduler

PROMPT, NEW = 32, 48


@dataclass(frozen=True)
class Costs:
    """Seconds of a step, and more for each row that decodes and for each prompt token."""

    step: float
    row: float
    prompt_token: float


FLAT = Costs(10e-3, 0.02e-3, 0.02e-3)
"""Rows cost nothing beside the step, as on a large device."""
SMALL_MODEL = Costs(3e-3, 0.1e-3, 0.05e-3)
ON_CPU = Costs(15e-3, 1.35e-3, 0.8e-3)
"""Rows cost nearly all, as with GPT-2 on two cores."""


def tenant_request(
    tenant: str,
    name: str,
    prompt: int = PROMPT,
    new: int = NEW,
    n: int = 1,
    *,
    weight: float = 1.0,
    priority: int = 0,
    row_cap: int | None = None,
    queue_cap: int | None = None,
    beams: int | None = None,
    scored: bool = False,
) -> GenerationRequest:
    """A request that gets all its new tokens, its text in one piece; `scored` with its prompt."""
    return GenerationRequest(
        f"{tenant}{name}",
        tenant,
        (5,) * prompt,
        SamplingParams(
            max_tokens=new,
            ignore_eos=True,
            logprobs=0 if scored else None,
            beam=None if beams is None else BeamParams(beams),
        ),
        n=n,
        echo=scored,
        whole=True,
        weight=weight,
        priority=priority,
        row_cap=row_cap,
        queue_cap=queue_cap,
    )


def requests_of(tenant: str, count: int, **facts: Any) -> list[GenerationRequest]:
    """Requests that are alike."""
    return [tenant_request(tenant, str(index), **facts) for index in range(count)]


class TimedScheduler(ScriptedScheduler):
    """`now` advances by what each step costs; notes who got how many tokens, and first ones.

    A token that an encoder reads costs as much as one of a prompt.
    """

    def __init__(
        self,
        costs: Costs = FLAT,
        max_rows: int = 64,
        *,
        kv_columns: int = 100_000,
        reserve: float = 0.0,
        source_columns: int | None = None,
    ) -> None:
        config = EngineConfig(max_rows=max_rows, max_waiting=100_000, reserve=reserve)
        super().__init__(config, kv_columns=kv_columns, source_columns=source_columns)
        self.costs = costs
        self.now = 0.0
        self.tokens: list[tuple[float, dict[str, int]]] = []
        self.first_token_after: dict[str, float] = {}
        self.submitted: dict[str, float] = {}
        self._encoding: list[tuple[tuple[Source, ...], float]] = []

    def submit(self, requests: Iterable[GenerationRequest], at: float | None = None) -> None:
        """Queue requests now, or as if they had come at that time."""
        for request in requests:
            self.submitted[request.id] = self.now if at is None else at
            self.add(request, now=self.submitted[request.id])

    def advance(self) -> StepPlan | None:
        """One step."""
        plan = self.scheduler.schedule(self.now)
        if plan is None:
            return None
        costs = self.costs
        seconds = (
            costs.step + costs.row * plan.num_decode + costs.prompt_token * plan.num_prefill_tokens
        )
        encoded, encoder_seconds = self._encode(plan)
        seconds += encoder_seconds
        result = self._result(plan, seconds, encoded, encoder_seconds)
        self.now += seconds
        got: dict[str, int] = defaultdict(int)
        for row in [sampled.row for sampled in result.sampled] + list(result.candidates):
            request = row.request
            got[request.tenant] += 1
            self.first_token_after.setdefault(request.id, self.now - self.submitted[request.id])
        self.tokens.append((self.now, got))
        self._keep(self.scheduler.commit(plan, result, self.now))
        return plan

    def _encode(self, plan: StepPlan) -> tuple[tuple[Source, ...], float]:
        """The sources whose pass is done with this step, and the seconds that it took of it."""
        begin, seconds = plan.encoding.begin, plan.encoding.seconds
        if begin:
            tokens = sum(source.num_tokens for source in begin)
            self._encoding.append((begin, self.costs.prompt_token * tokens))
        if seconds is None or not self._encoding:
            return (), 0.0
        sources, left = self._encoding.pop()
        if left <= seconds:
            return sources, left
        self._encoding.append((sources, left - seconds))
        return (), seconds

    def advance_until(self, time: float) -> None:
        """Steps until that time, or until nothing is left to do."""
        while self.now < time and self.advance() is not None:
            pass

    def rows_of(self, tenant: str) -> int:
        """Rows that a tenant holds."""
        entries = self.scheduler.figures().active
        return sum(entry.num_rows for entry in entries if entry.request.tenant == tenant)

    def tokens_between(self, start: float, end: float) -> dict[str, int]:
        """New tokens of each tenant in a span of time."""
        total: dict[str, int] = defaultdict(int)
        for at, got in self.tokens:
            if start < at <= end:
                for tenant, count in got.items():
                    total[tenant] += count
        return total


def requests_per_second(costs: Costs) -> float:
    """What one tenant that is alone can have at most."""
    timed = TimedScheduler(costs)
    timed.submit(requests_of("alone", 640))
    timed.advance_until(1e9)
    return 640 / timed.now


def first_token_times(
    costs: Costs, rate: float, seconds: float, flood: Iterable[GenerationRequest], seed: int
) -> list[float]:
    """Sorted times to first token of a tenant whose requests come at random, `rate` a second.

    After a fifth of the time the flood comes, and from then on it is measured.
    """
    chance = random.Random(seed)
    timed = TimedScheduler(costs)
    arrivals: list[tuple[float, GenerationRequest]] = []
    at = 0.0
    while (at := at + chance.expovariate(rate)) < seconds:
        arrivals.append((at, tenant_request("quiet", str(len(arrivals)))))
    arrivals.reverse()
    waiting_flood = list(flood)
    while arrivals:
        while arrivals and arrivals[-1][0] <= timed.now:
            at, request = arrivals.pop()
            timed.submit([request], at)
        if waiting_flood and timed.now > seconds / 5:
            timed.submit(waiting_flood)
            waiting_flood = []
        if timed.advance() is None and arrivals:
            timed.now = max(timed.now, arrivals[-1][0])
    submitted = timed.submitted
    return sorted(
        after
        for name, after in timed.first_token_after.items()
        if name.startswith("quiet") and submitted[name] > seconds / 5
    )
