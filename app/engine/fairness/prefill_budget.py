"""How many prompt tokens a step may take while others decode: measured, not guessed.

Rows that decode wait for the whole step, so the prompt tokens that share it are what they feel.
A step's duration is modelled as linear in the rows that decode and the prompt tokens, fitted to
recent steps; the budget keeps it within a multiple of what it would be without prompt tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

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
_ENOUGH_STEPS = 4.0
"""Recent steps without prompt tokens from which their own fit is believed."""


@dataclass(frozen=True)
class Speed:
    """A step of rows that decode takes `step_s` seconds and `row_s` more for each of them."""

    step_s: float
    row_s: float
    max_rows: int

    @property
    def tokens_per_s(self) -> float:
        """New tokens per second of a full batch."""
        return self.max_rows / max(1e-6, self.step_s + self.row_s * self.max_rows)

    def worth(self, part: float) -> float:
        """Throughput of a batch with this part of the rows, relative to a full one: with every
        row a step takes longer, so the first ones are worth most."""
        part = min(1.0, part)
        full = self.step_s + self.row_s * self.max_rows
        some = self.step_s + self.row_s * self.max_rows * part
        return part * full / some if some > 0 else part


class PrefillBudget:
    """Budget of prompt tokens per step.

    `share`: prompts may add this many times the duration of the step that the decoding rows would
    have alone; more when many rows wait for their prompt and few decode. `longest`: what they add
    at most, in seconds.
    """

    def __init__(self, share: float, max_step_tokens: int, longest: float = math.inf) -> None:
        self._share, self._longest = share, longest
        self._max_step_tokens = max_step_tokens
        self._all = _LinearFit(_FIRST_GUESS)
        self._quiet = _LinearFit(_FIRST_GUESS[:2])
        # what a prompt token has cost lately: more, the further its chunk lies in a long prompt
        self._recent_token = 0.0

    def budget(self, num_decode: int, num_prefilling: int) -> int:
        """Prompt tokens for a step: `num_decode` rows decode, `num_prefilling` have a prompt due.

        What a step costs those who wait for tokens is weighed against those who wait for a start.
        """
        per_token = max(1e-6, self._all.solution()[2], self._recent_token)
        most = min(float(self._max_step_tokens - num_decode), self._longest / per_token)
        room = max(_MIN_TOKENS, int(most))
        if num_decode == 0:
            return room
        per_step, per_row = self._decode_costs()
        alone = per_step + per_row * num_decode
        share = self._share * max(1.0, _URGENCY * num_prefilling / num_decode)
        return int(min(room, max(_MIN_TOKENS, share * alone / per_token)))

    def speed(self, max_rows: int) -> Speed:
        """How fast rows decode, of which there are `max_rows` at most."""
        return Speed(*self._decode_costs(), max_rows)

    def encoder_seconds(self, num_decode: int, num_waiting: int) -> float:
        """What an encoder's pass may take of a step, by the same weighing; without rows all."""
        if num_decode == 0:
            return float("inf")
        per_step, per_row = self._decode_costs()
        share = self._share * max(1.0, _URGENCY * num_waiting / num_decode)
        return min(share, _MAX_ENCODER_SHARE) * (per_step + per_row * num_decode)

    def observe(self, num_decode: int, num_prefill: int, seconds: float) -> None:
        """Learn from a step that has just been carried out."""
        if num_prefill == 0:
            self._quiet.observe(np.array([1.0, num_decode]), seconds)
        elif num_decode > 0:
            per_step, per_row = self._decode_costs()
            cost = max(0.0, seconds - per_step - per_row * num_decode) / num_prefill
            self._recent_token = (self._recent_token + cost) / 2
        self._all.observe(np.array([1.0, num_decode, num_prefill]), seconds)

    def _decode_costs(self) -> tuple[float, float]:
        """What is believed of steps without prompt tokens: seconds, and more for each row."""
        fit = self._quiet if self._quiet.num_steps >= _ENOUGH_STEPS else self._all
        per_step, per_row = fit.solution()[:2]
        return float(per_step), float(per_row)


class _LinearFit:
    """Least squares over recent steps, no coefficient negative, `guess` before there are any."""

    def __init__(self, guess: np.ndarray) -> None:
        self._guess = guess
        self._ridge = np.eye(len(guess)) * 1e-3
        # sums over past steps for the normal equations
        self._moments = np.zeros_like(self._ridge)
        self._targets = np.zeros_like(guess)
        self._solution: np.ndarray | None = None
        self.num_steps = 0.0

    def observe(self, features: np.ndarray, seconds: float) -> None:
        self.num_steps = _FORGETTING * self.num_steps + 1
        self._moments = _FORGETTING * self._moments + np.outer(features, features)
        self._targets = _FORGETTING * self._targets + features * seconds
        self._solution = None

    def solution(self) -> np.ndarray:
        if self._solution is None:
            targets = self._targets + self._ridge @ self._guess
            solved = np.linalg.solve(self._moments + self._ridge, targets)
            self._solution = np.maximum(solved, 0.0)
        return self._solution
