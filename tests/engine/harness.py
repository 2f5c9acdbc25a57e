"""An engine that is stepped by hand, with the logits of every sampled token on record."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence

import pytest
import torch

from app.engine import runner as runner_module
from app.engine.config import EngineConfig
from app.engine.decoding.sampler import sample
from app.engine.engine import Engine
from app.engine.kv_cache.slots import SlotTable
from app.engine.request import (
    Event,
    FinishReason,
    GenerationRequest,
    RequestFailed,
    RequestFinished,
    RowFinished,
    SamplingParams,
    TextDelta,
)
from app.engine.sequence import TokenSequence
from app.engine.step import Sampled
from app.model.frozen import FrozenModel
from app.prefix.prefix import Prefix


class SteppedEngine:
    """Runs the engine's own `step` in the test's thread; keeps every event and all logits."""

    def __init__(self, model: FrozenModel, config: EngineConfig, patch: pytest.MonkeyPatch) -> None:
        self.engine = Engine(model, config)
        self.logits: dict[tuple[str, int], list[torch.Tensor]] = defaultdict(list)
        self.events: dict[str, list[Event]] = defaultdict(list)
        patch.setattr(runner_module, "sample", self._recording_sample)
        patch.setattr(self.engine.router, "deliver", self.keep)

    def add(self, request: GenerationRequest, seed: int = 0) -> None:
        """Queue a request, as the inbox would."""
        given = request.sampling.seed
        self.engine.scheduler.add(request, seed if given is None else given, 0.0)

    def cancel(self, request_id: str) -> None:
        """Cancel a request, as the inbox would; nobody reads its end."""
        self.engine.scheduler.cancel(request_id)

    def step(self) -> None:
        """One step, and the invariants that hold after each."""
        self.engine.step()
        self.engine.check_integrity()

    def run(self, max_steps: int = 5000) -> None:
        """Step until nothing is left to do."""
        for _ in range(max_steps):
            if self.engine.scheduler.idle:
                return
            self.step()
        raise AssertionError("the engine did not come to rest")

    @property
    def tables(self) -> list[SlotTable]:
        """The slots of rows and, with an encoder, those of sources."""
        sources = self.engine.source_table
        return [self.engine.table] if sources is None else [self.engine.table, sources]

    @property
    def rows(self) -> list[TokenSequence]:
        """Rows in slots, trunks of beams among them."""
        return [
            item
            for slots in self.engine.table.rows
            for item in slots
            if isinstance(item, TokenSequence)
        ]

    def check_empty(self) -> None:
        """Nothing is left of any request: no slot, no reservation, no shared prefix, no queue."""
        for table in self.tables:
            assert table.reserved_columns == 0
            assert not any(table.rows)
        self.engine.check_integrity()
        assert self.engine.scheduler.idle
        state = self.engine.debug_state()
        assert state["num_rows"] == 0
        assert not any(state["shared"])
        assert not state["prefilling"]
        assert not state.get("waiting_sources")

    def tokens(self, request_id: str, index: int = 0) -> list[int]:
        """Token ids of one row, from the events."""
        return [
            token.token_id
            for event in self.events[request_id]
            if isinstance(event, TextDelta) and event.index == index
            for token in event.tokens
        ]

    def text(self, request_id: str, index: int = 0) -> str:
        """Text of one row, from the events."""
        return "".join(
            event.text
            for event in self.events[request_id]
            if isinstance(event, TextDelta) and event.index == index
        )

    def reason(self, request_id: str, index: int = 0) -> FinishReason | None:
        """Why a row ended; None if it did not."""
        for event in self.events[request_id]:
            if isinstance(event, RowFinished) and event.index == index:
                return event.reason
        return None

    def score(self, request_id: str, index: int = 0) -> float | None:
        """What result `index` of a beam search was ranked by."""
        for event in self.events[request_id]:
            if isinstance(event, RowFinished) and event.index == index:
                return event.score
        return None

    def terminal(self, request_id: str) -> Event | None:
        """The request's only terminal event, if it has ended."""
        ends = [
            event
            for event in self.events[request_id]
            if isinstance(event, RequestFinished | RequestFailed)
        ]
        assert len(ends) <= 1, "a request has more than one terminal event"
        return ends[0] if ends else None

    def keep(self, deliveries: list[tuple[str, Event]]) -> None:
        """Note events as a reader would get them."""
        for request_id, event in deliveries:
            self.events[request_id].append(event)

    def _recording_sample(
        self, logits: torch.Tensor, rows: Sequence[TokenSequence], eos_token_ids: Collection[int]
    ) -> list[Sampled | None]:
        for row, vector in zip(rows, logits, strict=True):
            self.logits[(row.request.id, row.index)].append(vector.clone())
        return sample(logits, rows, eos_token_ids)


def make_request(
    name: str,
    prompt_ids: Sequence[int],
    max_tokens: int = 8,
    prefixes: Sequence[Prefix] = (),
    n: int = 1,
    echo: bool = False,
    deadline: float | None = None,
    **sampling: object,
) -> GenerationRequest:
    """A request that ignores the end-of-text token unless told otherwise."""
    params = SamplingParams(max_tokens=max_tokens, **{"ignore_eos": True, **sampling})
    return GenerationRequest(
        name, "demo", tuple(prompt_ids), params, tuple(prefixes), n, echo, deadline
    )
