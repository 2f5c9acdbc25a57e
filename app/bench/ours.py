"""Our engine under a load: at full speed, or with requests that arrive over time."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from app.bench.load import Item, Load, random_prefix
from app.bench.measure import percentile
from app.engine.config import EngineConfig
from app.engine.decoding.beam_search import BeamParams
from app.engine.engine import Engine
from app.engine.request import GenerationRequest, RequestFailed, SamplingParams, TextDelta
from app.model.load import load_model
from app.model.threads import run_in_fresh_thread
from app.prefix.prefix import Prefix


@dataclass
class TokenTimes:
    """The times of one request's tokens, in seconds of a monotonic clock."""

    submitted: float = 0.0
    tokens: list[float] = field(default_factory=list)

    @property
    def gaps(self) -> list[float]:
        return [after - before for before, after in zip(self.tokens, self.tokens[1:], strict=False)]


class Ours:
    """A loaded model with a started engine and the load's prefixes; `stop` ends it.

    `max_rows` counts requests; each may have several beams. With `timed` every token is reported
    at once, even one without text; this costs its log-probability.
    """

    def __init__(
        self,
        folder: str,
        load: Load,
        dtype: str,
        max_rows: int,
        threads: int,
        *,
        timed: bool = False,
    ) -> None:
        self._logprobs = 0 if timed else None
        torch.set_num_threads(threads)
        self.engine, self.prefixes = run_in_fresh_thread(
            _prepare, folder, load, dtype, max_rows * load.num_beams
        )
        self.engine.start()
        self._load = load
        self._count = 0
        self.decode_step_s: list[float] = []

    def stop(self) -> None:
        self.engine.stop()

    def __call__(self) -> None:
        """Run the whole load once and note the times of steps without prompts."""
        counters = self.engine.counters
        steps, seconds = counters.decode_steps, counters.decode_seconds
        asyncio.run(self.play(self._load.items))
        steps, seconds = counters.decode_steps - steps, counters.decode_seconds - seconds
        self.decode_step_s.append(seconds / max(1, steps))

    async def play(self, items: Sequence[Item]) -> list[TokenTimes]:
        """Submit each item when it arrives; return the times of all tokens."""
        started = time.monotonic()
        return list(await asyncio.gather(*(self._one(item, started) for item in items)))

    def request(self, item: Item) -> GenerationRequest:
        """The item as a request that runs to its full length."""
        self._count += 1
        prefixes = (self.prefixes[item.prefix],) if self.prefixes else ()
        beams = self._load.num_beams
        sampling = SamplingParams(
            max_tokens=item.num_new,
            ignore_eos=True,
            beam=BeamParams(beams) if beams > 1 else None,
            **{"logprobs": self._logprobs, **self._load.sampling},
        )
        return GenerationRequest(
            str(self._count),
            "bench",
            item.prompt_ids,
            sampling,
            prefixes=prefixes,
            whole=self._logprobs is None,
        )

    async def _one(self, item: Item, started: float) -> TokenTimes:
        delay = started + item.arrival - time.monotonic()
        if delay > 0:
            await asyncio.sleep(delay)
        times = TokenTimes(time.monotonic())
        made = 0
        async for event in self.engine.submit(self.request(item)):
            if isinstance(event, RequestFailed):
                raise event.error
            if isinstance(event, TextDelta):
                made += len(event.tokens)
                times.tokens.extend([time.monotonic()] * len(event.tokens))
        if made != item.num_new:
            raise RuntimeError(f"the engine made {made} tokens instead of {item.num_new}")
        return times


def _prepare(folder: str, load: Load, dtype: str, max_rows: int) -> tuple[Engine, list[Prefix]]:
    model = load_model(folder, device="cpu", dtype=dtype)
    prefixes = [
        random_prefix(model.spec, length, seed).to(model.device, model.dtype)
        for seed, length in enumerate(load.prefix_lengths)
    ]
    return Engine(model, EngineConfig(max_rows=max_rows, kv_bytes=4 << 30)), prefixes


def engine_figures(ours: Ours) -> dict[str, float]:
    """The engine's figures about its steps and its memory.

    Means are over all rounds; `decode_step_ms` is from the median round.
    """
    counters = ours.engine.counters
    rounds = ours.decode_step_s[1:] or ours.decode_step_s
    return {
        "mean_step_ms": 1000 * counters.step_seconds / max(1, counters.steps),
        "mean_decode_step_ms": 1000 * counters.decode_seconds / max(1, counters.decode_steps),
        "decode_step_ms": 1000 * statistics.median(rounds),
        "kv_mb": ours.engine.kv_bytes / 1e6,
    }


def stall_figures(folder: str, dtype: str, threads: int, prompts: int) -> dict[str, float]:
    """p99 time between tokens of 16 decoding rows, alone and while long prompts arrive.

    `prompts` prompts of 900 tokens arrive together. With an encoder they are sources.
    """
    rows, new = 16, 96
    decoding = tuple(Item((1 + row,) * 24, new, row % 4) for row in range(rows))
    intruders = [Item((3 + index,) * 900, 8, 0) for index in range(prompts)]
    load = Load(decoding, (20,) * 4)
    ours = Ours(folder, load, dtype, rows + prompts, threads, timed=True)

    async def both() -> list[TokenTimes]:
        quiet = asyncio.gather(*(ours.play([item]) for item in decoding))
        while ours.engine.counters.generated_tokens < first + rows * 12:
            await asyncio.sleep(0.005)
        await ours.play(intruders)
        return [times for batch in await quiet for times in batch]

    try:
        # after two rounds the engine knows what its steps cost
        for _ in range(2):
            asyncio.run(ours.play([*decoding, *intruders]))
        quiet = _late_gaps(asyncio.run(ours.play(decoding)))
        first = ours.engine.counters.generated_tokens
        disturbed = _late_gaps(asyncio.run(both()))
    finally:
        ours.stop()
    quiet_ms, with_prompt_ms = (1000 * percentile(gaps, 0.99) for gaps in (quiet, disturbed))
    return {
        "quiet_p99_ms": quiet_ms,
        "with_long_prompt_p99_ms": with_prompt_ms,
        "ratio": with_prompt_ms / quiet_ms,
    }


def _late_gaps(rows: Sequence[TokenTimes]) -> list[float]:
    """Times between tokens after the first ones, when all rows of the group decode."""
    return [gap for times in rows for gap in times.gaps[4:]]
