"""How many prompt tokens a step may take while others decode: measured, not guessed.

Rows that decode wait for the whole step, so the prompt tokens that share it are what they feel.
The pace keeps a step's duration within a set multiple of a step without prompt tokens. Knows
nothing about rows; it is told durations.
"""

from __future__ import annotations

_SMOOTHING = 0.2
_MIN_TOKENS = 16


class PrefillPace:
    """Budget of prompt tokens per step from smoothed durations of past steps.

    `share` is how many times the duration of a step without prompt tokens a step may take.
    """

    def __init__(self, share: float, max_step_tokens: int) -> None:
        self._share = share
        self._max_step_tokens = max_step_tokens
        self._quiet: dict[int, float] = {}
        self._per_token: float | None = None

    def budget(self, num_decode: int) -> int:
        """Prompt tokens for a step in which `num_decode` rows decode."""
        room = max(_MIN_TOKENS, self._max_step_tokens - num_decode)
        if num_decode == 0:
            return room
        quiet = self._quiet_seconds(num_decode)
        if quiet is None or self._per_token is None:
            return min(room, max(64, num_decode))
        affordable = int((self._share - 1) * quiet / self._per_token)
        return min(room, max(_MIN_TOKENS, affordable))

    def observe(self, num_decode: int, num_prefill: int, seconds: float) -> None:
        """Learn from a step that has just been carried out."""
        if num_prefill == 0:
            key = num_decode.bit_length()
            self._quiet[key] = _smooth(self._quiet.get(key), seconds)
            return
        quiet = self._quiet_seconds(num_decode) if num_decode else 0.0
        if quiet is None:
            return
        marginal = max(seconds - quiet, seconds * 0.1) / num_prefill
        self._per_token = _smooth(self._per_token, marginal)

    def _quiet_seconds(self, num_decode: int) -> float | None:
        """Duration of a step of that many rows alone: the nearest size class that was seen."""
        if not self._quiet:
            return None
        key = num_decode.bit_length()
        return self._quiet[min(self._quiet, key=lambda seen: abs(seen - key))]


def _smooth(old: float | None, new: float) -> float:
    return new if old is None else old + _SMOOTHING * (new - old)
