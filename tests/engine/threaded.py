"""A started engine on its own thread, and a device that waits for permission: for its tests."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from app.engine.config import EngineConfig
from app.engine.engine import Engine
from app.engine.request import (
    Event,
    GenerationRequest,
    RequestFailed,
    RequestFinished,
    TextDelta,
)
from app.engine.router import RequestStream
from app.engine.step import StepPlan, StepResult
from app.model.frozen import FrozenModel

CONFIG = EngineConfig(max_rows=8, kv_bytes=64 << 20)


@contextmanager
def started(model: FrozenModel, config: EngineConfig = CONFIG) -> Iterator[Engine]:
    """An engine that runs until the block ends."""
    engine = Engine(model, config)
    engine.start()
    try:
        yield engine
    finally:
        engine.stop()


class Gate:
    """Holds every step of an engine's device until it is opened."""

    def __init__(self, engine: Engine) -> None:
        self.reached = threading.Event()
        self._open = threading.Event()
        self._run = engine.runner.run
        engine.runner.run = self._held_run

    def open(self) -> None:
        """Let this and all later steps run."""
        self._open.set()

    def _held_run(self, plan: StepPlan) -> StepResult:
        self.reached.set()
        if not self._open.wait(60):
            raise TimeoutError("nobody opened the gate")
        return self._run(plan)


async def read(stream: RequestStream) -> list[Event]:
    """All events of a stream."""
    return [event async for event in stream]


async def ask(engine: Engine, request: GenerationRequest) -> list[Event]:
    """Submit and read to the end."""
    return await read(engine.submit(request))


def tokens_of(events: list[Event], index: int = 0) -> list[int]:
    """Token ids of one row."""
    deltas = [event for event in events if isinstance(event, TextDelta) and event.index == index]
    return [token.token_id for delta in deltas for token in delta.tokens]


def error_of(events: list[Event]) -> type[Exception] | None:
    """The kind of error that ended a request; None if it finished. Checks that there is one end."""
    ends = [event for event in events if isinstance(event, RequestFinished | RequestFailed)]
    assert len(ends) == 1, "a request must have exactly one terminal event"
    assert events[-1] is ends[0]
    return type(ends[0].error) if isinstance(ends[0], RequestFailed) else None
