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
class Completion:
    """What one request produced; lists have one entry per row."""

    texts: list[str]
    token_ids: list[list[int]]
    scores: list[list[TokenScore]]
    finish_reasons: list[FinishReason | None]
    prompt_scores: list[TokenScore] = field(default_factory=list)


def complete(engine: Engine, requests: Sequence[GenerationRequest]) -> list[Completion]:
    """Run `requests` together on a started engine; answers in their order.

    Raises the error of the first request that fails. What the queue does not take now is fed as it
    empties.
    """
    return asyncio.run(_complete_all(engine, requests))


async def _complete_all(engine: Engine, requests: Sequence[GenerationRequest]) -> list[Completion]:
    door = asyncio.Lock()
    return list(await asyncio.gather(*(_complete(engine, item, door) for item in requests)))


async def _submit(engine: Engine, request: GenerationRequest, door: asyncio.Lock) -> RequestStream:
    """Submit as soon as the queue has room, one after another in the order of coming."""
    async with door:
        while True:
            with suppress(Overloaded):
                return engine.submit(request)
            await asyncio.sleep(_FULL_QUEUE_SECONDS)


async def _complete(engine: Engine, request: GenerationRequest, door: asyncio.Lock) -> Completion:
    rows = range(request.n)
    result = Completion(
        ["" for _ in rows], [[] for _ in rows], [[] for _ in rows], [None] * len(rows)
    )
    stream = await _submit(engine, request, door)
    try:
        async for event in stream:
            _take(event, result)
    finally:
        stream.cancel()
    return result


def _take(event: Event, result: Completion) -> None:
    """Add one event to the result; raises the error of a request that failed."""
    if isinstance(event, RequestFailed):
        raise event.error
    if isinstance(event, TextDelta):
        result.texts[event.index] += event.text
        result.token_ids[event.index].extend(token.token_id for token in event.tokens)
        result.scores[event.index].extend(event.tokens)
    elif isinstance(event, RowFinished):
        result.finish_reasons[event.index] = event.reason
    elif isinstance(event, PromptScored):
        result.prompt_scores.extend(event.scores)
