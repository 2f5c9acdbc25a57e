"""Many requests through the engine from plain synchronous code: evaluation, benches, notebooks."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from app.engine.engine import Engine
from app.engine.request import (
    Event,
    FinishReason,
    GenerationRequest,
    PromptScored,
    RequestFailed,
    RowFinished,
    TextDelta,
    TokenScore,
)
from app.engine.router import RequestStream
from app.errors import Overloaded

_FULL_QUEUE_SECONDS = 0.005
"""How long to wait before a full queue is asked again."""


@dataclass
class CompletedRequest:
    """What one request produced; lists have one entry per row."""

    texts: list[str]
    token_ids: list[list[int]]
    scores: list[list[TokenScore]]
    finish_reasons: list[FinishReason | None]
    prompt_scores: list[TokenScore] = field(default_factory=list)

    @classmethod
    def of(cls, request: GenerationRequest) -> CompletedRequest:
        """That of a request that has not produced anything yet."""
        rows = range(request.n)
        return cls(["" for _ in rows], [[] for _ in rows], [[] for _ in rows], [None] * len(rows))

    def add(self, event: Event) -> None:
        """Take in one event; raises the error of a request that failed."""
        if isinstance(event, RequestFailed):
            raise event.error
        if isinstance(event, TextDelta):
            self.texts[event.index] += event.text
            self.token_ids[event.index].extend(token.token_id for token in event.tokens)
            self.scores[event.index].extend(event.tokens)
        elif isinstance(event, RowFinished):
            self.finish_reasons[event.index] = event.reason
        elif isinstance(event, PromptScored):
            self.prompt_scores.extend(event.scores)


def complete(engine: Engine, requests: Sequence[GenerationRequest]) -> list[CompletedRequest]:
    """Run `requests` together on a started engine; answers in their order.

    Raises the error of the first request that fails. What the queue does not take now is fed as it
    empties.
    """
    return asyncio.run(complete_all(engine, requests))


async def complete_all(
    engine: Engine, requests: Sequence[GenerationRequest]
) -> list[CompletedRequest]:
    """As `complete`, for callers on an event loop."""
    door = asyncio.Lock()
    return list(await asyncio.gather(*(_complete(engine, item, door) for item in requests)))


async def _submit(engine: Engine, request: GenerationRequest, door: asyncio.Lock) -> RequestStream:
    """Submit as soon as the queue has room, one after another in the order of coming."""
    async with door:
        while True:
            with suppress(Overloaded):
                return engine.submit(request)
            await asyncio.sleep(_FULL_QUEUE_SECONDS)


async def _complete(
    engine: Engine, request: GenerationRequest, door: asyncio.Lock
) -> CompletedRequest:
    result = CompletedRequest.of(request)
    stream = await _submit(engine, request, door)
    try:
        async for event in stream:
            result.add(event)
    finally:
        stream.cancel()
    return result
