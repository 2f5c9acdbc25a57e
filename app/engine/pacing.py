"""How many prompt tokens a step may take while others decode: measured, not guessed.

Rows that decode wait for the whole step, so the prompt tokens that share it are what they feel.
A step's duration is modelled as linear in the rows that decode and the prompt tokens, fitted to
recent steps; the budget keeps it within a multiple of what it would be without prompt tokens.
Knows nothing about rows; it is told numbers.
"""

from __future__ import annotations

import numpy as np

_FORGETTING = 0.97
_MIN_TOKENS = 16
_URGENCY = 4.0
"""A row that waits for its prompt weighs as much as this many that wait for their next token: all
that it is owed comes late, and a batch that fills slowly computes few tokens a step."""
_MAX_ENCODER_SHARE = 1.5
"""An encoder's pass takes at most this many times the step that the rows would have alone."""
_FIRST_GUESS = np.array([5e-3, 2e-3, 1e-3])
"""Seconds per step, per decoding row and per prompt token before anything was measured."""


class PrefillPace:
    """Budget of prompt tokens per step.

    `share`: prompts may add this many times the duration of the step that the decoding rows would
    have alone; more when many rows wait for their prompt and few decode.
    """

    def __init__(self, share: float, max_step_tokens: int) -> None:
        self._share = share
        self._max_step_tokens = max_step_tokens
        # sums over past steps for the normal equations of (1, rows, prompt tokens) → seconds
        self._moments = np.diag([1.0, 1.0, 1.0]) * 1e-3
        self._targets = self._moments @ _FIRST_GUESS

    def budget(self, num_decode: int, num_prefilling: int) -> int:
        """Prompt tokens for a step: `num_decode` rows decode, `num_prefilling` have a prompt due.

        What a step costs those who wait for tokens is weighed against those who wait for a start.
        """
        room = max(_MIN_TOKENS, self._max_step_tokens - num_decode)
        if num_decode == 0:
            return room
        per_step, per_row, per_token = self._fit()
        alone = per_step + per_row * num_decode
        share = self._share * max(1.0, _URGENCY * num_prefilling / num_decode)
        return int(min(room, max(_MIN_TOKENS, share * alone / per_token)))

    def encoder_seconds(self, num_decode: int, num_waiting: int) -> float:
        """What an encoder's pass may take of a step, by the same weighing; without rows all."""
        if num_decode == 0:
            return float("inf")
        per_step, per_row, _ = self._fit()
        share = self._share * max(1.0, _URGENCY * num_waiting / num_decode)
        return float(min(share, _MAX_ENCODER_SHARE) * (per_step + per_row * num_decode))

    def observe(self, num_decode: int, num_prefill: int, seconds: float) -> None:
        """Learn from a step that has just been carried out."""
        features = np.array([1.0, num_decode, num_prefill])
        self._moments = _FORGETTING * self._moments + np.outer(features, features)
        self._targets = _FORGETTING * self._targets + features * seconds

    def _fit(self) -> np.ndarray:
        """Seconds per step, per decoding row and per prompt token, none of them negative."""
        ridge = np.diag([1e-3, 1e-3, 1e-3])
        solution = np.linalg.solve(self._moments + ridge, self._targets + ridge @ _FIRST_GUESS)
        return np.maximum(solution, [0.0, 0.0, 1e-6])
