"""The engine's limits, frozen at start."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class EngineConfig:
    """Bounds of the continuous batch.

    `max_rows`: rows that are computed at the same time. `max_waiting`: requests that may queue.
    `max_waiting_tokens`: prompt tokens that may queue. `kv_bytes`: memory for keys and values.
    `max_step_tokens`: tokens of one forward pass. `max_prefix_length`: columns of all the prefixes
    of one row. `prefill_share`: while rows decode, prompts may lengthen a step by this many times
    the duration that it would have without them (more when many rows wait and few decode).
    `score_chunk`: prompt positions scored per step for `echo` with `logprobs` (each costs a row
    of the vocabulary). `decode_attention`: auto or one of `app.engine.attention.backends.NAMES`.

    `reserve`: the part of rows, K/V memory and queue that no tenant takes beyond its fair share,
    also while nobody else wants it; 0 where there is one tenant.
    """

    max_rows: int = 64
    max_waiting: int = 1024
    max_waiting_tokens: int = 1_000_000
    kv_bytes: int = 2 << 30
    max_step_tokens: int = 2048
    max_prefix_length: int = 512
    prefill_share: float = 0.8
    score_chunk: int = 64
    decode_attention: str = "auto"
    reserve: float = 0.0

    @property
    def max_tenant_rows(self) -> int:
        """Rows of one tenant at most, however idle the engine is."""
        return self.max_rows - self.reserved(self.max_rows)

    def reserved(self, whole: int) -> int:
        """How much of `whole` the reserve is: at least 1 of what can be divided."""
        if self.reserve <= 0 or whole < 2:
            return 0
        return max(1, int(self.reserve * whole))
